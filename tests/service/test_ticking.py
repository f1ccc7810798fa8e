"""Steps that repeat: one that fails or hangs holds up no other, and is told of once."""

import asyncio

import pytest

from service.ticking import Ticking


def test_a_step_that_fails_or_hangs_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    turns: list[str] = []
    is_full = True

    def write() -> None:
        if is_full:
            raise OSError("no space left")
        turns.append("write")

    async def load() -> None:
        turns.append("load")
        await asyncio.Event().wait()

    async def follow() -> None:
        turns.append("follow")

    async def scenario() -> None:
        nonlocal is_full
        ticking = Ticking({"writing": write, "loading": load, "following": follow}, 0.01)
        async with asyncio.timeout(10):
            while turns.count("follow") < 5:
                await asyncio.sleep(0.01)
            is_full = False
            while "write" not in turns:
                await asyncio.sleep(0.01)
            await ticking.stop()

    asyncio.run(scenario())
    assert turns.count("load") == 1
    assert caplog.messages == ["writing failed; it is tried again every 0.01 s", "writing works again"]
