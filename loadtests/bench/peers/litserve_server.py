"""LitServe: FastAPI in front of one worker process, with its batching; JSON only. Takes `--port`."""

from __future__ import annotations

import argparse
from typing import Any

import litserve
from numpy.typing import NDArray

from loadtests.bench.peers.session import MAX_BATCH, served

_BATCH_TIMEOUT_S = 0.001


class Model(litserve.LitAPI):
    """Takes `{"inputs": [{"data": [...]}]}`."""

    def setup(self, device: str) -> None:
        """Opens the model in the worker."""
        self.model = served()

    # LitServe gives annotated parameters and results to FastAPI, which then checks each.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """One row."""
        return self.model.rows(request["inputs"][0]["data"])[0]

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        """One batch, as LitServe stacks it."""
        return self.model.run(x)

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        """One answer."""
        return {"output": output.tolist()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    api = Model(max_batch_size=MAX_BATCH, batch_timeout=_BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=parser.parse_args().port, generate_client_file=False, log_level="warning"
    )
