"""The trained reference of a model: made once, kept as safetensors, found again by what it depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from compression.base import Report
from compression.data import Splits
from compression.model import TorchModel
from compression.training import fit, seeded
from variants.home import subfolder
from variants.spec import ModelSpec


def reference_model(spec: ModelSpec, splits: Splits, report: Report) -> TorchModel:
    """The spec's module with its weights: trained now, or read from the cache.

    Args:
        spec: The model.
        splits: Its data; train is learned from, validation chooses the epoch.
        report: Called with a phrase and a fraction as training advances.
    """
    with seeded(spec.seed):
        model = TorchModel(spec.factory().eval(), spec.signature)
    if not spec.train_reference:
        return model
    path = subfolder("references") / f"{spec.name}-{_key(spec, splits)}.safetensors"
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            trained = fit(
                model, splits.train, splits.validation, spec.training, seed=spec.seed, report=report
            )
            _save(trained, path)
    model.module.load_state_dict(load_file(path))
    return model


def _key(spec: ModelSpec, splits: Splits) -> str:
    """Digest of all that the trained weights depend on."""
    facts = [spec.digest, splits.digest, spec.seed, torch.__version__]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _save(model: TorchModel, path: Path) -> None:
    fresh = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}, fresh)
    fresh.replace(path)
