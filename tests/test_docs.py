"""What the docs say is what the code does."""

import re

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from service.config import Config
from service.metrics import Metrics
from tests.conftest import ROOT
from variants.cli.main import VERBS


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for name, setting in Config.model_fields.items():
        row = f"| `MIPGATE_{name.upper()}` | {setting.default} |"
        assert row in text, row


def test_every_metric_is_documented_with_its_labels() -> None:
    registry = CollectorRegistry()
    text = (ROOT / "docs" / "api.md").read_text()
    documented = dict(re.findall(r"^\| `(mipgate_\w+)` \| ([\w, ]+) \|", text, re.MULTILINE))
    defined = {}
    for metric in vars(Metrics(registry)).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        name = metric._name + ("_total" if metric._type == "counter" else "")
        defined[name] = ", ".join(metric._labelnames)
    assert documented == defined


def test_every_verb_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert not [verb for verb in VERBS if f"mipgate {verb}" not in text]


def test_links_between_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
