"""mosec: a Rust front and one Python worker per route; `/inference` takes JSON, `/raw` bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mosec import Runtime, Server, Worker
from numpy.typing import NDArray

from loadtests.bench.peers.session import MAX_BATCH, served

_MAX_WAIT_MS = 1


class Json(Worker):
    """Takes `{"inputs": [{"data": [...]}]}`, and gives lists."""

    def __init__(self) -> None:
        super().__init__()
        self.model = served()

    def forward(self, data: Sequence[Any]) -> list[Any]:
        """One batch."""
        rows = self.model.rows([each["inputs"][0]["data"] for each in data])
        outputs: list[Any] = self.model.run(rows).tolist()
        return outputs


class Raw(Worker):
    """Takes and gives row-major bytes."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.model = served()

    def deserialize(self, data: bytes) -> bytes:
        """The body as it is."""
        return data

    def serialize(self, data: NDArray[Any]) -> bytes:
        """The bytes of an answer."""
        return data.tobytes()

    def forward(self, data: Sequence[bytes]) -> list[NDArray[Any]]:
        """One batch."""
        return list(self.model.run(self.model.rows_of(b"".join(data))))


if __name__ == "__main__":
    server = Server()
    server.register_runtime(
        {
            route: [Runtime(worker, num=1, max_batch_size=MAX_BATCH, max_wait_time=_MAX_WAIT_MS)]
            for route, worker in (("/inference", Json), ("/raw", Raw))
        }
    )
    server.run()
