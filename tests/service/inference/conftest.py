"""Real variants of digits, loaded once."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from service.fleet import Fleet
from service.loaded import LoadedModel
from service.metrics import Metrics
from variants.catalog import Catalog
from variants.host import this_host


@pytest.fixture(scope="module")
def fleet(digits: Catalog) -> Fleet:
    fleet = Fleet(digits, this_host(), Metrics(CollectorRegistry()), 32)
    fleet.load_all()
    return fleet


@pytest.fixture
def model(fleet: Fleet) -> LoadedModel:
    return fleet.load("digits")  # with its variants as they are, whatever a test did to them
