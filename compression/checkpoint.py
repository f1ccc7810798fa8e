"""How far a training has come, on disk: an interrupted one goes on, a finished one is not repeated.

Tensors and JSON in one safetensors file, replaced atomically after each epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_FACTS = "facts"
_SEPARATOR = "|"

Group = dict[str, Tensor]


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        facts: Plain JSON: epoch, schedule, curve.
        groups: Named groups of named tensors: weights, best weights, optimizer, random states.
    """

    facts: dict[str, Any]
    groups: dict[str, Group]


@dataclass(frozen=True)
class Checkpoint:
    """One training's file."""

    path: Path

    def alone(self) -> FileLock:
        """Held by whoever trains: another process that is to train the same waits, and finds it done."""
        return FileLock(self.path.with_suffix(".lock"))

    def load(self) -> Saved | None:
        """What was saved last, or None when there is nothing intact."""
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_FACTS])
                groups: dict[str, Group] = {}
                for key in file.keys():  # noqa: SIM118  # a safetensors file is no mapping
                    group, _, name = key.partition(_SEPARATOR)
                    groups.setdefault(group, {})[name] = file.get_tensor(key)
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None  # a file that is cut off is as good as none: the training starts again
        return Saved(facts, groups)

    def save(self, facts: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replaces what was saved before."""
        tensors = {
            f"{group}{_SEPARATOR}{name}": tensor.detach().cpu().clone().contiguous()
            for group, named in groups.items()
            for name, tensor in named.items()
        }
        fresh = self.path.with_suffix(".partial")
        save_file(tensors, fresh, metadata={_FACTS: json.dumps(dict(facts))})
        fresh.replace(self.path)


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints, each found by all that its training depends on."""

    folder: Path

    def find(self, *dependencies: Any) -> Checkpoint:
        """The checkpoint of a training that depends on exactly these facts, given as JSON values."""
        key = hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:24]
        self.folder.mkdir(parents=True, exist_ok=True)
        return Checkpoint(self.folder / f"{key}.safetensors")
