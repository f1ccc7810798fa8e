"""The host: a fingerprint of what decides how fast a model runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ALL_CORES, ROOT
from variants.host import available_cores, installed_version, this_host


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Every core, also where several processes test at once."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, own)


def test_the_fingerprint_is_the_same_at_every_call() -> None:
    assert this_host() == this_host()
    assert len(this_host().fingerprint) == 12
    assert set(this_host().fingerprint) <= set("0123456789abcdef")


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = "from variants.host import this_host; print(this_host().fingerprint)"
    command = [sys.executable, "-c", code]
    for seed in ("0", "1"):  # whatever order sets come in
        environment = os.environ | {"PYTHONHASHSEED": seed}
        printed = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        assert printed.stdout.strip() == this_host().fingerprint


@pytest.mark.skipif(len(ALL_CORES) < 2, reason="one core cannot be shared out")
def test_workers_share_the_cores(all_cores: None) -> None:
    alone, shared = this_host(), this_host(workers=available_cores())
    assert (alone.threads, shared.threads) == (alone.cores, 1)
    assert alone != shared
    assert alone.cores == shared.cores


def test_more_workers_than_cores_have_a_thread_each() -> None:
    assert this_host(workers=10 * available_cores()).threads == 1


@pytest.mark.skipif(len(ALL_CORES) < 2, reason="there is no core to do without")
def test_a_process_that_may_use_fewer_cores_is_another_host(all_cores: None) -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from variants.host import *; "
    code += "print(this_host().cores, this_host().fingerprint)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    cores, fingerprint = printed.stdout.split()
    assert cores == "1"
    assert fingerprint != this_host().fingerprint


def test_versions_of_what_executes_are_part_of_it() -> None:
    assert this_host().libraries["onnxruntime"] == installed_version("onnxruntime")
    assert installed_version("no-such-distribution") is None
