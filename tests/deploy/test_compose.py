"""The compose file mounts what exists, where the programs in it look."""

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deploy"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())


def mounts(service: str) -> dict[str, str]:
    """The files of this repository in a container, by their path there."""
    pairs = (volume.split(":") for volume in COMPOSE["services"][service]["volumes"])
    return {pair[1]: pair[0] for pair in pairs if pair[0].startswith(".")}


def _read(path: str) -> Any:
    return yaml.safe_load((FOLDER / path).read_text())


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_docker_understands_it() -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker has no compose here")
    command = ["docker", "compose", "-f", FOLDER / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_it_mounts_exists() -> None:
    for service in COMPOSE["services"]:
        for path in mounts(service).values():
            assert (FOLDER / path).is_dir(), path


def test_prometheus_scrapes_the_gateway_and_grafana_asks_prometheus() -> None:
    [targets] = _read("prometheus/targets.yml")
    assert targets["targets"] == ["gateway:3000"]
    [source] = _read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]


def test_grafana_finds_the_dashboards() -> None:
    [provider] = _read("grafana/provisioning/dashboards/mipgate.yml")["providers"]
    assert mounts("grafana")[provider["options"]["path"]] == "./grafana/dashboards"
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / "grafana" / "dashboards" / home.rpartition("/")[2]).is_file()


def test_the_gateway_runs_without_rights_that_it_does_not_need() -> None:
    gateway = COMPOSE["services"]["gateway"]
    assert gateway["read_only"]
    assert gateway["cap_drop"] == ["ALL"]
    assert not gateway["user"].startswith("0")
