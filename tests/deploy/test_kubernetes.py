"""Manifests, rendered by kustomize and held against the schemas of Kubernetes and of the operators."""

import copy
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.kubernetes.prometheus_rule import FILE, packed
from service.config import Config
from tests.conftest import ROOT
from tests.debian import program
from tests.deploy.metric_names import names_read
from tests.deploy.operator_schemas import complaint

FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")  # the oldest that is still common, and the newest that there is a schema of
Resource = dict[str, Any]


def rendered(folder: str) -> dict[str, Resource]:
    """The resources of a folder by kind."""
    kubectl = program("kubernetes-client", "usr/bin/kubectl")
    done = subprocess.run([kubectl, "kustomize", FOLDER / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = list(yaml.safe_load_all(done.stdout))
    assert len({resource["kind"] for resource in found}) == len(found)
    return {resource["kind"]: resource for resource in found}


@pytest.fixture(scope="module")
def gateway() -> dict[str, Resource]:
    return rendered("gateway")


@pytest.fixture(scope="module")
def operators() -> dict[str, Resource]:
    return rendered("operators")


@pytest.fixture
def container(gateway: dict[str, Resource]) -> dict[str, Any]:
    found: dict[str, Any] = gateway["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_gateway_fits_the_schemas_of_kubernetes(gateway: dict[str, Resource], version: str) -> None:
    assert gateway.keys() == {
        "ServiceAccount", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"
    }  # fmt: skip
    for resource in gateway.values():
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_does_not_pass(gateway: dict[str, Resource]) -> None:
    wrong = copy.deepcopy(gateway["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PrometheusRule", "ScaledObject"])
def test_what_operators_read_fits_their_schemas(operators: dict[str, Resource], kind: str) -> None:
    assert complaint(operators[kind]) == ""
    wrong = copy.deepcopy(operators[kind])
    wrong["spec"] = 7
    assert "must be object" in complaint(wrong)


def test_probes_ask_endpoints_that_the_gateway_has(container: dict[str, Any]) -> None:
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert container["ports"][0] == {"name": "http", "containerPort": 3000}


def test_nothing_is_lost_when_a_pod_ends(gateway: dict[str, Resource], container: dict[str, Any]) -> None:
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert gateway["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= pause + 30
    assert gateway["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert gateway["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_a_pod_can_do_little_harm(gateway: dict[str, Resource], container: dict[str, Any]) -> None:
    pod = gateway["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert gateway["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_settings_exist_and_secrets_come_from_secrets(container: dict[str, Any]) -> None:
    variables = {each["name"]: each for each in container["env"]}
    settings = {f"MIPGATE_{name.upper()}" for name in Config.model_fields} | {"MIPGATE_HOME"}
    assert {name for name in variables if name.startswith("MIPGATE_")} <= settings
    for name in ("MIPGATE_STATE", "MIPGATE_ADMIN_KEY"):
        assert "secretKeyRef" in variables[name]["valueFrom"]
    volumes = [mount["mountPath"] for mount in container["volumeMounts"]]
    for name in ("BENTOML_HOME", "MIPGATE_HOME"):
        assert any(variables[name]["value"].startswith(f"{volume}/") for volume in volumes)


def test_every_selector_finds_the_pods(gateway: dict[str, Resource], operators: dict[str, Resource]) -> None:
    deployment = gateway["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [
        deployment["selector"]["matchLabels"],
        gateway["Service"]["spec"]["selector"],
        gateway["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        gateway["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    monitor = operators["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"] == gateway["Service"]["metadata"]["labels"]
    assert gateway["Service"]["metadata"]["labels"][monitor["jobLabel"]] == "mipgate"  # the job of the rules
    assert monitor["endpoints"][0]["port"] == gateway["Service"]["spec"]["ports"][0]["name"]
    assert (
        operators["ScaledObject"]["spec"]["scaleTargetRef"]["name"]
        == gateway["Deployment"]["metadata"]["name"]
    )


def test_replicas_follow_queues_and_deadlines(operators: dict[str, Resource]) -> None:
    triggers = operators["ScaledObject"]["spec"]["triggers"]
    read = {name for trigger in triggers for name in names_read(trigger["metadata"]["query"])}
    groups = operators["PrometheusRule"]["spec"]["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    assert read <= recorded
    assert {name.split(":")[1] for name in read} == {"mipgate_queue", "mipgate_deadline_missed"}


def test_the_packed_rules_are_current() -> None:
    assert FILE.read_text() == packed(), "Run `python -m deploy.kubernetes.prometheus_rule`."
