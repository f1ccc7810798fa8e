"""docs/passes.md says what the passes are."""

import json

import pytest

from compression.recipe import Recipe
from compression.reference import EXAMPLE, PAGE, passes_page
from compression.registry import PASSES, make_pass


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == passes_page(), "Run `python -m compression.reference`."


@pytest.mark.parametrize("name", PASSES)
def test_every_setting_has_a_row_that_says_what_it_is(name: str) -> None:
    section = passes_page().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(PASSES[name].settings_class.model_fields)
    assert all(cell.strip() for row in rows for cell in row.split(" | "))


def test_the_recipe_on_the_page_is_one() -> None:
    recipe = Recipe.model_validate(json.loads(EXAMPLE))
    assert [make_pass(step).name for step in recipe.steps] == ["prune-structured", "distill", "int8-static"]
