"""The configuration: who wins, and what is said of a value that cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.config import Config, ConfigError, config
from tests.conftest import ROOT

Write = Callable[[str], None]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of whoever runs the tests, and a Mipgate home without a file."""
    for name in Config.model_fields:
        monkeypatch.delenv(f"MIPGATE_{name.upper()}", raising=False)
    monkeypatch.delenv("MIPGATE_CONFIG", raising=False)
    monkeypatch.setenv("MIPGATE_HOME", str(tmp_path))
    config.cache_clear()
    yield
    config.cache_clear()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_home(text: str) -> None:
        (tmp_path / "config.toml").write_text(text)

    return to_home


def test_without_anything_the_defaults_hold() -> None:
    assert Config() == Config.model_construct()
    assert config().workers == 0


def test_the_file_beats_the_default(write: Write) -> None:
    write("workers = 2\ninline_ms = 0.5\n")
    assert (Config().workers, Config().inline_ms) == (2, 0.5)
    assert Config().max_batch_rows == 32


def test_the_environment_beats_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("workers = 2\nmax_batch_rows = 8\n")
    monkeypatch.setenv("MIPGATE_WORKERS", "3")
    assert (Config().workers, Config().max_batch_rows) == (3, 8)


def test_an_argument_beats_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("workers = 2\n")
    monkeypatch.setenv("MIPGATE_WORKERS", "3")
    assert Config(workers=4).workers == 4


def test_the_file_may_lie_anywhere(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("workers = 2\n")
    (tmp_path / "mine.toml").write_text("workers = 5\n")
    monkeypatch.setenv("MIPGATE_CONFIG", str(tmp_path / "mine.toml"))
    assert Config().workers == 5


def test_other_variables_and_keys_are_none_of_its_business(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('[rollout]\nkind = "canary"\n')
    monkeypatch.setenv("MIPGATE_URL", "http://localhost:3000")
    assert Config() == Config.model_construct()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", "-1"),
        ("workers", "many"),
        ("workers", ""),
        ("workers", "65"),
        ("max_body_bytes", "-1"),
        ("max_queue_requests", "0"),
        ("max_queue_bytes", "1.5"),
        ("max_batch_rows", "0"),
        ("inline_ms", "-0.1"),
        ("inline_ms", "nan"),
    ],
)
def test_a_bad_value_names_the_setting_and_itself(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MIPGATE_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"MIPGATE_{name.upper()} = '{value}'"):
        config()


def test_a_bad_value_in_the_file_names_the_setting(write: Write) -> None:
    write("max_batch_rows = 0\n")
    with pytest.raises(ConfigError, match="MIPGATE_MAX_BATCH_ROWS = 0"):
        config()


def test_a_file_that_is_no_toml_is_named(tmp_path: Path, write: Write) -> None:
    write("workers = = 2\n")
    with pytest.raises(ConfigError, match=str(tmp_path / "config.toml")):
        config()


def test_a_file_that_was_named_but_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPGATE_CONFIG", str(tmp_path / "typo.toml"))
    with pytest.raises(ConfigError, match=r"typo\.toml"):
        config()


def test_a_configuration_does_not_change_and_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = config()
    monkeypatch.setenv("MIPGATE_WORKERS", "7")
    assert config() is first
    with pytest.raises(ValidationError):
        first.workers = 7  # type: ignore[misc]


def test_a_process_with_a_bad_setting_does_not_start() -> None:
    code = "from service.config import config; config()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MIPGATE_WORKERS": "none"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "MIPGATE_WORKERS" in ended.stderr.splitlines()[-1]
