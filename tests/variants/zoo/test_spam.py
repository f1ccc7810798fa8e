"""The mail classifier on a tiny encoder: padding is not read, a student begins as its teacher."""

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import BertConfig, BertModel

from compression.export import export
from compression.model import TorchModel
from compression.training import seeded
from variants.zoo import spam

CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    with seeded(0):
        encoder = BertModel(BertConfig(**CONFIG))
    weights = {**encoder.state_dict(), "embeddings.position_ids": torch.arange(40)}
    monkeypatch.setattr(spam, "_pretrained", lambda: (CONFIG, weights))


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def test_padding_changes_no_answer() -> None:
    model = spam.SPEC.factory().eval()
    short = ids(2, 9)
    padded = torch.cat([short, torch.zeros(2, 20, dtype=torch.long)], 1)
    mask = (torch.arange(29) < 9).long().expand(2, -1)
    torch.testing.assert_close(model(padded, mask), model(short, torch.ones_like(short)))


def test_the_student_begins_with_every_other_layer_of_its_teacher() -> None:
    teacher = spam.SPEC.factory().encoder.state_dict()
    student = spam.SPEC.students["three-layers"]().encoder.state_dict()
    assert {name.split(".")[2] for name in student if name.startswith("encoder.layer.")} == {"0", "1", "2"}
    for name, tensor in student.items():
        parts = name.split(".")
        if name.startswith("encoder.layer."):
            parts[2] = str(2 * int(parts[2]))
        torch.testing.assert_close(tensor, teacher[".".join(parts)])


def test_it_exports_with_any_batch_and_length() -> None:
    model = TorchModel(spam.SPEC.factory().eval(), spam.SPEC.signature)
    session = onnxruntime.InferenceSession(export(model).proto.SerializeToString())
    for rows, length in ((1, 3), (5, 40)):
        given = ids(rows, length)
        mask = torch.ones_like(given)
        mask[-1, 2:] = 0
        feeds = {"input_ids": given.numpy(), "attention_mask": mask.numpy()}
        expected = model.module(given, mask).detach().numpy()
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-5)
