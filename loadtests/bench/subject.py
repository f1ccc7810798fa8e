"""The model that is measured: what `mipgate show` says of it, its rows, what its files answer directly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadtests.bench.peers.session import OnnxModel
from loadtests.bench.requests import Array, Wire, v2_binary, v2_json
from loadtests.bench.servers import Artifact, with_key
from loadtests.samples import Samples, read_samples

BALANCED = "balanced"
_PLAIN_ONNX = ".onnx"
_QUANTIZED = ("int8", "uint8")


class SubjectError(Exception):
    """The model is not there, or no peer could serve it."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model of the store.

    Attributes:
        model: Its name.
        document: What `mipgate show MODEL --json` prints.
        samples: Rows of its test split.
    """

    model: str
    document: Mapping[str, Any]
    samples: Samples

    @cached_property
    def variants(self) -> dict[str, Mapping[str, Any]]:
        """Released variants that some runtime here executes, by name."""
        return {
            each["name"]: each
            for each in self.document["variants"]
            if each["life"] == "released" and each["runtime"]
        }

    @property
    def reference(self) -> str:
        """The variant that all others are compared with."""
        return str(self.document["reference"])

    @property
    def tiers(self) -> Mapping[str, Mapping[str, Any]]:
        """Floor, deadline and variant of each tier."""
        tiers: Mapping[str, Mapping[str, Any]] = self.document["tiers"]
        return tiers

    def quantized(self) -> str | None:
        """The 8-bit file that peers serve too: the one that answers `balanced`, else the fastest."""
        balanced = self.tiers.get(BALANCED, {}).get("serves")
        names = [name for name in self.variants if self._is_quantized(name)]
        if balanced in names:
            return str(balanced)
        return min(names, key=lambda name: best_row_ms(self.variants[name]), default=None)

    def artifact(self, variant: str) -> Artifact:
        """The file of a variant, with the runtime that serves it here."""
        described = self.variants[variant]
        path = Path(described["artifact"]["path"])
        if path.suffix != _PLAIN_ONNX:
            raise SubjectError(f"{variant} is no plain ONNX file: {path.name}. Name another variant.")
        engine, precision, threads = (described[key] for key in ("runtime", "precision", "threads"))
        model = OnnxModel(str(path), engine, precision, threads)
        width = model.run(self.rows(1)).shape[-1]
        name = next(iter(self.samples.inputs))
        dtype = model.dtype.name
        return Artifact(path, engine, precision, threads, name, dtype, model.row_shape, width)

    def pinned(
        self, variant: str, parameters: Mapping[str, str | int] = MappingProxyType({})
    ) -> dict[str, Wire]:
        """How the gateway is asked for one variant by name."""
        path, told = f"/v2/models/{self.model}/versions/{variant}/infer", with_key(parameters)
        return {"json": v2_json(path, told), "binary": v2_binary(path, told)}

    def rows(self, count: int) -> Array:
        """The first rows of the only input."""
        return next(iter(self.samples.inputs.values()))[:count]

    def some(self, count: int) -> Samples:
        """The first samples."""
        labels = self.samples.labels
        inputs = {name: array[:count] for name, array in self.samples.inputs.items()}
        return Samples(inputs, None if labels is None else labels[:count])

    def _is_quantized(self, name: str) -> bool:
        described = self.variants[name]
        weights = described["size"]["weights"] or {}
        plain = Path(described["artifact"]["path"]).suffix == _PLAIN_ONNX
        return plain and any(weights.get(dtype) for dtype in _QUANTIZED)


def direct(artifact: Artifact) -> OnnxModel:
    """A session in this process."""
    return OnnxModel(str(artifact.path), artifact.engine, artifact.precision, artifact.threads)


def profile_of(variant: Mapping[str, Any]) -> Mapping[str, Any]:
    """The profile of the runtime that serves a variant."""
    wanted = [variant[key] for key in ("runtime", "precision", "threads")]
    profile: Mapping[str, Any] = next(
        each
        for each in variant["profiles"]
        if [each[key] for key in ("runtime", "precision", "threads")] == wanted
    )
    return profile


def best_row_ms(variant: Mapping[str, Any]) -> float:
    """Least time of a row, over the batch sizes that were profiled."""
    latencies = profile_of(variant)["latency_ms"]
    return min(float(times["p50"]) / int(batch) for batch, times in latencies.items())


def read_subject(model: str) -> Subject:
    """Reads a model of the caller's store.

    Raises:
        SubjectError: It is not there, or has more than one input.
    """
    command = [str(Path(sys.executable).with_name("mipgate")), "show", model, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubjectError(f"{model} is not there: {done.stderr.strip()} Run `mipgate build {model}`.")
    samples = read_samples(_samples_file(model))
    if len(samples.inputs) != 1:
        raise SubjectError(f"{model} has {len(samples.inputs)} inputs, and the peers here take one.")
    return Subject(model, json.loads(done.stdout), samples)


def _samples_file(model: str) -> Path:
    """The newest published file of rows, as it lies in BentoML's store."""
    home = Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")
    folder = home / "models" / model
    try:
        return folder / (folder / "latest").read_text().strip() / "samples.npz"
    except OSError as error:
        raise SubjectError(
            f"{folder} has no published rows: {error}. Run `mipgate build {model}`."
        ) from error
