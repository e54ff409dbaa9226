"""An exported image model: decodes pictures and embeds pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import tensorflow as tf

from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.errors import ExportError
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.manifest import (
    DECODE,
    DEFAULT,
    IMAGE_ONNX,
    IMAGE_VECTOR,
    PICTURE_ITEM,
    PIXELS,
    Manifest,
    local_export,
    read_manifest,
    require_unchanged,
)

Runtime = Literal["auto", "onnx", "tensorflow"]
_NUMPY_TYPES = {"int64": np.int64, "bool": np.bool_, "float32": np.float32}
_TRIALS, _TRIAL_PICTURES = 3, 64


class ImageModel:
    """An exported image model: decodes pictures and embeds pixels, by default with the faster of its runtimes.

    Args:
      folder: folder of the export.
      runtime: "onnx", "tensorflow", or "auto" for the faster one.
      num_threads: number of threads of ONNX Runtime; 0: one per core.

    Raises:
      ExportError: if the folder contains no image model, or none for the runtime, or if it cannot be loaded.
    """

    def __init__(self, folder: str, runtime: Runtime = "auto", num_threads: int = 0) -> None:
        folder = local_export(folder)
        self.manifest: Manifest = read_manifest(folder, "image")
        self._input = self.manifest.image_input
        schema = self.manifest.schema
        self.fields = schema.image_fields()
        self._numpy_category = NumpyTransform([schema.category] if schema.category else [])
        has_onnx = IMAGE_ONNX in self.manifest.files
        if runtime == "onnx" and not has_onnx:
            reason = self.manifest.parity.get("left_out", {}).get(IMAGE_ONNX, "")
            raise ExportError(f"{folder}: has no {IMAGE_ONNX} ({reason}); embed with --runtime tensorflow")
        try:
            self._signatures = tf.saved_model.load(folder).signatures
            if has_onnx:
                path = str(Path(folder) / IMAGE_ONNX)
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = num_threads
                self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each runtime has its own exception types
            raise ExportError(f"{folder}: the image model cannot be loaded: {error}") from error
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
        self, pixels: np.ndarray, fields: Mapping[str, Sequence[Any]] | None = None, owner: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the vectors of K items, float32 `[K, D]`.

        Args:
          pixels: uint8 `[N, H, W, C]`.
          fields: values `[K]` of each of `self.fields`; None for their defaults.
          owner: int64 `[N]`, the item of each picture, from 0; None if each picture is an item.
        """
        numbers = pixels.astype(np.float32)
        owner = np.arange(len(pixels)) if owner is None else owner
        num_items = int(owner[-1]) + 1 if len(owner) else 0
        schema = self.manifest.schema
        values: dict[str, Values] = {}
        for name in self.fields:
            field = schema.field(name)
            column: Sequence[Any] = fields[name] if fields else [field.default_value] * num_items
            values[name] = list(column) if field.dtype == "string" else np.array(column, _NUMPY_TYPES[field.dtype])
        if self.runtime == "auto":
            in_trial = owner < owner[:_TRIAL_PICTURES][-1] + 1
            trial_values = {name: value[: int(owner[in_trial][-1]) + 1] for name, value in values.items()}
            self.runtime = min(
                self._runtimes, key=lambda name: self._seconds(name, numbers[in_trial], trial_values, owner[in_trial])
            )
        return self._runtimes[self.runtime](numbers, values, owner)

    def _run_onnx(self, pixels: np.ndarray, fields: dict[str, Values], owner: np.ndarray) -> np.ndarray:
        inputs = {self._input: pixels, **self._numpy_category(fields, int(owner[-1]) + 1), **self._owner(owner)}
        vectors: np.ndarray = self._session.run([IMAGE_VECTOR], inputs)[0]
        return vectors

    def _run_tensorflow(self, pixels: np.ndarray, fields: dict[str, Values], owner: np.ndarray) -> np.ndarray:
        inputs = {self._input: pixels, **fields, **self._owner(owner)}
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        vectors: np.ndarray = self._signatures[DEFAULT](**tensors)[IMAGE_VECTOR].numpy()
        return vectors

    def _owner(self, owner: np.ndarray) -> dict[str, np.ndarray]:
        return {PICTURE_ITEM: owner.astype(np.int64)} if self.manifest.schema.image_separator else {}

    def _seconds(self, runtime: str, pixels: np.ndarray, fields: dict[str, Values], owner: np.ndarray) -> float:
        times = []
        for _ in range(_TRIALS):
            start = time.perf_counter()
            self._runtimes[runtime](pixels, fields, owner)
            times.append(time.perf_counter() - start)
        return min(times)

    def paths(self, text: str) -> list[str]:
        """Return the paths that an image field or a key contains."""
        separator = self.manifest.schema.image_separator
        return [path for path in text.split(separator) if path] if separator else [text]


class PictureEmbedder:
    """Contents of pictures -> vectors by an image model, for a server whose store lacks them.

    `fields` are the names of the fields that it needs in addition to the pictures.

    Args:
      folder: an exported image model.

    Raises:
      ExportError: if the folder contains no image model.
    """

    def __init__(self, folder: str) -> None:
        self._model = ImageModel(folder)
        self.fingerprint = self._model.manifest.image_tower_fingerprint
        self.fields = self._model.fields
        self.schema = self._model.manifest.schema
        image = self.schema.image
        # This chooses the runtime now, instead of during the first request.
        self._model.embed(np.zeros((1, image.height, image.width, image.channels), np.uint8))
        self._pictures = PictureLoader(image, decode=self._model.decode)

    def paths(self, key: str) -> list[str]:
        """Return the paths of the pictures that a key names."""
        return self._model.paths(key)

    def embed(
        self, pictures: Sequence[Sequence[bytes]], fields: Mapping[str, Sequence[Any]] | None = None
    ) -> list[np.ndarray | None]:
        """Return the vector `[D]` of each item; None for an item without a valid picture.

        Args:
          pictures: the contents of the pictures of each item.
          fields: values of `fields` for each item; None for their defaults.
        """
        vectors: list[np.ndarray | None] = [None] * len(pictures)
        item = [i for i, contents in enumerate(pictures) for _ in contents]
        if not item:
            return vectors
        pixels, problems = self._pictures.decode([content for contents in pictures for content in contents], {})
        good = [i for i in range(len(item)) if i not in problems]
        if good:
            rows, owner = np.unique([item[i] for i in good], return_inverse=True)
            values = {name: [fields[name][row] for row in rows] for name in self.fields} if fields else None
            for row, vector in zip(rows, self._model.embed(pixels.numpy()[good], values, owner), strict=True):
                vectors[row] = vector
        return vectors
