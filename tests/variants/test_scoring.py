"""Scorecards and profiles of the real digits: figures that a build takes by itself."""

from __future__ import annotations

import pytest

from tests.commands import mipgate
from tests.conftest import Homes
from variants.assessment import Standing, assess_model
from variants.catalog import VALIDATION_FILE, Catalog
from variants.details import compression_ratios
from variants.host import this_host
from variants.profile import Profile
from variants.runtime import REFERENCE_ENGINE
from variants.samples import read_split
from variants.scorecard import Scorecard
from variants.scoring import training_seconds


@pytest.fixture(scope="module")
def standings(digits: Catalog) -> dict[str, Standing]:
    return {s.entry.id.recipe: s for s in assess_model(digits, "digits", this_host())[1]}


def scorecard(of: Standing) -> Scorecard:
    assert of.stored is not None
    return of.stored.scorecard


def on_reference_engine(of: Standing) -> list[Profile]:
    return [profile for profile in of.profiles if profile.runtime == REFERENCE_ENGINE]


def test_every_figure_is_measured(standings: dict[str, Standing]) -> None:
    for name, standing in standings.items():
        card = scorecard(standing)
        assert card.unmeasured == {}, name
        assert card.traffic is not None
        assert card.intensity is not None
        assert card.intensity > 0
        assert (card.sqnr is None) == (name == "fp32")
        assert card.seconds is not None
        assert min(card.seconds.compress, card.seconds.verify) > 0
        assert card.weights


def test_int8_moves_fewer_bytes_for_the_same_operations(standings: dict[str, Standing]) -> None:
    ratios = compression_ratios(scorecard(standings["int8-static"]), scorecard(standings["fp32"]))
    assert ratios["flops"] == ratios["parameters"] == 1.0
    assert ratios["bytes"] > 3
    assert ratios["moved_bytes"] > 2


def test_noise_grows_as_bits_shrink(standings: dict[str, Standing]) -> None:
    def output_db(name: str) -> float:
        found = scorecard(standings[name]).sqnr
        assert found is not None
        return found.outputs["logits"]

    assert output_db("fp16") > 55 > output_db("int8-static") > 15
    found = scorecard(standings["int8-static"]).sqnr
    assert found is not None
    assert len(found.layers) == 5
    assert [layer.worst_db for layer in found.layers] == sorted(layer.worst_db for layer in found.layers)


def test_training_is_told_apart_from_compression(standings: dict[str, Standing]) -> None:
    trained = scorecard(standings["distilled"]).seconds
    converted = scorecard(standings["fp16"]).seconds
    assert trained is not None
    assert trained.training > 0
    assert converted is not None
    assert converted.training == 0
    facts = ({"curves": [[{"seconds": 1.5}, {"seconds": 2.0}], [{"seconds": 0.5}]]}, {"pass": "fp16"})
    assert training_seconds(facts) == 4.0


def test_confusion_counts_every_row_once(digits: Catalog, standings: dict[str, Standing]) -> None:
    rows = len(read_split(digits.card_file("digits", VALIDATION_FILE)))
    for standing in standings.values():
        for profile in standing.profiles:
            cells = profile.quality.confusion["validation"]
            assert sum(count for row in cells.values() for count in row.values()) == rows
            right = sum(row.get(label, 0) for label, row in cells.items())
            assert right / rows == pytest.approx(profile.quality.validation.value)


def test_golden_rows_are_answered_here_as_where_they_were_built(standings: dict[str, Standing]) -> None:
    for name, standing in standings.items():
        for profile in on_reference_engine(standing):
            assert profile.golden_deviation is not None
            assert profile.golden_deviation < 0.01, name


def test_one_variant_is_shown_with_all_of_it(homes: Homes) -> None:
    shown = mipgate(homes, "show", "digits/int8-static").stdout
    for said in ("multiply-accumulates", "operations per byte", "worst layers", "training", "jitter"):
        assert said in shown
