"""The survey: every technique once, under names that do not collide, as candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from compression.model import Form
from compression.pipeline import check
from compression.recipe import Recipe, step
from compression.registry import PASSES
from tests.compression.foreign_graphs import ROWS, X, plain
from tests.variants.tiny_specs import TINY
from variants.catalog import Catalog
from variants.host import available_cores, this_host
from variants.progress import Lines
from variants.registering import add
from variants.registration import AddJob
from variants.survey import Surveyed, survey, techniques
from variants.variant import Life
from variants.zoo import cifar10, digits

HOST = this_host(workers=available_cores())  # profiles of one thread do, and there are fewer of them


def test_every_pass_is_in_the_survey_of_a_module_with_students_and_every_recipe_can_work() -> None:
    recipes, left_out = techniques(digits.SPEC, Form.TORCH, epochs=4)
    assert left_out == ()
    assert {each.pass_name for recipe in recipes for each in recipe.steps} == set(PASSES)
    for recipe in recipes:
        check(recipe, Form.TORCH)
    assert (
        len({recipe.name for recipe in recipes}) == len({recipe.digest for recipe in recipes}) == len(recipes)
    )


def test_each_student_is_taught_for_twice_as_long_and_what_learned_in_branches_is_fused() -> None:
    recipes, _ = techniques(cifar10.SPEC, Form.TORCH, epochs=3)
    students = {recipe.name: recipe.steps for recipe in recipes if recipe.name.startswith("student-")}
    assert set(students) == {f"student-{name}" for name in cifar10.SPEC.students}
    assert students["student-narrow"] == (step("distill", student="narrow", epochs=6),)
    assert students["student-repvgg"] == (step("distill", student="repvgg", epochs=6), step("fuse"))


def test_what_the_spec_has_keeps_the_specs_name_and_other_steps_take_no_name_of_it() -> None:
    own = (
        Recipe(name="half", steps=(step("fp16"),)),
        Recipe(name="int8-qat", steps=(step("int8-qat", epochs=99),)),
    )
    spec = replace(TINY, recipes=(*TINY.recipes[:1], *own))
    recipes, _ = techniques(spec, Form.TORCH, epochs=2)
    names = {recipe.name: recipe for recipe in recipes}
    assert names["half"] is own[0]
    assert "fp16" not in names
    assert "int8-qat" not in names
    assert names["survey-int8-qat"].steps == (step("int8-qat", epochs=2),)


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surveyed]:
    home = tmp_path_factory.mktemp("survey")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MIPGATE_HOME", str(home / "mipgate"))
        yield _surveyed(home)


def _surveyed(home: Path) -> Surveyed:
    onnx.save_model(plain().proto, home / "mine.onnx")
    np.savez(home / "rows.npz", **{"input:x": X, "labels": np.arange(ROWS) % 4})  # type: ignore[arg-type]
    add(AddJob(str(home / "mine.onnx"), home / "rows.npz"))
    return survey("mine", Catalog(root=home / "store"), HOST, Lines())


def test_a_graph_gets_what_needs_no_module_and_the_rest_is_named(surveyed: Surveyed) -> None:
    built = set(surveyed.built.ids) - {"fp32"}
    assert built >= {"fp16", "int8-dynamic", "int8-static", "int8-entropy", "int4-weights"}
    assert {"int8-qat", "pruned-l2", "low-rank", "fused"} <= set(surveyed.left_out)
    assert built.isdisjoint(surveyed.left_out)
    assert [name for name, each in surveyed.built.failures.items() if each.status == "failed"] == []


def test_only_the_reference_gets_traffic_even_where_nothing_was_built_before(surveyed: Surveyed) -> None:
    lives = {entry.id.recipe: entry.life for entry in surveyed.built.card.entries}
    assert lives.pop("fp32") is Life.RELEASED
    assert set(lives.values()) == {Life.CANDIDATE}


def test_all_of_them_are_measured(surveyed: Surveyed) -> None:
    measured = surveyed.built.card.measured_on(HOST).profiles
    for name, identity in surveyed.built.ids.items():
        if name not in surveyed.built.failures:
            assert measured[identity.version], name
