"""The `mipgate` command in a process of its own, as its user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, Homes

MIPGATE = str(Path(sys.executable).with_name("mipgate"))
DONE, FAILED, USAGE = 0, 1, 2


def run(homes: Homes, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in homes of a test's own; it may end as it likes."""
    return subprocess.run(command, env=homes.environment, cwd=ROOT, capture_output=True, text=True)


def mipgate(homes: Homes, *arguments: str, status: int = DONE) -> subprocess.CompletedProcess[str]:
    """`mipgate ARGUMENTS`, which must end with `status` and never with a traceback."""
    ended = run(homes, MIPGATE, *arguments)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def said(homes: Homes, *arguments: str) -> Any:
    """What a command with `--json` prints."""
    return json.loads(mipgate(homes, *arguments, "--json").stdout)
