"""The bucket of a key, shared by processes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.limits import Bucket


def test_a_second_s_worth_at_once_and_then_one_by_one(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path / "k", 4)
    assert [bucket.take(100.0) for _ in range(4)] == [0.0] * 4
    assert bucket.take(100.0) == pytest.approx(0.25)
    assert bucket.take(100.25) == 0.0
    assert bucket.take(100.25) > 0


def test_less_than_one_a_second_lets_one_through(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path / "k", 0.1)
    assert bucket.take(50.0) == 0.0
    assert bucket.take(50.0) == pytest.approx(10.0)
    assert bucket.take(60.0) == 0.0


def test_two_workers_share_one_bucket(tmp_path: Path) -> None:
    one, other = Bucket(tmp_path / "k", 4), Bucket(tmp_path / "k", 4)
    passed = [bucket.take(100.0) == 0.0 for _ in range(4) for bucket in (one, other)]
    assert sum(passed) == 4


def test_what_a_former_boot_left_behind_locks_nobody_out(tmp_path: Path) -> None:
    Bucket(tmp_path / "k", 1).take(1e9)
    assert Bucket(tmp_path / "k", 1).take(5.0) == 0.0


def test_without_a_file_each_worker_limits_for_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bucket = Bucket(tmp_path / "file" / "k", 1)
    assert bucket.take(5.0) == 0.0
    assert bucket.take(5.0) > 0


@given(st.lists(st.floats(0, 0.5), max_size=60), st.floats(0.5, 20))
def test_never_more_than_the_rate_beyond_the_first_second(pauses: list[float], rate: float) -> None:
    bucket = Bucket(Path("/nonexistent/k"), rate)
    now, passed = 1.0, 0
    for pause in pauses:
        now += pause
        passed += bucket.take(now) == 0.0
    assert passed <= rate * (now - 1.0) + max(1.0, rate) + 1e-6
