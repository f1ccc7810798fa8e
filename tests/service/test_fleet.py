"""Loading: golden rows are replayed, and what answers otherwise than when it was judged is judged again.

Each test works on a copy of the built store, in a process of its own, as BentoML reads its home once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, Homes
from variants.samples import read_golden, write_golden
from variants.store import sha256

VICTIM = "int8-dynamic"
# Loads digits once or twice and prints what came of it; one runtime is enough to measure again.
LOAD = """
import json, sys
import service.fleet, variants.profiler
from service.fleet import Fleet
from service.metrics import Metrics
from variants.catalog import Catalog
from variants.host import this_host
from variants.runtime import reference_runtime

measured = []
profile_model = service.fleet.profile_model
def counted(*args, **settings):
    measured.append(sorted(settings["doubted"]))
    return Catalog().card("digits") if {unable} else profile_model(*args, **settings)
service.fleet.profile_model = counted
variants.profiler.available_runtimes = lambda host: [reference_runtime(host)]
fleet = Fleet(Catalog(), this_host(), Metrics(), 32)
for _ in range({times}):
    model = fleet.load("digits")
profiles = Catalog().card("digits").hosts[this_host().fingerprint].profiles
print(json.dumps({{
    "measured": measured,
    "serves": model.versions,
    "refused": model.refused,
    "candidates": [candidate.name for candidate in model.candidates],
    "deviations": {{key.split("@")[0]: [p.golden_deviation for p in of] for key, of in profiles.items()}},
}}))
"""


# As if one variant's quality had been held against an earlier build of the reference.
MISJUDGE = """
from dataclasses import replace
from variants.catalog import Catalog
from variants.host import this_host

def aged(card):
    version, host = card.find({recipe!r}).id.version, this_host()
    known = [replace(each, judged_with="earlier") for each in card.measured_on(host).profiles[version]]
    return card.with_profiles(host, {{version: known}}, {{}})

Catalog().change("digits", aged)
"""


def ran(homes: Homes, code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], env=homes.environment, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def loaded(homes: Homes, *, unable: bool = False, times: int = 1) -> dict[str, Any]:
    said = ran(homes, LOAD.format(unable=unable, times=times))
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def tamper(homes: Homes, spreads: float) -> None:
    """Golden rows of another machine: every output off by so many standard deviations, and sealed again."""
    (folder,) = (path.parent for path in (homes.bentoml / "models" / f"digits.{VICTIM}").glob("*/golden.npz"))
    path = folder / "golden.npz"
    inputs, outputs = read_golden(path)
    shifted = {name: (a + spreads * a.std()).astype(a.dtype) for name, a in outputs.items()}
    write_golden(path, inputs, shifted)
    sealed = yaml.safe_load((folder / "model.yaml").read_text())
    sealed["metadata"]["files"]["golden.npz"] = sha256(path)
    (folder / "model.yaml").write_text(yaml.safe_dump(sealed))


def test_what_answers_as_where_it_was_built_is_not_measured_again(homes: Homes) -> None:
    found = loaded(homes)
    assert found["measured"] == []
    assert len(found["serves"]) == 7
    assert found["refused"] == {}


def test_what_answers_otherwise_is_measured_here_and_then_serves(homes: Homes) -> None:
    tamper(homes, 0.5)
    found = loaded(homes, times=2)
    ((doubted,),) = found["measured"]  # once, and this variant alone
    assert doubted.startswith(f"{VICTIM}@")
    assert VICTIM in found["serves"]
    assert found["deviations"][VICTIM] == [pytest.approx(0.5, abs=0.1)]
    others = (value for name, values in found["deviations"].items() for value in values if name != VICTIM)
    assert max(others) < 0.5
    assert loaded(homes)["measured"] == []  # the next worker trusts what was measured


def test_what_was_judged_by_another_reference_is_judged_again_before_it_serves(homes: Homes) -> None:
    ran(homes, MISJUDGE.format(recipe=VICTIM))
    found = loaded(homes, times=2)
    ((doubted,),) = found["measured"]
    assert doubted.startswith(f"{VICTIM}@")
    assert VICTIM in found["serves"]
    assert loaded(homes)["measured"] == []


def test_what_cannot_be_measured_is_refused_with_the_command_that_does(homes: Homes) -> None:
    tamper(homes, 0.5)
    found = loaded(homes, unable=True, times=2)
    assert len(found["measured"]) == 1  # it is not tried again and again
    assert VICTIM not in [*found["serves"], *found["candidates"]]
    assert "golden rows differ by 0." in found["refused"][VICTIM]
    assert "`mipgate profile digits`" in found["refused"][VICTIM]
    assert len(found["serves"]) == 6


def test_rounding_is_no_reason_to_measure_again(homes: Homes) -> None:
    tamper(homes, 0.01)
    assert loaded(homes)["measured"] == []
