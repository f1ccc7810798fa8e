"""`mipgate add`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from variants.build import build
from variants.catalog import Catalog
from variants.cli.build import build_options, tell
from variants.home import subfolder
from variants.host import this_host
from variants.metrics import find_metric
from variants.progress import for_task, reporter
from variants.registration import LABELS, Added, AddJob
from variants.worker import run

_WORKER = "variants.registering"


@click.command(name="add")
@click.argument("source", metavar="MODEL.onnx|MODULE:SPEC")
@click.option(
    "--data",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="ROWS.npz",
    help="Rows for an ONNX file: arrays by input name, and labels if there are any.",
)
@click.option("--name", help="What to call it; the file's own name when not given.")
@click.option("--metric", help="How to judge it; accuracy or mse by the labels, agreement without them.")
@click.option("--labels", default=LABELS, show_default=True, metavar="ARRAY", help="The array of labels.")
@click.option("--allow-non-finite", is_flag=True, help="The model takes NaN and infinities.")
@click.option("--replace", is_flag=True, help="Take the place of another model of this name.")
@click.option("--no-build", is_flag=True, help="Only register it; `mipgate build NAME` builds it later.")
@build_options
def command(
    source: str,
    data: Path | None,
    name: str | None,
    metric: str | None,
    labels: str,
    allow_non_finite: bool,
    replace: bool,
    no_build: bool,
    jobs: int,
    timeout_s: float | None,
    quiet: bool,
) -> None:
    """Register a model of your own, an ONNX file with rows for it or a spec, and build its variants.

    Rows are divided into calibration, validation and test. The file is copied; without labels, quality is
    agreement with it. Every array has as many rows, or one value that holds for all of them.

    Example: mipgate add iris.onnx --data iris.npz
    Example: mipgate add my_package.models:SPEC --no-build
    """  # fmt: skip
    job = AddJob(source, data, name, metric, labels, allow_non_finite, replace)
    with reporter() as progress:
        with tempfile.TemporaryDirectory(dir=subfolder("work")) as work:
            added = run(_WORKER, job, Added, Path(work), for_task(progress, "add"))
        model = added.registration.name
        progress.finish("add", _said(added))
        if no_build:
            return
        catalog, host = Catalog(), this_host()
        built = build(model, catalog, host, progress, jobs=jobs, timeout_s=timeout_s)
    if failed := tell(built, catalog, host, quiet):
        click.echo(failed, err=True)


def _said(added: Added) -> str:
    name, how = added.registration.name, "registered" if added.changed else "registered before, unchanged"
    if added.registration.graph is None:
        return f"{name} is {how}"
    kind, metric = "labelled", added.registration.graph.metric
    if not added.labelled:
        kind, metric = "without labels", find_metric(metric).without_labels
    return f"{name} is {how}: {added.rows} different rows {kind}, judged by {metric}"
