"""The schemas of what operators add to Kubernetes, from npm, where they are published as validators."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.debian import cache_folder

_PACKAGES = ("@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0")
_MODULES = {
    "ServiceMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
    "PrometheusRule": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule",
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
}
_CHECK = """
import { readFileSync } from "node:fs";
const document = JSON.parse(readFileSync(0, "utf8"));
const kind = (await import(process.argv[1]))[document.kind];
try { new kind(document).validate(); } catch (error) { console.error(error.message); process.exit(1); }
"""


def complaint(document: dict[str, Any]) -> str:
    """What the operator's schema has against a resource; empty when nothing."""
    command = ["node", "--input-type=module", "-e", _CHECK, _MODULES[document["kind"]]]
    done = subprocess.run(
        command, input=json.dumps(document), capture_output=True, text=True, cwd=_installed()
    )
    return "" if done.returncode == 0 else done.stderr


def _installed() -> Path:
    """A folder with the packages. Skips the test where they cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = cache_folder() / "operator-schemas"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "node_modules").exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                command = [
                    "npm",
                    "install",
                    "--silent",
                    "--no-audit",
                    "--no-fund",
                    "--ignore-scripts",
                    "--prefix",
                    work,
                ]
                done = subprocess.run([*command, *_PACKAGES], capture_output=True, text=True)
                if done.returncode:
                    pytest.skip(f"the schemas cannot be downloaded: {done.stderr[-300:]}")
                (Path(work) / "node_modules").rename(folder / "node_modules")
    return folder
