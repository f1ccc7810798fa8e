"""The load generator as its user runs it, against a stub: Locust must not be imported in this process."""

import json
import subprocess
import sys

import numpy as np
import pytest

from loadtests.targets import GatewayError, offer
from tests.loadtests.stub import MODEL, TIERS, VARIANTS, stub_gateway

pytest.importorskip("matplotlib")
ROWS = 30
PNG = b"\x89PNG\r\n\x1a\n"
DOCUMENT = {
    "model": MODEL,
    "metric": "accuracy",
    "reference": "fp32",
    "host": {"cpu": "A CPU", "features": []},
    "tiers": {"accurate": {"min_quality_ratio": 0.999}, "fast": {"min_quality_ratio": 0.97}},
    "variants": [
        {
            "name": name,
            "build": "abc",
            "life": "released",
            "status": "serving",
            "artifact": {"bytes": size},
            "quality": {"validation": {"ratio": ratio}},
        }
        for name, size, ratio in (("fp32", 4000, 1.0), ("int8", 1000, 0.98), ("fp8", 500, 0.5))
    ],
}


@pytest.fixture
def files(tmp_path):
    labels = np.arange(ROWS) % 3
    rows = np.eye(3, dtype=np.float32)[labels]
    rows[0] = [0.0, 1.0, 0.0]  # row 0 has label 0: one answer of thirty is wrong
    with (tmp_path / "samples.npz").open("wb") as file:
        np.savez(file, **{"input:x": rows, "labels": labels})
    (tmp_path / "document.json").write_text(json.dumps(DOCUMENT))
    return tmp_path


def compare(url, files, *options):
    arguments = ["--url", url, "--model", MODEL, "--samples", files / "samples.npz"]
    arguments += ["--document", files / "document.json", "--out", files / "out", "--seconds", "0.3"]
    command = [sys.executable, "-m", "loadtests.compare", *map(str, arguments), "--users", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_every_tier_and_variant_is_measured_and_reported(files):
    with stub_gateway() as url:
        done = compare(url, files)
    assert done.returncode == 0, done.stderr
    report = json.loads((files / "out" / "report.json").read_text())
    labels = [f"tier:{name}" for name in TIERS] + [f"variant:{name}" for name in VARIANTS]
    assert [target["target"] for target in report["targets"]] == labels
    for target in report["targets"]:
        assert target["accuracy"] == 29 / 30
        assert target["accuracy_rows"] == ROWS
        assert target["live_rows"] > 0
        assert target["failures"] == 0
        assert target["latency_ms"]["p50"] <= target["latency_ms"]["p99"]
        assert target["gateway_ms"]["p50"] == pytest.approx(0.3)
    assert report["targets"][1]["answered_by"] == {"int8": 1.0}
    assert report["not_measured"] == {"fp8": "serving: the gateway does not offer it"}
    assert report["verdict"]["ok"]
    assert (files / "out" / "report.png").read_bytes().startswith(PNG)
    assert "| tier:fast | int8 100% |" in (files / "out" / "report.md").read_text()


def test_a_tier_answered_by_an_unfit_variant_fails(files):
    with stub_gateway(answers_fast="fp8") as url:
        done = compare(url, files, "--targets", "tier:fast")
    assert done.returncode == 1
    assert "unfit variant: fp8 answered tier:fast" in done.stderr
    report = json.loads((files / "out" / "report.json").read_text())
    assert [target["target"] for target in report["targets"]] == ["tier:fast"]
    assert not report["verdict"]["ok"]


def test_without_a_gateway_it_says_how_to_start_one(files):
    done = compare("http://127.0.0.1:9", files)
    assert done.returncode == 1
    assert "no gateway answers at http://127.0.0.1:9" in done.stderr
    assert "mipgate serve" in done.stderr


@pytest.mark.parametrize("options", [("--targets", "tier:slow"), ("--seconds", "0"), ("--users", "-1")])
def test_a_wrong_call_ends_with_2(files, options):
    with stub_gateway() as url:
        assert compare(url, files, *options).returncode == 2


def test_the_locustfile_offers_a_user_class_per_target_and_a_mix(files):
    arguments = ["--headless", "-u", "2", "-r", "2", "-t", "1s", "--samples", str(files / "samples.npz")]
    with stub_gateway() as url:
        command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--host", f"{url}/"]
        listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=False, timeout=60)
        done = subprocess.run(
            [*command, *arguments, "variant_int8"], capture_output=True, text=True, check=False, timeout=60
        )
    names = {"TierMix", "tier_accurate", "tier_fast", "variant_fp32", "variant_int8"}
    assert names <= set(listed.stdout.split())
    assert done.returncode == 0, done.stderr
    assert 'variant:int8: {"answers": ' in done.stderr
    assert '"answered_by": {"int8": ' in done.stderr


def test_a_gateway_tells_what_it_offers():
    with stub_gateway() as url:
        found = offer(url, None)
    assert (found.model, found.variants, found.tiers) == (MODEL, VARIANTS, TIERS)


def test_an_unknown_model_is_told_with_the_gateways_words():
    with stub_gateway() as url, pytest.raises(GatewayError, match=r"404.*unknown path"):
        offer(url, "other")
