"""`mipgate rollout` and `mipgate keys` against the API, over real HTTP."""

import json
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from click.testing import CliRunner, Result

from service.access.principal import Role
from service.rollout.evidence import ArmEvidence, Comparisons, Histogram
from service.state.evidence import Batch
from service.state.jobs import State
from tests.gateway import free_port
from tests.service.admin.conftest import Admin
from variants.cli.main import main


@pytest.fixture
def url(admin: Admin) -> Iterator[str]:
    """Where the API answers."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(admin.app, "127.0.0.1", port, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def mipgate(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == status, done.output
    return done


START = (
    "rollout", "start", "digits", "--kind", "canary", "--candidate", "int8-static", "--primary", "fp32",
    "--steps", "5,25,50,100", "--step-duration", "2m", "--guard", "agreement>=0.99@95%,n=500",
    "--guard", "p99<=1.2x", "--guard", "errors<=0.1%",
)  # fmt: skip


def test_a_rollout_is_started_watched_and_aborted(admin: Admin, url: str) -> None:
    started = json.loads(mipgate(*START, "--url", url, "--json").stdout)
    assert (started["steps"], started["step_duration_s"]) == ([5, 25, 50, 100], 120)
    seen = ArmEvidence(
        900, errors=9, latency=Histogram({320: 891}), comparisons=Comparisons(900, 899.0, 899.5)
    )
    admin.desk.evidence.write("w", Batch(1, {(started["id"], "candidate"): seen}))
    shown = mipgate("rollout", "status", "digits", "--url", url).output
    assert "initializing" in shown
    assert "candidate int8-static@" in shown
    assert "0.9989" in shown  # the agreement
    assert "✗ errors<=0.1%" in shown
    assert "surely" in shown
    aborted = mipgate("rollout", "abort", "digits", "--url", url).output
    assert "aborted by loopback" in aborted
    lines = json.loads(mipgate("rollout", "history", "digits", "--url", url, "--json").output)
    assert [line["version"] for line in lines] == [1, 2]
    assert "aborted by" in mipgate("rollout", "history", "digits", "--url", url).output


def test_what_the_gateway_refuses_is_told(url: str) -> None:
    none = mipgate("rollout", "status", "digits", "--url", url, status=1)
    assert "Start one with" in none.output
    unknown = mipgate(*START, "--candidate", "nothing", "--url", url, status=1)
    assert "canary has one" in unknown.output
    assert "no model" in mipgate("rollout", "status", "none", "--url", url, status=1).output
    assert "no duration" in mipgate(*START, "--max-duration", "long", "--url", url, status=2).output
    nobody = mipgate("rollout", "status", "digits", "--url", "http://127.0.0.1:9", status=1)
    assert "no gateway answers" in nobody.output


def test_keys_over_http(admin: Admin, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = mipgate("keys", "create", "root", "--role", "admin", "--url", url).output.splitlines()[0]
    refused = mipgate("keys", "list", "--url", url, status=1)
    assert "MIPGATE_KEY" in refused.output
    monkeypatch.setenv("MIPGATE_KEY", key)
    made = mipgate("keys", "create", "ci", "--role", "infer", "--rate", "5/s", "--url", url, "--json")
    listed = mipgate("keys", "list", "--url", url).output
    assert "5/s" in listed
    assert key not in listed
    mipgate("keys", "revoke", json.loads(made.output)["id"], "--url", url)
    assert "ci" not in mipgate("keys", "list", "--url", url).output


def test_keys_in_the_database_here(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIPGATE_STATE", f"sqlite:///{tmp_path}/here.db")
    made = json.loads(mipgate("keys", "create", "ops", "--role", "operate", "--json").output)
    assert made["key"].startswith(f"mipgate_{made['id']}_")
    assert "ops" in mipgate("keys", "list").output
    mipgate("keys", "revoke", made["id"])
    again = mipgate("keys", "revoke", made["id"], status=1)
    assert "mipgate keys list" in again.output
    assert json.loads(mipgate("keys", "list", "--json").output) == []


@pytest.mark.parametrize("rate", ["0", "fast", "5/m", "nan", "-1/s"])
def test_a_rate_that_cannot_be_is_refused(rate: str) -> None:
    mipgate("keys", "create", "x", "--role", "infer", f"--rate={rate}", status=2)


def test_building_there_tells_how_far_it_is(admin: Admin, url: str) -> None:
    nobody = mipgate("build", "digits", "--recipe", "fp16", "--url", url, status=1)
    assert "mipgate serve --with-builder" in nobody.output
    admin.desk.leases.take("builder/1", "1", 60)
    builder = threading.Thread(target=_build_one, args=(admin,))
    builder.start()
    done = mipgate("build", "digits", "--recipe", "fp16", "--url", url)
    builder.join()
    assert "digits/fp16@0123456789ab" in done.output
    assert "name" in mipgate("build", "digits", "--url", url, status=2).output


def _build_one(admin: Admin) -> None:
    while (job := admin.desk.jobs.take("1", 60)) is None:
        time.sleep(0.05)
    admin.desk.jobs.progress(job, "1", "compresses", 0.5, 60)
    time.sleep(1.5)  # longer than the stream looks for changes
    admin.desk.jobs.finish(job, "1", State.SUCCEEDED, result={"variant": "fp16@0123456789ab"})


def test_a_key_s_role_is_heeded(admin: Admin, url: str) -> None:
    refused = mipgate(*START, "--url", url, "--key", admin.key(Role.INFER), status=1)
    assert "operate" in refused.output
