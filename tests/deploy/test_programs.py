"""Programs that `make ops`, `make drill` and tests fetch: where they cannot, a sentence says so."""

import subprocess
from pathlib import Path

import pytest

from tests import debian

NOWHERE = ("nothing", "usr/bin/nothing-of-this-name")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unpack(*_: object) -> None:
        raise subprocess.TimeoutExpired("apt-get", 240)

    monkeypatch.setattr(debian, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(debian, "_unpack", unpack)


def test_a_target_of_make_ends_with_a_sentence() -> None:
    with pytest.raises(SystemExit, match=r"^nothing is not installed, and cannot be .*\. Install it\.$"):
        debian.main(*NOWHERE)


def test_a_test_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match="nothing is not installed"):
        debian.program(*NOWHERE)
