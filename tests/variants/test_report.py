"""The report: what it says is what was measured, and the page needs nothing but itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.variants.handmade import HOST, card, entry, estimate, failed, profile, stored
from variants.assessment import Standing, assess, describe
from variants.card import Card
from variants.cli.show import print_model, print_variant
from variants.comparison import Baseline, compare
from variants.profile import Profile
from variants.report.page import render, verdict
from variants.serving_spec import transform


def confused(made: Profile, cells: dict[int, dict[int, int]]) -> Profile:
    return replace(made, quality=replace(made.quality, confusion={"test": cells}))


@pytest.fixture
def judged() -> tuple[Card, list[Standing]]:
    reference, small, broken = entry("fp32"), entry("int8-static"), failed("fp16", reason="<b>it</b> broke")
    profiles = {
        reference.id.version: [confused(profile(1.0, 2.0), {0: {0: 9, 1: 1}, 1: {1: 10}})],
        small.id.version: [confused(profile(0.99, 1.0), {0: {0: 7, 1: 3}, 1: {1: 10}})],
    }
    made = card(reference, small, broken, profiles=profiles)
    artifacts = {each.id.version: stored(each, size) for each, size in ((reference, 4000), (small, 1000))}
    return made, assess(made, artifacts, HOST)


def figures(page: str) -> dict[str, dict[str, object]]:
    found = re.search(r"^const figures = (.*);$", page, re.MULTILINE)
    assert found
    return json.loads(found.group(1))


class Links(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            str(value) for name, value in attrs if name == "src" or (tag, name) == ("link", "href")
        ]


def test_the_page_fetches_nothing(judged: tuple[Card, list[Standing]]) -> None:
    links = Links()
    links.feed(render(*judged, HOST))
    assert links.fetched == []


def test_sentences_say_what_a_variant_brings_and_costs(judged: tuple[Card, list[Standing]]) -> None:
    _, standings = judged
    said = verdict(standings[1], standings[0], "accuracy")
    assert said is not None
    assert "int8-static is 2.00x as fast at batch 1, 2.00x at batch 8, and 4.0x smaller" in said
    assert "keeps 99.00% of the reference's accuracy on validation (at least 97.02%" in said
    assert verdict(standings[0], standings[0], "accuracy") is None
    assert verdict(standings[2], standings[0], "accuracy") is None


@pytest.mark.parametrize(
    ("ratio", "p_value", "says"),
    [
        (0.97, 0.001, "the drop there is significant (p = 0.001)"),
        (0.99, 0.4, "the drop there is not significant (p = 0.4)"),
        (1.01, 0.2, "the gain there is not significant (p = 0.2)"),
        (1.0, None, "was not tested"),
    ],
)
def test_it_says_whether_a_drop_is_significant(
    judged: tuple[Card, list[Standing]], ratio: float, p_value: float | None, says: str
) -> None:
    _, standings = judged
    small = standings[1]
    assert small.profile is not None
    test = replace(estimate(ratio), p_value=p_value)
    made = replace(small.profile, quality=replace(small.profile.quality, test=test))
    said = verdict(replace(small, profile=made), standings[0], "accuracy")
    assert said is not None
    assert says in said


def test_what_was_not_built_stands_in_the_table_with_its_reason_escaped(
    judged: tuple[Card, list[Standing]],
) -> None:
    page = render(*judged, HOST)
    assert "&lt;b&gt;it&lt;/b&gt; broke" in page
    assert "<b>it</b> broke" not in page


def test_classes_that_lost_are_named(judged: tuple[Card, list[Standing]]) -> None:
    made, standings = judged
    assert "0 -20.0% of 10 rows" in render(made, standings, HOST)
    named = replace(made, spec=replace(made.spec, transforms=(transform("labels", names=("cat", "dog")),)))
    assert "cat -20.0% of 10 rows" in render(named, standings, HOST)


def test_show_names_the_classes_that_lost(
    judged: tuple[Card, list[Standing]], capsys: pytest.CaptureFixture[str]
) -> None:
    reference, small = (
        replace(
            s, profile=replace(s.profile, quality=replace(s.profile.quality, confusion={"validation": cells}))
        )
        for s, cells in zip(judged[1][:2], ({0: {0: 9, 1: 1}}, {0: {0: 7, 1: 3}}), strict=True)
        if s.profile
    )
    print_variant(small, reference, ("cat", "dog"))
    shown = capsys.readouterr().out
    lost = shown[shown.index("classes that lost most") :].splitlines()
    assert lost[2].split() == ["cat", "10", "0.7000", "-0.2000", "-0.1238"]
    print_variant(small, reference, ())
    assert "\n0 " in capsys.readouterr().out


def test_the_baseline_stands_beside_the_reference(
    judged: tuple[Card, list[Standing]], capsys: pytest.CaptureFixture[str]
) -> None:
    made, standings = judged
    labels = np.arange(300) % 2
    weak = Baseline("counting words", np.eye(2)[1 - labels], labels, 0.05)
    found = compare(weak, {"logits": np.eye(2)[labels]}, "accuracy")
    beaten = replace(made, spec=replace(made.spec, comparison=found))
    said = "m&#39;s fp32 is worth its cost where these points matter: better than counting words"
    assert said in render(beaten, standings, HOST)
    assert "counting words" not in render(made, standings, HOST)
    document = describe(beaten, standings, HOST)["baseline"]
    assert (document["name"], document["baseline"], document["model"]["value"]) == (
        "counting words",
        0.0,
        1.0,
    )
    assert "2.20 ms per row against 0.05 ms" in document["sentence"]
    assert describe(made, standings, HOST)["baseline"] is None
    print_model(beaten, standings, HOST)
    assert document["sentence"] in capsys.readouterr().out


def test_pictures_hold_the_measured_figures(judged: tuple[Card, list[Standing]]) -> None:
    drawn = figures(render(*judged, HOST))
    assert drawn.keys() == {"frontier", "gains", "kept", "confusion"}
    bars = {bar["name"]: bar for bar in drawn["gains"]["data"]}
    assert bars["smaller"]["x"] == [4.0]
    assert bars["faster, batch 8"]["x"] == [pytest.approx(2.0)]
    points = drawn["frontier"]["data"][1]
    assert points["text"] == ["fp32", "int8-static"]
    assert points["y"] == [pytest.approx(0.9), pytest.approx(0.891)]


def test_every_build_has_its_command_and_its_recipe(judged: tuple[Card, list[Standing]]) -> None:
    page = render(*judged, HOST)
    assert "mipgate build m --recipe-file int8-static.json" in page
    assert "&#34;pass&#34;: &#34;int8-static&#34;" in page


def test_every_runtime_says_how_it_ran_a_variant_or_why_not(judged: tuple[Card, list[Standing]]) -> None:
    made, standings = judged
    version = standings[1].entry.id.version
    refusing = made.with_profiles(HOST, {}, {version: {"openvino bf16 x1": "it has no kernel for this"}})
    page = render(refusing, standings, HOST)
    section = page.partition('id="runtimes"')[2].partition("</section>")[0]
    (ran, *_) = standings[1].profiles
    assert f"<td><b>int8-static</b></td><td>{ran.runtime} {ran.precision} x{ran.threads}</td>" in section
    assert "<td>openvino bf16 x1</td>" in section
    assert "it has no kernel for this" in section


def test_a_model_without_a_measured_reference_still_has_a_report() -> None:
    made = card(entry("fp32"))
    page = render(made, assess(made, {}, HOST), HOST)
    assert "not in the store" in page
    assert figures(page) == {}
