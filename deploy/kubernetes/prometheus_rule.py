"""Packs the rules of `deploy/prometheus` for its operator: `python -m deploy.kubernetes.prometheus_rule`.

A test checks that what is committed is current.
"""

from __future__ import annotations

from pathlib import Path

import yaml

_RULES = Path(__file__).resolve().parents[1] / "prometheus"
FILE = Path(__file__).parent / "operators" / "prometheusrule.yaml"


def packed() -> str:
    """The PrometheusRule, as YAML."""
    files = (_RULES / name for name in ("recording.yml", "alerts.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "mipgate", "labels": {"app.kubernetes.io/name": "mipgate"}},
        "spec": {"groups": groups},
    }
    made = "# Made from deploy/prometheus by `python -m deploy.kubernetes.prometheus_rule`.\n"
    return made + yaml.safe_dump(document, sort_keys=False, width=110)


if __name__ == "__main__":
    FILE.write_text(packed())
