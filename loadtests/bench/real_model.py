"""The real model: `cifar10` where it is built, else a ResNet-50 with random weights, which is made here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from loadtests.bench.environments import cache
from loadtests.bench.subject import SubjectError

_PREFERRED, _RANDOM = "cifar10", "resnet50-random"


def ensure_real_model(progress: Callable[[str], None]) -> str:
    """The name of a real model that is built; adds the random one where there is none.

    Raises:
        SubjectError: Neither is there, and the random one cannot be made.
    """
    known = {each["model"] for each in json.loads(_mipgate("list", "--json"))}
    if _PREFERRED in known:
        return _PREFERRED
    if _RANDOM not in known:
        progress(f"{_PREFERRED} is not built: adding {_RANDOM}, which takes many minutes")
        folder = cache() / _RANDOM
        folder.mkdir(parents=True, exist_ok=True)
        onnx, rows = folder / "model.onnx", folder / "rows.npz"
        # A process of its own: the bench does without the `build` extra otherwise.
        _run([sys.executable, "-m", "loadtests.bench.resnet", str(onnx), str(rows)])
        _mipgate("add", str(onnx), "--data", str(rows), "--name", _RANDOM)
    return _RANDOM


def _mipgate(*arguments: str) -> str:
    return _run([str(Path(sys.executable).with_name("mipgate")), *arguments])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubjectError(f"{' '.join(command)} fails: {done.stderr.strip()[-800:]}")
    return done.stdout
