"""What tells a module's code from another's, where layers and weights are the same."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional

from compression.code_digest import code_digest

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


@dataclass
class Config:
    eps: float


class Configured(nn.Module):
    """A module that is told apart by what its constructor is given, and by nothing else."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        if isinstance(given, Tensor):
            self.register_buffer("given", given, persistent=False)
        else:
            self.given = given


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functional.relu, functional.gelu),
        (torch.relu, torch.tanh),
        (Config(0.1), Config(0.2)),
        (SimpleNamespace(eps=0.1), SimpleNamespace(eps=0.2)),
        ({"a": [1, 2]}, {"a": [1, 3]}),
        ({1, 2}, {1, 3}),
        (torch.zeros(2), torch.ones(2)),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (np.zeros(2), np.ones(2)),
        ((torch.zeros(2),), (torch.ones(2),)),
        (
            partial(functional.leaky_relu, negative_slope=0.1),
            partial(functional.leaky_relu, negative_slope=0.2),
        ),
        (torch.bfloat16, torch.float16),
    ],
)
def test_it_tells_what_a_constructor_was_given(one: Any, other: Any) -> None:
    assert code_digest(Configured(one)) == code_digest(Configured(copy.deepcopy(one)))
    assert code_digest(Configured(one)) != code_digest(Configured(other))


def test_it_tells_a_traced_graph_from_another() -> None:
    traced = [symbolic_trace(module) for module in (nn.ReLU(), nn.Sigmoid(), nn.ReLU())]
    digests = [code_digest(each) for each in traced]
    assert digests[0] == digests[2]
    assert digests[0] != digests[1]


def test_a_cache_that_fills_changes_nothing() -> None:
    made: dict[str, Any] = {"CACHE": {}}
    exec("def seen(x): return CACHE.setdefault(x, x)", {"__name__": "made", **made}, made)
    before = code_digest(made["seen"])
    made["seen"](1)
    assert code_digest(made["seen"]) == before


def test_what_has_no_source_is_told_by_its_instructions() -> None:
    made: dict[str, Any] = {}
    exec("def one(x): return x + 1\ndef two(x): return x * 2", {"__name__": "made"}, made)
    assert code_digest(made["one"]) != code_digest(made["two"])
