"""Scrape config, recording rules and alerts, by Prometheus's own checker."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.debian import program
from tests.deploy.metric_names import names_read, series_names

FOLDER = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "operations.md"
Rule = dict[str, Any]


@pytest.fixture(scope="module")
def promtool() -> Path:
    return program("prometheus", "usr/bin/promtool")


def rules(file: str) -> list[Rule]:
    groups = yaml.safe_load((FOLDER / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _name(rule: Rule) -> str:
    return str(rule.get("alert") or rule["record"])


ALERTS = rules("alerts.yml")


def _checked(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_and_its_rules_are_valid(promtool: Path) -> None:
    told = _checked([promtool, "check", "config", FOLDER / "prometheus.yml"])
    assert "2 rule files found" in told
    assert f"{len(ALERTS)} rules found" in told


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(promtool: Path) -> None:
    _checked([promtool, "test", "rules", FOLDER / "tests" / "alerts.yml"])


def test_every_alert_has_a_scenario_in_which_it_fires() -> None:
    scenarios = (FOLDER / "tests" / "alerts.yml").read_text()
    fired = set(re.findall(r'ALERTS\{alertname="(\w+)", alertstate="firing"', scenarios))
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize(
    "rule", [*ALERTS, *rules("recording.yml")], ids=lambda r: r.get("alert") or r["record"]
)
def test_rules_read_what_exists(rule: Rule) -> None:
    recorded = {other["record"] for other in rules("recording.yml")}
    assert names_read(rule["expr"]) <= series_names() | recorded


def test_the_runbook_becomes_absolute_by_the_command_of_its_page(promtool: Path, tmp_path: Path) -> None:
    command = re.search(
        r"^    sed -i '(.*)' (deploy/prometheus/alerts\.yml)$", RUNBOOK.read_text(), re.MULTILINE
    )
    assert command
    copy = shutil.copy(ROOT / command[2], tmp_path)
    _checked(["sed", "-i", command[1], copy])
    links = [rule["annotations"]["runbook_url"] for rule in rules(copy)]
    assert len(links) == len(ALERTS)
    assert all(link.startswith("https://git.example/mipgate/blob/main/docs/operations.md#") for link in links)
    _checked([promtool, "check", "rules", copy])


@pytest.mark.parametrize("alert", ALERTS, ids=_name)
def test_every_alert_leads_to_its_section_of_the_runbook(alert: Rule) -> None:
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    text = (ROOT / page).read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    sections = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert anchor in sections
    assert f"`{alert['alert']}`" in text
    assert alert["labels"]["severity"] in {"page", "ticket"}
