"""What a build's child processes do: prepare a model's reference and data, or compress one variant.

Run as `python -m variants.build_worker JOB.json RESULT.json`; `variants.build` is the parent.
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from compression.base import CompressionError, PassContext, PassRefusedError
from compression.checkpoint import Checkpoints
from compression.data import Splits
from compression.model import Form, TorchModel
from compression.pipeline import Compressed, check, compress, pass_versions
from compression.recipe import Recipe
from compression.registry import PASSES
from compression.signature import Array
from compression.storage import save
from variants import document
from variants.build_job import CALIBRATION_FILE, Job, Outcome, Planned, Prepared, Result, build_key
from variants.catalog import GOLDEN_FILE, MODEL_FILE, SAMPLES_FILE, VALIDATION_FILE, model_file
from variants.home import subfolder
from variants.host import installed_version, this_host
from variants.metrics import find_metric
from variants.misspelling import misspelled
from variants.parity import ParityError, verify
from variants.profiling import predict
from variants.quality import quality_ratio
from variants.reference import beside_baseline, reference_model, reference_training, untrained
from variants.runtime import Runtime, open_session, reference_runtime
from variants.samples import write_golden, write_split
from variants.scoring import Finished, reference_graph, score
from variants.spec import ModelSpec, load_spec
from variants.text import Tokenize
from variants.transforms import Transforms, open_transforms
from variants.variant import Lineage
from variants.worker import report_to_parent

_GOLDEN_ROWS = 16
_PARITY_ROWS = 64

# Libraries whose version can change an artifact.
_SHAPING = (
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "torch",
    "torch-pruning",
    "transformers",
)


def prepare(job: Job) -> Prepared:
    """Loads the data, trains or finds the reference, and plans every recipe."""
    spec = _spec(job)
    model = untrained(spec)
    for name in job.only:  # an unknown name and an order that cannot work are errors before any training
        with suppress(PassRefusedError):  # a skip, which the table tells
            check(spec.recipe(name), model.form)
    wanted = [
        recipe
        for recipe in spec.recipes
        if recipe.name == spec.reference or (recipe.name in job.only if job.only else recipe.by_default)
    ]
    versions = {recipe.name: pass_versions(recipe) for recipe in wanted}
    splits = spec.splits()
    write_split(job.folder / SAMPLES_FILE, splits.test)
    write_split(job.folder / CALIBRATION_FILE, splits.calibration)
    before = _gather_files(spec, job.folder).before
    disturbed = misspelled(splits.validation, before) if isinstance(before, Tokenize) else ()
    write_split(job.folder / VALIDATION_FILE, splits.validation, disturbed)
    reference = reference_model(model, spec, splits, report_to_parent)
    source = reference.weights_digest()
    plans = [
        replace(
            _plan(spec, splits, source, recipe, versions[recipe.name]),
            refused=_refused(recipe, model.form),
            timeout_s=recipe.timeout_s or spec.timeout_s,
        )
        for recipe in wanted
    ]
    serving = replace(spec.serving_spec(), comparison=beside_baseline(spec, splits, reference))
    return Prepared(serving, plans)


def _gather_files(spec: ModelSpec, folder: Path) -> Transforms:
    """Copies what the transforms read, and opens them once: a gateway must not be the first to fail."""
    files = {name: folder / name for name in spec.files}
    for name, path in files.items():
        shutil.copyfile(spec.files[name](), path)
    return open_transforms(spec.transforms, spec.signature, files)


def build_variant(job: Job, recipe_name: str) -> Outcome:
    """Compresses, exports, reloads, verifies and scores one variant."""
    started = time.perf_counter()
    spec = _spec(job)
    splits = spec.splits()
    if splits.digest != job.data:
        return Outcome(
            failed="the spec's `splits` gives other rows each time it is called: what is held out for tests "
            "would be trained on. Seed what draws them."
        )
    reference = reference_model(untrained(spec), spec, splits, report_to_parent)
    if reference.weights_digest() != job.source:
        return Outcome(
            failed="the spec's `factory` gives other weights each time it is called: variants would be held "
            "against another reference than their own. Seed what draws them, or load them from a file."
        )
    recipe = spec.recipe(recipe_name)
    context = PassContext(
        splits,
        reference if isinstance(reference, TorchModel) else None,
        spec.students,
        spec.training,
        spec.seed_of(recipe),
        report_to_parent,
        Checkpoints(subfolder("checkpoints")),
        quality=partial(quality_of, spec),
    )
    try:
        began = time.perf_counter()
        compressed = compress(recipe, reference, context)
        compress_seconds = time.perf_counter() - began
        path = save(compressed.artifact, job.folder / MODEL_FILE)
        parity = verify(
            path,
            _runtime(),
            spec.signature,
            splits.calibration.take(slice(0, _PARITY_ROWS)),
            exported(recipe, compressed),
        )
    except PassRefusedError as error:
        return Outcome(skipped=str(error))
    except (CompressionError, ParityError) as error:
        traceback.print_exc()  # the parent logs it
        return Outcome(failed=str(error))
    _write_golden(job.folder, splits)
    finished = Finished(path, compressed, parity, time.perf_counter() - started, compress_seconds)
    graph = reference_graph(reference, job.folder.parent) if recipe.steps else None
    scored = score(finished, graph, splits.calibration)
    if not recipe.steps:
        training = reference_training(spec, splits)
        scored = replace(scored, invariants=[*training, *scored.invariants])
    return Outcome(scorecard=scored)


def _refused(recipe: Recipe, source: Form) -> Outcome | None:
    """Why a recipe cannot work on a model of this form, whatever its data and weights are."""
    try:
        check(recipe, source)
    except PassRefusedError as error:
        return Outcome(skipped=str(error))
    except CompressionError as error:
        return Outcome(failed=str(error))
    return None


def quality_of(
    spec: ModelSpec, outputs: Sequence[Array], against: Sequence[Array], labels: Array | None
) -> float:
    """The spec's metric of outputs over that of others, both in signature order."""
    names = [output.name for output in spec.signature.outputs]
    ours, theirs = (dict(zip(names, arrays, strict=True)) for arrays in (outputs, against))
    return quality_ratio(find_metric(spec.metric), ours, theirs, labels)


def _spec(job: Job) -> ModelSpec:
    """The spec with the recipes that the job adds to it."""
    spec = load_spec(job.spec)
    names = {recipe.name for recipe in job.added}
    own = (recipe for recipe in spec.recipes if recipe.name not in names)
    return replace(spec, recipes=(*own, *job.added))


def _plan(spec: ModelSpec, splits: Splits, source: str, recipe: Recipe, passes: dict[str, int]) -> Planned:
    lineage = Lineage(
        source=source,
        data=splits.digest,
        recipe=recipe.digest,
        spec=spec.digest(recipe),
        passes=passes,
        libraries={name: installed_version(name) or "missing" for name in _SHAPING},
        seed=spec.seed_of(recipe),
    )
    return Planned(recipe.name, recipe.canonical(), lineage, build_key(lineage))


def exported(recipe: Recipe, compressed: Compressed) -> TorchModel | None:
    """The module that the artifact must equal: none when a pass changed the graph after the export."""
    passes = [PASSES[step.pass_name] for step in recipe.steps]
    touched = any(each.gives is Form.ONNX and not each.only_stores for each in passes)
    return None if touched else compressed.torch_model


def _runtime() -> Runtime:
    """The reference's runtime, with as many threads as this process may use of the cores."""
    return replace(reference_runtime(this_host()), threads=torch.get_num_threads())


def _write_golden(folder: Path, splits: Splits) -> None:
    """Real rows with the outputs that this artifact gave for them where it was built."""
    rows = splits.calibration.take(slice(0, _GOLDEN_ROWS))
    outputs = predict(open_session(model_file(folder), _runtime()), rows)
    write_golden(folder / GOLDEN_FILE, rows.inputs, outputs)


def main() -> None:
    """Reads the job, does it, writes the result."""
    job_path, result_path = map(Path, sys.argv[1:])
    job = document.read(Job, job_path)
    if job.recipe is None:
        result = Result(prepared=prepare(job))
    else:
        result = Result(outcome=build_variant(job, job.recipe))
    document.write(result_path, result)


if __name__ == "__main__":
    main()
