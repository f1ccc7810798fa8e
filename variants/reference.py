"""The trained reference of a model: made once, kept as safetensors, found again by what it depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compression.base import Facts, Report
from compression.checkpoint import Checkpoint
from compression.code_digest import code_digest
from compression.data import Splits
from compression.inference import infer
from compression.model import Model, OnnxModel, TorchModel
from compression.rewriting import modernized
from compression.training import VERSION, Fitted, fit, predict, seeded
from variants import document
from variants.comparison import Comparison, compare
from variants.home import subfolder
from variants.spec import ModelSpec


def untrained(spec: ModelSpec) -> Model:
    """What the spec's factory makes, with the weights that it begins with."""
    with seeded(spec.seed):
        source = spec.factory()
    return source if isinstance(source, OnnxModel) else TorchModel(modernized(source).eval(), spec.signature)


def reference_model(model: Model, spec: ModelSpec, splits: Splits, report: Report) -> Model:
    """The spec's module with its weights: trained now, or read from the cache. A graph is taken as it is.

    Args:
        model: What `untrained` made; it is changed where it is a module.
        spec: Its spec.
        splits: Its data; train is learned from, validation chooses the epoch.
        report: Called with a phrase and a fraction as training advances.
    """
    if isinstance(model, OnnxModel) or not spec.train_reference:
        return model
    path = _path(spec, splits)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            checkpoint = Checkpoint(path.with_suffix(".checkpoint"))
            trained = fit(
                model,
                splits.train,
                splits.validation,
                spec.training,
                seed=spec.seed,
                report=report,
                checkpoint=checkpoint,
            )
            _save(trained, path)
            checkpoint.path.unlink(missing_ok=True)  # there is none of no epochs
    model.module.load_state_dict(load_file(path))
    return model


def reference_training(spec: ModelSpec, splits: Splits) -> list[Facts]:
    """How the reference was trained, as a step's entry in a scorecard; empty when it was not trained here."""
    if not spec.train_reference or not (path := _path(spec, splits)).is_file():
        return []
    with safe_open(path, framework="pt") as file:
        curve = json.loads((file.metadata() or {})["curve"])
    best = min(epoch["validation_loss"] for epoch in curve)
    facts = {"epochs": len(curve), "validation_loss": best}
    return [{"pass": "training", "version": VERSION, "facts": facts, "curves": [curve]}]


def beside_baseline(spec: ModelSpec, splits: Splits, reference: Model) -> Comparison | None:
    """The reference against the spec's baseline on test, where it has one; measured once and kept."""
    if spec.baseline is None:
        return None
    facts = json.dumps([reference.weights_digest(), splits.digest, spec.metric, code_digest(spec.baseline)])
    digest = hashlib.sha256(facts.encode()).hexdigest()[:12]
    path = subfolder("references") / f"{spec.name}-baseline-{digest}.json"
    if not path.is_file():
        test = splits.test
        outputs = (
            predict(reference, test)
            if isinstance(reference, TorchModel)
            else infer(reference, test, len(test))
        )
        names = [output.name for output in spec.signature.outputs]
        found = compare(spec.baseline(), dict(zip(names, outputs, strict=True)), spec.metric)
        fresh = path.with_suffix(".partial")
        document.write(fresh, found)
        fresh.replace(path)
    return document.read(Comparison, path)


def _path(spec: ModelSpec, splits: Splits) -> Path:
    return subfolder("references") / f"{spec.name}-{_key(spec, splits)}.safetensors"


def _key(spec: ModelSpec, splits: Splits) -> str:
    """Digest of all that the trained weights depend on."""
    facts = [
        VERSION,
        spec.architecture(spec.factory),
        spec.signature.to_json(),
        spec.training.chosen(),
        splits.digest,
        spec.seed,
        torch.__version__,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _save(trained: Fitted, path: Path) -> None:
    fresh = path.with_suffix(".partial")
    curve = json.dumps([asdict(epoch) for epoch in trained.curve])
    state = trained.model.module.state_dict()  # two names of it may share a tensor, a file's may not
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(weights, fresh, metadata={"curve": curve})
    fresh.replace(path)
