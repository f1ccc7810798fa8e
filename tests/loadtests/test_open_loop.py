"""The open loop as its user runs it, against a stub: Locust must not be imported in this process."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from loadtests.page import render
from loadtests.trace import Trace, write_trace
from tests.gateway import free_port
from tests.loadtests.stub import MODEL, Handler, stub_gateway
from tests.loadtests.test_compare import compare, files  # noqa: F401  # a fixture

STALL_S = 0.8


def read(files):  # noqa: F811
    return json.loads((files / "out" / "report.json").read_text())


def shaped(url, files, *options, shape="poisson"):  # noqa: F811
    return compare(url, files, "--shape", shape, "--processes", "2", *options)


def stalling(answer=Handler.do_POST):
    """Answers at once, but for a pause that begins with the first request that is under load."""
    began = []

    def do_POST(request):
        began.append(time.monotonic())
        wait = began[100] + STALL_S - began[-1] if len(began) > 100 else 0
        if wait > 0:
            time.sleep(wait)
        answer(request)

    return do_POST


def test_every_target_and_the_mix_are_loaded_at_drawn_times(files):  # noqa: F811
    with stub_gateway() as url:
        done = shaped(url, files, "--rate", "60", "--seconds", "0.5", shape="spike")
    assert done.returncode == 0, done.stderr
    report = read(files)
    mix, *others = report["targets"]
    assert mix["target"] == "mix"
    assert {part["name"] for part in mix["tiers"]} == {"accurate", "fast"}
    assert {part["name"] for part in mix["variants"]} == {"fp32", "int8"}
    assert [t["target"] for t in others] == ["tier:accurate", "tier:fast", "variant:fp32", "variant:int8"]
    for target in report["targets"]:
        assert target["figures"]["errors"] == 0
        assert target["figures"]["accuracy"] > 0.9
        assert target["figures"]["cpu"] > 0
        assert target["late_ms"] is not None
    assert report["settings"]["shape"] == "spike"
    assert "open-loop" in report["pacing"]
    assert {path.name for path in (files / "out").iterdir()} == {
        f"report.{kind}" for kind in ("html", "md", "png", "csv", "json")
    }
    assert (files / "out" / "report.csv").read_text().startswith("target,part,share,p50,")


def test_a_stall_does_not_slow_the_clients_and_counts_for_all_who_came_meanwhile(files):  # noqa: F811
    with stub_gateway(do_POST=stalling()) as url:
        options = ("--rate", "100", "--seconds", "2", "--targets", "tier:fast")
        done = shaped(url, files, *options, shape="steady")
    assert done.returncode == 0, done.stderr
    (target,) = read(files)["targets"]
    assert target["figures"]["offered"] == pytest.approx(100, rel=0.2)
    # Some eighty requests came while it stood still; each waited for the rest of the pause.
    assert target["figures"]["p90"] > 1000 * STALL_S / 5
    assert target["figures"]["max"] > 1000 * STALL_S * 0.7


def test_a_trace_is_replayed(files):  # noqa: F811
    trace = Trace(np.arange(40) / 40, ("fast",) * 30 + ("accurate",) * 10)
    write_trace(files / "trace.csv", MODEL, trace)
    with stub_gateway() as url:
        options = ("--trace", str(files / "trace.csv"), "--speed", "2", "--seconds", "0.6")
        done = shaped(url, files, *options, shape="replay")
    assert done.returncode == 0, done.stderr
    (mix,) = read(files)["targets"]
    assert [(part["name"], part["share"]) for part in mix["tiers"]] == [("fast", 0.75), ("accurate", 0.25)]


def test_a_gate_a_search_and_an_earlier_run(files):  # noqa: F811
    options = ("--rate", "50", "--seconds", "1", "--targets", "tier:fast")
    with stub_gateway() as url:
        first = shaped(url, files, *options, "--fail-on", "p99>30s,errors>50%,accuracy<0.5")
        (files / "out" / "report.json").rename(files / "first.json")
        slo = (
            "--slo",
            "p99<=60s,errors<=0.1%",
            "--most-rate",
            "100",
            "--baseline",
            str(files / "first.json"),
        )
        second = shaped(url, files, *options, *slo, "--fail-on", "fast:p99>0.001ms", "--price", "0.1")
    assert first.returncode == 0, first.stderr
    assert second.returncode == 1
    assert "error: tier:fast: p99 is " in second.stderr
    report = read(files)
    (target,) = report["targets"]
    assert (target["capacity"]["rate"], target["capacity"]["limit"]) == (100, "most")
    assert target["figures"]["cost"] > 0
    assert report["baseline"]["paired"]
    assert {change["figure"] for change in report["baseline"]["changes"]} == {
        "p50",
        "p99",
        "errors",
        "accuracy",
    }
    text = (files / "out" / "report.md").read_text()
    assert "| fast:p99>0.001ms | tier:fast |" in text
    assert "## Throughput at the objective" in text


def test_workers_from_elsewhere_join_a_master(files):  # noqa: F811
    port = str(free_port())
    samples = str(files / "samples.npz")
    command = [
        sys.executable,
        "-m",
        "loadtests.compare",
        "--worker",
        "--master-port",
        port,
        "--samples",
        samples,
    ]
    worker = subprocess.Popen(command)
    try:
        with stub_gateway() as url:
            options = (
                "--shape",
                "steady",
                "--expect-workers",
                "1",
                "--master-port",
                port,
                "--targets",
                "mix",
            )
            done = compare(url, files, *options)
        assert done.returncode == 0, done.stderr
        assert worker.wait(20) == 0
    finally:
        worker.kill()
    assert read(files)["settings"]["processes"] == 1


def test_mlperfs_loadgen_is_a_second_client(files):  # noqa: F811
    pytest.importorskip("mlperf_loadgen")
    with stub_gateway() as url:
        done = compare(url, files, "--targets", "tier:fast", "--loadgen", "SingleStream", "Offline")
    assert done.returncode == 0, done.stderr
    single, offline = read(files)["loadgen"]
    assert (single["scenario"], offline["scenario"]) == ("SingleStream", "Offline")
    assert single["valid"]
    assert float(single["summary"]["accuracy of the answers"]) > 0.9
    assert (files / "out" / "loadgen" / "singlestream" / "mlperf_log_detail.txt").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fail-on", "slow:p99>2ms"), "is of slow, which is not loaded. Known: tier:accurate, accurate"),
        (("--baseline", "nowhere.json"), "is no earlier report.json"),
        (("--targets", "mix"), "unknown target mix"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_to_give(files, options, said):  # noqa: F811
    with stub_gateway() as url:
        done = compare(url, files, *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_page_needs_no_network_and_escapes_what_it_shows(files):  # noqa: F811
    with stub_gateway(answers_fast="<b>x</b>") as url:
        compare(url, files, "--targets", "tier:fast", "--fail-on", "p99>5s")
    report = read(files)
    page = (files / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x</b>" not in page
    assert render(report) == page
    assert "coordinated omission" in page
