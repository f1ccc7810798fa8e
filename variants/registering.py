"""Takes a user's model in: an ONNX file with rows for it, or a spec; in a process of its own.

What others wrote may crash whoever opens it. Run as `python -m variants.registering JOB.json RESULT.json`.
"""

from __future__ import annotations

import re
import secrets
import shutil
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
from filelock import FileLock

from compression.batching import PROBE_ROWS, batched
from compression.data import Split, distinct, divided
from compression.ends import check_ends
from compression.importing import (
    ImportRefusedError,
    modernized,
    normalized,
    open_graph,
    read_graph,
    run,
)
from compression.model import OnnxModel
from compression.signature import Array, Signature
from variants import document
from variants.home import subfolder
from variants.metrics import find_metric, metric_without_labels
from variants.quality import judged_by, truth
from variants.registration import (
    GRAPH_FILE,
    LABELS,
    ROWS_FILE,
    Added,
    AddJob,
    GraphSource,
    Registration,
    RegistrationError,
    find_registration,
    folder_of,
    write_registration,
)
from variants.samples import write_split
from variants.spec import graph_spec, load_spec, zoo
from variants.store import sha256
from variants.worker import report_to_parent

_PREFIX = "input:"
_JUDGED_AT_ONCE = 64  # rows
_NOT_OF_A_NAME = re.compile(r"[^a-z0-9_-]+")


def add(job: AddJob) -> Added:
    """Registers a model.

    Raises:
        ImportRefusedError: The file or its data cannot be taken in.
        RegistrationError: The name is taken.
        SpecError: The spec or the name is wrong.
        SplitError: There are too few different rows.
        MetricError: The metric does not exist or does not fit.
    """
    return _add_graph(job, Path(job.source)) if job.source.endswith(".onnx") else _add_spec(job)


def _add_spec(job: AddJob) -> Added:
    if ":" not in job.source:
        raise RegistrationError(
            f'"{job.source}" is neither an ONNX file nor a spec. Give PATH.onnx, or package.module:ATTRIBUTE.'
        )
    if job.data is not None or job.metric is not None:
        raise RegistrationError("a spec brings its own data and metric. Leave --data and --metric out.")
    spec = load_spec(job.source)
    if job.name not in (None, spec.name):
        raise RegistrationError(f'the spec names itself "{spec.name}". Leave --name out, or change the spec.')
    return _publish(Registration(spec.name, spec=job.source), {}, job.replace, rows=0, labelled=False)


def _add_graph(job: AddJob, path: Path) -> Added:
    if job.data is None:
        raise ImportRefusedError("an ONNX file needs rows to be judged by. Give them with --data ROWS.npz.")
    report_to_parent("reading", 0.0)
    graph = read_graph(path)
    check_ends(graph)
    proto = normalized(graph)
    rows = _read_rows(job, proto)
    report_to_parent("comparing", 0.3)
    model = batched(proto, rows.inputs)
    few = [{name: array[:PROBE_ROWS] for name, array in rows.inputs.items()}]
    model = OnnxModel(modernized(model.proto, few), model.signature)
    kept = distinct(rows)
    splits = divided(kept)
    metric = job.metric or _usual_metric(model.signature, rows.labels)
    name = job.name or _NOT_OF_A_NAME.sub("-", path.stem.lower()).strip("-_")
    work = subfolder("work") / f"add-{secrets.token_hex(4)}"
    work.mkdir()
    try:
        files = {GRAPH_FILE: work / GRAPH_FILE, ROWS_FILE: work / ROWS_FILE}
        onnx.save_model(model.proto, files[GRAPH_FILE])
        write_split(files[ROWS_FILE], kept)
        digests = {file: sha256(copy) for file, copy in files.items()}
        source = GraphSource(model.signature, metric, digests, job.allow_non_finite, path.name)
        registration = Registration(name, graph=source)
        _judge_all(graph_spec(registration, lambda: model, lambda: splits).metric, model, kept)
        return _publish(registration, files, job.replace, len(kept), kept.labels is not None)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _usual_metric(signature: Signature, labels: Array | None) -> str:
    """Accuracy for class numbers, mean squared error for other labels, agreement where there are none."""
    if labels is None:
        return metric_without_labels(signature)
    return "accuracy" if labels.dtype.kind in "iub" else "mse"


def _judge_all(metric: str, model: OnnxModel, rows: Split) -> None:
    """Runs every row and measures its answer, so that what does not fit is an error before anything is built.

    Raises:
        ImportRefusedError: The graph fails on a row, or gives answers that cannot be compared.
        MetricError: A label does not fit.
    """
    judge = judged_by(find_metric(metric), rows.labels)
    session = open_graph(model.proto, threads=0)
    for start in range(0, len(rows), _JUDGED_AT_ONCE):
        report_to_parent("judging", 0.4 + 0.6 * start / len(rows))
        part = rows.take(slice(start, start + _JUDGED_AT_ONCE))
        try:
            given = run(session, part.inputs)
        except ImportRefusedError as error:
            last = start + len(part) - 1
            raise ImportRefusedError(
                f"rows {start} to {last}: {error}. Leave out what it cannot take."
            ) from error
        outputs = dict(zip((spec.name for spec in model.signature.outputs), given, strict=True))
        _check_finite(outputs)
        judge.rows(outputs, truth(judge, outputs, part.labels))


def _check_finite(outputs: Mapping[str, Array]) -> None:
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise ImportRefusedError(
                f'output "{name}" holds NaN or infinity, which nothing can be compared with. Mask with a '
                "large number such as -1e4 instead, or export the model without this output."
            )


def _read_rows(job: AddJob, proto: onnx.ModelProto) -> Split:
    assert job.data is not None
    arrays = _read_arrays(job.data)
    names = {value.name for value in proto.graph.input}
    inputs: dict[str, Array] = {}
    labels: Array | None = None
    for key, array in arrays.items():
        name = key if key in names else key.removeprefix(_PREFIX)
        if name == job.labels and name not in names:
            labels = array
        else:
            inputs[name] = array
    if labels is None and job.labels != LABELS:
        raise ImportRefusedError(f'{job.data.name} has no array "{job.labels}". It has {", ".join(arrays)}.')
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    rows = _row_count(inputs)
    fitted = {
        name: _as_input(name, _repeated(array, rows), types.get(name), job.allow_non_finite)
        for name, array in inputs.items()
    }
    if labels is not None and (labels.ndim == 0 or len(labels) != rows):
        raise ImportRefusedError(
            f"there are {rows} rows and labels of shape {list(labels.shape)}. Give one label per row."
        )
    if labels is not None and (labels.dtype.kind not in "iufb" or not np.isfinite(labels).all()):
        raise ImportRefusedError("labels must be finite numbers. Encode classes as 0, 1, 2 and so on.")
    return Split(fitted, labels)


def _read_arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise ImportRefusedError(f"there is no file {path}. Give the path of an .npz file with the rows.")
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ImportRefusedError(f"{path.name} holds one nameless array. Save it with np.savez.")
        with arrays:
            return {name: arrays[name] for name in arrays}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ImportRefusedError(
            f"{path.name} cannot be read as .npz: {error}. Save arrays of numbers with np.savez."
        ) from error


def _row_count(inputs: Mapping[str, Array]) -> int:
    lengths = {name: len(array) for name, array in inputs.items() if array.ndim > 0}
    several = {length for length in lengths.values() if length != 1}
    if not lengths or len(several) > 1:
        raise ImportRefusedError(
            f"arrays have lengths {lengths}. Give every input as many rows, or one value for all of them."
        )
    return max(lengths.values())


def _repeated(array: Array, rows: int) -> Array:
    """One value for all rows, such as a threshold, as a value for each."""
    if array.ndim > 0 and len(array) == rows:
        return array
    return np.repeat(np.atleast_1d(array), rows, axis=0)


def _as_input(name: str, array: Array, code: int | None, allow_non_finite: bool) -> Array:
    """The array in the input's dtype, where that loses nothing that matters."""
    if code is None or code not in _KNOWN:
        return array  # `batched` says what is wrong with it
    wanted = onnx.helper.tensor_dtype_to_np_dtype(code)
    if array.dtype.kind not in "iufb":
        raise ImportRefusedError(f'array "{name}" holds {array.dtype}; the input takes {wanted}. Convert it.')
    if array.dtype != wanted:
        with np.errstate(all="ignore"):
            converted = array.astype(wanted)
        floats = array.dtype.kind == wanted.kind == "f"
        back = converted.astype(array.dtype)
        overflows = floats and not np.array_equal(np.isfinite(array), np.isfinite(converted))
        if overflows or not (floats or np.array_equal(back, array)):
            raise ImportRefusedError(
                f'array "{name}" is {array.dtype} and its values do not fit {wanted}, which the input takes. '
                "Convert it."
            )
        array = converted
    if not allow_non_finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array.reshape(len(array), -1))).any(axis=1).sum())
        raise ImportRefusedError(
            f'array "{name}" holds NaN or infinity in {bad} rows. Remove them, or add --allow-non-finite if '
            "the model takes them."
        )
    return array


_KNOWN = {
    getattr(onnx.TensorProto, name)
    for name in (
        "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
        "FLOAT16", "FLOAT", "DOUBLE",
    )
}  # fmt: skip


def _publish(
    registration: Registration, files: Mapping[str, Path], replace: bool, rows: int, labelled: bool
) -> Added:
    """Puts the registration in its place by a rename; what it replaces is back there if that fails."""
    name = registration.name
    with FileLock(subfolder("locks") / f"add-{name}.lock"):
        return _published(registration, files, replace, rows, labelled)


def _published(
    registration: Registration, files: Mapping[str, Path], replace: bool, rows: int, labelled: bool
) -> Added:
    name = registration.name
    before = find_registration(name)
    if before == registration:
        with suppress(RegistrationError):
            for file in files:
                before.path(file)
            return Added(registration, rows, labelled, changed=False)
    if name in zoo():
        raise RegistrationError(f'Mipgate brings a model "{name}" along. Choose another --name.')
    if before not in (None, registration) and not replace:
        raise RegistrationError(
            f'another model is registered as "{name}". Choose another --name, or add --replace.'
        )
    target = folder_of(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = target.with_name(f".{name}-{secrets.token_hex(4)}")
    stage.mkdir()
    try:
        for file, source in files.items():
            shutil.copyfile(source, stage / file)
        write_registration(stage, registration)
        _swap(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Added(registration, rows, labelled, changed=True)


def _swap(stage: Path, target: Path) -> None:
    """Puts a folder in the place of another, which is deleted afterwards."""
    old = stage.with_suffix(".old")
    if target.exists():
        target.rename(old)
    try:
        stage.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """Reads the job, does it, writes the result."""
    job_path, result_path = map(Path, sys.argv[1:])
    document.write(result_path, add(document.read(AddJob, job_path)))


if __name__ == "__main__":
    main()
