"""What must not be lost: workers, artifacts, requests in flight, the catalog itself."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from sqlalchemy import text

from service.state.database import Database
from tests.commands import MIPGATE
from tests.conftest import ROOT, Homes
from tests.gateway import Gateway, digit, request, running
from variants.catalog import SAMPLES_FILE, Catalog
from variants.samples import read_split

ZEROS = np.zeros(64, np.float32)
# These tests are about faults, not about deadlines: a busy machine must not fail them.
PATIENT = {"max_latency_ms": 60_000.0}


def _wait_for(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def test_a_killed_worker_comes_back_and_only_its_requests_fail(homes: Homes, digits: Catalog) -> None:
    rows = read_split(digits.card_file("digits", SAMPLES_FILE)).inputs["image"]
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def client(gateway: Gateway) -> None:
        url = f"{gateway.url}/v2/models/digits/infer"
        with httpx.Client(timeout=30) as http:
            while not stop.is_set():
                try:
                    response = http.post(url, json=request(rows[0], **PATIENT))
                    outcomes[str(response.status_code)] += 1
                except httpx.TransportError:
                    outcomes["broken"] += 1

    with running(homes, workers=2) as gateway:
        threads = [threading.Thread(target=client, args=(gateway,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        _wait_for(lambda: outcomes["200"] > 50)
        victim = gateway.workers()[0]
        killed = time.time()
        victim.kill()
        _wait_for(lambda: len(gateway.workers()) == 2 and not victim.is_running())
        answered = outcomes["200"]
        _wait_for(lambda: outcomes["200"] > answered + 50)
        stop.set()
        for thread in threads:
            thread.join()
        assert outcomes.keys() <= {"200", "broken"}
        assert outcomes["broken"] <= len(threads)  # at most one request in flight per connection
        assert digit(gateway.infer(rows[0], **PATIENT)) >= 0
        _wait_for(lambda: len(_starts(gateway)) == 2 and max(_starts(gateway)) > killed)


def _starts(gateway: Gateway) -> list[float]:
    """When each worker that a gauge tells of started, in Unix time."""
    lines = httpx.get(f"{gateway.url}/metrics", timeout=30).text.splitlines()
    return [float(line.split()[1]) for line in lines if line.startswith("mipgate_worker_start_time_seconds{")]


def test_two_workers_count_together_and_no_counter_goes_backwards(homes: Homes) -> None:
    def total() -> float:
        lines = httpx.get(f"{gateway.url}/metrics", timeout=30).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("mipgate_requests_total{"))

    with running(homes, workers=2) as gateway:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for response in pool.map(lambda _: gateway.infer(ZEROS, **PATIENT), range(40)):
                assert response.status_code == 200
        _wait_for(lambda: total() == 40)
        gateway.workers()[0].kill()
        _wait_for(lambda: len(gateway.workers()) == 2)
        gateway.wait_until_ready()
        assert total() == 40
        gateway.infer(ZEROS, **PATIENT)
        _wait_for(lambda: total() == 41)


def test_sigterm_finishes_what_is_in_flight_and_refuses_new_connections(homes: Homes) -> None:
    with running(homes) as gateway, socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        body = b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [' + b"0,"
        rest = b"0," * 62 + b"0]}]}"
        lines = [
            "POST /v2/models/digits/infer HTTP/1.1",
            "Host: here",
            "X-Mipgate-Max-Latency-Ms: 60000",
            f"Content-Length: {len(body + rest)}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        time.sleep(1)  # until the head is read; nothing tells of a request whose body is not there yet
        gateway.process.send_signal(signal.SIGTERM)
        _wait_for(lambda: _is_refused(gateway.port))
        connection.sendall(rest)
        connection.settimeout(20)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert gateway.process.wait(30) == 0


def _metrics(gateway: Gateway) -> str:
    return httpx.get(f"{gateway.url}/metrics", timeout=30).text


def _is_refused(port: int) -> bool:
    """Whether a new connection gets no answer: refused outright, or closed before one."""
    try:
        httpx.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=1)
    except httpx.TransportError:
        return True
    return False


def test_a_damaged_artifact_is_refused_and_the_others_serve(homes: Homes) -> None:
    card = Catalog().card("digits")
    entry = card.find("int8-static")
    path = homes.bentoml / "models" / entry.id.tag.replace(":", "/") / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with running(homes) as gateway:
        refused = gateway.infer(ZEROS, "int8-static")
        assert refused.status_code == 503
        assert "sha256" in refused.json()["error"]
        assert refused.headers["retry-after"]
        call = {"model": "digits", "inputs": {"image": ZEROS.tolist()}, "variant": "int8-static"}
        told = httpx.post(f"{gateway.url}/predict", json=call)
        assert (told.status_code, told.json()) == (503, refused.json())
        assert told.headers["retry-after"]
        assert gateway.infer(ZEROS, "fp32", **PATIENT).status_code == 200
        for tier in ("accurate", "balanced", "fast"):
            assert gateway.infer(ZEROS, tier=tier, **PATIENT).json()["parameters"]["variant"] != "int8-static"
        assert 'state="refused",variant="int8-static"} 1.0' in _metrics(gateway)
        assert f"{entry.id} is refused" in gateway.log.read_text()
        command = [MIPGATE, "build", "digits", "--recipe", "int8-static", "--quiet"]
        subprocess.run(command, env=homes.environment, check=True, capture_output=True)
        end = time.monotonic() + 30
        while gateway.infer(ZEROS, "int8-static", **PATIENT).status_code != 200:
            assert time.monotonic() < end, "what was built anew is not served"
            time.sleep(0.2)


def test_serving_an_empty_store_says_which_command_to_run(empty: Homes) -> None:
    done = subprocess.run(
        [MIPGATE, "serve"], capture_output=True, text=True, env=empty.environment, check=False
    )
    assert done.returncode == 1
    assert "mipgate build digits" in done.stderr
    plain = subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "service.gateway:Gateway", "--port", "1"],
        capture_output=True, text=True, env=empty.environment, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert plain.returncode != 0
    assert "mipgate build digits" in plain.stdout + plain.stderr


def test_a_bento_serves_from_an_empty_folder_what_it_packed(homes: Homes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bentoml", "build", "-o", "tag", str(ROOT)]
    built = subprocess.run(
        command, capture_output=True, text=True, env=homes.environment, cwd=ROOT, check=True
    )
    assert "__tag__:mipgate:" in built.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    with running(homes, service="mipgate:latest", folder=empty) as gateway:
        assert len(httpx.get(f"{gateway.url}/v2/models/digits").json()["versions"]) == 7
        assert gateway.infer(ZEROS, tier="fast", **PATIENT).status_code == 200
        worker = gateway.workers()[0]
        assert Path(worker.cwd()).is_relative_to(homes.bentoml)
    packed = {path.name for path in (homes.bentoml / "bentos" / "mipgate").rglob("*.py")}
    assert "gateway.py" in packed
    assert not packed & {"pruning.py", "build_worker.py", "spec.py"}


def test_retiring_and_releasing_reach_a_running_gateway(homes: Homes) -> None:
    with running(homes) as gateway:
        serving = gateway.infer(ZEROS, tier="fast", **PATIENT).json()["parameters"]["variant"]

        def mipgate(verb: str) -> str:
            command = [MIPGATE, verb, f"digits/{serving}", "--url", gateway.url]
            return subprocess.check_output(command, text=True, env=homes.environment)

        assert "follows" in mipgate("retire")
        assert gateway.infer(ZEROS, tier="fast", **PATIENT).json()["parameters"]["variant"] != serving
        assert gateway.infer(ZEROS, serving).status_code == 404
        mipgate("release")
        assert gateway.infer(ZEROS, tier="fast", **PATIENT).json()["parameters"]["variant"] == serving


def test_retiring_reaches_every_worker(homes: Homes) -> None:
    with running(homes, workers=2) as gateway:
        serving = gateway.infer(ZEROS, tier="fast", **PATIENT).json()["parameters"]["variant"]
        command = [MIPGATE, "retire", f"digits/{serving}", "--url", gateway.url]
        subprocess.run(command, check=True, env=homes.environment, capture_output=True)

        def answering() -> set[str]:
            answers = (gateway.infer(ZEROS, tier="fast", **PATIENT) for _ in range(20))
            return {answer.json()["parameters"]["variant"] for answer in answers}

        _wait_for(lambda: serving not in answering())


def test_a_gateway_that_serves_a_bento_says_that_it_does_not_follow(homes: Homes, tmp_path: Path) -> None:
    tag = subprocess.check_output([MIPGATE, "bento"], text=True, env=homes.environment).strip()
    again = subprocess.check_output([MIPGATE, "bento"], text=True, env=homes.environment).strip()
    assert tag == again  # an unchanged Bento is found again
    with running(homes, service=tag, folder=tmp_path) as gateway:
        command = [MIPGATE, "retire", "digits/fp16", "--url", f"{gateway.url}/"]
        done = subprocess.run(command, check=True, env=homes.environment, capture_output=True, text=True)
        assert "does not follow" in done.stderr
        assert "mipgate bento" in done.stderr
        assert gateway.infer(ZEROS, "fp16", **PATIENT).status_code == 200


def test_what_is_missing_or_damaged_in_the_store_costs_only_itself(homes: Homes) -> None:
    card = Catalog().card("digits")
    models = homes.bentoml / "models"
    shutil.rmtree(models / card.find("int8-dynamic").id.tag.replace(":", "/"))
    (models / card.find("fp16").id.tag.replace(":", "/") / "model.yaml").write_text("{{{")
    subprocess.run([MIPGATE, "retire", "digits/pruned"], check=True, env=homes.environment)
    newest = max(
        (path for path in (models / "digits").iterdir() if path.is_dir()), key=lambda path: path.name
    )
    with (newest / "card.json").open("a") as file:
        file.write(" ")
    with running(homes) as gateway:
        assert gateway.infer(ZEROS, "int8-dynamic", **PATIENT).status_code == 503
        assert gateway.infer(ZEROS, "fp16", **PATIENT).status_code == 503
        assert gateway.infer(ZEROS, "pruned", **PATIENT).status_code == 200  # as the older card says
        assert "passed over" in gateway.log.read_text()


def test_a_model_can_be_unloaded_and_loaded_while_serving(homes: Homes) -> None:
    with running(homes) as gateway:
        assert httpx.post(f"{gateway.url}/v2/repository/models/digits/unload").status_code == 200
        assert gateway.infer(ZEROS, **PATIENT).status_code == 404
        assert httpx.get(f"{gateway.url}/v2/health/ready").status_code == 503
        assert httpx.post(f"{gateway.url}/v2/repository/models/digits/load", timeout=60).status_code == 200
        assert gateway.infer(ZEROS, **PATIENT).status_code == 200


def test_what_is_unloaded_is_unloaded_from_every_worker_until_it_is_loaded_or_all_start_anew(
    homes: Homes,
) -> None:
    def statuses(gateway: Gateway) -> set[int]:
        return {gateway.infer(ZEROS, **PATIENT).status_code for _ in range(20)}  # connections of their own

    with running(homes, workers=2) as gateway:
        repository = f"{gateway.url}/v2/repository/models/digits"
        _wait_for(lambda: len(gateway.workers()) == 2)
        assert httpx.post(f"{repository}/unload", timeout=60).status_code == 200
        _wait_for(lambda: statuses(gateway) == {404})  # the second may have been about to start
        assert httpx.post(f"{repository}/load", timeout=60).status_code == 200
        assert statuses(gateway) == {200}
        assert httpx.post(f"{repository}/unload", timeout=60).status_code == 200
        killed = gateway.workers()[0]
        killed.kill()
        _wait_for(lambda: len([w for w in gateway.workers() if w.pid != killed.pid]) == 2)
        time.sleep(1)
        assert statuses(gateway) == {404}  # of the worker that took its place, too
    with running(homes, workers=2) as gateway:
        assert statuses(gateway) == {200}


def test_a_host_without_profiles_is_profiled_before_it_serves(homes: Homes) -> None:
    forget = """
from dataclasses import replace
from variants.catalog import Catalog
Catalog().change("digits", lambda card: replace(card, hosts={}))
"""
    subprocess.run([sys.executable, "-c", forget], check=True, env=homes.environment, cwd=ROOT)
    show = [MIPGATE, "show", "digits", "--json"]
    before = json.loads(subprocess.check_output(show, env=homes.environment))
    assert {variant["status"] for variant in before["variants"]} == {"refused"}
    assert "mipgate profile digits" in before["variants"][0]["reason"]
    with running(homes) as gateway:
        assert gateway.infer(ZEROS, tier="accurate", **PATIENT).status_code == 200
    after = json.loads(subprocess.check_output(show, env=homes.environment))
    assert all(variant["profiles"] for variant in after["variants"])


def test_a_gateway_does_not_start_on_the_database_of_a_newer_version(homes: Homes) -> None:
    database = Database(f"sqlite:///{homes.mipgate / 'state.db'}")
    database.migrate()
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    gateway = Gateway(homes)
    try:
        assert gateway.process.wait(60) != 0
        log = gateway.log.read_text()
        assert "a newer Mipgate has changed this database: revision 9999 is not known here. Start" in log
        assert "Traceback" not in log
    finally:
        gateway.stop()


def test_the_data_plane_is_outermost_of_bentomls_app(homes: Homes) -> None:
    # The contract of the seam: BentoML's layers mark what passes through them, and `/v2` does not.
    with running(homes) as gateway:
        assert "BentoML" in httpx.get(f"{gateway.url}/livez").headers.get("server", "BentoML")
        through = httpx.post(f"{gateway.url}/predict", json={"model": "x", "inputs": {}})
        assert "BentoML" in through.headers["server"]
        for response in (gateway.infer(ZEROS, **PATIENT), httpx.get(f"{gateway.url}/v2")):
            assert not [name for name in response.headers if "bentoml" in name.lower()]
            assert "server" not in response.headers


@pytest.fixture(autouse=True)
def _no_strays() -> object:
    yield
    strays = [p for p in psutil.Process().children(recursive=True) if "bentoml" in " ".join(p.cmdline())]
    for process in strays:
        os.kill(process.pid, signal.SIGKILL)
    assert not strays
