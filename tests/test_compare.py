"""`mipgate compare` against a real gateway: every tier and variant, as its user sees it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import Homes
from tests.gateway import running

MIPGATE = str(Path(sys.executable).with_name("mipgate"))


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
