"""What the docs say is what the code does."""

import re

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from service.config import Config
from service.metrics import Metrics
from service.reference import metrics_page, operations_page, settings_table
from tests.conftest import ROOT
from variants.cli.main import VERBS


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for name, setting in Config.model_fields.items():
        row = f"| `MIPGATE_{name.upper()}` | {setting.default} |"
        assert row in text, row


def test_the_pages_made_from_the_code_are_current() -> None:
    remedy = "Run `python -m service.reference`."
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page(), remedy
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert operations == operations_page(operations), remedy
    assert settings_table() in operations


def test_every_label_of_a_metric_is_explained() -> None:
    text = metrics_page()
    metrics = [m for m in vars(Metrics(CollectorRegistry())).values() if isinstance(m, MetricWrapperBase)]
    labels = {label for metric in metrics for label in metric._labelnames} - {"model", "variant", "tier"}
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert not [label for label in labels if not any(f"`{label}`" in row.split(" | ")[0] for row in rows)]


def test_every_verb_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert not [verb for verb in VERBS if f"mipgate {verb}" not in text]


def test_links_between_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
