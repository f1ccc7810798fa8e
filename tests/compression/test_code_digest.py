"""What tells a module's code from another's, where layers and weights are the same."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional
from torch.nn.utils import parametrize

from compression.code_digest import code_digest
from tests.conftest import ROOT

SOURCE = """
from dataclasses import dataclass
from functools import lru_cache, wraps

import torch
from torch import Tensor, nn

MEAN = 0.5
MEANS = torch.tensor([0.25])
ACT = nn.ReLU()


@dataclass(frozen=True)
class Size:
    width: int = 4


SIZE = Size(width=4)


def scaled(function):
    @wraps(function)
    def inner(*given):
        return function(*given) * 2
    return inner


@lru_cache
def half() -> float:
    return 0.5


@scaled
def centred(x: Tensor, by: float = MEAN) -> Tensor:
    return x - by - MEANS


class Base(nn.Module):
    factor = MEAN

    def forward(self, x: Tensor) -> Tensor:
        return ACT(self.layer(centred(x))) * self.heads * half() * SIZE.width


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
        ("return x - by", "return by - x", False),
        ("* self.heads", "/ self.heads", False),
        ("nn.ReLU()", "nn.GELU()", False),
        ("torch.tensor([0.25])", "torch.tensor([0.5])", False),
        ("Size(width=4)", "Size(width=5)", False),
        ("(*given) * 2", "(*given) * 3", False),
        ("return 0.5", "return 0.25", False),
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


HELPED = """
import helping
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        return helping.act(x) * helping.K
"""


def test_it_tells_what_a_module_of_ones_own_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for number, (held, said) in enumerate(((1, "x"), (1, "-x"), (2, "x"))):
        helping = loaded(tmp_path, f"K = {held}\ndef act(x): return {said}", "helping")
        monkeypatch.setitem(sys.modules, "helping", helping)
        module = loaded(tmp_path, HELPED, f"net{number}")
        monkeypatch.setitem(sys.modules, f"net{number}", module)
        digests.add(code_digest(module.Net()))
    assert len(digests) == 3


CHOSEN = """
from enum import Enum
from functools import cached_property
from torch import nn


class Kind(Enum):
    FIRST = 1


class Swish:
    def __call__(self, x):
        return x + 2


def plus(x):
    return x + 3


ACTS, SWISH = {"plus": plus}, Swish()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.kind, self.plus = Swish(), Kind.FIRST, plus

    @cached_property
    def scale(self):
        return 4

    def forward(self, x):
        return SWISH(ACTS["plus"](self.act(x)))
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [("FIRST = 1", "FIRST = 5"), ("x + 2", "x + 5"), ("x + 3", "x + 5"), ("return 4", "return 5")],
)
def test_it_tells_what_is_chosen_from_and_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    digests = set()
    for number, source in enumerate((CHOSEN, CHOSEN.replace(before, after))):
        module = loaded(tmp_path, source, f"chosen{number}")
        monkeypatch.setitem(sys.modules, f"chosen{number}", module)
        digests.add(code_digest(module.Net()))
    assert len(digests) == 2


OWN = """
from torch import nn


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 1.0
"""


def test_it_tells_the_class_of_a_layer_that_torch_parametrized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for source in (OWN, OWN.replace("1.0", "3.0")):
        module = loaded(tmp_path, source, "own")
        monkeypatch.setitem(sys.modules, "own", module)
        net = nn.Sequential(module.Own(2, 2))
        parametrize.register_parametrization(net[0], "weight", nn.Identity())
        digests.append(code_digest(net))
    assert digests[0] != digests[1]


def test_it_tells_two_functions_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(tmp_path, "one, two = (lambda x: x + 1), (lambda x: x + 2)")
    monkeypatch.setitem(sys.modules, "net", module)
    assert code_digest(module.one) != code_digest(module.two)


def test_it_is_the_same_in_every_process() -> None:
    told = set()
    for seed in ("1", "2", "3"):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.compression.odd_modules"],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(ran.stdout)
    assert len(told) == 1
    assert len(told.pop().split()) > 5


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
    late: int = field(init=False)  # never set


class Silent:
    """Says nothing of what it holds."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __repr__(self) -> str:
        return "Silent()"


class Mute:
    """Cannot say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError


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
        (Silent(1), Silent(2)),
        (deque([torch.zeros(2000)]), deque([torch.ones(2000)])),
        (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
        (torch.tensor([1j]).conj(), torch.tensor([2j]).conj()),
        (np.array(["2020-01-01"], "datetime64[D]"), np.array(["2020-01-02"], "datetime64[D]")),
        (np.array(["cat", 1], dtype=object), np.array(["cat", 2], dtype=object)),
        (Mute(), 1),
    ],
)
def test_it_tells_what_a_constructor_was_given(one: Any, other: Any) -> None:
    assert code_digest(Configured(one)) == code_digest(Configured(copy.deepcopy(one)))
    assert code_digest(Configured(one)) != code_digest(Configured(other))


class Scaler:
    def __init__(self, by: float) -> None:
        self.by = by

    def scale(self, x: Tensor) -> Tensor:
        return x * self.by


def test_it_tells_whose_method_was_given() -> None:
    assert code_digest(Configured(Scaler(2.0).scale)) == code_digest(Configured(Scaler(2.0).scale))
    assert code_digest(Configured(Scaler(2.0).scale)) != code_digest(Configured(Scaler(3.0).scale))


_first: int | None = None


class Counting(nn.Module):
    """Changes what is of its class, of its file and of the process, and answers as ever."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.log = logging.getLogger(f"made {self.made % 2}")
        self.log.setLevel(self.made)
        self.parts = nn.ModuleList(nn.Linear(2, 2 + n) for n in range(4))
        self.skipped = {*self.parts}
        self.handle = self.register_forward_hook(lambda *given: None)

    def forward(self, x: Tensor) -> Tensor:
        global _first
        if _first is None:
            _first = 1
        return x + _first


def test_what_changes_as_a_program_runs_is_no_part_of_it() -> None:
    digests = {code_digest(Counting()) for _ in range(5)}
    module = Counting()
    module(torch.zeros(2))
    assert digests == {code_digest(module)}


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


def test_what_was_made_in_nowhere_is_told(tmp_path: Path) -> None:
    made: dict[str, Any] = {}
    exec("def one(x): return x + 1", made)
    assert code_digest(made["one"])
    assert code_digest(loaded(tmp_path, SOURCE, "unlisted").Net())  # not in `sys.modules`


def test_what_has_no_source_is_told_by_its_instructions() -> None:
    made: dict[str, Any] = {}
    exec("def one(x): return x + 1\ndef two(x): return x * 2", {"__name__": "made"}, made)
    assert code_digest(made["one"]) != code_digest(made["two"])


class Config(BaseModel):
    width: int = 16


class Validated(nn.Module):
    """A module that keeps its validated configuration."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.layer = config, nn.Linear(4, 4)


def test_it_tells_a_validated_configuration_from_another() -> None:
    first, again, other = (code_digest(Validated(Config(width=width))) for width in (16, 16, 32))
    assert first == again != other


GRU = 1  # named as what is taken from torch below


def recurrent(width: int) -> nn.Module:
    return nn.GRU(width, width)


def test_an_attribute_of_a_library_is_no_name_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest(recurrent)
    monkeypatch.setitem(globals(), "GRU", 2)
    assert code_digest(recurrent) == before
