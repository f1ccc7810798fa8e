"""Documents: what is written is read, and what does not fit is refused with the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.variants.handmade import HOST, card, entry, profile, stored
from variants import document
from variants.card import Card
from variants.document import DocumentError
from variants.host import Host
from variants.quality import Estimate
from variants.variant import Variant

FINITE = st.floats(allow_nan=False, allow_infinity=False)
ESTIMATES = st.builds(Estimate, FINITE, FINITE, FINITE, FINITE, FINITE, st.integers(0, 10**9))


@given(ESTIMATES)
def test_what_is_dumped_is_read_to_the_last_digit(value: Estimate) -> None:
    assert document.parse(Estimate, json.dumps(document.to_json(value))) == value


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    of = card(entry("fp32"), profiles={f"fp32@{'a' * 12}": [profile()]})
    for value in (HOST, of, stored(entry("fp32")).variant, stored(entry("fp32")).scorecard):
        document.write(tmp_path / "value.json", value)
        assert document.read(type(value), tmp_path / "value.json") == value


def test_a_document_is_for_people_too(tmp_path: Path) -> None:
    document.write(tmp_path / "host.json", HOST)
    lines = (tmp_path / "host.json").read_text().splitlines()
    assert '  "cpu": "some cpu",' in lines
    assert json.loads("\n".join(lines))["features"] == ["avx2"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "object"),
        ("{}", "fingerprint"),
        ('{"fingerprint": 7}', "fingerprint"),
        (json.dumps(document.to_json(HOST) | {"cores": "many"}), "cores"),
        (json.dumps(document.to_json(HOST) | {"libraries": {"a": []}}), "libraries.a"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "JSON"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(DocumentError, match=rf"not a Host: .*{place}"):
        document.parse(Host, text)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with pytest.raises(DocumentError):
        document.parse(Variant, content)


@given(st.integers(0, 10_000))
def test_a_card_cut_off_anywhere_is_refused(end: int) -> None:
    text = json.dumps(document.to_json(card(entry("fp32"), profiles={"fp32": [profile()]})))
    with pytest.raises(DocumentError):
        document.parse(Card, text[: min(end, len(text) - 1)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"host\.json is missing"):
        document.read(Host, tmp_path / "host.json")


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text("{}")
    with pytest.raises(DocumentError, match=r"host\.json is not a Host: fingerprint"):
        document.read(Host, tmp_path / "host.json")


def test_fields_that_later_versions_add_are_passed_over() -> None:
    text = json.dumps(document.to_json(HOST) | {"more": 1})
    assert document.parse(Host, text) == HOST
