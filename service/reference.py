"""Pages of the documentation that are made from the code: docs/metrics.md, and the table of settings.

`python -m service.reference` writes them; a test checks that they are current.
"""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from service.config import Config
from service.metrics import BUILD_OUTCOMES, GUARD_BOUNDS, OUTCOMES, REASONS, Metrics
from service.rollout.guard import STATISTICS

_DOCS = Path(__file__).resolve().parents[1] / "docs"
_SETTINGS = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- end of settings -->)", re.DOTALL)
_OVER_WORKERS = {
    "livesum": "sum",
    "livemin": "least",
    "livemostrecent": "newest",
}
_METRICS_PAGE = f"""# Metrics

Made from service/metrics.py by `python -m service.reference`.

`GET /metrics` of any worker tells of all of them, in Prometheus's text format. Counters and histograms add
up over the workers, those that died included, so that none goes backwards while the gateway runs. A gauge
forgets a worker that died at the next scrape.

Label values come from closed sets: registered models, their variants (by recipe) and tiers, and what is
listed here. A path, a name or a header that is not registered makes no series. `variant` is empty where none
was chosen, `arm` where no rollout applies.

| label | values |
|---|---|
| `outcome` of requests | {", ".join(OUTCOMES)} |
| `reason` | {", ".join(REASONS)} |
| `outcome` of builds | {", ".join(BUILD_OUTCOMES)} |
| `bound` | {", ".join(GUARD_BOUNDS)} |
| `phase` | initializing, progressing, waiting, promoting, finalising, succeeded, failed, inconclusive |
| `arm` | primary, candidate, candidate-2, ... |
| `state` | serving, dominated, refused, failed, skipped |
| `agree`, `correct` | true, false |
| `statistic` | as guards write it: {", ".join(STATISTICS)} (`p99`, say) |
| `signal` `input:NAME` | values of the input NAME, or its tokens |
| `signal` `input:NAME:mean`, `:spread` | mean and standard deviation of each row, where it has several |
| `signal` `input:NAME:length`, `:unknown` | tokens in a row, and the share that the tokenizer does not know |
| `signal` `prediction`, `confidence` | classes, or means of rows of numbers; probability of the class |
| `from` | what an idle gateway would have answered with; empty where nothing reaches the floor |
| `to` | what answered |
| `database` | sqlite, postgresql |
| `worker` | 1, 2, ... up to `MIPGATE_WORKERS` |
| `quantile` | 0.5, 0.95, 0.99 |

| metric | type | over workers | labels | what it says |
|---|---|---|---|---|
"""


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    metrics = [
        value for value in vars(Metrics(CollectorRegistry())).values() if isinstance(value, MetricWrapperBase)
    ]
    histograms = [metric for metric in metrics if isinstance(metric, Histogram)]
    buckets = "".join(f"| `{metric._name}` | {_bounds(metric)} |\n" for metric in histograms)
    table = "".join(map(_metric_row, metrics))
    return f"{_METRICS_PAGE}{table}\n## Buckets\n\n| histogram | upper bounds |\n|---|---|\n{buckets}"


def _metric_row(metric: MetricWrapperBase) -> str:
    name = metric._name + ("_total" if metric._type == "counter" else "")
    over_workers = _OVER_WORKERS[metric._multiprocess_mode] if isinstance(metric, Gauge) else "sum"
    labels = ", ".join(metric._labelnames)
    return f"| `{name}` | {metric._type} | {over_workers} | {labels} | {metric._documentation} |\n"


def _bounds(metric: Histogram) -> str:
    finite = metric._kwargs["buckets"]
    return ", ".join(f"{bound:g}" for bound in finite)


def settings_table() -> str:
    """The configuration reference: one row per setting."""
    rows = [
        f"| `MIPGATE_{name.upper()}` | {setting.default} | {setting.description} |\n"
        for name, setting in Config.model_fields.items()
    ]
    return "| environment | default | |\n|---|---|---|\n" + "".join(rows)


def operations_page(text: str) -> str:
    """docs/operations.md with its table of settings made anew."""
    return _SETTINGS.sub(lambda _: settings_table(), text)


def main() -> None:
    """Writes the pages."""
    (_DOCS / "metrics.md").write_text(metrics_page())
    operations = _DOCS / "operations.md"
    operations.write_text(operations_page(operations.read_text()))


if __name__ == "__main__":
    main()
