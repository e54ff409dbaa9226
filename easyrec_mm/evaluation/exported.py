"""An exported rec model and image model, run by ONNX Runtime on the batches that predictions read.

Predictions take the values of the data also for fields for which the server takes constants.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.data.batch import Batch
from easyrec_mm.embedding.image_model import load_signatures
from easyrec_mm.embedding.onnx_inputs import OnnxInputs
from easyrec_mm.errors import ExportError
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.manifest import (
    IMAGE_ONNX,
    IMAGE_VECTOR,
    REC_ONNX,
    Manifest,
    local_export,
    read_header,
    read_manifest,
)
from easyrec_mm.schema import Schema
from easyrec_mm.store.feature_vectors import VectorStores, origin_number


def read_headers(rec_folder: str, image_folder: str, schema: Schema) -> Manifest:
    """Check that exported models are of one export and of a config, and have ONNX models; return the rec manifest.

    Args:
      rec_folder: folder of the rec model.
      image_folder: folder of the image model; "" for a model without pictures.
      schema: the config's.

    Raises:
      ExportError: if they are not.
    """
    rec = read_header(rec_folder, "rec")
    if rec.schema.features != schema.features:
        known = {feature.name: feature for feature in rec.schema.features}
        names = [feature.name for feature in schema.features if known.pop(feature.name, None) != feature]
        raise ExportError(
            f"--rec_model_dir {rec_folder}: was exported with other features than the config's: "
            f"{', '.join([*names, *known])}; give the config with which it was trained"
        )
    if not schema.has_item_vector:
        return rec
    image = read_header(image_folder, "image")
    if image.image_tower_fingerprint != rec.image_tower_fingerprint:
        raise ExportError(
            f"--img_model_dir {image_folder}: is another image tower than that of {rec_folder}; give both folders "
            "of one export"
        )
    if IMAGE_ONNX not in image.files:
        reason = image.parity.get("left_out", {}).get(IMAGE_ONNX, "")
        raise ExportError(f"--img_model_dir {image_folder}: has no {IMAGE_ONNX} ({reason}); predict without Spark")
    return rec


class ExportedNetwork:
    """Computes the outputs of batches.

    `fields` are the names of the fields that it takes in addition to a batch; `columns` are its outputs.

    Args:
      rec_folder, image_folder: see read_headers, which has accepted them.
      num_threads: number of threads that compute.

    Raises:
      ExportError: if a model cannot be loaded.
    """

    def __init__(self, rec_folder: str, image_folder: str, num_threads: int) -> None:
        rec_folder = local_export(rec_folder)
        self.manifest = read_manifest(rec_folder, "rec")
        self._rec = _session(Path(rec_folder) / REC_ONNX, num_threads)
        schema = self._schema = self.manifest.schema
        self._image: onnxruntime.InferenceSession | None = None
        self._image_fields: tuple[str, ...] = ()
        if schema.has_item_vector:
            image_folder = local_export(image_folder)
            self._image_manifest = read_manifest(image_folder, "image")
            self._image = _session(Path(image_folder) / IMAGE_ONNX, num_threads)
            self._image_fields = self._image_manifest.schema.image_input_fields()
            image_schema = self._image_manifest.schema
            self._onnx_inputs = OnnxInputs(
                image_schema, load_signatures(image_folder, image_schema) if image_schema.contents else {}
            )
        self._transform = NumpyTransform(schema.features)
        self._taken = {value.name for value in self._rec.get_inputs()}
        self._names = [value.name for value in self._rec.get_outputs()]
        self._feature_fields = tuple(schema.model_fields())
        self._bool_fields = {field.name for field in schema.fields if field.dtype == "bool"}
        self.fields = tuple(dict.fromkeys((*self._feature_fields, *self._image_fields)))

    def columns(self) -> list[tuple[str, pa.DataType]]:
        """Return names and types of the outputs, as `predict` writes them."""
        is_list = {value.name: len(value.shape) > 1 for value in self._rec.get_outputs()}
        return [(name, pa.list_(pa.float64()) if is_list[name] else pa.float32()) for name in self._names]

    def stored_vectors(self, schema: Schema) -> VectorStores:
        """Open the stores of the features' vectors, with the vectors that the model was trained with.

        Raises:
          StoreError: if a store does not have them.
        """
        trained = {name: origin_number(values["fingerprint"]) for name, values in self.manifest.vectors.items()}
        return VectorStores(schema.in_stores(), trained)

    def __call__(self, batch: Batch, kept_fields: dict[str, tf.Tensor]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, `[S]` or `[S, classes]`.

        Args:
          batch: S samples, whose pictures all have pixels.
          kept_fields: the values `[S]` of `fields`.
        """
        fields = {name: self._values(name, kept_fields[name]) for name in self.fields}
        vectors = self._vectors(batch, fields)
        inputs = {
            **self._transform({name: fields[name] for name in self._feature_fields}, batch.num_samples),
            **padded_vectors(self._schema, batch),
            IMAGE_VECTOR: vectors[batch.sample_image.numpy()],
        }
        taken = {name: value for name, value in inputs.items() if name in self._taken}
        return dict(zip(self._names, self._rec.run(self._names, taken), strict=True))

    def _values(self, name: str, tensor: tf.Tensor) -> Values:
        values: NDArray[Any] = tensor.numpy()
        if values.dtype == object:
            return [text.decode() for text in values]
        return values.astype(bool) if name in self._bool_fields else values

    def _vectors(self, batch: Batch, fields: dict[str, Values]) -> NDArray[np.float32]:
        """Return the vector of each image, float32 `[U, D]`."""
        width, stand_in = self.manifest.image_width, self.manifest.no_image_vector
        vectors = np.zeros((batch.num_images, width), np.float32)
        if stand_in:
            vectors[:] = stand_in
        if self._image is None:
            return vectors
        # K of the images have pictures, or may have other contents in place of them.
        images, item = np.unique(batch.images.link_image.numpy(), return_inverse=True)
        schema = self._image_manifest.schema
        if schema.contents:
            images, item = np.arange(batch.num_images), batch.images.link_image.numpy()
        if not len(images):
            return vectors
        _, first_sample = np.unique(batch.sample_image.numpy(), return_index=True)
        rows = first_sample[images]
        values: dict[str, Values] = {}
        for name in self._image_fields:
            column = fields[name]
            values[name] = column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows]
        inputs = self._onnx_inputs(values, content_vectors(schema, batch, images), item, len(images))
        if schema.uses_image:
            pixels = batch.pixels.numpy()[batch.images.link_picture.numpy()].astype(np.float32)
            inputs[self._image_manifest.image_input] = pixels
        vectors[images] = self._image.run([IMAGE_VECTOR], inputs)[0]
        return vectors


def content_vectors(schema: Schema, batch: Batch, images: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Return the vectors from stores that are contents of these images of a batch, by kind: float32 `[K, numbers]`."""
    contents = {kind: batch.contents[kind] for kind in schema.stored_contents()}
    return {kind: of.values.numpy()[of.of_image.numpy()[images]] for kind, of in contents.items()}


def padded_vectors(schema: Schema, batch: Batch) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of features that are in a store, in the form that an exported ONNX model takes."""
    vectors = {}
    for feature in schema.stored_features():
        value = batch.features[feature.name]
        if isinstance(value, tf.RaggedTensor):
            longest = tf.maximum(value.bounding_shape()[1], 1)
            mask = tf.sequence_mask(value.row_lengths(), longest, tf.float32)
            vectors[feature.weight_key] = mask.numpy()
            value = value.to_tensor(shape=[None, longest, None])
        vectors[feature.name] = value.numpy()
    return vectors


def _session(path: Path, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has its own exceptions
        raise ExportError(f"{path}: cannot be loaded: {error}") from error
