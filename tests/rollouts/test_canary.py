"""Rollouts that pass: steps, evidence, history and what they leave in the catalog, under traffic."""

from tests.conftest import Homes
from tests.gateway import running
from tests.rollouts.conftest import Operator, assert_complete, mipgate, publish, traffic, wait_for

BUILD = "0123456789ab"


def test_a_canary_of_a_retrained_build_passes_step_by_step(homes: Homes) -> None:
    candidate = publish(homes, "int8-static", BUILD, "sound")
    with running(homes) as gateway, traffic(gateway) as asking:
        operator = Operator(gateway)
        started = mipgate(
            gateway, homes, "rollout", "start", "digits", "--kind", "canary", "--candidate", candidate,
            "--steps", "5,25,50,100", "--step-duration", "1s", "--fraction", "1", "--tier", "balanced",
            "--guard", "agreement>=0.8@95%,n=30", "--guard", "p50<=100x,n=20", "--guard", "errors<=20%,n=20",
        )  # fmt: skip
        assert candidate in started
        (rollout,) = operator.rollouts()
        ended = operator.wait_for(rollout, "succeeded", "failed", "inconclusive")
        assert ended["phase"] == "succeeded", ended["reason"]
        wait_for(lambda: asking.of(None)[-1].sent > ended["updated"])  # the router is free again

        history = operator.history(rollout)
        assert_complete(history)
        weights = [line["weights"]["candidate"] for line in history if line["phase"] == "progressing"]
        assert weights == [5, 25, 50, 100]
        phases = list(dict.fromkeys(line["phase"] for line in history if line["phase"] != "waiting"))
        assert phases == ["initializing", "progressing", "promoting", "finalising", "succeeded"]
        steps = [line for line in history if line["phase"] in ("progressing", "promoting")][1:]
        for line in steps:
            assert {figure["statistic"] for figure in line["figures"]} == {"agreement", "p50", "errors"}
            assert all(figure["samples"] >= 20 for figure in line["figures"])
        passed = next(line for line in history if line["phase"] == "promoting")
        assert {figure["verdict"] for figure in passed["figures"]} == {"passes"}
        assert operator.lives()[candidate] == "released"

        assert {answer.status for answer in asking.answers} == {200}
        assert asking.labels.keys() <= {202}
        for arms in asking.arms().values():
            assert arms == sorted(arms, reverse=True)  # from the primary to the candidate, once
        text = mipgate(gateway, homes, "rollout", "status", "digits")
        assert "succeeded" in text
        assert "surely at least 0.8" in text
        assert "promoting" in mipgate(gateway, homes, "rollout", "history", "digits")


def test_a_named_primary_answers_for_its_arm(homes: Homes) -> None:
    with running(homes, workers=2) as gateway, traffic(gateway) as asking:
        operator = Operator(gateway)
        rollout = operator.started(kind="ab", primary="fp32", candidate="int8-static", weight=50)
        wait_for(lambda: len(asking.of("primary")) > 50 and len(asking.of("candidate")) > 50)
        assert {answer.variant for answer in asking.of("primary")} == {"fp32"}
        assert {answer.variant for answer in asking.of("candidate")} == {"int8-static"}
        assert all(len(set(arms)) == 1 for arms in asking.arms().values())  # sticky, on both workers
        assert asking.met_since(0, workers=2)
        wait_for(lambda: operator.evidence(rollout)["candidate"]["labelled"] > 5)
        assert operator.evidence(rollout)["candidate"]["accuracy"] > 0.5

        assert operator.change(rollout, "abort").status_code == 200
        operator.wait_for(rollout, "failed")
        wait_for(lambda: all(answer.arm is None for answer in asking.answers[-50:]))
        asking.stop()
        wait_for(lambda: sum(e["requests"] for e in operator.evidence(rollout).values())
                 == len(asking.of("primary")) + len(asking.of("candidate")))  # fmt: skip
        assert {answer.status for answer in asking.answers} == {200}
        assert set(operator.lives().values()) == {"released"}  # an abort retires nothing
