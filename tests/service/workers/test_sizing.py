"""How many workers a gateway has when nobody says."""

from dataclasses import replace

import pytest

from service.config import Config
from service.workers.sizing import choose_workers
from tests.variants.handmade import HOST, OTHER_HOST, card, entry, failed, profile
from variants.card import Card
from variants.catalog import Catalog
from variants.profile import Profile
from variants.store import CatalogError
from variants.variant import Life


class Cards(Catalog):
    """A catalog of cards made by hand."""

    def __init__(self, *cards: Card | CatalogError) -> None:
        self._known = dict(enumerate(cards))

    def models(self) -> list[str]:
        return [str(number) for number in self._known]

    def card(self, model: str) -> Card:
        found = self._known[int(model)]
        if isinstance(found, CatalogError):
            raise found
        return found


def single(ms: float) -> Profile:
    return replace(profile(latency_ms={1: ms}), threads=1)


FP32, INT8 = entry("fp32"), entry("int8")
TINY = {FP32.id.version: [single(0.1)], INT8.id.version: [single(0.2), single(7.0)]}
SMALL = card(FP32, INT8, profiles=TINY)
# The shortest deadline is 50 ms.
HEAVY = card(FP32, INT8, profiles=TINY | {FP32.id.version: [single(5.5), profile(latency_ms={1: 3.0})]})
SETTINGS = Config(workers=0)


@pytest.mark.parametrize(
    ("cards", "workers"),
    [
        ((SMALL,), 2),
        ((SMALL, SMALL), 2),
        ((HEAVY,), 1),  # two threads make it small, but each worker has one
        ((SMALL, HEAVY), 1),
        ((card(FP32, profiles={}, host=OTHER_HOST),), 1),
        ((card(FP32, profiles={}),), 1),
        ((SMALL, CatalogError("it is damaged")), 1),
        ((card(FP32, failed("int8"), profiles=TINY),), 2),
    ],
)
def test_small_models_get_a_worker_per_core(cards: tuple[Card | CatalogError, ...], workers: int) -> None:
    assert choose_workers(SETTINGS, Cards(*cards), HOST) == workers


def test_what_is_not_released_decides_nothing() -> None:
    candidate = entry("fp32", build="b" * 12, life=Life.CANDIDATE)
    mixed = card(INT8, candidate, profiles=TINY | {candidate.id.version: [single(9.0)]})
    assert choose_workers(SETTINGS, Cards(mixed), HOST) == 2


def test_no_more_than_four_are_chosen_and_any_number_can_be_asked_for() -> None:
    many = replace(HOST, cores=16, threads=16)
    assert choose_workers(SETTINGS, Cards(SMALL), many) == 4
    assert choose_workers(Config(workers=16), Cards(SMALL), many) == 16
    assert choose_workers(Config(workers=1), Cards(SMALL), many) == 1
