"""Verdicts: which variant serves, which does not and why, and that only validation decides."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.variants.handmade import HOST, OTHER_HOST, TIERS, card, entry, failed, profile, stored
from variants.assessment import Standing, assess, choose_profile, describe, tier_choice
from variants.card import Card, Entry
from variants.catalog import StoredVariant
from variants.host import Host
from variants.profile import Profile
from variants.variant import Life, Status

OLD, NEW = "a" * 12, "b" * 12
Measured = tuple[Entry, list[Profile], int]


def judged(*measured: Measured, host: Host = HOST, damaged: dict[str, str] | None = None) -> list[Standing]:
    """Verdicts on entries, each with its profiles and its size."""
    of = card(*[e for e, _, _ in measured], profiles={e.id.version: list(p) for e, p, _ in measured if p})
    artifacts: dict[str, StoredVariant | str] = {
        e.id.version: stored(e, size) for e, _, size in measured if e.failure is None
    }
    return assess(of, artifacts | (damaged or {}), host)


FP32: Measured = (entry("fp32"), [profile(1.0, ms=10)], 1000)


# ---- gain


@pytest.mark.parametrize(
    ("ms", "size", "gain"),
    [
        (1.0, 100, "latency+size"),
        (1.0, 1000, "latency"),
        (1.0, 5000, "latency"),
        (10.0, 100, "size"),
        (9.5, 100, "size"),
        (9.5, 950, "none"),
        (50.0, 5000, "none"),
    ],
)
def test_a_gain_is_more_than_a_tenth_against_the_reference(ms: float, size: int, gain: str) -> None:
    reference, variant = judged(FP32, (entry("small"), [profile(1.0, ms=ms)], size))
    assert variant.gain == gain
    assert reference.gain == "none"


def test_without_a_reference_to_compare_with_there_is_no_gain() -> None:
    (variant,) = judged((entry("small"), [profile(ms=1)], 1))
    assert (variant.gain, variant.status) == ("none", Status.SERVING)


def test_the_gain_is_against_the_released_reference() -> None:
    old = (entry("fp32", OLD, Life.RETIRED), [profile(ms=10)], 1000)
    new = (entry("fp32", NEW, Life.RELEASED), [profile(ms=2)], 1000)
    *_, variant = judged(old, new, (entry("small"), [profile(ms=2)], 1000))
    assert variant.gain == "none"


# ---- status


def test_a_variant_that_is_beaten_everywhere_is_dominated_and_says_by_whom() -> None:
    _, slow = judged(FP32, (entry("slow"), [profile(1.0, ms=20)], 10))
    assert slow.status is Status.DOMINATED
    assert slow.reason.startswith("fp32 is at least as good and faster")
    assert not slow.routable
    assert slow.gain == "size"  # it is still smaller


def test_a_better_variant_is_not_dominated_however_slow() -> None:
    _, better = judged(FP32, (entry("better"), [profile(1.01, ms=500)], 10))
    assert better.status is Status.SERVING


@pytest.mark.parametrize("life", [Life.CANDIDATE, Life.RETIRED])
def test_what_is_not_released_dominates_nobody_and_is_not_routed(life: Life) -> None:
    released, other = judged(FP32, (entry("fast", life=life), [profile(1.0, ms=1)], 10))
    assert (released.status, released.routable) == (Status.SERVING, True)
    assert (other.status, other.routable) == (Status.SERVING, False)


def test_a_host_without_profiles_refuses_and_says_what_to_run() -> None:
    for standing in judged(FP32, (entry("small"), [profile()], 1), host=OTHER_HOST):
        assert (standing.status, standing.profile, standing.ratio) == (Status.REFUSED, None, 0.0)
        assert standing.reason == "not profiled on this host. Run `mipgate profile m`."
        assert standing.stored is not None


def test_a_variant_that_every_runtime_refuses_says_why() -> None:
    of = card(entry("fp32")).with_profiles(
        HOST, {}, {f"fp32@{OLD}": {"one": "no kernel", "two": "no device"}}
    )
    (standing,) = assess(of, {f"fp32@{OLD}": stored(entry("fp32"))}, HOST)
    assert (standing.status, standing.reason) == (Status.REFUSED, "one: no kernel; two: no device")


def test_a_damaged_artifact_is_refused_and_the_others_serve() -> None:
    damaged = {f"small@{OLD}": "model.onnx has another sha256 than was published"}
    fp32, small = judged(FP32, (entry("small"), [profile(ms=1)], 1), damaged=damaged)
    assert (small.status, small.reason) == (Status.REFUSED, damaged[f"small@{OLD}"])
    assert (small.stored, small.profile, small.routable) == (None, None, False)
    assert fp32.routable


def test_an_artifact_that_is_gone_is_refused() -> None:
    (standing,) = assess(card(entry("fp32"), profiles={f"fp32@{OLD}": [profile()]}), {}, HOST)
    assert (standing.status, standing.reason) == (Status.REFUSED, "its artifact is not in the store")


@pytest.mark.parametrize("status", [Status.FAILED, Status.SKIPPED])
def test_what_was_not_built_says_why(status: Status) -> None:
    _, missing = judged(FP32, (failed("small", status, "the recipe cannot work"), [], 0))
    assert (missing.status, missing.reason) == (status, "the recipe cannot work")
    assert not missing.routable


# ---- runtimes


def test_the_fastest_runtime_that_keeps_quality_serves() -> None:
    exact = profile(1.0, ms=3, runtime="exact")
    close = profile(0.997, ms=2, runtime="close")
    poor = profile(0.9, ms=1, runtime="poor")
    assert choose_profile([exact, close, poor]) is close
    assert choose_profile([exact, poor]) is exact
    assert choose_profile([]) is None


def test_a_named_batch_decides_which_runtime_is_fastest() -> None:
    alone = profile(latency_ms={1: 1.0, 8: 80.0}, runtime="alone")
    many = profile(latency_ms={1: 2.0, 8: 8.0}, runtime="many")
    assert choose_profile([alone, many], batch=1) is alone
    assert choose_profile([alone, many], batch=8) is many
    assert choose_profile([alone, many]) is many


# ---- tiers


def test_a_tier_is_served_by_the_fastest_above_its_floor() -> None:
    standings = judged(
        FP32, (entry("good"), [profile(0.995, ms=5)], 1), (entry("fast"), [profile(0.975, ms=1)], 1)
    )
    served = [tier_choice(standings, tier.min_quality_ratio) for tier in TIERS]
    assert [s.entry.id.recipe if s else None for s in served] == ["fp32", "good", "fast"]
    assert tier_choice(standings, 1.5) is None
    assert tier_choice([], 0.0) is None


# ---- only validation decides

RATIOS = st.sampled_from([0.96, 0.98, 0.995, 1.0, 1.01])
VARIANT = st.tuples(
    st.lists(st.tuples(RATIOS, st.sampled_from([0.5, 1.0, 1.05, 2.0, 10.0])), max_size=3),
    st.integers(1, 2000),
    st.sampled_from(list(Life)),
)
VARIANTS = st.lists(VARIANT, min_size=1, max_size=5)
RECIPES = ("fp32", "fp16", "int8", "pruned", "distilled")


def verdicts(variants: list[Any], retest: Any) -> list[tuple[Any, ...]]:
    measured = [
        (
            entry(recipe, life=life),
            [retest(profile(ratio, ms=ms, runtime=f"r{i}")) for i, (ratio, ms) in enumerate(profiles)],
            size,
        )
        for recipe, (profiles, size, life) in zip(RECIPES, variants, strict=False)
    ]
    standings = judged(*measured)
    tiers = [tier_choice(standings, floor) for floor in (0.999, 0.99, 0.97, 0.0)]
    return [
        *((s.status, s.reason, s.gain, s.ratio, s.profile and s.profile.runtime) for s in standings),
        tuple(choice and choice.entry.id for choice in tiers),
    ]


@given(VARIANTS, st.randoms(use_true_random=False))
def test_quality_on_test_changes_no_verdict(variants: list[Any], random: Any) -> None:
    def other_test(of: Profile) -> Profile:
        test = profile(random.uniform(0, 2)).quality.test
        quality = replace(
            of.quality, test=test, agreement=random.random(), max_abs_error=random.uniform(0, 100)
        )
        return replace(of, quality=quality)

    assert verdicts(variants, lambda of: of) == verdicts(variants, other_test)


@given(VARIANTS)
def test_someone_serves_when_anyone_released_can(variants: list[Any]) -> None:
    standings = judged(*[
        (entry(recipe, life=life), [profile(ratio, ms=ms) for ratio, ms in profiles], size)
        for recipe, (profiles, size, life) in zip(RECIPES, variants, strict=False)
    ])  # fmt: skip
    able = [s for s in standings if s.entry.life is Life.RELEASED and s.profile is not None]
    assert any(s.routable for s in standings) == bool(able)
    if able:
        best = max(s.ratio for s in able)
        assert tier_choice(standings, best) is not None  # dominance never costs the best quality


# ---- the document

INTERVAL = {"value": float, "low": float, "high": float, "ratio": float, "ratio_low": float, "rows": int}
QUALITY = {"validation": INTERVAL, "test": INTERVAL, "agreement": float, "max_abs_error": float}
LATENCY = {"p50": float, "p95": float, "p99": float}
CONTRACT = {
    "model": str,
    "metric": str,
    "reference": str,
    "host": {"fingerprint": str, "cpu": str, "features": [str]},
    "tiers": {"balanced": {"min_quality_ratio": float, "deadline_ms": float, "serves": str}},
    "variants": [
        {
            "name": str,
            "build": str,
            "life": Life,
            "status": Status,
            "reason": str,
            "recipe": [{"pass": str, "settings": dict}],
            "artifact": {"path": str, "bytes": int, "sha256": str},
            "quality": QUALITY,
            "size": {"parameters": int, "nonzero_parameters": int, "flops": int},
            "cost": {"build_seconds": float, "peak_memory_bytes": int},
            "runtime": str,
            "profiles": [
                {
                    "runtime": str,
                    "precision": str,
                    "threads": int,
                    "load_s": float,
                    "memory_bytes": int,
                    "latency_ms": {"1": LATENCY, "8": LATENCY},
                    "quality": QUALITY,
                }
            ],
            "gain": str,
        }
    ],
}


def assert_fits(value: Any, contract: Any, where: str) -> None:
    """Every field of the contract is there with its type; more may be."""
    if isinstance(contract, dict):
        assert isinstance(value, dict), where
        for name, part in contract.items():
            assert name in value, f"{where}.{name}"
            assert_fits(value[name], part, f"{where}.{name}")
    elif isinstance(contract, list):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            assert_fits(item, contract[0], f"{where}[{number}]")
    elif contract is float:
        assert isinstance(value, int | float) and not isinstance(value, bool), where  # noqa: PT018
    elif contract in (Life, Status):
        assert value in list(contract), where
    else:
        assert isinstance(value, contract), where


def described(of: Card, standings: list[Standing]) -> dict[str, Any]:
    """As a program reads it."""
    document: dict[str, Any] = json.loads(json.dumps(describe(of, standings, HOST), allow_nan=False))
    return document


def test_the_document_is_the_contracts_field_by_field() -> None:
    small = entry("small")
    of = card(FP32[0], small, profiles={f"fp32@{OLD}": FP32[1], f"small@{OLD}": [profile(0.992, ms=1)]})
    standings = assess(of, {f"fp32@{OLD}": stored(FP32[0]), f"small@{OLD}": stored(small, 100)}, HOST)
    document = described(of, standings)
    assert_fits(document, CONTRACT, "")
    assert document["model"] == "m"
    assert document["host"]["fingerprint"] == HOST.fingerprint
    assert {name: tier["serves"] for name, tier in document["tiers"].items()} == {
        "accurate": "fp32", "balanced": "small", "fast": "small",
    }  # fmt: skip
    fp32, low = document["variants"]
    assert (fp32["name"], fp32["build"], fp32["life"], fp32["status"]) == ("fp32", OLD, "released", "serving")
    assert (low["gain"], low["runtime"], low["reason"]) == ("latency+size", "onnxruntime-cpu", "")
    assert low["artifact"]["bytes"] == 100
    assert low["artifact"]["path"].endswith(".onnx")
    assert low["quality"]["validation"]["ratio"] == 0.992
    assert low["quality"] == low["profiles"][0]["quality"]


def test_the_documents_quality_is_the_serving_runtimes() -> None:
    profiles = [profile(1.0, ms=5, runtime="slow"), profile(0.999, ms=1, runtime="quick")]
    of = card(entry("fp32"), profiles={f"fp32@{OLD}": profiles})
    (variant,) = described(of, assess(of, {f"fp32@{OLD}": stored(entry("fp32"))}, HOST))["variants"]
    assert variant["runtime"] == "quick"
    assert variant["quality"]["validation"]["ratio"] == 0.999
    assert [known["runtime"] for known in variant["profiles"]] == ["slow", "quick"]


def test_what_has_no_artifact_or_profile_has_null_there() -> None:
    of = card(entry("fp32"), failed("small", reason="it broke"))
    fp32, small = described(of, assess(of, {f"fp32@{OLD}": stored(entry("fp32"))}, HOST))["variants"]
    assert (fp32["status"], fp32["quality"], fp32["runtime"], fp32["profiles"]) == ("refused", None, None, [])
    assert fp32["artifact"] is not None
    assert (small["status"], small["reason"], small["life"]) == ("failed", "it broke", "candidate")
    assert [small[name] for name in ("artifact", "quality", "size", "cost", "runtime")] == [None] * 5
    tiers = described(of, assess(of, {}, HOST))["tiers"]
    assert {tier["serves"] for tier in tiers.values()} == {None}
