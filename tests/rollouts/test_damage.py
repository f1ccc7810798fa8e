"""Candidates that are damaged: found out, rolled back on every worker, and no caller sees an error."""

from functools import partial

from tests.conftest import Homes
from tests.gateway import running
from tests.rollouts.conftest import Operator, assert_complete, publish, traffic, wait_for
from tests.rollouts.publish import DAMAGES

# A second is what is promised; the rest is for a machine whose processes wait for their turn.
BACK_WITHIN_S = 3.0
GUARDS = ["agreement>=0.9@95%,n=20", "errors<=5%,n=10"]


def test_every_kind_of_damage_is_rolled_back_and_no_caller_sees_an_error(homes: Homes) -> None:
    builds = {damage: publish(homes, "int8-static", f"{n}" * 12, damage) for n, damage in enumerate(DAMAGES)}
    with running(homes, workers=2) as gateway, traffic(gateway, marked=True, clients=4) as asking:
        operator = Operator(gateway)
        for damage, candidate in builds.items():
            policy = "keep" if damage == "nan" else "retire"
            rollout = operator.started(
                kind="canary", candidate=candidate, steps=[50, 100], step_duration_s=600, fraction=1.0,
                guards=GUARDS, failure=policy,
            )  # fmt: skip
            ended = operator.wait_for(rollout, "failed", "succeeded", "inconclusive")
            assert ended["phase"] == "failed", (damage, ended["reason"])
            assert ("agreement" if damage == "wrong" else "errors") in ended["reason"]
            (_, candidate_arm) = ended["arms"]
            assert (candidate_arm["outcome"], candidate_arm["weight"]) == ("failed", 0)
            assert operator.lives()[candidate] == ("candidate" if policy == "keep" else "retired")

            history = operator.history(rollout)
            assert_complete(history)
            back = next(line for line in history if line["phase"] == "finalising")
            assert back["weights"] == {"primary": 100, "candidate": 0}
            assert "fails" in {figure["verdict"] for figure in back["figures"]}
            settled = back["at"] + BACK_WITHIN_S
            wait_for(partial(asking.met_since, settled, workers=2))
            assert max(answer.sent for answer in asking.of("candidate")) < settled

            evidence = operator.evidence(rollout)["candidate"]
            counted = {"wrong": "agreement", "nan": "non_finite", "raises": "errors"}[damage]
            assert evidence["agreement"] < 0.9 if damage == "wrong" else evidence[counted] >= 4
            assert evidence["retries"] == evidence["errors"] + evidence["non_finite"]
        asking.stop()
        assert len({answer.worker for answer in asking.answers}) == 2
        assert {answer.status for answer in asking.answers} == {200}, [a for a in asking.answers if a.text][
            :3
        ]
