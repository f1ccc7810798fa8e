"""The admin API over a real store and a real database, without a gateway around it."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from service.access.access import Access, Rules
from service.access.follower import Follower
from service.access.keys import new_key
from service.access.principal import Role
from service.access.store import AccessStore
from service.admin.app import admin_app
from service.admin.desk import Desk
from service.admin.events import Changes
from service.admin.live import Sampler
from service.admin.streams import documents
from service.rollout.evidence import Feedback
from service.state.database import Database
from service.state.evidence import EvidenceStore
from service.state.jobs import JobStore
from service.state.leases import Leases
from service.state.rollouts import RolloutStore
from tests.conftest import Homes
from variants.catalog import Catalog
from variants.host import this_host

LOCAL = ("127.0.0.1", 50000)
REMOTE = ("192.0.2.7", 50000)


@dataclass
class Admin:
    """The API and what is behind it."""

    desk: Desk
    app: Any
    changes: Changes

    def client(self, key: str | None = None, peer: tuple[str, int] = LOCAL, **headers: str) -> TestClient:
        given = headers | ({"authorization": f"Bearer {key}"} if key else {})
        return TestClient(self.app, base_url="http://localhost:3000", client=peer, headers=given)

    def key(self, role: Role, **options: Any) -> str:
        shown, key = new_key(f"a-{role.value}", role, self.desk.now(), **options)
        self.desk.keys.add(key)
        self.desk.follower.start()
        return shown

    def audited(self) -> list[str]:
        return [f"{line.who}: {line.what} {line.target}" for line in self.desk.keys.audited(100)]


Make = Callable[..., Admin]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'state.db'}")
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def make(homes: Homes, database: Database, tmp_path: Path) -> Make:
    def made(**rules: Any) -> Admin:
        given = {"bootstrap": None, "inference": "auto", "is_container": False, "provider": None}
        access = Access(Rules(**(given | rules)), tmp_path / "limits")
        store, evidence = AccessStore(database), EvidenceStore(database)
        follower = Follower(access, store)
        follower.start()
        registry = CollectorRegistry()

        async def judge(labels: Mapping[str, Any]) -> None:
            await asyncio.to_thread(evidence.judge, labels, lambda answer, label: Feedback(1, 1.0), 3600)

        desk = Desk(
            database=database,
            access=access,
            follower=follower,
            keys=store,
            catalog=Catalog(root=homes.bentoml / "models"),
            host=this_host(),
            rollouts=RolloutStore(database),
            evidence=evidence,
            jobs=JobStore(database),
            leases=Leases(database),
            sampler=Sampler(lambda: list(registry.collect())),
            judge=judge,
            hurry=lambda: None,
            session_s=3600,
        )
        changes = Changes(lambda: documents(desk))
        return Admin(desk, admin_app(desk, changes), changes)

    return made


@pytest.fixture
def admin(make: Make) -> Admin:
    """The API of a gateway without any key."""
    return make()
