"""Networks in SavedModels: any output of a signature, or any tensor of its graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from easyrec_mm.errors import UserError, did_you_mean, tensorflow_reason
from easyrec_mm.extraction.networks import Arrays, Input, by_role, file_digest, missing_layer

_DEFAULT = "serving_default"


class SavedModelNetwork:
    """A network of TensorFlow; see Network.

    Args:
      folder: folder of the SavedModel.
      layers: names of outputs of the signature, or of operations of its graph; () for the first output.
      names: role -> name of an input; None for the usual names.
      signature: name of the signature; "" for the default.

    Raises:
      UserError: if the folder cannot be loaded, or has no such signature, layer or inputs.
    """

    def __init__(
        self, folder: str, layers: Sequence[str], names: Mapping[str, str] | None = None, signature: str = ""
    ) -> None:
        with suppress(ImportError):
            import tensorflow_text  # type: ignore[import-untyped]  # noqa: F401  # registers operations of tokenizers

        what, name = f"--saved_model {folder}", signature or _DEFAULT
        if not (Path(folder) / "saved_model.pb").is_file():
            raise UserError(f"{what}: is not the folder of a SavedModel, which contains saved_model.pb")
        try:
            # Kept, because its functions do not keep its variables.
            self._loaded = tf.saved_model.load(folder)
        except (tf.errors.OpError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{what}: cannot be loaded: {tensorflow_reason(str(error))}") from error
        signatures = self._loaded.signatures
        if name not in signatures:
            raise UserError(f"{what}: signature: no signature '{name}'; {did_you_mean(name, signatures)}")
        self._function = signatures[name]
        specs: Mapping[str, tf.TensorSpec] = self._function.structured_input_signature[1]
        self.inputs: Mapping[str, Input] = by_role([_input(key, spec) for key, spec in specs.items()], names, what)
        sizes = {spec.shape[0] for spec in specs.values() if spec.shape.rank and spec.shape[0] is not None}
        self.fixed_batch = max(sizes, default=0)
        outputs = sorted(self._function.structured_outputs)
        self.layers = tuple(layers) or tuple(outputs[:1])
        if any(layer not in outputs for layer in self.layers):
            self._function = self._inner(what, outputs, sorted(specs))
        self.source = _digest(Path(folder), name)

    def run(self, arrays: Arrays) -> list[NDArray[Any]]:
        """See Network."""
        tensors = {self.inputs[role].name: tf.constant(array) for role, array in arrays.items()}
        outputs = self._function(**tensors)
        return [np.asarray(outputs[layer]) for layer in self.layers]

    def _inner(self, what: str, outputs: list[str], inputs: list[str]) -> Any:
        """Return a function that takes the inputs and returns the layers, of which some are inside of the graph."""
        # In the graph of constants, functions that are called are part of the graph itself.
        frozen = convert_variables_to_constants_v2(self._function)
        by_name = {tensor.op.name: tensor for tensor in frozen.inputs}
        # A signature names its arguments "serving_default_x" or "x", and results are in the order of their names.
        feeds = [next(t for key, t in by_name.items() if key == name or key.endswith(f"_{name}")) for name in inputs]
        results = dict(zip(outputs, frozen.outputs, strict=True))
        operations = {operation.name: operation for operation in frozen.graph.get_operations() if operation.outputs}
        fetches = []
        for layer in self.layers:
            if layer not in results and layer not in operations:
                raise missing_layer(what, layer, [*operations, *outputs])
            fetches.append(results[layer] if layer in results else operations[layer].outputs[0])
        pruned = frozen.prune(feeds, fetches)

        def run(**tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            return dict(zip(self.layers, pruned(*(tensors[name] for name in inputs)), strict=True))

        return run


def _input(name: str, spec: tf.TensorSpec) -> Input:
    shape = tuple(spec.shape[1:]) if spec.shape.rank else None
    return Input(name, shape, "str" if spec.dtype == tf.string else spec.dtype.name)


def _digest(folder: Path, signature: str) -> str:
    """Return a SHA-256 of a signature and of all files of a SavedModel, but for its fingerprint, a random number."""
    digest = hashlib.sha256(signature.encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "fingerprint.pb":
            digest.update(f"{path.relative_to(folder)}".encode() + file_digest(path))
    return digest.hexdigest()
