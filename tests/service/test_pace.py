"""The host's pace: predictions follow what batches really take, and come back."""

from __future__ import annotations

import pytest

from service.pace import DevicePace, Pace


def factor(pace: Pace) -> float:
    return pace.corrected_ms(10.0) / 10.0


def run(pace: Pace, times: int, took_ms: float, profiled_ms: float = 10.0) -> None:
    for _ in range(times):
        pace.ran(profiled_ms, took_ms)


def test_a_host_that_is_as_fast_as_its_profile_changes_nothing() -> None:
    device = DevicePace()
    pace = Pace(device)
    run(pace, 100, 10.0)
    assert factor(pace) == pytest.approx(1.0)
    assert device.margin == pytest.approx(1.0)


def test_a_slower_host_is_noticed_within_some_batches_and_forgotten_when_it_recovers() -> None:
    pace = Pace(DevicePace())
    run(pace, 30, 20.0)
    assert factor(pace) == pytest.approx(2.0, rel=0.05)
    run(pace, 60, 10.0)
    assert factor(pace) == pytest.approx(1.0, rel=0.05)


def test_what_one_variant_learns_of_the_device_the_others_know() -> None:
    device = DevicePace()
    busy, idle = Pace(device), Pace(device)
    run(busy, 50, 30.0)
    assert factor(idle) > 2.0


def test_a_variant_with_a_wrong_profile_does_not_spoil_the_others() -> None:
    device = DevicePace()
    right, wrong = Pace(device), Pace(device)
    for _ in range(500):
        right.ran(10.0, 10.0)
        wrong.ran(10.0, 40.0)
    assert factor(right) == pytest.approx(1.0, rel=0.15)
    assert factor(wrong) == pytest.approx(4.0, rel=0.15)


def test_tiny_batches_tell_nothing_of_the_device() -> None:
    device = DevicePace()
    tiny, heavy = Pace(device), Pace(device)
    run(tiny, 200, 0.09, profiled_ms=0.03)
    assert tiny.corrected_ms(0.03) == 0.03
    assert factor(heavy) == 1.0


def test_one_odd_batch_moves_little_and_nothing_breaks_it() -> None:
    pace = Pace(DevicePace())
    run(pace, 50, 10.0)
    pace.ran(10.0, 10_000.0)
    assert 1.0 < factor(pace) < 3.0
    pace.ran(10.0, 0.0)
    assert 0.2 < factor(pace) < 3.0


def test_uneven_times_widen_the_margin() -> None:
    device = DevicePace()
    pace = Pace(device)
    for _ in range(100):
        pace.ran(10.0, 8.0)
        pace.ran(10.0, 13.0)
    assert 1.2 < device.margin <= 2.0
