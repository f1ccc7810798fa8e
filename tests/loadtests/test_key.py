"""A gateway that needs a key gets it from every client, and no report has it."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.gateway import free_port
from tests.loadtests.stub import stub_gateway
from tests.loadtests.test_compare import compare, files  # noqa: F401  # a fixture
from variants.cli import compare as verb
from variants.cli.main import main

KEY = "mipgate_0a1b2c_a-secret-that-nobody-guesses"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("MIPGATE_KEY", raising=False)


def written(files):  # noqa: F811
    return {path.name: path.read_bytes() for path in (files / "out").rglob("*") if path.is_file()}


def test_without_a_key_it_says_how_to_bring_one(files):  # noqa: F811
    with stub_gateway(key=KEY) as url:
        done = compare(url, files)
    assert done.returncode == 1
    assert "answers 401" in done.stderr
    assert "Give a key with --key or MIPGATE_KEY." in done.stderr


def test_passes_and_loads_bring_the_key_and_the_report_has_it_not(files):  # noqa: F811
    with stub_gateway(key=KEY) as url:
        done = compare(url, files, "--targets", "tier:fast", "--key", KEY)
    assert done.returncode == 0, done.stderr
    (target, *_) = json.loads((files / "out" / "report.json").read_text())["targets"]
    assert target["accuracy"] == 29 / 30
    assert target["failures"] == 0
    assert KEY not in done.stderr
    assert not [name for name, content in written(files).items() if KEY.encode() in content]


def test_workers_of_an_open_loop_and_loadgen_bring_the_key(files, monkeypatch):  # noqa: F811
    pytest.importorskip("mlperf_loadgen")
    monkeypatch.setenv("MIPGATE_KEY", KEY)
    options = ("--shape", "steady", "--processes", "1", "--targets", "tier:fast", "--loadgen", "SingleStream")
    with stub_gateway(key=KEY) as url:
        done = compare(url, files, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((files / "out" / "report.json").read_text())
    assert report["targets"][0]["figures"]["errors"] == 0
    assert report["loadgen"][0]["valid"]
    assert not [name for name, content in written(files).items() if KEY.encode() in content]


def test_a_worker_from_elsewhere_brings_its_own_key(files):  # noqa: F811
    port = str(free_port())
    command = [sys.executable, "-m", "loadtests.compare", "--worker", "--master-port", port]
    worker = subprocess.Popen([*command, "--samples", str(files / "samples.npz"), "--key", KEY])
    options = ("--shape", "steady", "--expect-workers", "1", "--master-port", port, "--targets", "mix")
    try:
        with stub_gateway(key=KEY) as url:
            done = compare(url, files, *options, "--key", KEY)
        assert worker.wait(20) == 0
    finally:
        worker.kill()
    assert done.returncode == 0, done.stderr


def test_the_locustfile_brings_the_key(files, monkeypatch):  # noqa: F811
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "-t", "1s"]
    command += ["-u", "1", "--samples", str(files / "samples.npz"), "tier_fast"]
    with stub_gateway(key=KEY) as url:
        refused = subprocess.run([*command, "--host", url], capture_output=True, text=True, timeout=60)
        done = subprocess.run(
            [*command, "--host", url, "--key", KEY], capture_output=True, text=True, timeout=60
        )
    assert refused.returncode == 1
    assert "Give a key with --key or MIPGATE_KEY." in refused.stderr
    assert done.returncode == 0, done.stderr
    assert '"accuracy": ' in done.stderr
    assert KEY not in done.stdout + done.stderr


def test_the_command_hands_the_key_over_in_the_environment(monkeypatch):
    ran = []
    monkeypatch.setattr(verb, "_check_installed", lambda: None)
    monkeypatch.setattr(
        verb.subprocess,
        "run",
        lambda command, env, **_: ran.append((command, env)) or subprocess.CompletedProcess(command, 0),
    )
    options = ["compare", "digits", "--worker", "--samples", __file__, "--key", KEY]
    assert CliRunner().invoke(main, options).exit_code == 0
    ((command, environment),) = ran
    assert KEY not in " ".join(command)
    assert environment["MIPGATE_KEY"] == KEY
