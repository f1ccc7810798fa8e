"""A virtual environment per peer, made once from its pinned requirements and found again afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_PINS = Path(__file__).parent / "peers"
_COMPLETE = "complete"
_SHOWN = 600


class InstallError(Exception):
    """A peer's environment cannot be made; the message ends with what pip says."""


def environment(name: str, progress: Callable[[str], None]) -> Path:
    """The folder of a virtual environment that holds exactly what `peers/<name>.txt` pins.

    Args:
        name: Of the file of requirements.
        progress: Told when something is installed, and how long that took.

    Raises:
        InstallError: pip fails; without a network, say.
    """
    pins = _PINS / f"{name}.txt"
    key = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache() / f"{name}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _COMPLETE).exists():
            progress(f"installing {name} into {folder}")
            began = time.monotonic()
            shutil.rmtree(folder, ignore_errors=True)
            _run(name, [sys.executable, "-m", "venv", str(folder)])
            pip = [str(python(folder)), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            _run(name, [*pip, "--requirement", str(pins)])
            (folder / _COMPLETE).touch()
            progress(f"installed {name} in {time.monotonic() - began:.0f} s")
    return folder


def python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def packages(folder: Path) -> Path:
    """Where an environment keeps its packages."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))


def cache() -> Path:
    """Beside the caches of Mipgate, which no test or build clears."""
    home = os.environ.get("MIPGATE_HOME")
    if home:
        return Path(home) / "bench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mipgate-bench"


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SHOWN:]
        raise InstallError(f"{name} cannot be installed: {said}")
