"""The folder that the workers of a gateway share."""

import os
from pathlib import Path

import pytest

from service.workers.together import shared_folder, start_anew

GONE = 2**22 + 1  # no process has so large an id


def test_a_gateway_that_starts_forgets_its_forerunners_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPGATE_HOME", str(tmp_path))
    start_anew()  # nothing is there yet
    living = shared_folder()
    assert living.name == str(os.getppid())
    for name in (living.name, str(os.getpid()), str(GONE), "stray"):
        (living.parent / name / "unloaded").mkdir(parents=True)
    start_anew()
    assert list(living.parent.iterdir()) == [living]
