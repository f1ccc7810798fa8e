"""What operators unloaded, as the workers of a gateway share it."""

import os
from pathlib import Path

from service.unloading import Unloaded, forget_unloaded

GONE = 2**22 + 1  # no process has so large an id


def test_names_are_shared_by_all_who_look_at_the_folder(tmp_path: Path) -> None:
    one, other = Unloaded(tmp_path / "7"), Unloaded(tmp_path / "7")
    assert "digits" not in one
    assert list(one) == []
    one.add("digits")
    one.add("spam")
    assert "digits" in other
    assert sorted(other) == ["digits", "spam"]
    assert len(other) == 2
    other.discard("digits")
    other.discard("digits")
    assert list(one) == ["spam"]


def test_a_gateway_that_starts_forgets_its_forerunners_and_nobody_elses(tmp_path: Path) -> None:
    mine, living = os.getpid(), os.getppid()
    for process in (mine, living, GONE):
        Unloaded(tmp_path / str(process)).add("digits")
    (tmp_path / "stray").mkdir()
    forget_unloaded(tmp_path, mine)
    assert [path.name for path in tmp_path.iterdir()] == [str(living)]
    forget_unloaded(tmp_path / "missing", mine)
