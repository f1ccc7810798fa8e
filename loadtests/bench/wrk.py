"""The closed-loop client: `wrk`, with a script that sends one request after the other from a list.

wrk corrects its latencies for coordinated omission, by the mean interval between a connection's requests.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loadtests.bench.arithmetic import Sample
from loadtests.bench.requests import Request

_MARK = "BENCH "
_SCRIPT = """
local requests, at = {}, 0
local pause = tonumber("%(pause)s")

local function read(path)
  local file = io.open(path, "rb")
  local all = file:read("*a")
  file:close()
  return all
end

function init(args)
  dofile("%(list)s")(function(path, headers, body)
    headers["Host"] = wrk.headers["Host"]
    requests[#requests + 1] = wrk.format("POST", path, headers, read(body))
  end)
end

function request()
  at = at %% #requests + 1
  return requests[at]
end

if pause > 0 then
  function delay()
    return math.floor(-pause * math.log(1 - math.random()) + 0.5)
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '%(mark)s{"requests": %%d, "us": %%d, "p50_us": %%d, "p99_us": %%d, "status": %%d, "socket": %%d}\\n',
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


def run_wrk(
    port: int, requests: Sequence[Request], connections: int, seconds: float, pause_ms: float = 0.0
) -> Sample:
    """Sends the requests in turn, over and over, from one thread.

    Args:
        port: Of the server on this machine.
        requests: What to send.
        connections: How many, each with one request in flight.
        seconds: For how long; wrk takes whole ones.
        pause_ms: Mean of the exponential time that a connection waits between two requests.

    Raises:
        WrkError: It ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="mipgate-bench-") as name:
        folder = Path(name)
        script = folder / "script.lua"
        (folder / "list.lua").write_text(_write_list(folder, requests))
        script.write_text(_SCRIPT % {"list": folder / "list.lua", "mark": _MARK, "pause": pause_ms})
        command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
        done = subprocess.run(
            [*command, "--timeout", "10s", "-s", str(script), f"http://127.0.0.1:{port}"],
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


def _write_list(folder: Path, requests: Sequence[Request]) -> str:
    """A Lua function that gives each request; bodies lie in files beside it."""
    lines = ["return function(add)"]
    for number, request in enumerate(requests):
        body = folder / f"{number}.body"
        body.write_bytes(request.body)
        # JSON's strings without escapes beyond ASCII are Lua's.
        headers = ", ".join(f"[{json.dumps(k)}] = {json.dumps(v)}" for k, v in request.headers.items())
        lines.append(f"add({json.dumps(request.path)}, {{{headers}}}, {json.dumps(str(body))})")
    return "\n".join([*lines, "end", ""])
