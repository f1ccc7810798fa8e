import numpy as np
import orjson
import pytest

from compression.signature import Signature, TensorSpec
from loadtests.answers import Answer, AnswerError, check_answer, gateway_time_ms, read_answer
from loadtests.tally import Tally
from loadtests.targets import Target
from service.protocol import InferRequest, encode

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("logits", "float32", ("batch", 3)),)
)
SAID = {"variant": "int8-static", "tier": "fast", "degraded": False, "request_id": "1"}
ANSWER = Answer("int8-static", "int8-static@abc", "fast", degraded=False, choice=1)


@pytest.mark.parametrize("binary", [False, True])
def test_what_the_gateway_writes_is_read(binary):
    request = InferRequest(None, {}, 1, (), binary, {})
    logits = np.array([[0.1, 2.5, -1.0]], np.float32)
    content, length = encode("m", "int8-static@abc", "1", request, {"logits": logits}, SIGNATURE, SAID)
    assert read_answer(content, None if length is None else str(length)) == ANSWER


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b'{"parameters": null}',
        orjson.dumps({"parameters": SAID, "model_version": "v", "outputs": []}),
        orjson.dumps({"parameters": SAID, "model_version": "v", "outputs": [{"data": []}]}),
        orjson.dumps({"parameters": SAID, "model_version": "v", "outputs": [{"data": [None, 1.0]}]}),
    ],
)
def test_anything_else_is_no_answer(content):
    with pytest.raises(AnswerError, match="unreadable"):
        read_answer(content, None)


def test_a_wrong_header_length_is_no_answer():
    with pytest.raises(AnswerError, match="unreadable"):
        read_answer(b"{}", "many")


@pytest.mark.parametrize(
    ("kind", "name"), [("tier", "fast"), ("variant", "int8-static"), ("variant", "int8-static@abc")]
)
def test_an_answer_to_what_was_asked_passes(kind, name):
    check_answer(Target("m", kind, name, unfit={"fp8": "bad"}), ANSWER)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("tier", "accurate", "wrong tier"),
        ("variant", "fp32", "wrong variant"),
        ("variant", "int8-static@def", "wrong variant"),
    ],
)
def test_an_answer_to_something_else_fails(kind, name, message):
    with pytest.raises(AnswerError, match=message):
        check_answer(Target("m", kind, name), ANSWER)


def test_an_answer_from_below_the_floor_fails():
    with pytest.raises(AnswerError, match=r"unfit variant.*below the floor"):
        check_answer(Target("m", "tier", "fast", {"int8-static": "below the floor"}), ANSWER)


def test_a_degraded_answer_fails():
    answer = Answer("int8-static", "v", "fast", degraded=True, choice=0)
    with pytest.raises(AnswerError, match="degraded"):
        check_answer(Target("m", "tier", "fast"), answer)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("queue;dur=0.250, infer;dur=1.500", 1.75),
        ("infer;dur=2", 2.0),
        (None, None),
        ("", None),
        ("miss", None),
    ],
)
def test_the_gateways_own_time_is_read(header, expected):
    assert gateway_time_ms(header) == expected


def test_a_tally_counts_answers_labels_and_failures():
    tally = Tally()
    tally.answered(ANSWER, 1, 2.0, 0.5)
    tally.answered(ANSWER, 2, 4.0, None)
    tally.answered(ANSWER, None, 6.0, 0.7)
    tally.failed("status 503: the queue is 12 ms long")
    tally.failed("status 503: the queue is 345.5 ms long")
    tally.failed("status 504: late")
    assert tally.latencies_ms == [2.0, 4.0, 6.0]
    assert tally.gateway_ms == [0.5, 0.7]
    assert tally.variants == {"int8-static": 3}
    assert (tally.correct, tally.judged, tally.accuracy) == (1, 2, 0.5)
    assert tally.failures == {"status 503: the queue is 12 ms long": 2, "status 504: late": 1}
    tally.forget()
    assert tally == Tally()
    assert tally.accuracy is None


def test_an_endless_tally_keeps_no_times():
    tally = Tally(keep_times=False)
    tally.answered(ANSWER, 1, 2.0, 0.5)
    assert (tally.latencies_ms, tally.gateway_ms, tally.correct) == ([], [], 1)
