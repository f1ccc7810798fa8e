"""Builds: the variants that come out, what is found again, and what a failure costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from compression.signature import Signature, TensorSpec
from tests.commands import MIPGATE, mipgate, said
from tests.conftest import ROOT, Homes
from tests.variants.handmade import SPEC, entry
from variants.build import BuildError, _require_same_requests
from variants.card import Card
from variants.serving_spec import transform
from variants.variant import Life

SPECS = "tests.variants.tiny_specs"


def test_a_second_build_finds_everything_and_publishes_no_card(homes: Homes) -> None:
    cards = homes.bentoml / "models" / "digits"
    before = sorted(cards.iterdir())
    ended = mipgate(homes, "build", "digits", "--quiet", "--jobs", "2")
    assert "digits: 0 built, 7 cached, 0 not built" in ended.stderr
    assert sorted(cards.iterdir()) == before


# Measures what lost its profiles; meanwhile somebody retires a variant.
MEASURE = """
import threading
from dataclasses import replace
import variants.build
from variants.catalog import Catalog
from variants.host import this_host
from variants.profiler import Measurements
from variants.progress import Lines
from variants.variant import Life

catalog, host = Catalog(), this_host()
known = catalog.card("digits").hosts[host.fingerprint].profiles
retired = catalog.card("digits").find("pruned").id
catalog.change("digits", lambda card: replace(card, hosts={}))

def retire():
    catalog.change("digits", lambda card: card.with_life(retired, Life.RETIRED), wait_s=5)

def measure(bench, missing, host, progress):
    other = threading.Thread(target=retire)
    other.start()
    other.join()
    return Measurements({item.variant.id.version: known[item.variant.id.version] for item in missing})

variants.build.profile_variants = measure
variants.build.build("digits", catalog, host, Lines())
card = catalog.card("digits")
assert card.find("pruned").life is Life.RETIRED
assert card.hosts[host.fingerprint].profiles == known
"""


def test_while_a_build_measures_others_may_change_the_card_and_nothing_of_it_is_lost(homes: Homes) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE], env=homes.environment, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


# What was held against another reference, other rows or by another metric is measured again, all of a model.
COMPARED = """
from dataclasses import replace
import variants.build
from variants.build import build
from variants.catalog import Catalog
from variants.host import this_host
from variants.profiler import Measurements, profile_model
from variants.progress import Lines
from variants.store import DamagedArtifactError

catalog, host, asked = Catalog(), this_host(), []
known = catalog.card("digits").hosts[host.fingerprint].profiles
versions = sorted(known)
(digest,) = {each.judged_with for profiles in known.values() for each in profiles}
assert digest

def measure(bench, missing, host, progress, again=False):
    assert bench.digest == digest
    asked.append(sorted(item.variant.id.version for item in missing))
    return Measurements({item.variant.id.version: known[item.variant.id.version] for item in missing})

variants.build.profile_variants = variants.profiler.profile_variants = measure
others = {v: [replace(p, judged_with="others") for p in profiles] for v, profiles in known.items()}
catalog.change("digits", lambda card: card.with_profiles(host, others, {}))
build("digits", catalog, host, Lines(), recipes=["fp16"])
assert asked == [versions], asked
build("digits", catalog, host, Lines(), recipes=["fp16"])
profile_model(catalog, "digits", host, Lines(), again=False)
assert len(asked) == 1
catalog.change("digits", lambda card: card.with_profiles(host, others, {}))
profile_model(catalog, "digits", host, Lines(), again=False)
assert asked[1:] == [versions]

damaged, opens = next(version for version in versions if version.startswith("pruned@")), Catalog.open

def some(self, variant):
    if variant.version == damaged:
        raise DamagedArtifactError("its bytes are others")
    return opens(self, variant)

Catalog.open = some
catalog.change("digits", lambda card: card.with_profiles(host, others, {}))
build("digits", catalog, host, Lines(), recipes=["fp16"])
assert asked[2:] == [[version for version in versions if version != damaged]]
"""


def test_what_was_judged_otherwise_is_judged_again_with_the_others(homes: Homes) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMPARED], env=homes.environment, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


# A build that cannot publish what it measured, and the next one.
CUT_OFF = """
from dataclasses import replace
import variants.profiler
from variants.build import BuildError, build
from variants.catalog import Catalog
from variants.home import subfolder
from variants.host import this_host
from variants.progress import Lines

catalog, host, measured = Catalog(), this_host(), []
catalog.change("tiny", lambda card: replace(card, hosts={}))
measure, register = variants.profiler._measure, Catalog.register
variants.profiler._measure = lambda *args: measured.append(1) or measure(*args)

def full(*args):
    raise OSError("no space left")

Catalog.register = full
try:
    build("tests.variants.tiny_specs:TINY", catalog, host, Lines(), recipes=["fp32"])
except BuildError:
    pass
assert measured
kept = len(measured)
Catalog.register = register
card = build("tests.variants.tiny_specs:TINY", catalog, host, Lines(), recipes=["fp32"]).card
assert len(measured) == kept == sum(map(len, card.hosts[host.fingerprint].profiles.values()))
assert not list(subfolder("measured").iterdir())
"""


def test_what_a_build_measured_and_could_not_publish_is_not_measured_again(empty: Homes) -> None:
    mipgate(empty, "build", f"{SPECS}:TINY", "--quiet", "--recipe", "fp32")
    ended = subprocess.run(
        [sys.executable, "-c", CUT_OFF], env=empty.environment, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_a_recipe_that_cannot_work_says_why_and_the_rest_publishes(empty: Homes) -> None:
    ended = mipgate(empty, "build", f"{SPECS}:TINY", "--jobs", "2", status=1)
    assert "tiny: 2 built, 0 cached, 2 not built" in ended.stderr
    assert "backwards failed" in ended.stderr
    fp32, fp16, again, backwards = said(empty, "show", "tiny")["variants"]
    for built in (fp32, fp16):
        assert built["status"] in ("serving", "dominated")
        assert built["life"] == "released"
    assert (again["status"], again["life"], again["artifact"]) == ("skipped", "candidate", None)
    assert "int4-weights was refused after int8-dynamic" in again["reason"]
    assert (backwards["status"], backwards["artifact"]) == ("failed", None)
    assert "takes a torch module, but after fp16" in backwards["reason"]
    for unbuilt in (again, backwards):  # the table says so too
        assert f"{unbuilt['name']}: {unbuilt['reason']}" in ended.stdout
    # Another reference of the same model: it is released already, so what is new waits.
    mipgate(empty, "build", f"{SPECS}:RETRAINED", "--quiet")
    variants = said(empty, "show", "tiny")["variants"]
    new = [v for v in variants if v["build"] not in (fp32["build"], fp16["build"])]
    lives = {(v["name"], v["life"]) for v in new if v["status"] not in ("skipped", "failed")}
    assert lives == {("fp32", "candidate"), ("fp16", "candidate")}
    still = {v["build"]: v["life"] for v in said(empty, "show", "tiny")["variants"]}
    assert still[fp32["build"]] == still[fp16["build"]] == "released"


def test_a_killed_worker_costs_its_variant_and_no_other(empty: Homes) -> None:
    command = [MIPGATE, "build", f"{SPECS}:ENDLESS", "--jobs", "2", "--quiet"]
    with subprocess.Popen(
        command, env=empty.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stderr is not None
        next(line for line in builder.stderr if line.startswith("endless: distill"))
        children = psutil.Process(builder.pid).children(recursive=True)
        (worker,) = [child for child in children if any("/endless/" in part for part in child.cmdline())]
        worker.kill()
        told = builder.stderr.read()
    assert builder.returncode == 1
    assert "tiny: 2 built, 0 cached, 1 not built" in told
    fp32, fp16, endless = said(empty, "show", "tiny")["variants"]
    assert {fp32["status"], fp16["status"]} <= {"serving", "dominated"}
    assert endless["status"] == "failed"
    assert "the process was killed" in endless["reason"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no-such-model", 'no spec "no-such-model". Mipgate brings cifar10, digits, scenes, spam'),
        ("no.such.module:SPEC", "cannot load no.such.module:SPEC"),
        (f"{SPECS}:WIDTH", "is a int; expected a variants.spec.ModelSpec"),
        (f"{SPECS}:MISSPELLED", 'unknown pass "fp61". Use one of'),
    ],
)
def test_a_spec_that_is_wrong_builds_nothing_and_says_why(empty: Homes, spec: str, said: str) -> None:
    assert said in mipgate(empty, "build", spec, status=1).stderr
    assert not (empty.bentoml / "models").exists() or not list((empty.bentoml / "models").iterdir())


def test_splits_that_are_drawn_anew_each_time_build_nothing(empty: Homes) -> None:
    ended = mipgate(empty, "build", f"{SPECS}:UNSEEDED", "--recipe", "fp32", status=1)
    assert "gives other rows each time it is called" in ended.stderr


def test_a_reference_that_is_drawn_anew_each_time_builds_nothing(empty: Homes) -> None:
    ended = mipgate(empty, "build", f"{SPECS}:DRAWN", "--recipe", "fp32", status=1)
    assert "gives other weights each time it is called" in ended.stderr


def test_a_reference_whose_layers_share_weights_is_trained_and_kept(empty: Homes) -> None:
    for number in ("2 built, 0 cached", "0 built, 2 cached"):
        assert f"tiny: {number}" in mipgate(empty, "build", f"{SPECS}:TIED", "--quiet").stderr


def test_what_is_no_default_is_built_when_it_is_named(empty: Homes) -> None:
    assert "tiny: 2 built" in mipgate(empty, "build", f"{SPECS}:CONTROLLED", "--quiet").stderr
    named = mipgate(empty, "build", f"{SPECS}:CONTROLLED", "--recipe", "control")
    assert "tiny: 1 built, 1 cached" in named.stderr
    assert "control" in named.stdout


def test_an_unknown_recipe_says_which_there_are(empty: Homes) -> None:
    ended = mipgate(empty, "build", f"{SPECS}:TINY", "--recipe", "int9", status=1)
    assert 'tiny has no recipe "int9". There are fp32, fp16' in ended.stderr


def test_a_named_order_that_cannot_work_costs_no_training(empty: Homes, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    steps = '[{"pass": "int8-dynamic"}, {"pass": "prune-structured"}]'
    recipe.write_text(f'{{"name": "backwards", "steps": {steps}}}')
    ended = mipgate(empty, "build", f"{SPECS}:TINY", "--recipe-file", str(recipe), status=1)
    assert "prune-structured takes a torch module, but after int8-dynamic" in ended.stderr
    assert not list(empty.mipgate.glob("references/*.safetensors"))


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({}, None),
        ({"metric": "macro-f1", "transforms": (transform("labels", names=("a", "b")),)}, None),
        ({"transforms": (transform("image", mean=3.0),)}, "the transform before them is another"),
        (
            {"signature": Signature((TensorSpec("z", "float32", ("batch", 2)),), ())},
            "their signature is another",
        ),
    ],
)
def test_a_build_whose_requests_are_others_is_refused_while_variants_are_released(
    changed: dict[str, Any], complaint: str | None
) -> None:
    spec = replace(SPEC, **changed)
    _require_same_requests(None, spec)
    _require_same_requests(Card(SPEC, (entry("fp32", life=Life.CANDIDATE),)), spec)
    if complaint is None:
        _require_same_requests(Card(SPEC, (entry("fp32"),)), spec)
    else:
        with pytest.raises(BuildError, match=f"{complaint} than that of m's released variants"):
            _require_same_requests(Card(SPEC, (entry("fp32"),)), spec)
