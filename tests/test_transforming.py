"""Texts and pictures through a real gateway: every form of a request, and what is refused."""

import base64
import re
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import schemathesis
import tritonclient.http as triton

from tests.commands import mipgate
from tests.conftest import Homes
from tests.gateway import Gateway, running
from tests.variants.test_transforms import NOON, plain, values

SPECS = "tests.variants.transform_specs"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("transforming")
    homes = Homes.under(folder)
    homes.mipgate.mkdir()
    for name in ("TEXT", "PICTURE"):
        mipgate(homes, "build", f"{SPECS}:{name}", "--quiet")
    with running(homes, MIPGATE_FEEDBACK="all") as gateway:
        yield gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(gateway.url.removeprefix("http://")) as client:
        yield client


def post(gateway: Gateway, model: str, *inputs: dict[str, object], **body: object) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v2/models/{model}/infer", json={"inputs": list(inputs), **body})


def raw(name: str, *data: str) -> dict[str, object]:
    return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": list(data)}


def outputs(response: httpx.Response) -> dict[str, list[object]]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def test_plain_json_with_texts_is_answered_with_labels(gateway: Gateway) -> None:
    response = post(gateway, "mail", raw("text", "buy now", "see you at noon", ""))
    given = outputs(response)
    assert given["logits"] == [2.0, 2.0, 6.0, 0.0, 2.0, 0.0]  # the two special tokens sell nothing
    assert given["label"] == ["ham", "ham", "ham"]
    assert [output["shape"] for output in response.json()["outputs"]] == [[3, 2], [3, 1], [3, 1]]
    assert response.headers["server-timing"].startswith("transform;dur=")


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_an_unmodified_tritonclient_sends_texts_and_reads_labels(
    client: triton.InferenceServerClient, binary: bool
) -> None:
    given = triton.InferInput("text", [1], "BYTES")
    given.set_data_from_numpy(np.array(["buy now buy now buy"], object), binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "score")]
    result = client.infer("mail", [given], outputs=wanted)
    label = result.as_numpy("label").tolist()[0][0]
    assert (label.decode() if isinstance(label, bytes) else label) == "spam"
    np.testing.assert_allclose(result.as_numpy("score"), [[1 / (1 + np.exp(2 - 5))]], rtol=1e-5)
    assert result.as_numpy("logits") is None


@pytest.mark.parametrize("binary", [False, True], ids=["base64", "binary"])
def test_an_unmodified_tritonclient_sends_pictures(
    client: triton.InferenceServerClient, binary: bool
) -> None:
    file = plain((9, 200, 100), 8, 6)
    given = triton.InferInput("file", [1], "BYTES")
    given.set_data_from_numpy(values(file if binary else base64.b64encode(file)), binary_data=binary)
    result = client.infer("colours", [given])
    assert result.as_numpy("label").tolist() == [[b"green", b"blue"]]
    np.testing.assert_allclose(result.as_numpy("logits"), np.array([[9, 200, 100]]) / 255, rtol=1e-5)


def test_tensors_are_taken_as_before_and_answered_with_tensors(gateway: Gateway) -> None:
    shape = {"datatype": "INT64", "shape": [1, len(NOON)]}
    tensors = [
        {"name": "input_ids", "data": NOON, **shape},
        {"name": "attention_mask", "data": [1] * len(NOON), **shape},
    ]
    response = post(gateway, "mail", *tensors)
    assert outputs(response) == {"logits": [6.0, 0.0]}
    assert "transform" not in response.headers["server-timing"]
    named = post(gateway, "mail", *tensors, outputs=[{"name": "label"}])
    assert outputs(named) == {"label": ["ham"]}
    assert outputs(post(gateway, "mail", raw("text", "see you at noon")))["logits"] == [6.0, 0.0]


def test_a_request_says_how_many_classes_it_wants(gateway: Gateway) -> None:
    file = base64.b64encode(plain((1, 2, 200))).decode()
    wanted = {"outputs": [{"name": "label"}], "parameters": {"top_k": 3}}
    assert outputs(post(gateway, "colours", raw("file", file), **wanted))["label"] == ["blue", "green", "red"]
    refused = post(gateway, "colours", raw("file", file), parameters={"top_k": 4})
    assert refused.status_code == 400
    assert "Send one from 1 to 3" in refused.json()["error"]


def test_bentomls_own_api_takes_texts_too(gateway: Gateway) -> None:
    call = {"model": "mail", "inputs": {"text": ["buy buy buy buy now"]}}
    answer = httpx.post(f"{gateway.url}/predict", json=call).json()
    assert answer["outputs"]["label"] == [["spam"]]
    assert answer["outputs"]["logits"] == [[2.0, 5.0]]


def test_labels_that_come_later_are_names_or_numbers(gateway: Gateway) -> None:
    url = f"{gateway.url}/v1/feedback"
    asked = post(gateway, "mail", raw("text", "buy now", "noon"), id="i" * 256).json()["parameters"]
    unknown = httpx.post(url, json={"request_id": asked["request_id"], "label": ["ham", "eggs"]}, timeout=30)
    assert unknown.status_code == 400
    assert '"eggs" is no class of this model. Send one of ham, spam, or its number' in unknown.json()["error"]
    named = {"request_id": asked["request_id"], "label": ["ham", 1]}
    call = {"model": "mail", "inputs": {"text": ["buy buy buy buy now"]}}
    answer = httpx.post(f"{gateway.url}/predict", json=call).json()
    plain = {"request_id": answer["request_id"], "label": answer["outputs"]["label"][0][0]}
    taken = httpx.post(url, json=[named, plain], timeout=30)
    assert (taken.status_code, taken.json()) == (202, {"accepted": 2})
    counts = re.findall(
        r'^mipgate_feedback_total\{.*correct="(\w+)".*model="mail".* (\S+)$',
        httpx.get(f"{gateway.url}/metrics").text,
        re.MULTILINE,
    )
    assert {correct: float(count) for correct, count in counts} == {"true": 1.0, "false": 1.0}


def test_what_cannot_be_read_is_refused_with_fact_and_remedy(gateway: Gateway) -> None:
    ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [4]}
    for model, inputs, said in (
        ("colours", [raw("file", "no picture")], "neither PNG, JPEG nor base64 in row 0. Send"),
        ("mail", [raw("text", "buy"), ids], '"text" stands in for all others. Send it alone'),
        ("mail", [ids], '"attention_mask" is missing'),
        ("mail", [raw("text", "buy") | {"shape": [1, 1]}], "expected [-1]"),
        ("mail", [raw("words", "buy")], "attention_mask, input_ids, text"),
    ):
        response = post(gateway, model, *inputs)
        assert response.status_code == 400, response.text
        assert said in response.json()["error"]


def test_bytes_that_are_no_text_are_refused(client: triton.InferenceServerClient) -> None:
    given = triton.InferInput("text", [1], "BYTES")
    given.set_data_from_numpy(values(b"\xff\xfe"), binary_data=True)
    with pytest.raises(triton.InferenceServerException, match="not UTF-8 in row 0"):
        client.infer("mail", [given])


def test_a_large_picture_passes_through_the_thread(gateway: Gateway) -> None:
    file = base64.b64encode(plain((200, 1, 2), 1500, 1500)).decode()
    given = outputs(post(gateway, "colours", raw("file", file), parameters={"max_latency_ms": 60_000}))
    assert given["label"] == ["red", "blue"]
    late = post(gateway, "colours", raw("file", *[file] * 8), parameters={"max_latency_ms": 1})
    assert late.status_code == 504
    assert "Give more time, or send less at once" in late.json()["error"]


def test_metadata_and_openapi_tell_of_texts_and_labels(
    gateway: Gateway, client: triton.InferenceServerClient
) -> None:
    told = client.get_model_metadata("mail")
    assert [tensor["name"] for tensor in told["inputs"]] == ["input_ids", "attention_mask"]
    assert told["alternative_inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert told["outputs"][1:] == [
        {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
        {"name": "score", "datatype": "FP32", "shape": [-1, -1]},
    ]
    document = httpx.get(f"{gateway.url}/v2/openapi.json").json()
    schemathesis.openapi.from_dict(document).validate()
    body = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
    for name in ("mail, text", "colours, file"):
        example = body["examples"][name]["value"]
        assert post(gateway, name.partition(",")[0], *example["inputs"]).status_code == 200


def test_the_time_in_transforms_is_counted_per_model(gateway: Gateway) -> None:
    post(gateway, "mail", raw("text", "buy"))
    text = httpx.get(f"{gateway.url}/metrics").text
    lines = [
        line for line in text.splitlines() if line.startswith("mipgate_transform_duration_seconds_count")
    ]
    assert any('model="mail"' in line for line in lines)
