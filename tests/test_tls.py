"""The gateway over TLS, with the options of BentoML that docs/access.md names, and two workers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.certificate import write_certificate
from tests.conftest import Homes
from tests.gateway import Gateway, digit, request, running

_ROW = np.zeros(64, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    write_certificate(folder)
    return folder


@pytest.fixture
def gateway(homes: Homes, folder: Path) -> Iterator[Gateway]:
    with running(homes, workers=2, tls=folder) as gateway:
        yield gateway


def test_tls_brings_the_same_answers_and_nothing_without_it(gateway: Gateway) -> None:
    answers = [gateway.infer(_ROW, version="fp32") for _ in range(8)]  # connections that any worker may take
    assert len({digit(answer) for answer in answers}) == 1
    assert all(answer.headers["x-mipgate-variant"] == "fp32" for answer in answers)
    with httpx.Client(verify=gateway.trusts) as kept:  # many requests over one connection
        for _ in range(20):
            told = kept.post(f"{gateway.url}/v2/models/digits/infer", json=request(_ROW, tier="fast"))
            assert told.json()["parameters"]["tier"] == "fast"
    with contextlib.suppress(httpx.TransportError):  # closed, or told that this is not TLS
        plain = httpx.get(gateway.url.replace("https", "http") + "/v2/health/ready", timeout=5)
        assert not plain.is_success
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{gateway.url}/v2/health/ready", timeout=5)  # signed by nobody whom clients know
