"""What tells a module's code from another's, where layers and weights are the same."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from variants.code_digest import code_digest

SOURCE = """
from torch import Tensor, nn

MEAN = 0.5


def centred(x: Tensor) -> Tensor:
    return x - MEAN


class Base(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(centred(x)) * self.heads


class Net(Base):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.heads = heads


def unrelated() -> int:
    return 1
"""


def loaded(folder: Path, source: str, name: str = "net") -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("MEAN = 0.5", "MEAN = 0.4", False),
        ("return x - MEAN", "return MEAN - x", False),
        ("* self.heads", "/ self.heads", False),
        ("return 1", "return 2", True),
    ],
)
def test_it_tells_what_the_classes_refer_to_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, is_same: bool
) -> None:
    digests = []
    for number, source in enumerate((SOURCE, SOURCE.replace(before, after))):
        module = loaded(tmp_path, source, f"net{number}")
        monkeypatch.setitem(sys.modules, f"net{number}", module)
        digests.append(code_digest(module.Net()))
    assert (digests[0] == digests[1]) == is_same


def test_it_tells_plain_attributes_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(tmp_path, SOURCE)
    monkeypatch.setitem(sys.modules, "net", module)
    assert code_digest(module.Net(2)) == code_digest(module.Net(2))
    assert code_digest(module.Net(2)) != code_digest(module.Net(8))
    assert code_digest(module.Net(2)) == code_digest(module.Net(2).eval())
    assert code_digest(partial(module.centred, 1)) != code_digest(partial(module.centred, 2))


def test_what_has_no_source_is_told_by_its_instructions() -> None:
    made: dict[str, Any] = {}
    exec("def one(x): return x + 1\ndef two(x): return x * 2", {"__name__": "made"}, made)
    assert code_digest(made["one"]) != code_digest(made["two"])
