"""What is worked out of stored figures: ratios, classes, portability."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from compression.figures import Layer, Sqnr, Traffic
from tests.variants.handmade import HOST, card, entry, profile, stored
from variants.assessment import assess, describe
from variants.confusion import Cells
from variants.details import compression_ratios, describe_profile, portability
from variants.profile import Latency, Profile
from variants.robustness import Robustness
from variants.scorecard import BuildSeconds, Scorecard

CARD = Scorecard(
    1000, "f" * 64, 100, 90, 400, 9.0, 2000,
    weights={"float32": 100},
    seconds=BuildSeconds(6.0, 2.0, 1.0),
    traffic=Traffic(400, 400),
)  # fmt: skip
THEIRS: Cells = {0: {0: 10}, 1: {1: 10}}
OURS: Cells = {0: {0: 10}, 1: {0: 4, 1: 6}}


def with_classes(of: Profile, cells: Cells) -> Profile:
    disturbed = Robustness("contrast", 0.15, 20, 0.8, 0.4, 0.9, 0.7)
    quality = replace(of.quality, confusion={"validation": cells}, robustness=[disturbed])
    return replace(of, quality=quality)


def test_ratios_say_how_many_times_smaller_an_artifact_is() -> None:
    small = replace(CARD, bytes=250, nonzero_parameters=30, traffic=Traffic(100, 100))
    assert compression_ratios(small, CARD) == {
        "bytes": 4.0, "parameters": 1.0, "nonzero_parameters": 3.0, "flops": 1.0, "moved_bytes": 4.0,
    }  # fmt: skip
    assert "moved_bytes" not in compression_ratios(replace(small, traffic=None), CARD)
    assert "flops" not in compression_ratios(replace(small, flops=0), CARD)


def test_intensity_is_operations_per_byte() -> None:
    assert CARD.intensity == 0.5
    assert CARD.macs == 200
    assert replace(CARD, traffic=None).intensity is None


def test_jitter_and_throughput_follow_from_latency() -> None:
    of = replace(profile(), latency_ms={8: Latency(2.0, 3.0, 5.0)})
    described = describe_profile(of)
    assert described["latency_ms"]["8"] == {"p50": 2.0, "p95": 3.0, "p99": 5.0, "jitter": 1.5}
    assert described["throughput_rows_s"] == {"8": 4000.0}


def test_the_document_has_classes_noise_traffic_and_robustness() -> None:
    noise = Sqnr({"y": 40.0}, [Layer("w", 45.0, 38.0, "MatMul")])
    small = entry("small")
    of = card(
        entry("fp32"), small,
        profiles={
            f"fp32@{'a' * 12}": [with_classes(profile(), THEIRS)],
            small.id.version: [with_classes(profile(0.9, ms=0.5), OURS)],
        },
    )  # fmt: skip
    files = {
        f"fp32@{'a' * 12}": replace(stored(entry("fp32")), scorecard=CARD),
        small.id.version: replace(stored(small), scorecard=replace(CARD, bytes=500, sqnr=noise)),
    }
    text = json.dumps(describe(of, assess(of, files, HOST), HOST), allow_nan=False)
    document: dict[str, Any] = json.loads(text)["variants"][1]
    assert document["compression"]["bytes"] == 2.0
    assert document["sqnr"]["layers"] == [
        {"name": "w", "weight_db": 45.0, "activation_db": 38.0, "node": "MatMul"}
    ]
    assert document["size"]["moved_bytes"] == {"weight_bytes": 400, "activation_bytes": 400, "total": 800}
    assert document["cost"]["seconds"] == {"training": 6.0, "compress": 2.0, "verify": 1.0}
    assert [change["label"] for change in document["classes"]["validation"]] == [1, 0]
    assert document["classes"]["validation"][0]["recall_change"] == pytest.approx(-0.4)
    assert document["quality"]["robustness"][0]["drop_ratio"] == pytest.approx(2.0)
    assert document["quality"]["validation"]["significant"] is False


def test_portability_lists_what_ran_and_why_the_rest_did_not() -> None:
    ran = replace(profile(), golden_deviation=0.01)
    yes, no = portability((ran,), {"onnxruntime-openvino bf16 x2": "it has no such operator"})
    assert (yes["runs"], yes["golden_deviation"], yes["agreement"]) == (True, 0.01, 0.99)
    assert no == {
        "runtime": "onnxruntime-openvino", "precision": "bf16", "threads": 2,
        "runs": False, "reason": "it has no such operator",
    }  # fmt: skip
