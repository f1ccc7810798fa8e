"""Which of the gateway's metrics a query reads."""

import re

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import Metrics


def series_names() -> set[str]:
    """Every name that a scrape of the gateway can show."""
    names: set[str] = set()
    for metric in vars(Metrics(CollectorRegistry())).values():
        if isinstance(metric, Histogram):
            names |= {f"{metric._name}_{part}" for part in ("bucket", "sum", "count")}
        elif isinstance(metric, MetricWrapperBase):
            names.add(metric._name + ("_total" if metric._type == "counter" else ""))
    return names


def names_read(query: str) -> set[str]:
    """The names of the gateway's metrics and of recorded ones in a query."""
    return set(re.findall(r"(?:[a-z_]+:)?mipgate_\w+(?::\w+)?|mipgate:\w+:\w+", query))
