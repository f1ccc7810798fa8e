import numpy as np
import pytest

from compression.signature import Signature, TensorSpec
from loadtests.samples import DATATYPES, Samples, SamplesError, invented_samples, read_samples
from service.protocol import RequestDecoder
from service.tensors import DTYPE_DATATYPES

NPY = b"\x93NUMPY\x01\x00\x16\x00 a header that is none"
OUTPUTS = (TensorSpec("logits", "float32", ("batch", 3)),)


def decode(spec: TensorSpec, payload: bytes, headers: dict[str, str]):
    length = headers.get("Inference-Header-Content-Length")
    return RequestDecoder(Signature((spec,), OUTPUTS)).decode(payload, int(length) if length else None)


def write(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def test_the_clients_datatypes_are_the_gateways():
    assert DATATYPES.items() <= DTYPE_DATATYPES.items()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("dtype", list(DATATYPES))
def test_rows_arrive_bit_by_bit(dtype, binary):
    values = np.random.default_rng(0).normal(size=(4, 2, 3)) * 50
    array = np.abs(values).astype(dtype) if dtype.startswith("u") else values.astype(dtype)
    samples = Samples({"x": array}, np.array([2, 0, 1, 2]))
    bodies = samples.bodies({"tier": "fast"}, binary=binary)
    assert [body.label for body in bodies] == [2, 0, 1, 2]
    for row, body in enumerate(bodies):
        request = decode(TensorSpec("x", dtype, ("batch", 2, 3)), body.payload, body.headers)
        assert request.rows == 1
        assert request.inputs["x"].dtype == array.dtype
        np.testing.assert_array_equal(request.inputs["x"], array[row : row + 1])
        assert request.parameters == {"tier": "fast"}
        assert request.binary_output is binary


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("texts", [np.array(["a", "grüß", ""]), np.array([b"a", b"long one", b""])])
def test_text_arrives_as_bytes(texts, binary):
    bodies = Samples({"x": texts.reshape(3, 1)}, None).bodies({}, binary=binary)
    expected = [text if isinstance(text, bytes) else text.encode() for text in texts.tolist()]
    for body, text in zip(bodies, expected, strict=True):
        request = decode(TensorSpec("x", "bytes", ("batch", 1)), body.payload, body.headers)
        assert request.inputs["x"].tolist() == [[text]]
        assert body.label is None


@pytest.mark.parametrize("binary", [False, True])
def test_several_inputs_keep_their_names(binary):
    arrays = {"ids": np.arange(6).reshape(2, 3), "mask": np.ones((2, 3), bool)}
    (_, body) = Samples(arrays, None).bodies({}, binary=binary)
    specs = (TensorSpec("ids", "int64", ("batch", 3)), TensorSpec("mask", "bool", ("batch", 3)))
    length = body.headers.get("Inference-Header-Content-Length")
    decoder = RequestDecoder(Signature(specs, OUTPUTS))
    inputs = decoder.decode(body.payload, int(length) if length else None).inputs
    assert inputs["ids"].tolist() == [[3, 4, 5]]
    assert inputs["mask"].all()


@pytest.mark.parametrize("binary", [False, True])
def test_rows_that_are_not_contiguous_arrive_in_row_major_order(binary):
    array = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    body = Samples({"x": array}, None).bodies({}, binary=binary)[1]
    request = decode(TensorSpec("x", "float32", ("batch", 3, 4)), body.payload, body.headers)
    np.testing.assert_array_equal(request.inputs["x"], array[1:2])


def test_big_endian_rows_are_sent_little_endian():
    array = np.array([[1.5, -2.0]], dtype=">f4")
    (body,) = Samples({"x": array}, None).bodies({}, binary=True)
    request = decode(TensorSpec("x", "float32", ("batch", 2)), body.payload, body.headers)
    assert request.inputs["x"].tolist() == [[1.5, -2.0]]


def test_a_published_file_is_read(tmp_path):
    inputs, labels = np.zeros((5, 4), np.float32), np.arange(5)
    samples = read_samples(write(tmp_path / "s.npz", **{"input:image": inputs, "labels": labels}))
    assert samples.rows == 5
    assert list(samples.inputs) == ["image"]
    assert samples.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("labels", [np.zeros(5), np.zeros((5, 2), int)])
def test_labels_that_are_no_classes_judge_nothing(tmp_path, labels):
    path = write(tmp_path / "s.npz", **{"input:x": np.zeros((5, 4)), "labels": labels})
    assert read_samples(path).labels is None


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"labels": np.zeros(3, int)},
        {"input:x": np.zeros((0, 3))},
        {"input:x": np.array(1.0)},
        {"input:x": np.zeros((3, 1)), "input:y": np.zeros((2, 1))},
        {"input:x": np.zeros((3, 1)), "labels": np.zeros(2, int)},
        {"input:x": np.zeros((3, 1)), "labels": np.array(1)},
        {"input:x": np.zeros((3, 1), np.complex64)},
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, arrays):
    with pytest.raises(SamplesError, match=r"Give the samples\.npz|the protocol carries"):
        read_samples(write(tmp_path / "s.npz", **arrays))


def test_a_file_that_needs_pickle_is_refused(tmp_path):
    path = write(tmp_path / "s.npz", **{"input:x": np.array([{}, {}], dtype=object)})
    with pytest.raises(SamplesError, match="holds no rows"):
        read_samples(path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"text", NPY])
def test_an_unreadable_file_is_refused(tmp_path, content):
    path = tmp_path / "s.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SamplesError, match="holds no rows"):
        read_samples(path)


def test_invented_rows_fit_the_metadata():
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "text", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    samples = invented_samples(inputs, rows=3)
    assert {name: array.shape for name, array in samples.inputs.items()} == {
        "x": (3, 4),
        "ids": (3, 16),
        "text": (3, 1),
    }
    assert samples.labels is None
    assert len(samples.bodies({})) == 3
