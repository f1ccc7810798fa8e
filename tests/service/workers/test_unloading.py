"""What operators unloaded, as the workers of a gateway share it."""

from pathlib import Path

from service.workers.unloading import Unloaded


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
