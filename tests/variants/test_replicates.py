"""Replicates: other seeds, the same rows, and an interval that tells merit from luck."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from compression.data import Split, Splits
from compression.recipe import Recipe, step
from tests.variants.tiny_specs import CLASSES, TINY, WIDTH
from variants.build import BuildError
from variants.catalog import Catalog
from variants.cli.main import main
from variants.home import subfolder
from variants.host import this_host
from variants.progress import Lines
from variants.replicates import replicate

_SHORT = step("distill", student="narrow", epochs=2)
_LONG = step("distill", student="narrow", epochs=30)


def _splits() -> Splits:
    """Enough rows to learn from."""
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(rows, WIDTH)).astype(np.float32) for rows in (512, 64, 256, 256)]
    return Splits(*(Split({"x": rows}, rows[:, :CLASSES].argmax(axis=1)) for rows in x))


SPEC = replace(
    TINY,
    train_reference=True,
    splits=_splits,
    recipes=(
        Recipe(name="fp32"),
        Recipe(name="long", steps=(_LONG,)),
        Recipe(name="short", steps=(_SHORT,)),
    ),
)
SWAPPED = replace(SPEC, recipes=(Recipe(name="fp32"), Recipe(name="long", steps=(_SHORT,))))
NAME = f"{__name__}:SPEC"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicates")


@pytest.fixture(autouse=True)
def _own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIPGATE_HOME", str(home))


def test_each_seed_is_another_training_and_the_first_is_the_models_own() -> None:
    found = replicate(NAME, "long", "short", this_host(), Lines(), seeds=2)
    assert found.seeds == (0, 1)
    assert [split.split for split in found.splits] == ["validation", "test"]
    for split in found.splits:
        assert len(set(split.values)) > 1, "seeds change nothing"
        assert split.interval is not None
        low, high = split.interval
        mean = sum(split.differences) / 2
        assert low < mean < high
        assert low > 0, "thirty epochs are better than two"
    catalog = Catalog(root=subfolder("replicates") / "tiny" / "store")
    lineages = {
        entry.id.recipe: catalog.open(entry.id).variant.lineage.seed for entry in catalog.card("tiny").entries
    }
    assert lineages["long-seed-0"] == SPEC.seed
    assert lineages["long-seed-1"] == SPEC.seed + 1
    assert "tiny" not in Catalog().models(), "replicates are not offered to serve"


def test_the_command_prints_every_seed_and_a_sentence() -> None:
    result = CliRunner().invoke(main, ["replicate", NAME, "long", "--against", "short", "--seeds", "2"])
    assert result.exit_code == 0, result.output
    assert "seed 1" in result.output
    assert "test: long is better than short with 2 of 2 seeds, by +0." in result.output


def test_a_recipe_that_changed_is_judged_as_it_is_now() -> None:
    before = replicate(NAME, "long", "short", this_host(), Lines(), seeds=2)
    now = replicate(f"{__name__}:SWAPPED", "long", None, this_host(), Lines(), seeds=2)
    for old, new in zip(before.splits, now.splits, strict=True):
        assert new.values == old.against != old.values


@pytest.mark.parametrize(
    ("recipe", "said"), [("fp32", "no pass shapes"), ("quick", "There are fp32, long, short")]
)
def test_what_cannot_be_replicated_is_refused(recipe: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        replicate(NAME, recipe, None, this_host(), Lines(), seeds=2)
