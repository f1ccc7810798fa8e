"""Loads of one worker: one after the other, none undone by an older one or given up for a passing fault."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.errors import NotFoundError
from service.fleet import Fleet
from service.metrics import Metrics
from service.repository import Repository
from service.workers.unloading import Unloaded
from tests.variants.handmade import HOST, card, entry
from variants.card import Card
from variants.catalog import SAMPLES_FILE, VALIDATION_FILE, Catalog
from variants.host import this_host
from variants.store import CatalogError
from variants.variant import Life

SOON_S = 20.0


class Slow(Catalog):
    """A store with the model m, in which somebody may stand while it is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(root=folder / "models")
        for name in (SAMPLES_FILE, VALIDATION_FILE):
            (folder / name).touch()
        self.register(card(entry("fp32"), entry("int8")), folder)
        self.meanwhile: Callable[[], None] = lambda: None
        self.read = 0

    def card(self, model: str) -> Card:
        found = super().card(model)
        self.read += 1
        self.meanwhile()
        return found


@pytest.fixture
def catalog(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


@pytest.fixture
def fleet(catalog: Slow) -> Fleet:
    return Fleet(catalog, HOST, Metrics(CollectorRegistry()), 32)


def during(load: Callable[[], object], catalog: Slow, act: Callable[[], object]) -> None:
    """Has another thread act in the middle of a load."""
    inside, other = threading.Event(), threading.Thread(target=act)

    def meanwhile() -> None:
        if not inside.is_set():
            inside.set()
            other.start()
            other.join(0.2)  # long enough for what would not wait

    catalog.meanwhile = meanwhile
    load()
    other.join(SOON_S)
    assert not other.is_alive()


def test_a_load_that_took_long_does_not_take_the_place_of_a_newer_one(fleet: Fleet, catalog: Slow) -> None:
    def retire() -> None:
        catalog.change("m", lambda newest: newest.with_life(entry("int8").id, Life.RETIRED))
        fleet.load("m")

    during(lambda: fleet.load("m"), catalog, retire)
    assert fleet.models["m"].card.find("int8").life is Life.RETIRED
    assert catalog.read == 2
    fleet.load_all()
    assert catalog.read == 2  # there is nothing newer


def test_what_is_unloaded_while_it_loads_is_unloaded(fleet: Fleet, catalog: Slow) -> None:
    fleet.load("m")
    during(lambda: fleet.load("m"), catalog, lambda: fleet.unload("m"))
    fleet.load_all()
    assert fleet.models == {}
    with pytest.raises(NotFoundError, match="not loaded"):
        fleet.unload("m")


def test_what_another_worker_unloads_during_a_load_stays_unloaded(catalog: Slow, tmp_path: Path) -> None:
    unloaded = Unloaded(tmp_path / "unloaded")
    first, starting = (
        Fleet(catalog, HOST, Metrics(CollectorRegistry()), 32, unloaded=unloaded) for _ in range(2)
    )
    first.load_all()
    during(starting.load_all, catalog, lambda: first.unload("m"))
    first.load_all()
    starting.load_all()
    assert (first.models, starting.models) == ({}, {})
    starting.load("m")
    first.load_all()
    assert list(first.models) == list(starting.models) == ["m"]


def test_a_deleted_model_is_served_until_some_worker_unloads_it(catalog: Slow, tmp_path: Path) -> None:
    unloaded = Unloaded(tmp_path / "unloaded")
    here, there = (
        Fleet(catalog, HOST, Metrics(CollectorRegistry()), 32, unloaded=unloaded) for _ in range(2)
    )
    here.load_all()
    there.load_all()
    shutil.rmtree(catalog.root / "m")
    there.load_all()
    assert (there.registered(), there.known(), list(there.models)) == ([], ["m"], ["m"])
    answer = asyncio.run(Repository(here).answer({"method": "POST"}, "v2/repository/models/m/unload", b""))
    there.load_all()
    assert (answer, here.models, there.models, there.known()) == ({}, {}, {}, [])


def test_a_passing_fault_is_told_once_and_the_load_tried_again(
    fleet: Fleet, catalog: Slow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        raise OSError("no space left")

    catalog.meanwhile = full
    fleet.load_all()
    fleet.load_all()
    assert catalog.read == 1  # not before some time has passed
    monkeypatch.setattr("service.fleet._RETRY_S", 0.0)
    fleet.load_all()
    assert catalog.read == 2
    assert len([line for line in caplog.messages if line.startswith("model m is not loaded")]) == 1
    catalog.meanwhile = lambda: None
    fleet.load_all()
    assert "m" in fleet.models


def test_a_card_that_is_at_fault_is_not_read_again_until_there_is_another(
    fleet: Fleet, catalog: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged() -> None:
        raise CatalogError("it is damaged")

    monkeypatch.setattr("service.fleet._RETRY_S", 0.0)
    catalog.meanwhile = damaged
    fleet.load_all()
    fleet.load_all()
    assert catalog.read == 1
    catalog.meanwhile = lambda: None
    catalog.change("m", lambda newest: newest.with_life(entry("int8").id, Life.RETIRED))
    fleet.load_all()
    assert "m" in fleet.models


def test_what_left_gives_its_memory_back_once_nobody_waits_for_it(digits: Catalog) -> None:
    fleet = Fleet(digits, this_host(), Metrics(CollectorRegistry()), 32)
    before = fleet.load("digits")
    gone = before.variants["int8-static"]
    rest = dataclasses.replace(
        before, variants={name: each for name, each in before.variants.items() if each is not gone}
    )
    fleet._leave("digits")
    fleet.models = {"digits": rest}
    fleet.let_go()
    assert gone.is_open  # requests may be under way that nobody counts
    before.inflight = 1
    fleet.let_go(0.0)
    assert gone.is_open
    before.inflight = 0
    fleet.let_go(0.0)
    assert not gone.is_open
    assert all(each.is_open for each in rest.variants.values())
    fleet.unload("digits")
    fleet.let_go(0.0)
    assert not any(each.is_open for each in rest.variants.values())


def test_a_load_closes_nothing_that_serves_already(digits: Catalog) -> None:
    fleet = Fleet(digits, this_host(), Metrics(CollectorRegistry()), 32, memory_budget_bytes=1)
    variants = set(fleet.load("digits").variants.values())
    assert len([each for each in variants if each.is_open]) == 1
    for each in variants:
        each.open()
    fleet.load("digits")
    assert all(each.is_open for each in variants)
    fleet.trim(lambda key: 0)
    assert len([each for each in variants if each.is_open]) == 1
