"""The Open Inference Protocol v2 over REST: bytes to named arrays and back, checked against a signature.

Pure functions without I/O, and the hottest code of the gateway. A client's mistake always ends in
`BadRequestError`; any other exception is a bug here or in the runtime.

https://github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from compression.signature import Array, Signature, SignatureError, TensorSpec
from service.errors import BadRequestError
from service.tensors import DTYPE_DATATYPES, BinaryTail, TensorReader, binary_values, json_values, quoted

MAX_ID_LENGTH = 256
# numpy's own limit is 64. No real tensor comes near, and messages that show a shape stay short.
MAX_AXES = 32
MAX_REMEMBERED_SHAPES = 1024
# Asked for by a client, these change what comes back; ignoring them would answer another question.
_UNOFFERED_OUTPUT_PARAMETERS = frozenset({"classification", "shared_memory_region"})
_PARAMETER_TYPES = frozenset({str, int, float, bool})
_INTEGERS = frozenset({int})
_ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a client asked for.

    Attributes:
        name: The output's name; it is in the signature.
        binary: Whether its values go behind the JSON header instead of into it.
    """

    name: str
    binary: bool


@dataclass(slots=True, eq=False)  # frozen, it would take three times as long to make
class InferRequest:
    """A request that fits its model's signature. Nobody changes it.

    Attributes:
        id: The client's id, printable ASCII; None when it gave none (or an empty one).
        inputs: Read-only arrays by input name, each `(rows, ...)`; BYTES are object arrays of `bytes`.
            They may share memory with the request's body.
        rows: The length of the batch axis, at least 1.
        outputs: The outputs to return, in this order; empty means all.
        binary_output: Whether outputs go in binary when `outputs` is empty.
        parameters: The request's parameters, without `binary_data_output`, which is the protocol's own.
        is_raw: Whether its input is a text or a picture, which a transform makes the model's inputs from.
    """

    id: str | None
    inputs: dict[str, Array]
    rows: int
    outputs: tuple[RequestedOutput, ...]
    binary_output: bool
    parameters: dict[str, str | int | float | bool]
    is_raw: bool = False

    def wants(self, output: str) -> bool:
        """Whether an output beside the model's own is asked for: by its name, or by a text or a picture."""
        if not self.outputs:
            return self.is_raw
        return any(wanted.name == output for wanted in self.outputs)


class RequestDecoder:
    """Reads requests for one model; prepared once, used for each request, safe to share between threads."""

    __slots__ = ("_batch_input", "_fitting", "_output_names", "_raw", "_readers", "_signature")

    def __init__(
        self, signature: Signature, allow_non_finite: bool = False, raw: TensorSpec | None = None
    ) -> None:
        """Prepares for a model's signature.

        Args:
            signature: What the model takes and gives.
            allow_non_finite: Whether binary inputs may hold NaN and infinities. JSON has none.
            raw: An input that a request may send in the place of all others.

        Raises:
            KeyError: The protocol has no datatype for an input's dtype.
        """
        self._signature = signature
        self._raw = raw
        specs = signature.inputs if raw is None else (*signature.inputs, raw)
        self._readers = {spec.name: TensorReader(spec, allow_non_finite) for spec in specs}
        self._output_names = {spec.name for spec in signature.outputs}
        self._batch_input = _batch_input(signature)
        self._fitting: set[tuple[object, ...]] = set()

    def decode(self, body: bytes | memoryview, header_length: int | None = None) -> InferRequest:
        """Reads one request.

        Args:
            body: The HTTP body; it must not change while the request's arrays live.
            header_length: Length of the JSON in bytes, from the header `Inference-Header-Content-Length`;
                None when the client sent none, and the body is JSON only.

        Raises:
            BadRequestError: Malformed, or does not fit the signature; says which, expected, given, remedy.
        """
        document, tail = _split(body, header_length)
        # Two searches of the body spare a look at the type of each value.
        may_hold_booleans = type(body) is not bytes or b"true" in body or b"false" in body
        inputs = self._inputs(document.get("inputs"), tail, may_hold_booleans)
        raw = self._raw if self._raw is not None and self._raw.name in inputs else None
        self._check(inputs, raw)
        parameters = _parameters(document) if "parameters" in document else {}
        binary_output = parameters.pop("binary_data_output", False) if parameters else False
        if type(binary_output) is not bool:
            raise BadRequestError(
                f"parameter binary_data_output is {quoted(binary_output)}; expected a boolean. "
                "Send true or false."
            )
        batched = self._batch_input if raw is None else raw.name
        rows = inputs[batched].shape[0] if batched is not None else 1
        outputs = self._outputs(document["outputs"], binary_output) if "outputs" in document else ()
        request_id = _id(document["id"]) if "id" in document else None
        return InferRequest(request_id, inputs, rows, outputs, binary_output, parameters, raw is not None)

    def _inputs(self, tensors: object, tail: BinaryTail | None, may_hold_booleans: bool) -> dict[str, Array]:
        if type(tensors) is not list:
            raise BadRequestError('the request has no list "inputs". Send {"inputs": [{"name": ..., ...}]}.')
        arrays: dict[str, Array] = {}
        readers = self._readers
        for tensor in tensors:
            name = tensor.get("name") if type(tensor) is dict else None
            reader = readers.get(name) if type(name) is str else None
            if reader is None or tensor.get("datatype") != reader.datatype:
                raise self._misfit(tensor)
            if reader.spec.name in arrays:
                raise BadRequestError(f'input "{name}" is there twice. Send each input once.')
            arrays[reader.spec.name] = _read(reader, tensor, tail, may_hold_booleans)
        if tail is not None:
            tail.check_used_up()
        return arrays

    def _check(self, inputs: dict[str, Array], raw: TensorSpec | None) -> None:
        """Checks against the signature, once per combination of shapes.

        The readers settled names and dtypes, so whether inputs fit depends on which are there and on their
        shapes; traffic repeats few combinations, and a look-up takes a fifth of the time.
        """
        shapes = (*inputs, *[array.shape for array in inputs.values()])
        if shapes in self._fitting:
            return
        if raw is not None and len(inputs) > 1:
            raise BadRequestError(
                f'input "{raw.name}" stands in for all others. Send it alone, or not at all.'
            )
        try:
            if raw is None:
                self._signature.check_inputs(inputs)
            else:
                Signature((raw,), ()).check_inputs(inputs)
        except SignatureError as error:
            raise BadRequestError(str(error)) from None
        if len(self._fitting) < MAX_REMEMBERED_SHAPES:
            self._fitting.add(shapes)

    def _misfit(self, tensor: object) -> BadRequestError:
        """Why an input is none of this model's."""
        if type(tensor) is not dict:
            return BadRequestError(
                f"an input is {quoted(tensor)}; expected an object. Send its name, datatype, shape and data."
            )
        name = tensor.get("name")
        if type(name) is not str or name not in self._readers:
            known = _listing(self._readers)
            return BadRequestError(f"unknown input {quoted(name)}. This model takes {known}.")
        given = quoted(tensor["datatype"]) if "datatype" in tensor else "none"
        expected = self._readers[name].datatype
        return BadRequestError(
            f'input "{name}" has datatype {given}; expected "{expected}". Send values of that.'
        )

    def _outputs(self, wanted: object, binary_output: bool) -> tuple[RequestedOutput, ...]:
        if type(wanted) is not list:
            raise BadRequestError(
                f'"outputs" is {quoted(wanted)}; expected a list. Send [{{"name": ...}}], or nothing for all.'
            )
        outputs = tuple(self._output(output, binary_output) for output in wanted)
        if len({output.name for output in outputs}) != len(outputs):
            raise BadRequestError("an output is asked for twice. Name each output once.")
        return outputs

    def _output(self, output: object, binary_output: bool) -> RequestedOutput:
        name = output.get("name") if type(output) is dict else output
        if type(output) is not dict or type(name) is not str or name not in self._output_names:
            known = _listing(self._output_names)
            raise BadRequestError(f"unknown output {quoted(name)}. This model gives {known}.")
        parameters = _parameters(output)
        if unoffered := _UNOFFERED_OUTPUT_PARAMETERS & parameters.keys():
            raise BadRequestError(
                f'output "{name}" asks for {min(unoffered)}, which is not offered. Leave that parameter out.'
            )
        binary = parameters.get("binary_data", binary_output)
        if type(binary) is not bool:
            raise BadRequestError(
                f'output "{name}" has binary_data {quoted(binary)}; expected a boolean. Send true or false.'
            )
        return RequestedOutput(name, binary)


def encode(
    model_name: str,
    model_version: str,
    request_id: str | None,
    request: InferRequest,
    outputs: Mapping[str, Array],
    signature: Signature,
    parameters: Mapping[str, object] | None = None,
) -> tuple[bytes, int | None]:
    """Writes the response to a request.

    JSON numbers have full precision: reading them as the output's datatype gives the same bits. NaN and
    infinities become null in JSON (tritonclient reads it as NaN); a client that must tell them apart asks for
    binary.

    Args:
        model_name: The model.
        model_version: The variant that answered.
        request_id: The id to echo; None leaves it out.
        request: What was asked: which outputs, in JSON or binary.
        outputs: Arrays of this request's rows by output name, each `(rows, ...)`.
        signature: The model's signature, with the outputs that transforms add.
        parameters: What the response says beside the outputs; values that JSON knows.

    Returns:
        The body, and the length of its JSON header in bytes when binary data follows it (the response header
        `Inference-Header-Content-Length`), else None.

    Raises:
        BadRequestError: JSON was asked for, and a BYTES output is not UTF-8.
        KeyError, TypeError: `outputs` does not fit the signature.
    """
    tensors: list[dict[str, object]] = []
    chunks: list[bytes | memoryview] = []
    for spec, binary in _wanted(request, signature, outputs):
        array = outputs[spec.name]
        tensor: dict[str, object] = {
            "name": spec.name,
            "datatype": DTYPE_DATATYPES[spec.dtype],
            "shape": array.shape,
        }
        if binary:
            raw = binary_values(array, spec)
            chunks.append(raw)
            tensor["parameters"] = {"binary_data_size": len(raw)}
        else:
            tensor["data"] = json_values(array, spec)
        tensors.append(tensor)
    document: dict[str, object] = {"model_name": model_name, "model_version": model_version}
    if request_id is not None:
        document["id"] = request_id
    if parameters:
        document["parameters"] = parameters
    document["outputs"] = tensors
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not chunks:
        return header, None
    return b"".join((header, *chunks)), len(header)


def _wanted(
    request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
) -> list[tuple[TensorSpec, bool]]:
    if not request.outputs:
        return [(spec, request.binary_output) for spec in signature.outputs if spec.name in outputs]
    specs = {spec.name: spec for spec in signature.outputs}
    return [(specs[output.name], output.binary) for output in request.outputs]


def _split(body: bytes | memoryview, header_length: int | None) -> tuple[dict[str, Any], BinaryTail | None]:
    """The JSON object, and what follows it when the client said how long the object is."""
    tail = None
    if header_length is not None:
        if not 0 <= header_length <= len(body):
            raise BadRequestError(
                f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes. "
                "Send the length of the JSON part in bytes."
            )
        view = memoryview(body)
        tail = BinaryTail(view, header_length)
        body = view[:header_length]
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(
            f"the body is not JSON: {error}. Send one JSON object (JSON has no NaN or Infinity); when binary "
            "data follows it, say where in the header Inference-Header-Content-Length."
        ) from None
    if type(document) is not dict:
        raise BadRequestError(
            f'the body is {quoted(document)}; expected an object. Send {{"inputs": [...]}}.'
        )
    return document, tail


def _read(
    reader: TensorReader, tensor: dict[str, Any], tail: BinaryTail | None, may_hold_booleans: bool
) -> Array:
    """The values of one input, from wherever the client put them."""
    name = reader.spec.name
    shape = tensor.get("shape")
    if type(shape) is not list or len(shape) > MAX_AXES or not _INTEGERS.issuperset(map(type, shape)):
        raise BadRequestError(
            f'input "{name}" has shape {quoted(shape)}; expected {reader.spec.wire_shape}. '
            "Send a list of whole numbers."
        )
    if shape and min(shape) < 1:
        raise BadRequestError(
            f'input "{name}" has shape {quoted(shape)}; expected {reader.spec.wire_shape}. '
            "Send at least one row, and no axis of length 0 or less."
        )
    size = _parameters(tensor).get("binary_data_size", _ABSENT) if "parameters" in tensor else _ABSENT
    if (size is _ABSENT) is ("data" not in tensor):
        both = "neither data nor" if size is _ABSENT else "both data and"
        raise BadRequestError(
            f'input "{name}" has {both} binary_data_size. Send one of the two (shared memory is not offered).'
        )
    if size is _ABSENT:
        return reader.read_json(tensor["data"], shape, may_hold_booleans)
    if tail is None:
        raise BadRequestError(
            f'input "{name}" has binary_data_size, but nothing says where the JSON ends. '
            "Send the header Inference-Header-Content-Length."
        )
    return reader.read_binary(tail.take(size, name), shape)


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request, an input or an output."""
    parameters = holder.get("parameters", _ABSENT)
    if parameters is _ABSENT:
        return {}
    if type(parameters) is not dict:
        raise BadRequestError(
            f"parameters is {quoted(parameters)}; expected an object. Send {{}} or leave it out."
        )
    for key, value in parameters.items():
        if type(value) not in _PARAMETER_TYPES:
            raise BadRequestError(
                f"parameter {quoted(key)} is {quoted(value)}; expected a string, a number or a boolean. "
                "Send one of these, or leave it out."
            )
    return parameters


def _id(given: object) -> str | None:
    if type(given) is not str or len(given) > MAX_ID_LENGTH or not (given.isascii() and given.isprintable()):
        raise BadRequestError(
            f"id is {quoted(given)}; expected at most {MAX_ID_LENGTH} characters of printable ASCII. "
            "Send a string like that, or none."
        )
    return given or None


def _batch_input(signature: Signature) -> str | None:
    """The input whose first axis tells the rows: the first with a batch axis, else with any axis."""
    with_axes = [spec for spec in signature.inputs if spec.shape]
    batched = [spec for spec in with_axes if spec.shape[0] == "batch"]
    return next((spec.name for spec in batched + with_axes), None)


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
