"""The store: what is published is whole, what is damaged is refused, what is referred to is kept.

Each test works on a copy of the built store, in processes of its own, as BentoML reads its home once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import mipgate, run, said
from tests.conftest import ROOT, Homes
from variants.catalog import Catalog, ModelNotFoundError

NOBODY = "http://127.0.0.1:9"  # no gateway answers there
VICTIM = "int8-dynamic"
Damage = Callable[[Path], object]


def python(homes: Homes, code: str) -> str:
    """What code prints that has a `catalog`, the `card` of digits and `document` at hand."""
    preamble = (
        "import sys, json\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from variants import document\nfrom variants.card import *\nfrom variants.catalog import *\n"
        "from variants.variant import *\ncatalog = Catalog()\ncard = catalog.card('digits')\n"
    )
    ended = run(homes, sys.executable, "-c", preamble + code)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def shown(homes: Homes) -> dict[str, dict[str, Any]]:
    """The variants of digits by name, as `mipgate show` tells."""
    return {variant["name"]: variant for variant in said(homes, "show", "digits")["variants"]}


def listed(homes: Homes) -> list[str]:
    """Tags that BentoML's own command line lists."""
    ended = run(homes, sys.executable, "-m", "bentoml", "models", "list", "-o", "json")
    assert ended.returncode == 0, ended.stderr
    return [model["tag"] for model in json.loads(ended.stdout)]


def folder(homes: Homes, recipe: str) -> Path:
    (found,) = (path for path in (homes.bentoml / "models" / f"digits.{recipe}").iterdir() if path.is_dir())
    return found


def cards(homes: Homes) -> list[str]:
    return sorted(path.name for path in (homes.bentoml / "models" / "digits").iterdir() if path.is_dir())


# ---- reading


def test_bentoml_lists_every_variant_and_the_card(homes: Homes) -> None:
    expected = {f"digits.{name}:{variant['build']}" for name, variant in shown(homes).items()}
    assert len(expected) == 7
    assert set(listed(homes)) == {*expected, *(f"digits:{card}" for card in cards(homes))}


def _flip(path: Path) -> None:
    content = bytearray((path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.onnx").write_bytes(content)


def _truncate_yaml(path: Path) -> None:
    text = (path / "model.yaml").read_text()
    (path / "model.yaml").write_text(text[: len(text) // 3])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a changed bit": (_flip, "model.onnx"),
    "a missing file": (lambda path: (path / "golden.npz").unlink(), "golden.npz"),
    "a changed scorecard": (lambda path: (path / "scorecard.json").write_text("{}"), "scorecard.json"),
    "a truncated model.yaml": (_truncate_yaml, "model.yaml"),
    "an empty model.yaml": (lambda path: (path / "model.yaml").write_text(""), "model.yaml"),
    "no model.yaml": (lambda path: (path / "model.yaml").unlink(), "store"),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_artifact_is_refused_and_the_others_serve(homes: Homes, damage: Damage, named: str) -> None:
    before = shown(homes)
    damage(folder(homes, VICTIM))
    after = shown(homes)
    assert after[VICTIM]["status"] == "refused"
    assert named in after[VICTIM]["reason"]
    assert "Build the model again" in after[VICTIM]["reason"]
    assert (after[VICTIM]["artifact"], after[VICTIM]["quality"]) == (None, None)
    unharmed = {name for name, variant in before.items() if variant["status"] == "serving"} - {VICTIM}
    assert {name for name in unharmed if after[name]["status"] == "serving"} == unharmed
    errors = (
        "for e in card.entries:\n try: catalog.open(e.id)\n except DamagedArtifactError: print(e.id.recipe)"
    )
    assert python(homes, errors).split() == [VICTIM]
    mipgate(homes, "gc")
    assert folder(homes, VICTIM).is_dir()  # the card still names it


def test_a_damaged_card_is_an_error_that_says_what_to_do(homes: Homes) -> None:
    (homes.bentoml / "models" / "digits" / cards(homes)[-1] / "card.json").write_text("{}")
    for arguments in (("show", "digits"), ("list",), ("release", "digits/fp16", "--url", NOBODY)):
        assert "Build the model again, or restore the store." in mipgate(homes, *arguments, status=1).stderr


def test_a_pinned_catalog_sees_what_its_card_released(homes: Homes) -> None:
    tag = python(homes, "print(catalog.card_tag('digits'))").strip()
    mipgate(homes, "retire", "digits/fp16", "--url", NOBODY)
    pinned = python(
        homes,
        f"pinned = Catalog({{'digits': {tag!r}}})\n"
        "print(pinned.models(), pinned.card_tag('digits'))\n"
        "print(*[e.id.recipe for e in pinned.card('digits').entries])\n"
        "print(*[e.id.recipe for e in card.entries if e.life is Life.RELEASED])\n",
    ).splitlines()
    assert pinned[0] == f"['digits'] {tag}"
    assert set(pinned[1].split()) == {*pinned[2].split(), "fp16"}
    newer = python(homes, "print(catalog.card_tag('digits'))").strip()
    released_now = python(
        homes, f"print(*[e.id.recipe for e in Catalog({{'digits': {newer!r}}}).card('digits').entries])"
    )
    assert released_now.split() == pinned[2].split()


# ---- publishing

# A copy of the fp16 variant under another build.
COPY = """
item = catalog.open(card.find("fp16").id)
def copy(build, files=dict):
    variant = replace(item.variant, id=replace(item.variant.id, build=build))
    names = ("model.onnx", "golden.npz")
    catalog.publish(variant, item.scorecard, files({name: item.folder / name for name in names}))
"""


@pytest.mark.parametrize("name", ["m" * 300, "m" * 64, "", ".", "..", "a/b", "a\0b", "digits.fp32", "DIGITS"])
def test_what_can_name_no_model_is_no_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        Catalog(root=tmp_path).card_tag(name)


def test_a_process_killed_while_it_publishes_leaves_nothing(homes: Homes) -> None:
    before = listed(homes)
    killed = (
        "import os, signal\n"
        "class Deadly(dict):\n"
        "    def items(self):\n"
        "        yield next(iter(super().items()))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "copy('0' * 12, Deadly)\n"
    )
    code = "from dataclasses import replace\nfrom variants.catalog import *\ncatalog = Catalog()\n"
    code += f"card = catalog.card('digits')\n{COPY}{killed}"
    ended = run(homes, sys.executable, "-c", code)
    assert ended.returncode == -9
    assert listed(homes) == before
    assert len(shown(homes)) == 7
    python(homes, f"{COPY}copy('0' * 12)")  # and the way is free for the next
    assert set(listed(homes)) - set(before) == {f"digits.fp16:{'0' * 12}"}


def test_a_process_killed_at_any_moment_leaves_whole_entries(homes: Homes) -> None:
    code = (
        f"from dataclasses import replace\nfrom variants.catalog import *\n"
        f"catalog = Catalog()\ncard = catalog.card('digits')\n{COPY}"
        "for number in range(10_000):\n    copy(f'{number:012x}')\n    print(number, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=homes.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as publisher:
        assert publisher.stdout is not None
        done = [publisher.stdout.readline() for _ in range(5)]
        publisher.kill()
    assert done[-1] == "4\n"
    whole = python(
        homes,
        "for folder in sorted((catalog.root / 'digits.fp16').iterdir()):\n"
        "    if folder.is_dir():\n"
        "        catalog.open(VariantId('digits', 'fp16', folder.name)); print(folder.name)\n",
    ).split()
    assert len(whole) >= 6
    assert len([tag for tag in listed(homes) if tag.startswith("digits.fp16:")]) == len(whole)
    assert f"{len(whole) - 1} deleted, " in mipgate(homes, "gc").stdout  # no card names them
    assert folder(homes, "fp16").is_dir()


def test_what_is_there_is_kept_and_what_is_damaged_is_published_anew(homes: Homes) -> None:
    python(homes, f"{COPY}copy('0' * 12)")
    artifact = homes.bentoml / "models" / "digits.fp16" / ("0" * 12) / "model.onnx"
    first = artifact.stat().st_ino
    python(homes, f"{COPY}copy('0' * 12)")
    assert artifact.stat().st_ino == first
    _flip(artifact.parent)
    python(homes, f"{COPY}copy('0' * 12); catalog.open(VariantId('digits', 'fp16', '0' * 12))")


def test_changes_from_several_processes_lose_none(homes: Homes) -> None:
    code = (
        "import sys\nfrom variants.card import *\nfrom variants.catalog import *\n"
        "from variants.variant import *\n"
        "catalog = Catalog()\n"
        "def add(name):\n"
        "    failure = Failure(Status.FAILED, '')\n"
        "    entry = Entry(VariantId('digits', name, '0' * 12), Life.CANDIDATE, [], failure)\n"
        "    catalog.change('digits', lambda card: card.with_entry(entry))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(15): add(f'{sys.argv[1]}-{number}')\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, name],
            env=homes.environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n")
        assert writer.returncode == 0
    names = [name for name in shown(homes) if name.startswith(("one-", "two-"))]
    assert len(names) == 30
    assert len(cards(homes)) >= 31


def test_a_change_that_changes_nothing_publishes_nothing(homes: Homes) -> None:
    before = cards(homes)
    python(homes, "catalog.change('digits', lambda card: card)")
    mipgate(homes, "release", "digits/fp32", "--url", NOBODY)  # it is already
    assert cards(homes) == before


# ---- lives


def test_retiring_and_releasing_moves_a_variant_out_of_traffic_and_back(homes: Homes) -> None:
    assert shown(homes)["fp16"]["life"] == "released"
    ended = mipgate(homes, "retire", "digits/fp16", "--url", NOBODY)
    assert "is retired." in ended.stdout
    assert f"no gateway answers at {NOBODY}" in ended.stderr
    after = shown(homes)
    assert after["fp16"]["life"] == "retired"
    assert {variant["life"] for name, variant in after.items() if name != "fp16"} == {"released"}
    build = after["fp16"]["build"]
    mipgate(homes, "release", f"digits/fp16@{build}", "--url", NOBODY)
    assert shown(homes)["fp16"]["life"] == "released"


def test_rm_deletes_what_has_no_traffic_and_nothing_else(homes: Homes) -> None:
    assert (
        "is released. Run `mipgate retire digits/fp16`"
        in mipgate(homes, "rm", "digits/fp16", status=1).stderr
    )
    assert "is the reference" in mipgate(homes, "rm", "digits/fp32", "--force", status=1).stderr
    unknown = mipgate(homes, "rm", "digits/nothing", status=1).stderr
    assert 'no variant "nothing". There are fp32@' in unknown
    assert len(listed(homes)) == 8
    mipgate(homes, "retire", "digits/fp16", "--url", NOBODY)
    mipgate(homes, "rm", "digits/fp16")
    python(homes, "catalog.change('digits', lambda c: c.with_life(c.find('pruned').id, Life.CANDIDATE))")
    assert "is a candidate, which a rollout" in mipgate(homes, "rm", "digits/pruned", status=1).stderr
    mipgate(homes, "rm", "digits/pruned", "--force")
    assert set(shown(homes)) == {"fp32", "int8-dynamic", "int8-static", "distilled", "pruned-distilled-int8"}
    names = {tag.partition(":")[0] for tag in listed(homes)}
    assert not {"digits.fp16", "digits.pruned"} & names
    assert '"fp16"' not in python(homes, "print(json.dumps(document.to_json(card)))")


# ---- collecting


def test_gc_keeps_what_a_bento_refers_to_and_deletes_old_cards(homes: Homes) -> None:
    packed = cards(homes)[-1]
    bento = mipgate(homes, "bento").stdout.strip()
    assert mipgate(homes, "bento").stdout.strip() == bento  # unchanged, so found again
    for verb in ("retire", "release", "retire", "release", "retire"):
        mipgate(homes, verb, "digits/fp16", "--url", NOBODY)
    refused = mipgate(homes, "rm", "digits/fp16", status=1).stderr
    assert f"is packed in {bento}. Delete the Bento first: `bentoml delete {bento}`." in refused
    python(homes, "catalog.change('digits', lambda card: card.without(card.find('fp16').id))")
    before = cards(homes)
    deleted = said(homes, "gc")["deleted"]
    kept = cards(homes)
    assert kept == sorted({packed, *before[-3:]})
    assert sorted(deleted) == [f"digits:{card}" for card in before if card not in kept]
    assert folder(homes, "fp16").is_dir()
    assert "fp16" not in shown(homes)
    assert said(homes, "gc")["deleted"] == []
    # Without the Bento nothing keeps the first card, and only later what it alone named.
    assert run(homes, sys.executable, "-m", "bentoml", "delete", bento, "--yes").returncode == 0
    assert said(homes, "gc")["deleted"][0] == f"digits:{packed}"
