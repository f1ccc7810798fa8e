"""Names of variants: what is one, and what only looks like one."""

from __future__ import annotations

import bentoml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from variants.variant import VariantId, VariantNameError, parse_name

MODELS = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
RECIPES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
BUILDS = st.from_regex(r"[0-9a-f]{12}", fullmatch=True)
IDS = st.builds(VariantId, MODELS, RECIPES, BUILDS)


@given(IDS)
def test_a_printed_name_parses_to_its_parts(variant: VariantId) -> None:
    assert parse_name(str(variant)) == (variant.model, variant.recipe, variant.build)
    assert str(variant) == f"{variant.model}/{variant.version}"


@given(MODELS, RECIPES)
def test_a_name_without_a_build_means_the_recipe(model: str, recipe: str) -> None:
    assert parse_name(f"{model}/{recipe}") == (model, recipe, None)


@given(IDS)
def test_the_tag_is_one_that_bentoml_takes_and_says_the_same(variant: VariantId) -> None:
    tag = bentoml.Tag.from_str(variant.tag)
    assert str(tag) == variant.tag
    assert (tag.name, tag.version) == (f"{variant.model}.{variant.recipe}", variant.build)


@given(IDS, IDS)
def test_different_variants_have_different_tags(one: VariantId, other: VariantId) -> None:
    assert (one == other) == (one.tag == other.tag) == (str(one) == str(other))


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "digits", "digits/", "/fp32", "digits/fp32/x", "digits//fp32", " digits/fp32",
        "digits/fp32 ", "digits/fp32\n", "Digits/fp32", "digits/FP32", "digits/fp_32", "digits/fp.32",
        "di.gits/fp32", "../fp32", "digits/..", "../../etc/passwd", "digits/fp32@", "digits/fp32@123",
        "digits/fp32@latest", "digits/fp32@0123456789AB", "digits/fp32@0123456789abc",
        "digits/fp32@0123456789a\n", "digits/-fp32", "-digits/fp32", "digits/fp32:latest",
        "digits/fp32;rm -rf", "digits/$(id)", "digits\x00/fp32", "dígits/fp32", "digits/fp\uff132",
        "digits/fp32@\uff10123456789ab",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_name_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(VariantNameError, match="as in digits/int8-static"):
        parse_name(text)


@given(st.text(max_size=40))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        model, recipe, build = parse_name(text)
    except VariantNameError:
        return
    assert text == f"{model}/{recipe}" + (f"@{build}" if build else "")
    assert not set(model + recipe) & set("/.@: ")
