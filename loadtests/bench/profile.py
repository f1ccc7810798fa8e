"""Where a server's processor time goes under load: stacks that py-spy samples, by the layer they end in."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from loadtests.bench.stage import Contender

CONNECTIONS = 16
_PY_SPY = Path(sys.executable).with_name("py-spy")
_RATE_HZ = 200
_LEAD_S = 1.0  # the sampler's own start
_GRACE_S = 60.0
_OTHER = "other"

# The first whose path is a part of the innermost Python frame's has the sample. What C code does, the
# kernel's part included, belongs to the Python function that called it.
_LAYERS = {
    "the model: onnxruntime": ("/onnxruntime/", "/variants/runtime.py"),
    "event loop: reading from sockets, parsing HTTP": ("/asyncio/", "/uvloop/"),
    "writing to sockets": ("/service/wire.py",),
    "HTTP server: uvicorn": ("/uvicorn/",),
    "other middleware": ("/bentoml/", "/_bentoml_", "/starlette/", "/simple_di/"),
    "decoding requests, encoding answers": ("/service/protocol.py", "/service/tensors.py", "/numpy/"),
    "keys and quotas": ("/service/access/",),
    "routing": ("/service/rout", "/service/demand.py"),
    "scheduling and batching": (
        "/service/scheduler.py", "/service/queues.py", "/service/isolation.py", "/service/loaded.py",
        "/service/pace.py", "/service/breaker.py",
    ),
    "metrics and logs": (
        "/service/tally.py", "/service/metrics.py", "/service/statistics.py", "/service/observing/",
        "/prometheus_client/", "/logging/",
    ),
    "a request's way through the gateway": ("/service/",),
}  # fmt: skip


class ProfileError(Exception):
    """No profile could be taken; the message says why."""


def profile(contender: Contender, seconds: float) -> dict[str, float]:
    """Samples the process that serves while it is under load.

    Args:
        contender: Whom to ask, and for what.
        seconds: How long to sample.

    Returns:
        Shares of the processor time by layer, which sum to 1.

    Raises:
        ProfileError: py-spy is missing or may not look at other processes, or nothing was sampled.
    """
    with tempfile.TemporaryDirectory(prefix="mipgate-bench-") as folder:
        stacks = Path(folder) / "stacks"
        command = [
            str(_PY_SPY), "record", "--pid", str(contender.server.serving_pid()), "--format", "raw",
            "--output", str(stacks), "--duration", str(max(1, round(seconds))), "--rate", str(_RATE_HZ),
            "--full-filenames", "--nonblocking",
        ]  # fmt: skip
        try:
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as sampler:
                contender.run(CONNECTIONS, seconds + _LEAD_S)
                said, _ = sampler.communicate(timeout=_GRACE_S)
        except OSError as error:
            raise ProfileError(f"py-spy does not start: {error}") from error
        if sampler.returncode or not stacks.exists():
            raise ProfileError(f"py-spy ended with {sampler.returncode}: {said.strip()[-300:]}")
        return by_layer(stacks.read_text().splitlines())


def by_layer(stacks: Iterable[str]) -> dict[str, float]:
    """Shares of samples by layer, the largest first, `other` last.

    Args:
        stacks: Lines of `function (path:line);...;function (path:line) count`, the outermost first.

    Raises:
        ProfileError: There are none.
    """
    counts: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        counts[_layer(stack.rpartition(";")[2])] += int(count)
    total = counts.total()
    if not total:
        raise ProfileError("nothing was sampled")
    ordered = sorted(counts.items(), key=lambda item: (item[0] == _OTHER, -item[1]))
    return {layer: count / total for layer, count in ordered}


def attributed(shares: Mapping[str, float]) -> float:
    """The share that a profile attributes to a layer."""
    return 1 - shares.get(_OTHER, 0.0)


def _layer(frame: str) -> str:
    """The layer of an innermost frame."""
    for layer, paths in _LAYERS.items():
        if any(path in frame for path in paths):
            return layer
    return _OTHER
