"""Child processes: what they took too long for, what a full disk costs, and what is left behind."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.variants.handmade import entry as handmade_entry
from tests.variants.handmade import stored, variant_id
from variants import build as building
from variants.build_job import Job, Outcome, Planned, Prepared, Result
from variants.catalog import GOLDEN_FILE, MODEL_FILE, Catalog
from variants.progress import Lines
from variants.store import Store
from variants.variant import Status
from variants.worker import WorkerError, run

CHILD = "slow_child"
SLOW = """
import json, subprocess, sys, time
print(json.dumps({"progress": "sleeping", "fraction": 0.5}), flush=True)
subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])
"""
FULL = "raise OSError(28, 'No space left on device')"


@dataclass(frozen=True)
class Nothing:
    value: int = 0


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_child_that_takes_too_long_is_stopped_with_its_own_children(children: Path) -> None:
    (children / f"{CHILD}.py").write_text(SLOW)
    phases: list[str] = []
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"took longer than 5 s and was stopped. Raise --timeout"):
        run(CHILD, Nothing(), Nothing, children, lambda phrase, _: phases.append(phrase), timeout_s=5.0)
    assert time.monotonic() - began < 50
    assert phases in ([], ["sleeping"])


def test_a_child_without_space_says_what_to_do(children: Path) -> None:
    (children / f"{CHILD}.py").write_text(FULL)
    with pytest.raises(WorkerError, match=r"No space left on device. Free some space and build again"):
        run(CHILD, Nothing(), Nothing, children, lambda phrase, fraction: None)


def test_an_error_of_several_lines_is_told_whole(children: Path) -> None:
    (children / f"{CHILD}.py").write_text("raise ValueError('width is wrong.\\nSee the manual')")
    with pytest.raises(WorkerError, match=r"^ValueError: width is wrong\. See the manual$"):
        run(CHILD, Nothing(), Nothing, children, lambda phrase, fraction: None)


def test_what_a_child_says_beside_its_progress_is_logged(
    children: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (children / f"{CHILD}.py").write_text(FULL)
    with caplog.at_level("INFO", "mipgate.worker"), pytest.raises(WorkerError):
        run(CHILD, Nothing(), Nothing, children, lambda phrase, fraction: None)
    assert "Traceback (most recent call last):" in caplog.messages
    assert caplog.messages[-1] == "OSError: [Errno 28] No space left on device"


def test_a_full_disk_costs_the_variant_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stored(handmade_entry("int8"))
    plan = Planned("int8", made.variant.steps, made.variant.lineage, "a" * 12)
    prepared = Prepared(SimpleNamespace(model="m", reference="fp32"), [plan])  # type: ignore[arg-type]

    def compress(module: str, job: Job, *_: Any) -> Result:
        for name in (MODEL_FILE, GOLDEN_FILE):
            (job.folder / name).write_bytes(b"0" * 10)
        return Result(outcome=Outcome(scorecard=made.scorecard))

    def copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"0" * 5)
        raise OSError(errno.ENOSPC, "No space left on device")

    catalog = Catalog()
    monkeypatch.setattr(building, "run", compress)
    monkeypatch.setattr("variants.catalog.shutil.copyfile", copy)
    builds = building._Builds(Job("m", tmp_path), prepared, catalog, tmp_path, Lines(), None)
    builds.run(jobs=1, threads=1)
    assert builds.failures["int8"].status is Status.FAILED
    assert "No space left on device. Free space and build again" in builds.failures["int8"].reason
    assert builds.fresh == []
    assert not Store().folder(variant_id("int8").tag).exists()
    staging = catalog.root.resolve().parent / ".mipgate-staging"
    assert not staging.exists() or not list(staging.iterdir())
    assert list(tmp_path.iterdir()) == []
