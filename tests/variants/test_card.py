"""Cards: which build a name means, and how a card changes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.variants.handmade import HOST, OTHER_HOST, SPEC, card, entry, failed, profile, variant_id
from variants import document
from variants.card import Card, Entry, Failure, UnknownVariantError
from variants.store import CatalogError
from variants.variant import Life, Status

OLD, NEW, NEWER = "a" * 12, "b" * 12, "c" * 12
LIVES = st.sampled_from(list(Life))
ENTRIES = st.builds(
    entry, st.sampled_from(["fp32", "fp16", "int8"]), st.sampled_from([OLD, NEW, NEWER]), LIVES
)
CARDS = st.lists(ENTRIES, max_size=9, unique_by=lambda e: e.id).map(
    lambda entries: Card(SPEC, tuple(entries))
)


def lives(of: Card) -> dict[str, Life]:
    return {e.id.version: e.life for e in of.entries}


def test_a_recipe_means_its_released_build() -> None:
    of = card(entry("fp16", OLD, Life.RELEASED), entry("fp16", NEW, Life.CANDIDATE))
    assert of.find("fp16").id.build == OLD
    assert of.find("fp16", NEW).id.build == NEW


@pytest.mark.parametrize("life", [Life.CANDIDATE, Life.RETIRED])
def test_without_a_released_build_it_means_the_newest(life: Life) -> None:
    assert card(entry("fp16", OLD, life), entry("fp16", NEW, life)).find("fp16").id.build == NEW


def test_a_retired_build_is_meant_only_where_there_is_no_other() -> None:
    of = card(entry("fp16", OLD, Life.CANDIDATE), entry("fp16", NEW, Life.RETIRED))
    assert of.find("fp16").id.build == OLD
    assert of.find("fp16", NEW).id.build == NEW


@pytest.mark.parametrize(("recipe", "build"), [("int9", None), ("fp16", NEW), ("fp", None), ("", None)])
def test_an_unknown_variant_says_what_there_is(recipe: str, build: str | None) -> None:
    with pytest.raises(UnknownVariantError, match=f"There are fp32@{OLD}, fp16@{OLD}"):
        card(entry("fp32", OLD), entry("fp16", OLD)).find(recipe, build)
    with pytest.raises(UnknownVariantError, match="There are none"):
        card().find("fp32")


def test_releasing_a_build_retires_the_recipes_released_build_and_no_other() -> None:
    of = card(entry("fp32", OLD), entry("fp16", OLD), entry("fp16", NEW, Life.CANDIDATE))
    after = of.with_life(variant_id("fp16", NEW), Life.RELEASED)
    assert lives(after) == {
        f"fp32@{OLD}": Life.RELEASED,
        f"fp16@{OLD}": Life.RETIRED,
        f"fp16@{NEW}": Life.RELEASED,
    }


def test_retiring_touches_one_build() -> None:
    after = card(entry("fp32"), entry("fp16")).with_life(variant_id("fp16"), Life.RETIRED)
    assert lives(after) == {f"fp32@{OLD}": Life.RELEASED, f"fp16@{OLD}": Life.RETIRED}


@given(CARDS, st.data())
def test_however_builds_are_released_a_recipe_has_one_released_build(of: Card, data: st.DataObject) -> None:
    of = Card(SPEC, tuple(e for e in of.entries if e.life is not Life.RELEASED))
    for _ in range(4 if of.entries else 0):
        chosen = data.draw(st.sampled_from(of.entries))
        of = of.with_life(chosen.id, data.draw(LIVES))
        released = [e.id.recipe for e in of.entries if e.life is Life.RELEASED]
        assert len(released) == len(set(released))
        assert of.is_released == bool(released)


@given(CARDS, ENTRIES)
def test_an_entry_added_is_found_and_stands_once(of: Card, added: Entry) -> None:
    after = of.with_entry(added)
    assert after.find(added.id.recipe, added.id.build) == added
    ids = [e.id for e in after.entries]
    assert ids.count(added.id) == 1
    known = [e.id for e in of.entries]
    assert ids == known if added.id in known else [*known, added.id]


@given(CARDS, ENTRIES)
def test_an_entry_taken_away_leaves_the_others(of: Card, taken: Entry) -> None:
    after = of.with_entry(taken).without(taken.id)
    assert after.entries == tuple(e for e in of.entries if e.id != taken.id)


def test_a_build_that_came_out_takes_the_place_of_its_failure() -> None:
    of = card(entry("fp32"), failed("fp16"))
    assert of.entries[1].failure == Failure(Status.FAILED, "it broke")
    assert of.with_entry(entry("fp16")).entries == (entry("fp32"), entry("fp16"))


def test_profiles_are_merged_by_host_and_variant() -> None:
    one, two = f"fp32@{OLD}", f"fp16@{OLD}"
    first, again = profile(ms=1), profile(ms=2)
    of = Card(SPEC).with_profiles(HOST, {one: [first]}, {two: {"some-runtime": "why"}})
    after = of.with_profiles(HOST, {two: [first]}, {}).with_profiles(HOST, {one: [again]}, {})
    assert after.hosts[HOST.fingerprint].profiles == {one: [again], two: [first]}
    assert after.hosts[HOST.fingerprint].refusals == {two: {"some-runtime": "why"}}
    elsewhere = after.with_profiles(OTHER_HOST, {one: [first]}, {})
    assert elsewhere.hosts[HOST.fingerprint] == after.hosts[HOST.fingerprint]
    assert elsewhere.hosts[OTHER_HOST.fingerprint].host == OTHER_HOST


def test_a_variant_taken_away_takes_its_profiles_of_every_host() -> None:
    versions = {f"fp32@{OLD}": [profile()], f"fp16@{OLD}": [profile()]}
    refusals = {f"fp16@{OLD}": {"some-runtime": "why"}}
    of = card(entry("fp32"), entry("fp16"))
    for host in (HOST, OTHER_HOST):
        of = of.with_profiles(host, versions, refusals)
    for measured in of.without(variant_id("fp16")).hosts.values():
        assert measured.profiles == {f"fp32@{OLD}": [profile()]}
        assert not measured.refusals


@given(CARDS)
def test_a_card_survives_its_document(of: Card) -> None:
    of = of.with_profiles(HOST, {f"fp32@{OLD}": [profile()]}, {f"fp16@{OLD}": {"some-runtime": "why"}})
    assert document.parse(Card, json.dumps(document.to_json(of), allow_nan=False)) == of


def test_what_was_not_built_cannot_be_released() -> None:
    lost = failed("fp16", Status.FAILED, "no memory")
    with pytest.raises(CatalogError, match="no memory"):
        card(lost).with_life(lost.id, Life.RELEASED)
