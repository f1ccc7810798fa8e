"""What the loop is behind is charged to those who wait for it."""

import asyncio
import time

import pytest

from service.lag import LoopLag


def test_a_loop_that_stands_still_is_behind_and_one_that_turns_is_not() -> None:
    async def scenario() -> tuple[float, float, float, float]:
        lag = LoopLag()
        lag.start()
        began = time.perf_counter()
        time.sleep(0.2)  # all that becomes ready meanwhile has waited so long
        slept = time.perf_counter() - began
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        behind = lag.seconds
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not lag.seconds:
                break
        turning = lag.seconds
        time.sleep(0.05)
        lag.stop()
        await asyncio.sleep(0.02)
        return slept, behind, turning, lag.seconds

    slept, behind, turning, stopped = asyncio.run(scenario())
    assert behind == pytest.approx(slept - 0.01, abs=0.05)
    assert turning == stopped == 0.0
