"""The search: recipes that fit, trials that are builds, and a run that goes on where it stood."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from compression.model import Form
from compression.pipeline import check
from compression.recipe import Recipe, step
from tests.variants.tiny_specs import TINY
from variants.catalog import Catalog
from variants.host import available_cores, this_host
from variants.progress import Lines
from variants.search import Found, search
from variants.search_space import DEEP, OF_GRAPHS, OF_MODULES, Space, shortened, space_of, trains
from variants.serving_spec import SpecError
from variants.variant import Life
from variants.zoo import cifar10

TINY_NAME = "tests.variants.tiny_specs:TINY"
HOST = this_host(workers=available_cores())  # profiles of one thread do, and there are fewer of them


def fixed(body: str, finish: str = "none") -> optuna.trial.FixedTrial:
    suggested = {
        "body": body,
        "finish": finish,
        "prune.ratio": 0.5,
        "prune.importance": "l2",
        "low-rank.ratio": 0.5,
        "distill.alpha": 0.7,
        "narrow.width": 24,
        "repvgg.width": 16,
        "calibration": "minmax",
        "deep.ratio": 0.7,
        "deep.clusters": 16,
    }
    return optuna.trial.FixedTrial(suggested)


def space(epochs: int = 4) -> Space:
    return space_of(TINY, Form.TORCH, epochs)


@pytest.mark.parametrize("finish", [*OF_GRAPHS, *OF_MODULES])
@pytest.mark.parametrize("body", space().bodies)
def test_every_recipe_of_the_space_can_be_ordered(body: str, finish: str) -> None:
    check(space().suggest(fixed(body, finish), "trial-0"), Form.TORCH)  # type: ignore[arg-type]


@pytest.mark.parametrize("finish", OF_GRAPHS)
def test_a_graph_is_only_offered_what_takes_one(finish: str) -> None:
    graphs = space_of(TINY, Form.ONNX, 4)
    assert (graphs.bodies, graphs.finishes) == (("unchanged",), OF_GRAPHS)
    check(graphs.suggest(fixed("unchanged", finish), "trial-0"), Form.ONNX)  # type: ignore[arg-type]


def test_a_student_of_branches_is_fused_before_it_is_stored() -> None:
    branched = replace(TINY, students={"repvgg": cifar10.SPEC.students["repvgg"]})
    found = space_of(branched, Form.TORCH, 4).suggest(fixed("repvgg", DEEP), "trial-0")  # type: ignore[arg-type]
    names = [each.pass_name for each in found.steps]
    assert names == ["distill", "fuse", "prune-unstructured", "cluster", "huffman"]


def test_a_student_that_comes_in_widths_is_tried_in_them() -> None:
    tried = space()
    assert tried.widths == {"narrow": 32}
    trial = fixed("narrow")
    (taught,) = tried.suggest(trial, "trial-0").steps  # type: ignore[arg-type]
    assert taught.settings["width"] == 24
    assert vars(trial.distributions["narrow.width"]) | {"log": False} == {
        "low": 16, "high": 64, "step": 8, "log": False
    }  # fmt: skip
    assert (
        "width" not in Space(("narrow",), OF_GRAPHS, 4).suggest(fixed("narrow"), "trial-0").steps[0].settings
    )  # type: ignore[arg-type]


def test_a_width_makes_another_build_and_its_absence_the_same_as_ever() -> None:
    usual, wide = (
        Recipe(name="taught", steps=(step("distill", student="narrow", **width),))
        for width in ({}, {"width": 64})
    )
    assert TINY.digest(usual) != TINY.digest(wide)
    fixed_width = replace(TINY, students={"narrow": lambda: TINY.students["narrow"]()})
    assert fixed_width.digest(usual) == TINY.digest(usual)


def test_a_short_trial_has_a_share_of_the_epochs_and_at_least_one() -> None:
    whole = Space(("small",), OF_MODULES, epochs=8).suggest(fixed("small", "int8-qat"), "trial-0")  # type: ignore[arg-type]
    assert [step.settings["epochs"] for step in whole.steps] == [8, 2]
    assert [step.settings["epochs"] for step in shortened(whole, 0.25).steps] == [2, 1]
    assert trains(whole)
    assert not trains(Space(("unchanged",), OF_GRAPHS, 8).suggest(fixed("unchanged", "fp16"), "trial-0"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture
def catalog(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("MIPGATE_HOME", str(homes / "mipgate"))
    return Catalog(root=homes / "store")


def searched(catalog: Catalog, trials: int, floor: float = 0.5) -> Found:
    return search(TINY_NAME, catalog, HOST, Lines(), floor=floor, objective="size", trials=trials, epochs=1)


def test_the_winner_keeps_the_floor_and_is_published(catalog: Catalog) -> None:
    found = searched(catalog, trials=3)
    assert found.tried == 3
    assert found.winner is not None
    assert found.published is not None
    entry = found.published.card.find("search-size")
    assert entry.steps == found.winner.canonical()
    assert entry.life is Life.CANDIDATE  # though the model was never built before
    ratios = [standing.ratio for standing in found.frontier]
    assert ratios == sorted(ratios)
    assert max(ratios) >= 0.5


def test_the_same_command_goes_on_and_a_later_winner_is_a_candidate(catalog: Catalog) -> None:
    found = searched(catalog, trials=4)
    assert found.tried == 4
    assert found.published is not None
    lives = {entry.id.recipe: entry.life for entry in found.published.card.entries}
    assert lives == {"fp32": Life.RELEASED, "search-size": Life.CANDIDATE}


def test_what_was_tried_counts_once(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Space(("unchanged",), ("none", "fp16"), 1)
    monkeypatch.setattr("variants.search.space_of", lambda *_: few)
    assert searched(catalog, trials=3, floor=1.4).tried == 1


def test_a_floor_that_nothing_keeps_finds_no_winner(catalog: Catalog) -> None:
    found = searched(catalog, trials=1, floor=1.4)
    assert found.winner is None
    assert found.published is None


def test_a_model_that_changed_is_searched_anew(catalog: Catalog) -> None:
    floor, known = 1.4, searched(catalog, trials=1).reference
    spec = "tests.variants.tiny_specs:RETRAINED"
    found = search(spec, catalog, HOST, Lines(), floor=floor, objective="size", trials=1, epochs=1)
    assert (found.tried, found.reference.entry.id == known.entry.id) == (1, False)


def test_an_unknown_model_is_an_error_that_says_so(catalog: Catalog) -> None:
    with pytest.raises(SpecError, match="no spec"):
        search("nosuch", catalog, this_host(), Lines(), floor=0.9)
