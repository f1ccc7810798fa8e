"""A store of its own for the whole session, with the digits model built once, for real.

`MIPGATE_TESTS_HOMES=/some/folder` keeps the store there, so that the next session finds it built.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# One of several processes that test at once (pytest-xdist) has a core for itself, as if there were no other.
ALL_CORES = sorted(os.sched_getaffinity(0))
_NUMBER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if _NUMBER:
    os.sched_setaffinity(0, {ALL_CORES[int(_NUMBER) % len(ALL_CORES)]})

# Before anything imports BentoML: it reads its home once.
_KEPT = os.environ.get("MIPGATE_TESTS_HOMES")
_HOMES = Path(_KEPT, _NUMBER) if _KEPT else Path(tempfile.mkdtemp(prefix="mipgate-tests-"))
os.environ["BENTOML_HOME"] = str(_HOMES / "bentoml")
os.environ["MIPGATE_HOME"] = str(_HOMES / "mipgate")
os.environ["BENTOML_DO_NOT_TRACK"] = "True"

from variants.catalog import Catalog  # noqa: E402
from variants.host import this_host  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# How fast a machine draws examples says nothing of the code.
settings.register_profile("mipgate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mipgate")


@dataclass(frozen=True)
class Homes:
    """A store and a Mipgate home that a test may damage."""

    bentoml: Path
    mipgate: Path

    @classmethod
    def under(cls, folder: Path) -> "Homes":
        """Two homes in a folder, which a command makes as it needs them."""
        return cls(folder / "bentoml", folder / "mipgate")

    @classmethod
    def copied(cls, folder: Path) -> "Homes":
        """A copy of the session's homes."""
        shutil.copytree(_HOMES / "bentoml", folder / "bentoml")
        shutil.copytree(_HOMES / "mipgate", folder / "mipgate")
        return cls.under(folder)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"BENTOML_HOME": str(self.bentoml), "MIPGATE_HOME": str(self.mipgate)}


@pytest.fixture(scope="session", autouse=True)
def _homes() -> Iterator[None]:
    yield
    if not _KEPT:
        shutil.rmtree(_HOMES, ignore_errors=True)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The catalog with the digits model in it, built with the real recipes."""
    if not _NUMBER:
        return _built()
    shared = tmp_path_factory.getbasetemp().parent / "digits"
    with FileLock(f"{shared}.lock"):
        if shared.is_dir():  # another process built it
            shutil.copytree(shared, _HOMES, dirs_exist_ok=True)
            return Catalog()
        catalog = _built()
        shutil.copytree(_HOMES, shared)
        return catalog


def _built() -> Catalog:
    from variants.build import build
    from variants.progress import Lines

    catalog = Catalog()
    built = build("digits", catalog, this_host(), Lines(), jobs=2)
    assert not built.failures
    return catalog


@pytest.fixture
def homes(digits: Catalog, tmp_path: Path) -> Homes:
    """A copy of the built store."""
    return Homes.copied(tmp_path)


@pytest.fixture
def empty(tmp_path: Path) -> Homes:
    """Homes in which nothing was built."""
    return Homes.under(tmp_path)
