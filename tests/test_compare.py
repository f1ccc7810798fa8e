"""`mipgate compare` against a real gateway: every tier and variant, as its user sees it."""

import json
import subprocess
from pathlib import Path

from tests.commands import MIPGATE
from tests.conftest import Homes
from tests.gateway import running


def test_compare_measures_every_tier_and_variant_and_writes_the_report(homes: Homes, tmp_path: Path) -> None:
    out = tmp_path / "report"
    with running(homes) as gateway:
        done = subprocess.run(
            [
                MIPGATE,
                "compare",
                "digits",
                "--url",
                gateway.url,
                "--out",
                str(out),
                "--seconds",
                "1",
                "--json",
            ],
            capture_output=True,
            text=True,
            env=homes.environment,
            timeout=240,
        )
    report = json.loads((out / "report.json").read_text())
    assert json.loads(done.stdout) == report
    names = [target["target"] for target in report["targets"]]
    assert [name for name in names if name.startswith("tier:")] == [
        "tier:accurate",
        "tier:balanced",
        "tier:fast",
    ]
    assert len([name for name in names if name.startswith("variant:")]) == 7
    for target in report["targets"]:
        assert target["requests_per_s"] > 0
        assert 0.9 < target["accuracy"] <= 1.0
    assert (out / "report.md").read_text().startswith("# ")
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_spike_passes_the_conditions_that_hold_and_fails_those_that_do_not(
    homes: Homes, tmp_path: Path
) -> None:
    load = ["--shape", "spike", "--rate", "40", "--seconds", "1", "--target", "mix", "--target", "tier:fast"]
    with running(homes) as gateway:

        def compare(*options: str) -> subprocess.CompletedProcess[str]:
            command = [MIPGATE, "compare", "digits", "--url", gateway.url, "--out", str(tmp_path / "out")]
            return subprocess.run(
                [*command, *load, *options],
                capture_output=True,
                text=True,
                env=homes.environment,
                timeout=240,
            )

        wrong = compare("--fail-on", "p98>1ms")
        passed = compare("--fail-on", "p99>30s,accuracy<0.9,fast:rate<1")
        failed = compare("--fail-on", "accuracy<0.9,fast:p99>0.01ms")
    assert passed.returncode == 0, passed.stderr
    assert failed.returncode == 1
    assert "tier:fast: p99 is " in failed.stderr
    assert "(fast:p99>0.01ms)" in failed.stderr
    assert wrong.returncode == 2
    assert "Known: p50, p90" in wrong.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    mix = report["targets"][0]
    assert {part["name"] for part in mix["tiers"]} == {"accurate", "balanced", "fast"}
    assert mix["figures"]["memory"] > 10_000_000
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
