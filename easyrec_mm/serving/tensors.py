"""KServe's V2 protocol, Open Inference: one tensor per field, and one per output.

A tensor of a field is `[S]`, or `[1]` for a value that all candidates share, or `[S, L]` for a field that holds lists.
Over REST, the data of a tensor are JSON, or bytes after the JSON ("binary data"); over gRPC, numbers or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import to_np_dtype
from numpy.typing import NDArray

from easyrec_mm.errors import did_you_mean
from easyrec_mm.manifest import IMAGE_TEXT, IMAGE_VECTOR, VECTOR, Manifest
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.protocols import SOURCE_NAMES, VECTOR_SOURCE
from easyrec_mm.serving.request import Columns, Limits
from easyrec_mm.serving.service import Answer

_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_NUMBERS = ("FP16", "FP32", "FP64")
_KNOWN = ("BOOL", *_INTEGERS, *_NUMBERS, "BYTES")
DATATYPES = {"string": "BYTES", "int64": "INT64", "int32": "INT32", "float32": "FP32", "bool": "BOOL"}
BINARY_SIZE = "binary_data_size"
# Values that are converted at a time.
_CONVERTED = 1 << 16


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_DECODER = msgspec.json.Decoder(_Body)


def request_of_body(body: bytes, json_length: str | None, model_name: str) -> InferRequest:
    """Return the request in a body of REST; the JSON has `json_length` bytes if binary data follow.

    Raises:
      RequestError: if the body has another form.
    """
    if json_length is not None and not (json_length.isdecimal() and int(json_length) <= len(body)):
        raise RequestError(
            f"the header inference-header-content-length is {json_length[:60]!r}; give the length of the JSON in bytes"
        )
    end = len(body) if json_length is None else int(json_length)
    try:
        parsed = _DECODER.decode(body[:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not a V2 request in JSON: {error}") from error
    inputs, raw = [], []
    for tensor in parsed.inputs:
        content = None
        if tensor.data is None:
            size = (tensor.parameters or {}).get(BINARY_SIZE)
            if type(size) is not int or not 0 <= size <= len(body) - end:
                raise RequestError(f"{tensor.name}: has no data; give 'data', or bytes and their {BINARY_SIZE}")
            content, end = body[end : end + size], end + size
        inputs.append(InferInput(tensor.name, tensor.shape, tensor.datatype, tensor.data, tensor.parameters))
        raw.append(content)
    outputs = [RequestedOutput(output.name, output.parameters) for output in parsed.outputs or ()]
    return InferRequest(model_name, inputs, parsed.id, raw, False, parsed.parameters, outputs or None)


def request_of_message(message: Any) -> InferRequest:
    """Return the request in a message of gRPC, a ModelInferRequest.

    Raises:
      RequestError: if its tensors have no known datatypes, or it has other numbers of tensors and of their contents.
    """
    try:
        InferenceServicer.validate_grpc_request(message)
        return InferRequest.from_grpc(message)
    except InvalidInput as error:
        raise RequestError(str(error)) from error


def columns_of(request: InferRequest, limits: Limits) -> Columns:
    """Convert the tensors of a request to columns.

    Raises:
      RequestError: if a tensor is too long, or does not match its type or shape, or the lengths of tensors differ.
    """
    for tensor in request.inputs:
        if tensor.shape and tensor.shape[0] > limits.max_instances:
            problem = f"{tensor.shape[0]} instances; at most {limits.max_instances} are answered at a time"
            raise RequestError(f"{tensor.name}: {problem}")
    columns = {tensor.name: _values(tensor) for tensor in request.inputs}
    if len(columns) != len(request.inputs):
        raise RequestError("two tensors have the same name")
    if not columns:
        raise RequestError("no tensors; give one for each field")
    if IMAGE_VECTOR in columns:
        columns[IMAGE_TEXT] = columns.pop(IMAGE_VECTOR)
    number = max(len(values) for values in columns.values())
    for name, values in columns.items():
        if len(values) not in (1, number):
            raise RequestError(
                f"{name}: has {len(values)} values, but other tensors have {number}; give {number}, or 1 for all"
            )
    own = {name: values for name, values in columns.items() if len(values) == number}
    return Columns(number, own, {name: values[0] for name, values in columns.items() if name not in own})


def _values(tensor: InferInput) -> Sequence[Any]:
    """Return a tensor's values as JSON would have them; the rows of IMAGE_VECTOR stay arrays."""
    try:
        if any(size < 0 for size in tensor.shape):
            raise ValueError(f"the shape {list(tensor.shape)} has a negative size")
        array = _array(tensor)
    except (ValueError, TypeError, OverflowError, InvalidInput, InferenceError, ArithmeticError) as error:
        raise RequestError(f"{tensor.name}: {error}") from error
    except Exception as error:  # struct.error and other errors due to broken bytes
        raise RequestError(f"{tensor.name}: its bytes are not {tensor.datatype} of {tensor.shape}") from error
    if tensor.name == IMAGE_VECTOR and array.ndim == 2 and array.dtype.kind == "f":
        return list(array.astype(np.float64))
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim < 1 or tensor.name == IMAGE_VECTOR:
        expected = "[S, D] of floats" if tensor.name == IMAGE_VECTOR else "[S]"
        raise RequestError(f"{tensor.name}: is {tensor.datatype} of shape {list(array.shape)}, not {expected}")
    if tensor.datatype != "BYTES":
        return list(array.tolist())
    try:
        texts = [value.decode() if isinstance(value, bytes) else value for value in array.ravel()]
    except UnicodeDecodeError as error:
        raise RequestError(f"{tensor.name}: is not UTF-8: {error}") from error
    return texts if array.ndim == 1 else list(np.array(texts, object).reshape(array.shape).tolist())


def _array(tensor: InferInput) -> NDArray[Any]:
    """Return a tensor as an array.

    Raises:
      ValueError, TypeError, OverflowError, InvalidInput: if its values do not match its type or shape.
    """
    if not isinstance(tensor.data, list) or not tensor.data:
        array: NDArray[Any] = tensor.as_numpy()  # of bytes, or of nothing
        return array
    dtype = to_np_dtype(tensor.datatype)
    if dtype is None:
        raise InvalidInput(f"datatype '{tensor.datatype[:60]}' is unknown; choose one of {', '.join(_KNOWN)}")
    # Python holds up all other threads while NumPy converts a list.
    parts = [_checked(tensor.data[i : i + _CONVERTED], tensor.datatype) for i in range(0, len(tensor.data), _CONVERTED)]
    array = np.concatenate([np.array(part, dtype) for part in parts])
    needed = math.prod(tensor.shape)
    if array.size != needed:
        raise InvalidInput(f"has {array.size} values, but its shape {list(tensor.shape)} needs {needed}")
    return array.reshape(tensor.shape)


def _checked(values: list[Any], datatype: str) -> Any:
    """Return values of JSON, if they have the types that NumPy would otherwise convert."""
    flat = np.array(values, object).ravel() if any(isinstance(value, list) for value in values) else values
    types = set(map(type, flat))
    if datatype in _INTEGERS and not types <= {int}:
        raise ValueError("not all values are integers")
    if datatype in _NUMBERS and not types <= {int, float}:
        raise ValueError("not all values are numbers")
    if datatype == "BOOL" and not all(type(value) in (bool, int) and value in (0, 1) for value in flat):
        raise ValueError("not all values are true or false")
    return values


def response(request: InferRequest, answer: Answer) -> InferResponse:
    """Return the answer to a request: the outputs that it asks for, or all.

    Raises:
      RequestError: if there is no such output.
    """
    values = {**answer.outputs, VECTOR_SOURCE: SOURCE_NAMES[answer.sources]}
    outputs = []
    for name in [output.name for output in request.request_outputs or ()] or values:
        if name not in values:
            raise RequestError(f"outputs: no output '{name[:60]}'; {did_you_mean(name[:60], values)}")
        datatype = "BYTES" if values[name].dtype == object else DATATYPES[values[name].dtype.name]
        outputs.append(InferOutput(name, list(values[name].shape), datatype))
        outputs[-1].set_data_from_numpy(values[name], binary_data=request.use_binary_outputs)
    return InferResponse(
        request.id or "",
        request.model_name,
        outputs,
        parameters=answer.release.version(),
        from_grpc=request.from_grpc,
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )


def rendered(request: InferRequest, answer: Answer) -> tuple[bytes, int | None]:
    """Return the body of an answer over REST, and the length of its JSON if binary data follow; see `response`."""
    body, json_length = response(request, answer).to_rest()
    if json_length is not None:
        return body, json_length
    return orjson.dumps({name: value for name, value in body.items() if value is not None}), None


def input_tensors(manifest: Manifest, key_field: str, content_fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the model's inputs for the metadata of V2: the fields, those of contents, and the picture's key."""
    schema = manifest.schema
    fields = [(name, schema.field(name).dtype) for name in (*schema.request_fields(), *content_fields)]
    if key_field not in dict(fields):
        fields.append((key_field, "string"))
    return [{"name": name, "datatype": DATATYPES[dtype], "shape": [-1]} for name, dtype in fields]


def output_tensors(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the model's outputs for the metadata of V2."""
    entries = manifest.signatures[VECTOR]["outputs"].items()
    outputs = [
        {"name": name, "datatype": DATATYPES[entry["dtype"]], "shape": list(entry["shape"])} for name, entry in entries
    ]
    return [*outputs, {"name": VECTOR_SOURCE, "datatype": "BYTES", "shape": [-1]}]
