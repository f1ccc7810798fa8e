"""Which recipes of the zoo are expected to be skipped. One that is not on the list fails here."""

from __future__ import annotations

import pytest

from compression.model import Form
from compression.pipeline import check
from variants.catalog import Catalog
from variants.spec import load_spec, zoo

# Model -> recipes that a build skips; `tests/variants/test_scenes.py` holds the reason for scenes.
EXPECTED: dict[str, set[str]] = {"digits": set()}


@pytest.mark.parametrize("name", zoo())
def test_no_recipe_of_the_zoo_is_refused_for_its_order(name: str) -> None:
    for recipe in load_spec(name).recipes:
        check(recipe, Form.TORCH)


def test_what_a_build_skipped_or_lost_was_expected(digits: Catalog) -> None:
    for model, expected in EXPECTED.items():
        entries = digits.card(model).entries
        assert {entry.id.recipe for entry in entries if entry.failure is not None} == expected
