"""Programs of Debian packages that tests start: the installed one, or one that is unpacked into a cache.

Nothing is installed and root is not needed: packages are downloaded and unpacked, with what they need and the
machine has not. `python -m tests.debian PACKAGE PATH` prints the path of one.
"""

import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock


class MissingProgramError(Exception):
    """A program is not installed, and its package cannot be downloaded."""


def program(package: str, path: str) -> Path:
    """The program, as `find_program`; skips the test where there is none."""
    try:
        return find_program(package, path)
    except MissingProgramError as error:
        pytest.skip(str(error))


def find_program(package: str, path: str) -> Path:
    """Path of a program, by its path below `/`, which may be a pattern: `usr/lib/postgresql/*/bin/initdb`.

    Raises:
        MissingProgramError: The package can neither be found nor downloaded.
    """
    if installed := sorted(Path("/").glob(path)):
        return installed[-1]
    return _unpacked(package, path)


@cache
def _unpacked(package: str, path: str) -> Path:
    """A script that starts the program of a package, which is unpacked when it is not there yet."""
    folder = cache_folder() / package
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        root = folder / "root"
        if not (folder / "complete").exists():
            try:
                _unpack(package, root, folder / "apt")
            except (OSError, subprocess.SubprocessError) as error:
                raise MissingProgramError(
                    f"{package} is not installed, and cannot be downloaded ({error}). Install it."
                ) from error
            (folder / "complete").touch()
        found = sorted(root.glob(path))
        assert found, f"{package} has no {path}"
        libraries = sorted({str(library.parent) for library in root.rglob("*.so*")})
        starter = folder / found[-1].name
        starter.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH={shlex.quote(":".join(libraries))} exec {found[-1]} "$@"\n'
        )
        starter.chmod(0o755)
        return starter


def cache_folder() -> Path:
    """Where packages are kept. Root's own cache is closed to the users that some servers insist on."""
    if os.geteuid() == 0:
        return Path("/var/cache/mipgate-tests")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mipgate-tests"


def _unpack(package: str, root: Path, state: Path) -> None:
    """Unpacks a package and all that it depends on and is not installed."""
    downloads = state / "downloads"
    for folder in (downloads, state / "lists" / "partial", state / "archives" / "partial", root):
        folder.mkdir(parents=True, exist_ok=True)
    apt = ["-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}", "-o", "Debug::NoLocking=1"]
    _run(["apt-get", *apt, "-qq", "update"])
    without = ["--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"]
    listed = _run(["apt-cache", *apt, "depends", "--recurse", "--important", *without, package])
    wanted = {line for line in listed.splitlines() if line[:1].isalnum()}
    states = _run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"])
    present = {line.split()[0] for line in states.splitlines() if line.endswith(" installed")}
    missing = sorted({name.partition(":")[0] for name in wanted} - present | {package})
    _run(["apt-get", *apt, "-qq", "download", *missing], cwd=downloads)
    for archive in downloads.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(archive), str(root)])


def _run(command: list[str], cwd: Path | None = None) -> str:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=240)
    return ended.stdout


def main(package: str, path: str) -> None:
    """Prints the path of a program, or ends with a sentence."""
    try:
        print(find_program(package, path))
    except MissingProgramError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
