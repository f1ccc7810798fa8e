"""Triton's statistics: counts and times that add up."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from service.statistics import Statistics

SECONDS = st.floats(0, 10)
BATCHES = st.lists(st.tuples(st.integers(1, 32), SECONDS), max_size=20)
ANSWERS = st.lists(st.tuples(st.integers(1, 8), SECONDS, SECONDS), max_size=20)
# https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
DURATIONS = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}
NOTHING = {"count": 0, "ns": 0}


def test_a_variant_that_did_nothing_has_only_zeros() -> None:
    told = Statistics().to_json("digits", "int8-static")
    assert (told["name"], told["version"]) == ("digits", "int8-static")
    assert told["last_inference"] == told["inference_count"] == told["execution_count"] == 0
    assert told["inference_stats"] == dict.fromkeys(DURATIONS, NOTHING)
    assert told["batch_stats"] == []


@given(BATCHES, ANSWERS, st.lists(SECONDS, max_size=5))
def test_what_happened_adds_up(
    batches: list[tuple[int, float]], answers: list[tuple[int, float, float]], failures: list[float]
) -> None:
    statistics = Statistics()
    for batch_rows, seconds in batches:
        statistics.executed(batch_rows, seconds)
    for rows, queue_s, total_s in answers:
        statistics.answered(rows, queue_s, total_s)
    for total_s in failures:
        statistics.failed(total_s)
    told = statistics.to_json("m", "v")
    durations = told["inference_stats"]
    assert told["inference_count"] == sum(rows for rows, _, _ in answers)
    assert told["execution_count"] == durations["compute_infer"]["count"] == len(batches)
    assert durations["success"]["count"] == durations["queue"]["count"] == len(answers)
    assert durations["fail"]["count"] == len(failures)
    apart = abs(durations["queue"]["ns"] - sum(queue_s * 1e9 for _, queue_s, _ in answers))
    assert apart <= 1 + len(answers)  # each was cut to whole nanoseconds, or all together
    assert durations["fail"]["ns"] == sum(int(total_s * 1e9) for total_s in failures)
    by_size = {entry["batch_size"]: entry["compute_infer"] for entry in told["batch_stats"]}
    assert list(by_size) == sorted({batch_rows for batch_rows, _ in batches})
    assert sum(entry["count"] for entry in by_size.values()) == len(batches)
    assert sum(entry["ns"] for entry in by_size.values()) == durations["compute_infer"]["ns"]


def test_the_last_inference_is_in_milliseconds_of_unix_time() -> None:
    before = int(time.time() * 1e3)
    statistics = Statistics()
    statistics.executed(1, 0.0)
    assert before <= statistics.to_json("m", "v")["last_inference"] <= time.time() * 1e3


def test_two_variants_share_nothing() -> None:
    one, other = Statistics(), Statistics()
    one.executed(1, 1.0)
    one.answered(1, 1.0, 1.0)
    assert other == Statistics()
