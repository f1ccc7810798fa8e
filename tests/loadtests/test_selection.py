import pytest

from loadtests.selection import choose_targets, with_reference
from loadtests.targets import UNHURRIED_MS, GatewayError, Offer, Target

OFFER = Offer("digits", ("fp32", "int8"), ("accurate", "fast"), ())


def entry(name, ratio, life="released", status="serving", reason=""):
    quality = None if ratio is None else {"validation": {"ratio": ratio}}
    return {"name": name, "life": life, "status": status, "reason": reason, "quality": quality}


def document(*variants):
    tiers = {"accurate": {"min_quality_ratio": 0.999}, "fast": {"min_quality_ratio": 0.97}}
    return {"tiers": tiers, "variants": list(variants)}


DOCUMENT = document(
    entry("fp32", 1.0), entry("int8", 0.98), entry("fp8", None, "candidate", "failed", "boom")
)


def test_all_tiers_and_variants_are_taken():
    targets, _ = choose_targets(OFFER, DOCUMENT, None)
    assert [t.label for t in targets] == ["tier:accurate", "tier:fast", "variant:fp32", "variant:int8"]


def test_what_the_gateway_does_not_offer_is_explained():
    _, not_measured = choose_targets(OFFER, DOCUMENT, None)
    assert not_measured == {"fp8": "failed: boom"}


def test_variants_below_a_tiers_floor_are_unfit_for_it():
    accurate, fast, *_ = choose_targets(OFFER, DOCUMENT, None)[0]
    assert accurate.unfit.keys() == {"int8", "fp8"}
    assert "0.98 is below the floor 0.999" in accurate.unfit["int8"]
    assert fast.unfit.keys() == {"fp8"}


def test_a_candidate_build_does_not_make_its_released_recipe_unfit():
    twice = document(entry("fp32", 1.0), entry("fp32", 0.5, "candidate"))
    assert choose_targets(OFFER, twice, None)[0][0].unfit == {}


def test_wanted_targets_are_taken_once_in_order():
    targets, _ = choose_targets(OFFER, DOCUMENT, ["variant:int8", "tier:fast", "variant:int8"])
    assert [t.label for t in targets] == ["variant:int8", "tier:fast"]


def test_an_unknown_target_is_refused_with_what_exists():
    with pytest.raises(ValueError, match=r"unknown target tier:slow; the gateway offers tier:accurate"):
        choose_targets(OFFER, DOCUMENT, ["tier:slow"])


def test_a_document_of_another_model_is_refused():
    with pytest.raises(GatewayError, match="does not know them"):
        choose_targets(OFFER, {"tiers": {}, "variants": []}, None)


def test_the_reference_is_always_sent_the_test_split():
    fast = Target("digits", "tier", "fast")
    assert [t.label for t in with_reference([fast], OFFER, "fp32")] == ["variant:fp32", "tier:fast"]
    both = [fast, Target("digits", "variant", "fp32")]
    assert with_reference(both, OFFER, "fp32") == both
    assert with_reference([fast], OFFER, "gone") == [fast]


@pytest.mark.parametrize(
    ("target", "path", "parameters"),
    [
        (Target("digits", "tier", "fast"), "/v2/models/digits/infer", {"tier": "fast"}),
        (
            Target("a/b", "variant", "int8@1f"),
            "/v2/models/a%2Fb/versions/int8@1f/infer",
            {"max_latency_ms": UNHURRIED_MS},
        ),
    ],
)
def test_a_target_knows_its_path_and_parameters(target, path, parameters):
    assert target.path == path
    assert target.parameters() == parameters
    assert target.parameters(unhurried=True) == parameters | {"max_latency_ms": UNHURRIED_MS}
