"""The variants of digits: which come out, what each promises, what is left of weights and channels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from compression.data import Split
from tests.commands import mipgate, said
from tests.conftest import Homes
from variants.assessment import Standing, assess_model, tier_choice
from variants.catalog import SAMPLES_FILE, VALIDATION_FILE, Catalog
from variants.host import this_host
from variants.runtime import open_session, reference_runtime
from variants.samples import read_golden, read_split
from variants.variant import Life, Status

if TYPE_CHECKING:
    import onnx


VARIANTS = (
    "fp32",
    "fp16",
    "int8-dynamic",
    "int8-static",
    "pruned",
    "distilled",
    "pruned-distilled-int8",
)


@pytest.fixture(scope="module")
def standings(digits: Catalog) -> dict[str, Standing]:
    _, found = assess_model(digits, "digits", this_host())
    return {standing.entry.id.recipe: standing for standing in found}


def graph(standing: Standing) -> onnx.ModelProto:
    import onnx

    assert standing.stored is not None
    return onnx.load_model(standing.stored.model_path)


def weights(standing: Standing) -> dict[str, int]:
    """How many numbers the file stores in each format, biases and scalars left out."""
    from onnx import numpy_helper

    count: dict[str, int] = {}
    for tensor in graph(standing).graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1:
            count[array.dtype.name] = count.get(array.dtype.name, 0) + array.size
    return count


def channels(standing: Standing) -> list[int]:
    """Output channels of each convolution, as the file has them."""
    model = graph(standing)
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [shapes[node.input[1]][0] for node in model.graph.node if node.op_type == "Conv"]


def operators(standing: Standing) -> set[str]:
    return {node.op_type for node in graph(standing).graph.node}


def test_digits_has_its_variants_released_and_none_refused(standings: dict[str, Standing]) -> None:
    assert set(standings) == set(VARIANTS)
    assert {s.entry.life for s in standings.values()} == {Life.RELEASED}
    assert {s.status for s in standings.values()} <= {Status.SERVING, Status.DOMINATED}
    for standing in standings.values():
        assert (standing.status is Status.DOMINATED) == bool(standing.reason)
        assert standing.profile is not None
        assert standing.stored is not None
        assert standing.stored.scorecard.bytes == standing.stored.model_path.stat().st_size
    assert tier_choice(standings.values(), 0.99) is not None
    assert tier_choice(standings.values(), 0.97) is not None


def test_every_step_left_a_fact_that_it_established(standings: dict[str, Standing]) -> None:
    for standing in standings.values():
        assert standing.stored is not None
        *facts, parity = standing.stored.scorecard.invariants
        ran = [step["pass"] for step in standing.entry.steps]
        assert [fact["pass"] for fact in facts] == (ran or ["training"])  # the reference: how it was trained
        assert all(fact["facts"] for fact in facts)
        assert parity["check"] == "parity"


def _digests(split: Split) -> set[str]:
    return {hashlib.sha256(row.tobytes()).hexdigest() for row in split.inputs["image"]}


def test_no_row_stands_in_two_splits(digits: Catalog) -> None:
    from variants.zoo.digits import SPEC

    splits = dict(SPEC.splits().items())
    digests = {name: _digests(split) for name, split in splits.items()}
    assert [len(split) for split in splits.values()] == [957, 120, 360, 360]
    assert len(set().union(*digests.values())) == sum(map(len, digests.values()))
    published = {
        "test": read_split(digits.card_file("digits", SAMPLES_FILE)),
        "validation": read_split(digits.card_file("digits", VALIDATION_FILE)),
    }
    for name, split in published.items():
        assert _digests(split) == digests[name]
        assert split.labels is not None
        assert np.array_equal(split.labels, splits[name].labels)


def test_the_reference_is_right_on_975_of_1000_test_rows(
    digits: Catalog, standings: dict[str, Standing]
) -> None:
    standing = standings["fp32"]
    samples = read_split(digits.card_file("digits", SAMPLES_FILE))
    assert standing.stored is not None
    assert standing.profile is not None
    session = open_session(standing.stored.model_path, reference_runtime(this_host()))
    (logits,) = session.run(samples.inputs)
    right = float((logits.argmax(axis=1) == samples.labels).mean())
    assert right >= 0.975
    assert standing.profile.quality.test.value == pytest.approx(right)


def test_golden_rows_are_answered_as_where_they_were_built(standings: dict[str, Standing]) -> None:
    for standing in standings.values():
        assert standing.stored is not None
        inputs, outputs = read_golden(standing.stored.golden_path)
        session = open_session(standing.stored.model_path, reference_runtime(this_host()))
        for name, array in session.run_named(inputs).items():
            assert array == pytest.approx(outputs[name], abs=1e-3)


def test_int8_graphs_compute_on_integers_and_store_them(standings: dict[str, Standing]) -> None:
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operators(standings["int8-dynamic"])
    for name in ("int8-static", "pruned-distilled-int8"):
        static = operators(standings[name])
        assert {"QuantizeLinear", "DequantizeLinear"} <= static or "QLinearConv" in static
        stored = weights(standings[name])
        assert stored.get("int8", 0) + stored.get("uint8", 0) > 0.9 * sum(stored.values())
    assert weights(standings["int8-dynamic"]).get("int8", 0) > 1000
    assert set(weights(standings["fp32"])) == {"float32"}
    halves = weights(standings["fp16"])
    assert halves["float16"] > 0.9 * sum(halves.values())


def test_pruned_and_distilled_graphs_have_fewer_channels(standings: dict[str, Standing]) -> None:
    full = channels(standings["fp32"])
    assert len(full) == 3
    for name in ("pruned", "distilled"):
        assert all(fewer < many for fewer, many in zip(channels(standings[name]), full, strict=True))
        assert sum(weights(standings[name]).values()) < 0.5 * sum(weights(standings["fp32"]).values())


def test_compressed_files_are_smaller(standings: dict[str, Standing]) -> None:
    sizes = {name: s.stored.scorecard.bytes for name, s in standings.items() if s.stored}
    assert all(sizes[name] < sizes["fp32"] for name in VARIANTS[1:])
    assert sizes["pruned-distilled-int8"] < sizes["pruned"]


def test_the_same_seed_builds_the_same_bytes_elsewhere(empty: Homes, standings: dict[str, Standing]) -> None:
    """Trained anew from nothing, and one variant of it quantized."""
    ended = mipgate(empty, "build", "digits", "--recipe", "int8-static", "--quiet", "--jobs", "2")
    assert "digits: 2 built, 0 cached, 0 not built" in ended.stderr
    for variant in said(empty, "show", "digits")["variants"]:
        first = standings[variant["name"]]
        assert first.stored is not None
        assert variant["build"] == first.entry.id.build
        assert Path(variant["artifact"]["path"]).read_bytes() == first.stored.model_path.read_bytes()
