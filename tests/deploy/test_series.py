"""Labels are closed sets: whatever anyone sends, a scrape shows no series that was not foreseen."""

import random
import string

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import OUTCOMES, REASONS
from tests.conftest import Homes
from tests.gateway import Gateway, request, running

VARIANTS = {
    "", "fp32", "fp16", "int8-dynamic", "int8-static", "pruned", "distilled", "pruned-distilled-int8"
}  # fmt: skip
CLOSED = {
    "model": {"digits"},
    "variant": VARIANTS,
    "from": VARIANTS,
    "to": VARIANTS,
    "tier": {"accurate", "balanced", "fast"},
    "arm": {"", "candidate"},
    "outcome": set(OUTCOMES),
    "reason": set(REASONS),
}
_ALPHABET = string.ascii_letters + string.digits + '-_.@%/ \\"{}\u00e9'
_TEMPLATES = (
    "/x{}", "/metrics/{}", "/v2/{}", "/v2/models/{}/infer", "/v2/models/digits/versions/{}/infer",
    "/v2/models/digits/{}", "/predict/{}", "/docs/{}", "/admin/{}", "/v2/repository/models/{}/load",
)  # fmt: skip
_HEADERS = (
    "X-Mipgate-Tier",
    "X-Mipgate-Sticky-Key",
    "X-Mipgate-Min-Accuracy",
    "Content-Type",
    "Accept",
    "Host",
)


def series(gateway: Gateway) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    text = httpx.get(f"{gateway.url}/metrics", timeout=30).text
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples}


def test_no_path_model_tier_or_header_makes_a_series(homes: Homes) -> None:
    draw = random.Random(20261123)

    def junk() -> str:
        return "".join(draw.choices(_ALPHABET, k=draw.randint(1, 40)))

    row = np.zeros(64, np.float32)
    with running(homes) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as http:
        for variant in VARIANTS - {""}:
            assert gateway.infer(row, variant, max_latency_ms=60_000.0).status_code == 200
        for _ in range(200):
            path = httpx.URL(path=draw.choice(_TEMPLATES).format(junk()))
            header = {draw.choice(_HEADERS).encode(): junk().encode("ascii", "replace").strip()}
            wish = {draw.choice(("tier", "sticky_key", "min_accuracy", "arm", "variant")): junk()}
            http.request(draw.choice(("GET", "POST", "PUT")), path, headers=header, json=request(row, **wish))
            http.post("/v2/models/digits/infer", headers=header, json=request(row, **wish))
        for name, labels in series(gateway):
            assert name.startswith("mipgate_"), name
            for label, value in labels:
                assert value in CLOSED.get(label, {value}), (name, label, value)
            assert {"endpoint", "path"}.isdisjoint(dict(labels))
