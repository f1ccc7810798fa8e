"""What `mipgate serve` prints once its gateway is ready."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from variants.catalog import Catalog
from variants.cli import serve

ADDRESS, KEY = "http://localhost:3000", "mipgate_0a1b2c_secret"
METADATA = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]}


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that takes one key."""

    def get(url: str, headers: dict[str, str], **_: Any) -> httpx.Response:
        known = headers.get("Authorization") == f"Bearer {KEY}"
        return httpx.Response(200, json=METADATA) if known else httpx.Response(401, json={"error": "no"})

    monkeypatch.setattr(serve.httpx, "get", get)


@pytest.mark.usefixtures("closed")
def test_examples_bring_the_key_and_do_not_show_it(
    digits: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.print_examples(digits, ADDRESS, KEY)
    printed = capsys.readouterr().out
    assert '-H "Authorization: Bearer $MIPGATE_KEY"' in printed
    assert f"curl -s {ADDRESS}/v2/models/digits/infer" in printed
    assert KEY not in printed


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(
    ("key", "said"), [(None, "set MIPGATE_KEY to see them."), ("old", "does not know that of MIPGATE_KEY.")]
)
def test_without_a_key_that_is_known_it_says_so_in_a_sentence(
    digits: Catalog, capsys: pytest.CaptureFixture[str], key: str | None, said: str
) -> None:
    serve.print_examples(digits, ADDRESS, key)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Examples need a key that this gateway takes;")
    assert line.endswith(said)


def test_a_gateway_that_went_away_is_told_without_a_traceback(
    digits: Catalog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(url: str, **_: Any) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(serve.httpx, "get", get)
    serve.print_examples(digits, ADDRESS, None)
    assert "does not answer (refused). Read its log." in capsys.readouterr().out
