"""`mipgate doctor`."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import bentoml
import click

from variants.catalog import Catalog
from variants.cli.output import json_option, print_json, print_table
from variants.home import mipgate_home
from variants.host import installed_version, this_host
from variants.runtime import ENGINES, available_runtimes
from variants.store import human_bytes

_PACKAGES = {
    "serve": (
        "bentoml",
        "onnxruntime",
        "onnxruntime-ep-openvino",
        "numpy",
        "pydantic",
        "uvloop",
        "httptools",
    ),
    "build": ("torch", "torch-pruning", "optuna", "onnx", "onnxscript", "safetensors", "scikit-learn"),
    "loadtest": ("locust", "matplotlib"),
}


@click.command(name="doctor")
@json_option
def command(as_json: bool) -> None:
    """Tell what this host can do: CPU, runtimes or why they are missing, versions, disk, store.

    Example: mipgate doctor
    """
    findings = examine()
    if as_json:
        print_json(findings)
    else:
        _print(findings)


def examine() -> dict[str, Any]:
    """What this host has, as JSON."""
    host = this_host()
    runtimes = [str(runtime) for runtime in available_runtimes(host)]
    catalog = Catalog()
    store = catalog.root
    disk = shutil.disk_usage(next(path for path in (store, *store.parents) if path.exists()))
    return {
        "host": {
            "fingerprint": host.fingerprint,
            "cpu": host.cpu,
            "features": list(host.features),
            "cores": host.cores,
            "python": sys.version.split()[0],
        },
        "runtimes": {
            name: {"available": (reason := engine.why_missing()) is None, "reason": reason or ""}
            for name, engine in ENGINES.items()
        },
        "runs_on": runtimes,
        "packages": {
            extra: {package: installed_version(package) for package in packages}
            for extra, packages in _PACKAGES.items()
        },
        "store": {"path": str(store), "models": catalog.models(), "free_bytes": disk.free},
        "home": str(mipgate_home()),
        "bentoml": bentoml.__version__,
    }


def _print(findings: dict[str, Any]) -> None:
    host, store = findings["host"], findings["store"]
    print_table(
        ["", ""],
        [
            ["cpu", f"{host['cpu']}, {host['cores']} cores"],
            ["features", " ".join(host["features"]) or "none that matter"],
            ["fingerprint", host["fingerprint"]],
            ["python", host["python"]],
            ["store", f"{store['path']}: {', '.join(store['models']) or 'no models yet'}"],
            ["disk", f"{human_bytes(store['free_bytes'])} free"],
            ["home", findings["home"]],
        ],
    )
    click.echo()
    rows = [
        [name, "yes" if found["available"] else "no", found["reason"]]
        for name, found in findings["runtimes"].items()
    ]
    print_table(["runtime", "here", "why not"], rows)
    click.echo()
    for extra, packages in findings["packages"].items():
        missing = [name for name, version in packages.items() if version is None]
        versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        click.echo(f"{extra}: {versions or 'nothing installed'}")
        if missing:
            extras = "" if extra == "serve" else f"[{extra}]"
            click.echo(f"  missing {', '.join(missing)}. Run `pip install 'mipgate{extras}'`.")
