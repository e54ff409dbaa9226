"""Runs the rec model of an export folder, by ONNX Runtime or as the SavedModel.

ONNX Runtime takes the output of the NumPy transform, so that the process does not import TensorFlow; the SavedModel
takes raw fields.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import ExportError
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.manifest import IMAGE_VECTOR, REC_ONNX, TABLES_FILE, VECTOR, Manifest
from easyrec_mm.serving.feature_lookup import FeatureVectors
from easyrec_mm.tensorflow_import import import_tensorflow

Runtime = Literal["onnx", "tensorflow"]


class Predictor(ABC):
    """Computes outputs by name, `[S]` or `[S, classes]`, from the fields and image vectors of S candidates."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def __call__(
        self, fields: dict[str, Values], vectors: NDArray[Any], of_features: dict[str, FeatureVectors]
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs by name.

        Args:
          fields: S values per field, or one for all; fields that the model does not take are ignored.
          vectors: image vectors, float32 `[S, D]`.
          of_features: vectors by name of the feature, for features whose vectors are in a store.
        """


class OnnxPredictor(Predictor):
    """Runs rec.onnx."""

    def __init__(self, folder: str, manifest: Manifest, num_threads: int) -> None:
        super().__init__(manifest)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait for work would take CPU time from the other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(
            str(Path(folder) / REC_ONNX), options, providers=["CPUExecutionProvider"]
        )
        self._taken = {value.name for value in self._session.get_inputs()}
        self._names = [value.name for value in self._session.get_outputs()]
        self._features = {feature.name: feature for feature in manifest.schema.features}
        self._transform = NumpyTransform(manifest.schema.features, manifest.schema.fields)

    def __call__(
        self, fields: dict[str, Values], vectors: NDArray[Any], of_features: dict[str, FeatureVectors]
    ) -> dict[str, NDArray[Any]]:
        inputs = self._transform(fields, len(vectors))
        inputs[IMAGE_VECTOR] = vectors
        for name, feature_vectors in of_features.items():
            inputs[name] = _of_all(feature_vectors.vectors, len(vectors))
            if feature_vectors.lengths is not None:
                is_there = np.arange(feature_vectors.vectors.shape[1]) < feature_vectors.lengths[:, None]
                inputs[self._features[name].weight_key] = _of_all(is_there.astype(np.float32), len(vectors))
        taken = {name: value for name, value in inputs.items() if name in self._taken}
        return dict(zip(self._names, self._session.run(self._names, taken), strict=True))


class TensorFlowPredictor(Predictor):
    """Runs the SavedModel."""

    def __init__(self, folder: str, manifest: Manifest, num_threads: int) -> None:
        super().__init__(manifest)
        # TensorFlow reads this variable only when it starts.
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(num_threads))
        import_tensorflow()
        import tensorflow as tf

        self._tensorflow: Any = tf
        self._loaded = tf.saved_model.load(folder)  # keeps the signatures alive
        self._run = self._loaded.signatures[VECTOR]
        self._features = {feature.name: feature for feature in manifest.schema.features}
        self._dtypes = {
            name: tf.as_dtype(entry["dtype"]) for name, entry in manifest.signatures[VECTOR]["inputs"].items()
        }

    def __call__(
        self, fields: dict[str, Values], vectors: NDArray[Any], of_features: dict[str, FeatureVectors]
    ) -> dict[str, NDArray[Any]]:
        constant = self._tensorflow.constant
        inputs = {
            name: self._tensorflow.cast(constant(value), self._dtypes[name])
            if isinstance(value, np.ndarray)
            else constant(value, self._dtypes[name])
            for name, value in fields.items()
            if name in self._dtypes
        }
        for name, feature_vectors in of_features.items():
            inputs[self._features[name].vector_key] = constant(feature_vectors.vectors)
            if feature_vectors.lengths is not None:
                inputs[self._features[name].length_key] = constant(feature_vectors.lengths)
        outputs = self._run(**inputs, **{IMAGE_VECTOR: constant(vectors)})
        return {name: value.numpy() for name, value in outputs.items()}


def _of_all(values: NDArray[Any], number: int) -> NDArray[Any]:
    return values if len(values) == number else np.repeat(values, number, axis=0)


_RUNTIMES: dict[str, type[OnnxPredictor] | type[TensorFlowPredictor]] = {
    "onnx": OnnxPredictor,
    "tensorflow": TensorFlowPredictor,
}


def files_of(manifest: Manifest, runtime: Runtime) -> list[str]:
    """Return the files of an export that a runtime reads."""
    return [name for name in manifest.files if (name in (REC_ONNX, TABLES_FILE)) == (runtime == "onnx")]


def load_predictor(folder: str, manifest: Manifest, runtime: Runtime = "onnx", num_threads: int = 1) -> Predictor:
    """Load a rec model from a folder with `files_of` its export, which must not change as long as it is used.

    Raises:
      ExportError: if it cannot be loaded.
    """
    try:
        return _RUNTIMES[runtime](folder, manifest, num_threads)
    except Exception as error:  # each runtime has its own exceptions
        raise ExportError(f"{folder}: the rec model cannot be loaded: {error}") from error
