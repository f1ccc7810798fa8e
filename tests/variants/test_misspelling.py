"""Disturbed texts: what each way does to a text, and that a model's rows come back disturbed and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compression.data import Split
from compression.signature import Signature, TensorSpec
from tests.variants.transform_specs import tokenizer
from variants.build import build
from variants.catalog import Catalog
from variants.host import this_host
from variants.misspelling import MISSPELLINGS, misspelled
from variants.progress import Lines
from variants.samples import read_disturbed, read_split, write_split
from variants.text import Tokenize, TokenizeSettings

TEXT = "see you at noon and buy nothing more than you need"
TOKENS = Signature(
    tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")),
    (TensorSpec("logits", "float32", ("batch", 2)),),
)


def changed(name: str, severity: float) -> str:
    return MISSPELLINGS[name][0](TEXT, severity, np.random.default_rng(0))


@pytest.fixture
def tokenize(tmp_path: Path) -> Tokenize:
    path = tmp_path / "tokenizer.json"
    made = tokenizer()
    made.add_special_tokens(["[CLS]", "[SEP]"])
    made.save(str(path))
    return Tokenize(TokenizeSettings(pad_to_multiple_of=8), TOKENS, {"tokenizer.json": path})


def test_each_way_does_what_it_is_called() -> None:
    assert changed("case", 1.0) == TEXT.upper()
    assert changed("case", 0.2).lower() == TEXT
    assert changed("whitespace", 1.0) == TEXT.replace(" ", "")
    assert TEXT.startswith(changed("cut", 0.5))
    assert len(changed("cut", 0.9)) == 5
    typed = changed("typos", 0.1)
    assert typed != TEXT
    assert abs(len(typed) - len(TEXT)) <= 4
    assert all(changed(name, 0.0) == TEXT for name in MISSPELLINGS)
    assert changed("typos", 0.1) == typed


def test_rows_come_back_disturbed_and_lie_beside_the_split(tokenize: Tokenize, tmp_path: Path) -> None:
    texts = [b"see you at noon", b"buy now", b"now you see"]
    split = Split(tokenize.run(np.array(texts, dtype=object)), np.array([0, 1, 0]))
    assert tokenize.texts(split.inputs) == ["see you at noon", "buy now", "now you see"]
    made = list(misspelled(split, tokenize))
    assert len(made) == 8
    last = next(each for each in made if (each.perturbation, each.severity) == ("whitespace", 0.5))
    assert last.rows.inputs["input_ids"].shape[0] == 3
    assert (last.rows.inputs["input_ids"] == 1).any()  # words run together are unknown
    write_split(tmp_path / "rows.npz", split, made)
    assert read_split(tmp_path / "rows.npz").inputs.keys() == split.inputs.keys()
    for wrote, read in zip(made, read_disturbed(tmp_path / "rows.npz"), strict=True):
        assert (wrote.perturbation, wrote.severity) == (read.perturbation, read.severity)
        assert np.array_equal(wrote.rows.inputs["input_ids"], read.rows.inputs["input_ids"])


def test_where_there_is_no_mask_what_pads_is_no_text(tokenize: Tokenize) -> None:
    made = tokenize.run(np.array([b"see you at noon", b"buy now"], dtype=object))
    assert tokenize.texts({"input_ids": made["input_ids"]}) == ["see you at noon", "buy now"]


def test_a_build_judges_disturbed_texts_and_compares_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPGATE_HOME", str(tmp_path / "mipgate"))
    catalog, host = Catalog(root=tmp_path / "store"), this_host()
    card = build("tests.variants.transform_specs:TEXT", catalog, host, Lines()).card
    (entry,) = card.entries
    for profile in card.hosts[host.fingerprint].profiles[entry.id.version]:
        found = {(each.perturbation, each.severity): each for each in profile.quality.robustness}
        assert len(found) == 8
        assert found["case", 1.0].value < found["case", 1.0].clean  # its words are all in small letters
    assert card.spec.comparison is not None
    assert card.spec.comparison.name == "ham, always"
    assert card.spec.comparison.model.value == 1.0 > card.spec.comparison.baseline
