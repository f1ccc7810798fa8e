"""The command line: every verb helps, speaks JSON, and ends with the status that it means."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.commands import DONE, FAILED, USAGE, mipgate, said
from tests.compression.foreign_graphs import X, plain
from tests.conftest import ROOT, Homes
from variants.catalog import Catalog
from variants.cli.main import VERBS
from variants.host import this_host
from variants.runtime import ENGINES

NOBODY = "http://127.0.0.1:9"  # no gateway answers there
# ---- help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps_with_an_example_of_itself(verb: str) -> None:
    from click.testing import CliRunner

    from variants.cli.main import main

    helped = CliRunner().invoke(main, [verb, "--help"], prog_name="mipgate")
    assert helped.exit_code == DONE
    example = helped.output.partition("Example: ")[2]
    assert f"mipgate {verb}" in example
    assert helped.output.startswith(f"Usage: mipgate {verb}")


def test_the_command_alone_lists_its_verbs(empty: Homes) -> None:
    helped = mipgate(empty, "--help")
    assert "Example: mipgate" in helped.stdout
    for verb, purpose in VERBS.items():
        assert f"  {verb} " in helped.stdout
        assert purpose in " ".join(helped.stdout.split())


def test_helping_needs_nothing_that_only_building_has(empty: Homes) -> None:
    code = "import sys\nfrom variants.cli.main import main\ntry: main(['show', '--help'])\n"
    code += "except SystemExit: print(*{name.partition('.')[0] for name in sys.modules})"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=empty.environment, cwd=ROOT, capture_output=True, text=True
    )
    assert not {"torch", "sklearn", "onnx"} & set(ended.stdout.splitlines()[-1].split())


# ---- usage


@pytest.mark.parametrize(
    "arguments",
    [("juggle",), ("show",), ("show", "a", "b"), ("build", "digits", "--jobs", "two"), ("list", "--jsn"),
     ("release",), ("serve", "--port", "http")],
    ids=" ".join,
)  # fmt: skip
def test_what_is_no_command_ends_with_2(empty: Homes, arguments: tuple[str, ...]) -> None:
    assert "Usage: " in mipgate(empty, *arguments, status=USAGE).stderr


# ---- an empty store


def test_an_empty_store_says_what_to_run(empty: Homes) -> None:
    listed = mipgate(empty, "list")
    assert "Run `mipgate build digits`" in listed.stdout
    assert said(empty, "list") == []
    assert said(empty, "gc")["deleted"] == []
    for arguments in (("serve",), ("bento",), ("show", "digits"), ("profile", "digits")):
        assert "Run `mipgate build digits`" in mipgate(empty, *arguments, status=FAILED).stderr


def test_the_doctor_examines_a_bare_host(empty: Homes) -> None:
    findings = said(empty, "doctor")
    host = this_host()
    assert findings["host"]["fingerprint"] == host.fingerprint
    assert (findings["host"]["cpu"], findings["host"]["cores"]) == (host.cpu, host.cores)
    assert findings["host"]["features"] == list(host.features)
    assert findings["runtimes"].keys() == ENGINES.keys()
    for name, found in findings["runtimes"].items():
        assert found["available"] == (found["reason"] == "")
        assert found["reason"] == (ENGINES[name].why_missing() or "")
    assert findings["runtimes"]["onnxruntime-cpu"]["available"]
    assert findings["packages"]["serve"]["bentoml"] == "1.4.39"
    assert findings["store"]["models"] == []
    assert findings["store"]["free_bytes"] > 0
    assert findings["home"] == str(empty.mipgate)
    table = mipgate(empty, "doctor").stdout
    assert host.fingerprint in table
    for found in findings["runtimes"].values():
        assert found["reason"] in table


# ---- digits


def test_tables_have_a_document_for_machines(homes: Homes) -> None:
    document = said(homes, "show", "digits")
    assert said(homes, "list") == said(homes, "list", "digits") == [document]
    assert said(homes, "doctor")["store"]["models"] == ["digits"]
    assert said(homes, "gc")["deleted"] == []
    static = next(v for v in document["variants"] if v["name"] == "int8-static")
    assert said(homes, "show", "digits/int8-static") == static
    assert said(homes, "show", f"digits/int8-static@{static['build']}") == static


def test_the_tables_say_what_the_document_says(homes: Homes) -> None:
    document = said(homes, "show", "digits")
    table = mipgate(homes, "show", "digits").stdout
    assert mipgate(homes, "list", "digits").stdout == table
    for variant in document["variants"]:
        row = next(line for line in table.splitlines() if line.startswith(f"{variant['name']} "))
        for cell in (variant["build"], variant["life"], variant["status"], variant["runtime"]):
            assert cell in row
    for name, tier in document["tiers"].items():
        row = next(line for line in table.splitlines() if line.startswith(f"{name} "))
        assert row.rstrip().endswith(tier["serves"])
    assert "digits" in mipgate(homes, "list").stdout
    variant = mipgate(homes, "show", "digits/int8-static").stdout
    assert "int8-static" in variant
    assert "sha256" in variant


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "numbers"), ('no model "numbers"', "there are: digits", "`mipgate build numbers`")),
        (("show", "digits/int9"), ('no variant "int9"', "fp32@", "int8-static@")),
        (("show", "digits/fp32@000000000000"), ('no variant "fp32@000000000000"', "fp32@")),
        (("show", "digits/FP32"), ("names no variant", "as in digits/int8-static")),
        (("show", "../digits"), ("names no variant",)),
        (("show", ".."), ('no model ".."', "digits")),
        (("release", "digits", "--url", NOBODY), ("names no variant", "MODEL/RECIPE")),
        (("retire", "digits/int9", "--url", NOBODY), ("int9", "fp32@")),
        (("rm", "numbers/fp32"), ('no model "numbers"', "digits")),
        (("profile", "numbers"), ('no model "numbers"',)),
        (("compare", "digits", "--url", NOBODY), ("mipgate serve",)),
    ],
    ids=lambda value: " ".join(value) if value[0] in VERBS else "",
)
def test_what_cannot_be_done_ends_with_1_and_says_what_there_is(
    homes: Homes, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    ended = mipgate(homes, *arguments, status=FAILED)
    assert ended.stderr.startswith("Error: ")
    for word in words:
        assert word in ended.stderr


def test_a_model_goes_with_all_that_is_kept_of_it(homes: Homes, tmp_path: Path) -> None:
    onnx.save_model(plain().proto, tmp_path / "mine.onnx")
    np.savez(tmp_path / "rows.npz", x=X)
    added = mipgate(homes, "add", f"{tmp_path}/mine.onnx", "--data", f"{tmp_path}/rows.npz", "--no-build")
    assert "60 different rows without labels, judged by agreement" in added.stderr
    assert "registered, not built: `mipgate build mine`" in mipgate(homes, "list").stdout
    assert mipgate(homes, "rm", "mine").stdout == "mine is deleted.\n"
    assert "mine" not in mipgate(homes, "list").stdout
    refused = mipgate(homes, "rm", "digits", status=FAILED)
    assert "variants of digits are released. Run `mipgate retire digits/VARIANT`" in refused.stderr
    mipgate(homes, "rm", "digits", "--force")
    assert "no models are registered" in mipgate(homes, "list").stdout
    assert not [*(homes.bentoml / "models").glob("digits*/*/model.onnx")]
    assert "names no variant" in mipgate(homes, "rm", "digits", status=FAILED).stderr


def test_one_variant_is_measured_again_and_no_other(homes: Homes) -> None:
    before = said(homes, "show", "digits")
    after = said(homes, "profile", "digits/pruned")
    for old, new in zip(before["variants"], after["variants"], strict=True):
        taken = [[profile["taken"] for profile in variant["profiles"]] for variant in (old, new)]
        assert (taken[0] == taken[1]) == (old["name"] != "pruned"), old["name"]
    refused = mipgate(homes, "profile", "digits/pruned", "--url", NOBODY, status=USAGE)
    assert "a gateway measures whole models" in refused.stderr
    unknown = mipgate(homes, "profile", "digits/int9", status=FAILED)
    assert 'no variant "int9"' in unknown.stderr


@pytest.mark.usefixtures("digits")
def test_a_variant_alone_is_not_measured_where_its_model_never_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from variants.cli import profile

    elsewhere = replace(this_host(), fingerprint="elsewhere")
    monkeypatch.setattr(profile, "this_host", lambda _: elsewhere)
    card = Catalog().card("digits")
    refused = CliRunner().invoke(profile.command, ["digits/pruned"])
    assert refused.exit_code == FAILED
    assert "has no profile of this host to replace. Run `mipgate profile digits`." in refused.output
    assert Catalog().card("digits") == card
