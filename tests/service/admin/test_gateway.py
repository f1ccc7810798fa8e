"""Access and the admin API of a real gateway with two workers."""

import json
import signal
import time
from collections.abc import Callable

import httpx

from tests.conftest import Homes
from tests.gateway import Gateway, running
from tests.service.test_http_protocol import answer, endless

FORWARDED = {"x-forwarded-for": "203.0.113.9"}


def statuses(gateway: Gateway, key: str, path: str = "/v2/models/digits") -> set[int]:
    """Of several connections, which different workers answer."""
    headers = {"authorization": f"Bearer {key}"}
    return {httpx.get(f"{gateway.url}{path}", headers=headers, timeout=30).status_code for _ in range(8)}


def rate_limited(gateway: Gateway) -> float:
    counted = 'mipgate_rejected_total{model="digits",reason="rate_limit"} '
    scraped = httpx.get(f"{gateway.url}/metrics", timeout=30).text
    return float(scraped.partition(counted)[2].partition("\n")[0])


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _closed_to_others(gateway: Gateway, ending: str) -> None:
    for verb in ("load", "unload"):
        path = f"{gateway.url}/v2/repository/models/digits/{verb}{ending}"
        assert httpx.post(path, headers=FORWARDED, timeout=30).status_code == 403


def test_keys_reach_every_worker_and_streams_do_not_keep_it_from_stopping(homes: Homes) -> None:
    with running(homes, workers=2) as gateway:
        for ending in ("", "/", "//"):
            _closed_to_others(gateway, ending)
        assert httpx.get(f"{gateway.url}/admin/models", timeout=30).json()[0]["model"] == "digits"
        body = {"name": "root", "role": "admin"}
        made = httpx.post(f"{gateway.url}/admin/keys", json=body, timeout=30).json()
        assert "key" in made, made
        root = {"authorization": f"Bearer {made['key']}"}
        body = {"name": "web", "role": "infer"}
        web = httpx.post(f"{gateway.url}/admin/keys", json=body, headers=root, timeout=30).json()
        assert within(5, lambda: statuses(gateway, web["key"]) == {200})
        assert within(5, lambda: statuses(gateway, "wrong") == {401})
        assert statuses(gateway, web["key"], "/admin/audit") == {403}
        body = {"name": "slow", "role": "infer", "rate_per_s": 1}
        slow = httpx.post(f"{gateway.url}/admin/keys", json=body, headers=root, timeout=30).json()
        assert within(5, lambda: 401 not in statuses(gateway, slow["key"]))
        asked = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}
        path, with_slow = f"{gateway.url}/v2/models/digits/infer", {"authorization": f"Bearer {slow['key']}"}
        answers = [httpx.post(path, json=asked, headers=with_slow, timeout=30) for _ in range(8)]
        refused = [each.status_code for each in answers].count(429)
        assert refused > 0
        assert within(5, lambda: rate_limited(gateway) == refused)  # a worker adds up twice a second
        path = f"{gateway.url}/v2/repository/models/digits/load"
        assert httpx.post(path, headers=root, timeout=60).status_code == 200
        newest = httpx.get(f"{gateway.url}/admin/audit", headers=root, timeout=30).json()[0]
        assert (newest["what"], newest["target"]) == ("load model", "digits")
        assert "root" in newest["who"]
        httpx.delete(f"{gateway.url}/admin/keys/{web['id']}", headers=root, timeout=30)
        assert within(5, lambda: statuses(gateway, web["key"]) == {401})
        live = httpx.get(f"{gateway.url}/admin/models/digits/live", headers=root, timeout=30).json()
        assert live["window_s"] >= 0
        with httpx.stream("GET", f"{gateway.url}/admin/events", headers=root, timeout=60) as stream:
            lines = stream.iter_lines()
            first = next(line for line in lines if line.startswith("data: "))
            assert json.loads(first.removeprefix("data: "))["model"] == "digits"
            gateway.process.send_signal(signal.SIGTERM)
            for _ in lines:
                pass  # until it ends
        gateway.process.wait(60)
        log = gateway.log.read_text()
        assert made["key"].split("_", 2)[2] not in log
        assert "create key" in log


def test_what_goes_past_the_data_plane_is_admitted_and_bounded(homes: Homes) -> None:
    secret = "a-secret-of-the-operator"
    bring = {"authorization": f"Bearer {secret}"}
    body = {"model": "digits", "inputs": {"image": [[0.0] * 64]}}
    bounds = {"MIPGATE_MAX_BODY_BYTES": "100000", "MIPGATE_MAX_JSON_BYTES": "50000"}
    with running(homes, MIPGATE_ADMIN_KEY=secret, **bounds) as gateway:
        for path in ("/predict", "/predict%0A"):
            url = gateway.url + path
            assert httpx.post(url, json=body, timeout=30).status_code == 401
            assert httpx.post(url, json=body, headers=bring, timeout=30).status_code == 200
        chunks = (json.dumps(body).encode()[start : start + 50] for start in range(0, 1000, 50))
        json_too = bring | {"content-type": "application/json"}
        url = f"{gateway.url}/predict"
        assert httpx.post(url, content=chunks, headers=json_too, timeout=30).status_code == 200
        much = body | {"inputs": {"image": [[0.0] * 64] * 200}}
        refused = httpx.post(url, json=much, headers=bring, timeout=30)
        assert refused.status_code == 413
        assert "MIPGATE_MAX_JSON_BYTES" in refused.text
        endless_body = (b" " * 5000 for _ in range(1000))
        assert httpx.post(url, content=endless_body, headers=json_too, timeout=30).status_code == 413
        assert answer(gateway.port, b"GET /" + b"y" * 65536).startswith(b"HTTP/1.1 431")
        beginning = b"POST /predict HTTP/1.1\r\nhost: here\r\nx: "
        assert endless(gateway.port, beginning, b"y" * 4096) < 32 * 2**20
