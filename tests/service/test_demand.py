"""When to degrade: no further than the load asks for, and back when there is room, without flapping."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.demand import CALM_S, FULL, ROOMY, Demand, Level, adjust

LOADS = st.lists(st.floats(0, 4), min_size=3, max_size=6).map(lambda loads: sorted(loads, reverse=True))


def test_a_gateway_that_keeps_up_does_not_degrade() -> None:
    assert adjust(Level(), [FULL, 0.2], 0.0) == Level()


def test_too_much_load_goes_down_as_far_as_it_takes_and_no_further() -> None:
    assert adjust(Level(), [2.0, 1.0, 0.8, 0.1], 0.0).step == 2
    assert adjust(Level(), [2.0, 1.5, 1.2, 1.2], 0.0).step == 2  # nothing is enough: the cheapest there is
    assert adjust(Level(), [2.0, 2.0, 2.0], 0.0).step == 0  # nothing would help


def test_it_climbs_back_after_a_while_of_room() -> None:
    loads = [ROOMY - 0.01, 0.1]
    level = adjust(Level(1), loads, 10.0)
    assert level == Level(1, calm_since=10.0)
    assert adjust(level, loads, 10.0 + CALM_S / 2) == level
    assert adjust(level, loads, 10.0 + CALM_S).step == 0


def test_load_in_between_changes_nothing_and_starts_the_wait_anew() -> None:
    between = [(ROOMY + FULL) / 2, 0.1]
    assert adjust(Level(1, calm_since=10.0), between, 20.0) == Level(1)
    assert adjust(Level(0), between, 20.0) == Level(0)


@given(LOADS, st.integers(0, 2))
def test_a_steady_load_finds_one_level_and_stays(loads: list[float], start: int) -> None:
    level, now, seen = Level(start), 0.0, []
    for _ in range(400):
        level = adjust(level, loads, now)
        now += 0.05
        seen.append(level.step)
    assert len(set(seen[200:])) == 1
    assert loads[level.step] <= FULL or not any(load < loads[level.step] for load in loads[level.step :])


def demand(rate: float, costs: tuple[float, ...], seconds: float, meter: Demand, start: float) -> list[int]:
    """Offers so many rows a second in looks of 50 ms; returns the steps."""
    steps = []
    for look in range(int(seconds / 0.05)):
        for _ in range(round(rate * 0.05)):
            meter.offer(costs, 1)
        steps.append(meter.look(start + (look + 1) * 0.05).step)
    return steps


def test_overload_steps_down_within_a_second_and_relief_climbs_back_within_seconds() -> None:
    meter = Demand(0.0)
    busy = demand(200, (8.0, 2.0), 3, meter, 0.0)  # 1.6 of the device at full quality, 0.4 a step down
    assert 1 in busy[:20]
    assert set(busy[20:]) == {1}
    calm = demand(40, (8.0, 2.0), 5, meter, 3.0)
    assert calm[-1] == 0
    assert sorted(calm, reverse=True) == calm


def test_a_burst_of_a_moment_does_not_degrade_anybody() -> None:
    meter = Demand(0.0)
    demand(50, (8.0, 2.0), 2, meter, 0.0)
    assert set(demand(150, (8.0, 2.0), 0.1, meter, 2.0)) == {0}


def test_requests_that_do_not_allow_it_count_the_same_on_every_step() -> None:
    meter = Demand(0.0)
    steps = demand(200, (8.0,), 2, meter, 0.0)
    assert set(steps) == {0}  # nobody is there who could step down


def test_a_pause_without_requests_ends_the_overload() -> None:
    meter = Demand(0.0)
    demand(200, (8.0, 2.0), 2, meter, 0.0)
    meter.look(10.0)
    assert meter.look(12.0).step == 0
