"""The client: `wrk`, with a script that sends a body and prints its figures as JSON.

wrk corrects its latencies for coordinated omission, by the mean interval between a connection's requests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from loadtests.bench.arithmetic import Sample

_MARK = "BENCH "
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("%s", "rb")
wrk.body = file:read("*a")
file:close()

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '%s{"requests": %%d, "us": %%d, "p50_us": %%d, "p99_us": %%d, "status": %%d, "socket": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""
_GRACE_S = 30.0


class WrkError(Exception):
    """The client is missing or failed."""


def check_wrk() -> None:
    """Makes sure that the client is there.

    Raises:
        WrkError: It is not.
    """
    if shutil.which("wrk") is None:
        raise WrkError("wrk is not installed. Run `apt-get install wrk`.")


def run_wrk(url: str, body: bytes, connections: int, seconds: float) -> Sample:
    """Sends the body over and over, from one thread.

    Args:
        url: Where to.
        body: What.
        connections: How many, each with one request in flight.
        seconds: For how long; wrk takes whole ones.

    Raises:
        WrkError: It ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="mipgate-bench-") as folder:
        payload, script = Path(folder) / "body", Path(folder) / "script.lua"
        payload.write_bytes(body)
        script.write_text(_SCRIPT % (payload, _MARK))
        command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
        done = subprocess.run(
            [*command, "-s", str(script), url],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + _GRACE_S,
        )
    if done.returncode:
        raise WrkError(f"wrk ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return parse_wrk(done.stdout)


def parse_wrk(output: str) -> Sample:
    """Reads what the script printed.

    Raises:
        WrkError: It printed something else.
    """
    lines = [line.removeprefix(_MARK) for line in output.splitlines() if line.startswith(_MARK)]
    try:
        said = json.loads(lines[-1])
        return Sample(
            said["requests"],
            said["us"] / 1e6,
            said["p50_us"] / 1e3,
            said["p99_us"] / 1e3,
            said["status"],
            said["socket"],
        )
    except (IndexError, KeyError, ValueError) as error:
        raise WrkError(f"wrk printed no figures: {output.strip()[-500:]}") from error
