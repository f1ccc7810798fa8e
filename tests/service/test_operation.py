"""One worker's side of what all share."""

import pytest

from service.operation import worker_name
from service.state.tables import leases, writers


def test_a_workers_name_fits_the_database_however_its_host_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "gateway-7d9f8b6c5-x2x4z." * 8)
    monkeypatch.setattr("os.getpid", lambda: 2**22)
    name = worker_name()
    assert name.startswith("gateway-7d9f8b6c5-x2x4z")
    assert len(name) <= min(writers.c.worker.type.length, leases.c.holder.type.length)
    assert worker_name() != name
