"""The two ends of an ASGI connection, without a server."""

import asyncio
from collections.abc import Iterable

from service.asgi import Message, Receive, Send


def channel(messages: Iterable[Message]) -> tuple[Receive, Send, list[Message]]:
    """A client that sends these messages, each after a turn of the loop, and what it is sent."""
    sent: list[Message] = []
    coming = iter(messages)

    async def receive() -> Message:
        await asyncio.sleep(0)
        return next(coming)

    async def send(message: Message) -> None:
        sent.append(message)

    return receive, send, sent
