"""The circuit breaker: failures in a row open it, a probe that answers closes it."""

from __future__ import annotations

from service.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker, Circuit


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    assert [breaker.failed(now) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return breaker


def test_failures_in_a_row_open_it_and_good_batches_between_do_not() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(0.0)
        breaker.answered()
    assert breaker.circuit is Circuit.CLOSED
    assert breaker.allows(0.0)
    assert not opened().allows(FIRST_PAUSE_S / 2)


def test_after_the_pause_one_probe_goes_through_and_an_answer_closes_it() -> None:
    breaker = opened()
    assert breaker.allows(FIRST_PAUSE_S)
    breaker.asked(FIRST_PAUSE_S)
    assert breaker.circuit is Circuit.HALF_OPEN
    assert not breaker.allows(FIRST_PAUSE_S + 0.1)
    assert breaker.answered()
    assert breaker.allows(FIRST_PAUSE_S + 0.1)
    assert breaker.failures == 0


def test_each_probe_that_fails_doubles_the_pause_up_to_a_bound() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(8):
        pauses.append(breaker.until - now)
        now = breaker.until
        breaker.asked(now)
        assert not breaker.failed(now)  # it was open already
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_probe_that_is_never_heard_of_again_is_followed_by_another() -> None:
    breaker = opened()
    breaker.asked(FIRST_PAUSE_S)
    assert not breaker.allows(FIRST_PAUSE_S + 0.1)
    assert breaker.allows(2 * FIRST_PAUSE_S)


def test_it_is_as_patient_after_a_recovery_as_at_first() -> None:
    breaker = opened()
    breaker.asked(FIRST_PAUSE_S)
    breaker.failed(FIRST_PAUSE_S)
    breaker.asked(breaker.until)
    breaker.answered()
    for _ in range(FAILURES):
        breaker.failed(100.0)
    assert breaker.until == 100.0 + FIRST_PAUSE_S
