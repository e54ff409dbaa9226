"""Networks in ONNX files, such as exports of PyTorch, timm, OpenCLIP and Transformers: any tensor of the graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray

from easyrec_mm.errors import UserError
from easyrec_mm.extraction.networks import Arrays, Input, by_role, file_digest, missing_layer

_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool", "tensor(string)": "str",
}  # fmt: skip


class OnnxNetwork:
    """A network of ONNX Runtime; see Network.

    Args:
      path: path of the file; what it keeps in other files is beside it.
      layers: names of tensors; () for the first output.
      names: role -> name of an input; None for the usual names.
      num_threads: number of threads; 0: one per core.

    Raises:
      UserError: if the file cannot be loaded, or has no such layer or inputs.
    """

    def __init__(
        self, path: str, layers: Sequence[str], names: Mapping[str, str] | None = None, num_threads: int = 0
    ) -> None:
        what = f"--onnx {path}"
        if not Path(path).is_file():
            raise UserError(f"{what}: no such file; give a model in the ONNX format")
        try:
            model = onnx.load(path, load_external_data=False)
            tensors = [name for node in model.graph.node for name in node.output if name]
            outputs = [output.name for output in model.graph.output]
        except Exception as error:  # protobuf's errors, and those of the file system
            raise UserError(f"{what}: is not an ONNX model: {error}; export it again") from error
        self.layers = tuple(layers) or tuple(outputs[:1])
        for layer in self.layers:
            if layer not in tensors and layer not in outputs:
                raise missing_layer(what, layer, [*tensors, *outputs])
            if layer not in outputs:
                model.graph.output.append(onnx.ValueInfoProto(name=layer))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        folder = str(Path(path).resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # ONNX Runtime has types of its own
            raise UserError(f"{what}: ONNX Runtime cannot load it: {error}") from error
        given = [_input(one) for one in self._session.get_inputs()]
        self.inputs: Mapping[str, Input] = by_role(given, names, what)
        sizes = {one.shape[0] for one in self._session.get_inputs() if one.shape and isinstance(one.shape[0], int)}
        self.fixed_batch = max(sizes, default=0)
        self.source = _digest(path, model)

    def run(self, arrays: Arrays) -> list[NDArray[Any]]:
        """See Network."""
        named = {self.inputs[role].name: array for role, array in arrays.items()}
        outputs: list[NDArray[Any]] = self._session.run(list(self.layers), named)
        return outputs


def _input(one: Any) -> Input:
    shape = tuple(size if isinstance(size, int) else None for size in one.shape[1:]) if one.shape else None
    return Input(one.name, shape, _DTYPES.get(one.type, one.type))


def _digest(path: str, model: onnx.ModelProto) -> str:
    """Return the SHA-256 of the files of a model."""
    tensors = [*model.graph.initializer, *(t for node in model.graph.node for t in _tensors_of(node))]
    beside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    digest = hashlib.sha256()
    for name in ["", *sorted(beside)]:
        digest.update(file_digest(Path(path).parent / name if name else Path(path)))
    return digest.hexdigest()


def _tensors_of(node: onnx.NodeProto) -> list[onnx.TensorProto]:
    return [attribute.t for attribute in node.attribute if attribute.HasField("t")]
