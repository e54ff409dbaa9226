"""An exported image model: decodes pictures and embeds pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.embedding.item_vectors import ItemVectors
from easyrec_mm.embedding.onnx_inputs import OnnxInputs
from easyrec_mm.errors import ExportError
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.manifest import (
    DECODE,
    DEFAULT,
    IMAGE_ONNX,
    IMAGE_VECTOR,
    PICTURE_ITEM,
    PIXELS,
    PREPARED,
    Manifest,
    local_export,
    read_manifest,
    require_unchanged,
)
from easyrec_mm.schema import TEXT, Schema

Runtime = Literal["auto", "onnx", "tensorflow"]
_NUMPY_TYPES = {"int64": np.int64, "bool": np.bool_, "float32": np.float32}
_TRIALS, _TRIAL_ITEMS = 3, 64
# A text of a trial.
_WORDS = "some words"


class _Items(NamedTuple):
    """Items to embed.

    pixels   float32 [N, H, W, C] of their pictures; None for a model without pictures
    fields   field -> [K]
    vectors  kind -> float32 [K, numbers], of contents whose vectors are in a store
    owner    int [N]: the item of each picture, ascending
    number   K
    """

    pixels: np.ndarray | None
    fields: dict[str, Values]
    vectors: Mapping[str, NDArray[np.float32]]
    owner: np.ndarray
    number: int

    def first(self, number: int) -> _Items:
        """Return the first items, up to this number and at least one with a picture."""
        number = min(max(number, int(self.owner[0]) + 1 if len(self.owner) else 0), self.number)
        is_first = self.owner < number
        pixels = None if self.pixels is None else self.pixels[is_first]
        fields = {name: values[:number] for name, values in self.fields.items()}
        vectors = {kind: values[:number] for kind, values in self.vectors.items()}
        return _Items(pixels, fields, vectors, self.owner[is_first], number)

    def pictures(self, name: str) -> dict[str, np.ndarray]:
        """Return the input for pictures, under its name."""
        return {} if self.pixels is None else {name: self.pixels}


def load_signatures(folder: str, schema: Schema) -> Mapping[str, Any]:
    """Load the SavedModel of an image model and return its signatures."""
    if schema.text is not None:
        import tensorflow_text  # type: ignore[import-untyped]  # noqa: F401  # registers operations of tokenizers
    signatures: Mapping[str, Any] = tf.saved_model.load(folder).signatures
    return signatures


class ImageModel:
    """An exported image model: decodes pictures and embeds pixels, by default with the faster of its runtimes.

    Args:
      folder: folder of the export.
      runtime: "onnx", "tensorflow", or "auto" for the faster one.
      num_threads: number of threads of ONNX Runtime; 0: one per core.
      vector_stores: feature -> URI of the store of its vectors, if it differs from that in the config.

    `vectors` looks up the vectors of items that are in stores.

    Raises:
      ExportError: if the folder contains no image model, or none for the runtime, or if it cannot be loaded.
      StoreError: if a store of vectors cannot be reached, or lacks those that the model was trained with.
    """

    def __init__(
        self,
        folder: str,
        runtime: Runtime = "auto",
        num_threads: int = 0,
        vector_stores: Mapping[str, str] | None = None,
    ) -> None:
        folder = local_export(folder)
        self.manifest: Manifest = read_manifest(folder, "image")
        self._input = self.manifest.image_input
        schema = self.manifest.schema
        self.fields = schema.image_fields()
        self.vectors = ItemVectors(self.manifest, vector_stores or {})
        has_onnx = IMAGE_ONNX in self.manifest.files
        if runtime == "onnx" and not has_onnx:
            reason = self.manifest.parity.get("left_out", {}).get(IMAGE_ONNX, "")
            raise ExportError(f"{folder}: has no {IMAGE_ONNX} ({reason}); embed with --runtime tensorflow")
        try:
            self._signatures = load_signatures(folder, schema)
            if has_onnx:
                path = str(Path(folder) / IMAGE_ONNX)
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = num_threads
                self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each runtime has its own exception types
            raise ExportError(f"{folder}: the image model cannot be loaded: {error}") from error
        self._onnx_inputs = OnnxInputs(schema, self._signatures)
        # Once more, for the files may have been overwritten while they were loaded.
        require_unchanged(self.manifest, Path(folder), folder, self.manifest.files)
        self._runtimes = {"tensorflow": self._run_tensorflow}
        if has_onnx:
            self._runtimes["onnx"] = self._run_onnx
        self.runtime: str = runtime

    def decode(self, contents: tf.Tensor) -> tf.Tensor:
        """Decode the contents of files, string `[N]`, to uint8 `[N, H, W, C]`; see data/decode.py."""
        return self._signatures[DECODE](**{self._input: contents})[PIXELS]

    def embed(
        self,
        pixels: np.ndarray,
        fields: Mapping[str, Sequence[Any]] | None = None,
        owner: np.ndarray | None = None,
        vectors: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> np.ndarray:
        """Return the vectors of K items, float32 `[K, D]`.

        Args:
          pixels: uint8 `[N, H, W, C]`; any if the model takes no pictures.
          fields: values `[K]` of each of `self.fields`; None for their defaults.
          owner: int64 `[N]`, the item of each picture, from 0; None if each picture is an item.
          vectors: the result of `self.vectors.of_items`; by default they are looked up.

        Raises:
          StoreError: if a store cannot be reached.
        """
        numbers = pixels.astype(np.float32)
        owner = np.arange(len(pixels)) if owner is None else owner
        num_items = int(owner[-1]) + 1 if len(owner) else 0
        if fields:  # the last items may have no picture
            num_items = max(num_items, *(len(column) for column in fields.values()))
        schema = self.manifest.schema
        values: dict[str, Values] = {}
        for name in schema.image_input_fields():
            field = schema.field(name)
            column: Sequence[Any] = fields[name] if fields else [field.default_value] * num_items
            values[name] = list(column) if field.dtype == "string" else np.array(column, _NUMPY_TYPES[field.dtype])
        if vectors is None:
            vectors = self.vectors.of_items(fields, num_items)
        items = _Items(numbers if schema.uses_image else None, values, vectors, owner, num_items)
        if schema.uses_image and not len(owner):
            return self._run_tensorflow(items)  # not all kernels of ONNX Runtime take nothing
        if self.runtime == "auto":
            trial = items.first(_TRIAL_ITEMS)
            self.runtime = min(self._runtimes, key=lambda name: self._seconds(name, trial))
        return self._runtimes[self.runtime](items)

    def _run_onnx(self, items: _Items) -> np.ndarray:
        inputs = {
            **items.pictures(self._input),
            **self._onnx_inputs(items.fields, items.vectors, items.owner, items.number),
        }
        tokens = inputs.get(PREPARED[TEXT].name)
        if tokens is not None and (tokens < 0).all():
            return self._run_tensorflow(items)  # no text has a word; as for no picture
        vectors: np.ndarray = self._session.run([IMAGE_VECTOR], inputs)[0]
        return vectors

    def _run_tensorflow(self, items: _Items) -> np.ndarray:
        features = self.manifest.schema.contents
        vectors = {features[kind].vector_key: values for kind, values in items.vectors.items()}
        inputs = {**items.pictures(self._input), **items.fields, **vectors}
        if self.manifest.schema.has_picture_item:
            inputs[PICTURE_ITEM] = items.owner.astype(np.int64)
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        made: np.ndarray = self._signatures[DEFAULT](**tensors)[IMAGE_VECTOR].numpy()
        return made

    def _seconds(self, runtime: str, items: _Items) -> float:
        times = []
        for _ in range(_TRIALS):
            start = time.perf_counter()
            self._runtimes[runtime](items)
            times.append(time.perf_counter() - start)
        return min(times)

    def paths(self, text: str) -> list[str]:
        """Return the paths that an image field or a key contains; none if the model takes no pictures."""
        if not self.manifest.schema.uses_image:
            return []
        separator = self.manifest.schema.image_separator
        return [path for path in text.split(separator) if path] if separator else [text]


class PictureEmbedder:
    """Contents of pictures -> vectors by an image model, for a server whose store lacks them.

    `fields` are the names of the fields that it needs in addition to the pictures.

    Args:
      folder: an exported image model.
      vector_stores: see ImageModel.

    Raises:
      ExportError: if the folder contains no image model.
      StoreError: see ImageModel.
    """

    def __init__(self, folder: str, vector_stores: Mapping[str, str] | None = None) -> None:
        self._model = ImageModel(folder, vector_stores=vector_stores)
        self.fingerprint = self._model.manifest.image_tower_fingerprint
        self.fields = self._model.fields
        self.schema = self._model.manifest.schema
        image = self.schema.image
        # This chooses the runtime now, instead of during the first request.
        texts = () if self.schema.text is None else self.schema.text.inputs
        values = {name: [_WORDS if name in texts else self.schema.field(name).default_value] for name in self.fields}
        self._model.embed(np.zeros((1, image.height, image.width, image.channels), np.uint8), values)
        self._pictures = PictureLoader(image, decode=self._model.decode)

    def paths(self, key: str) -> list[str]:
        """Return the paths of the pictures that a key names."""
        return self._model.paths(key) if key else []

    def is_without_picture(self, values: Sequence[Any]) -> bool:
        """Return whether an item with these values of `fields` has a vector without a picture."""
        return self.schema.is_without_picture(dict(zip(self.fields, values, strict=True)))

    def embed_without_picture(self, fields: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """Return the vectors `[K, D]` of items without a picture.

        Args:
          fields: values `[K]` of `fields`.
        """
        image = self.schema.image
        nothing = np.zeros((0, image.height, image.width, image.channels), np.uint8)
        return self._model.embed(nothing, fields, np.zeros(0, np.int64))

    def embed(
        self, pictures: Sequence[Sequence[bytes]], fields: Mapping[str, Sequence[Any]] | None = None
    ) -> list[np.ndarray | None]:
        """Return the vector `[D]` of each item; None for one without a valid picture, unless it has another content.

        Args:
          pictures: the contents of the pictures of each item.
          fields: values of `fields` for each item; None for their defaults.
        """
        vectors: list[np.ndarray | None] = [None] * len(pictures)
        item = [i for i, contents in enumerate(pictures) for _ in contents]
        image = self.schema.image
        pixels, good = np.zeros((0, image.height, image.width, image.channels), np.uint8), []
        if item:
            decoded, problems = self._pictures.decode([content for contents in pictures for content in contents], {})
            good = [i for i in range(len(item)) if i not in problems]
            pixels = decoded.numpy()[good]
        others = [row for row in range(len(pictures)) if fields and self._is_without_picture(fields, row)]
        rows = sorted({*(item[i] for i in good), *others})
        if rows:
            values = {name: [fields[name][row] for row in rows] for name in self.fields} if fields else None
            owner = np.searchsorted(rows, [item[i] for i in good])
            for row, vector in zip(rows, self._model.embed(pixels, values, owner), strict=True):
                vectors[row] = vector
        return vectors

    def _is_without_picture(self, fields: Mapping[str, Sequence[Any]], row: int) -> bool:
        return self.is_without_picture([fields[name][row] for name in self.fields])
