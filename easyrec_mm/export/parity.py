"""Verifies an export: compares the written models, loaded again, with each other and with the trained network.

On a sample of data, every way from a picture and raw fields to predictions must agree. The trained network is given the
constants of `serve_constants`, too, in place of the data's values. Limits are for probabilities.
Other outputs have no natural scale: their differences are relative to their size, or to 1 if the size is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tensorflow as tf

from easyrec_mm import manifest
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import Batch
from easyrec_mm.data.input import Input
from easyrec_mm.data.picture_reader import picture_reader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.embedding.image_model import load_signatures
from easyrec_mm.embedding.onnx_inputs import OnnxInputs
from easyrec_mm.errors import ExportError
from easyrec_mm.evaluation.exported import content_vectors, padded_vectors
from easyrec_mm.evaluation.metrics import metric_value
from easyrec_mm.evaluation.rank_metrics import AUC
from easyrec_mm.export import parts
from easyrec_mm.export.shown_items import ShownItems
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.features.tensorflow_transform import FeatureTransform
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema
from easyrec_mm.store.feature_vectors import VectorStores

LIMIT_WITHIN_TENSORFLOW, LIMIT_TO_ONNX = 1e-6, 1e-5
# Groups per batch, and maximum number of samples per picture, as the total model embeds a picture once per sample.
_BATCH_SIZE, _SAMPLES_OF_A_PICTURE = 20, 16
# Larger limits for outputs other than probabilities, because no sigmoid reduces their differences.
_FACTOR_OF_OTHERS = 10.0

GRAPH, TRAINED = "network", "network in the precision of the training"
REC, VECTOR, TOTAL = "rec(image)", "rec(image) by vector", "total"
ENCODED, ONNX = "rec(image of encoded pictures)", "onnx rec(image)"
# (one way, the other, limit for probabilities)
COMPARISONS = (
    (REC, TOTAL, LIMIT_WITHIN_TENSORFLOW),
    (VECTOR, REC, LIMIT_WITHIN_TENSORFLOW),
    (REC, GRAPH, LIMIT_WITHIN_TENSORFLOW),
    (ENCODED, REC, LIMIT_WITHIN_TENSORFLOW),
    (ONNX, REC, LIMIT_TO_ONNX),
)

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Exported:
    """The folders of the written models, and the name of the picture input."""

    image: Path
    rec: Path
    total: Path
    image_input: str


def measure_parity(
    model: MultimodalModel,
    trained: MultimodalModel | None,
    exported: Exported,
    data: DatasetConfig,
    path: str,
    num_groups: int,
    vectors: VectorStores,
) -> dict[str, Any]:
    """Compare the ways from data to predictions, and return the parity report.

    Args:
      model: the network in float32.
      trained: the same network in the precision of the training; None if that is float32.
      exported: the written models.
      data: the config's data section.
      path: files of samples.
      num_groups: number of groups to compare.
      vectors: the stored vectors that the model was trained with.

    Raises:
      ExportError: if two ways differ by more than their limit.
      DataError: if the data cannot be read.
    """
    ways = _Ways(model, trained, exported, PictureLoader(model.schema.image, picture_reader(data)))
    small = DatasetConfig()
    small.CopyFrom(data)
    small.eval_batch_size = min(_BATCH_SIZE, num_groups)
    records = BadRecords(None, 1.0)
    inputs = Input(small, model.schema, path, "eval_input_path", records, kept_fields=ways.fields, vectors=vectors)
    collected: dict[str, list[Outputs]] = {}
    labels: list[Outputs] = []
    num_pictures = num_seen = 0
    for item in inputs.batches():
        if item.batch.num_samples:
            batch, kept_fields = _first_samples(item.batch, item.kept_fields)
            for way, outputs in ways.run(batch, kept_fields, item.picture_path):
                collected.setdefault(way, []).append(outputs)
            labels.append(_arrays(batch.labels))
            num_pictures += batch.num_images
        num_seen += item.num_groups
        if num_seen >= num_groups:
            break
    if not labels:
        raise ExportError(f"{path}: no good group to compare the models on; give other data with --eval_input_path")
    by_way = {way: _joined(outputs) for way, outputs in collected.items()}
    return _report(model.schema, by_way, _joined(labels), num_pictures, trained is not None)


class _Ways:
    """The ways from a batch to its outputs."""

    def __init__(
        self, model: MultimodalModel, trained: MultimodalModel | None, exported: Exported, pictures: PictureLoader
    ) -> None:
        self._model, self._trained = model, trained
        schema = self._schema = model.schema
        self._image_input = exported.image_input
        self._pictures = pictures
        self._image, self._rec, self._total = (
            load_signatures(str(folder), schema) for folder in (exported.image, exported.rec, exported.total)
        )
        self._onnx_inputs = OnnxInputs(schema, self._image)
        image_onnx = exported.image / manifest.IMAGE_ONNX
        self._image_onnx = _session(image_onnx) if image_onnx.exists() else None
        self._rec_onnx = _session(exported.rec / manifest.REC_ONNX)
        self._numpy_transform = NumpyTransform(schema.features, schema.fields)
        self._constants = parts.constant_fields(schema)
        self._of_constants = FeatureTransform(
            [f for f in schema.features if not self._constants.keys().isdisjoint(f.inputs)]
        )
        self._feature_fields, self._image_fields = tuple(schema.model_fields()), schema.image_input_fields()
        self._inputs = tuple(schema.input_fields())
        self._bool_fields = {field.name for field in schema.fields if field.dtype == "bool"}
        self.fields = tuple(dict.fromkeys((*self._feature_fields, *self._image_fields)))

    def run(
        self, batch: Batch, kept_fields: dict[str, tf.Tensor], picture_path: list[bytes]
    ) -> Iterator[tuple[str, Outputs]]:
        """Yield (way, outputs) of each way.

        Args:
          batch: some samples.
          kept_fields: the values of `fields`, `[S]` each.
          picture_path: InputBatch.picture_path.
        """
        batch = self._with_constants(batch, kept_fields)
        yield GRAPH, _arrays(self._compiled(self._model, batch))
        if self._trained is not None:
            yield TRAINED, _arrays(self._compiled(self._trained, batch))
        fields = {
            name: tf.cast(kept_fields[name], tf.bool) if name in self._bool_fields else kept_fields[name]
            for name in self.fields
        }
        features = {name: fields[name] for name in self._feature_fields}
        vectors = parts.vector_inputs(self._schema, batch.features)
        shown = ShownItems.of(batch, picture_path, bool(self._schema.contents))
        side_inputs = {name: tf.gather(fields[name], shown.first_sample) for name in self._image_fields}  # [K]
        of_items = self._vectors_of_items(batch, shown.images)
        side_inputs |= of_items
        if self._schema.has_picture_item:
            side_inputs[manifest.PICTURE_ITEM] = tf.constant(shown.item)
        image = self._image[manifest.DEFAULT](**self._pictures_input(shown.pixels), **side_inputs)
        self._require_exact_text(image)
        text = tf.gather(self._with_no_image(shown, image[manifest.IMAGE_TEXT]), batch.sample_image)
        rec_inputs = {**{name: fields[name] for name in self._inputs}, **vectors}
        yield REC, _arrays(self._rec[manifest.DEFAULT](**rec_inputs, **{manifest.IMAGE_TEXT: text}))
        encoded = self._image[manifest.ENCODED](**self._pictures_input(self._contents(shown)), **side_inputs)
        for way, outputs in ((VECTOR, image), (ENCODED, encoded)):
            of_images = self._with_no_image(shown, outputs[manifest.IMAGE_VECTOR])
            vector = tf.gather(of_images, batch.sample_image)
            yield way, _arrays(self._rec[manifest.VECTOR](**rec_inputs, **{manifest.IMAGE_VECTOR: vector}))
        of_total = {name: fields[name] for name in dict.fromkeys((*self._inputs, *self._image_fields))}
        of_samples = self._vectors_of_items(batch, batch.sample_image.numpy())
        yield TOTAL, self._run_total(batch, {**of_total, **vectors, **of_samples}, shown)
        yield ONNX, self._run_onnx(batch, features, self._onnx_vectors(batch, image, side_inputs, shown), shown)

    def _vectors_of_items(self, batch: Batch, images: np.ndarray) -> dict[str, tf.Tensor]:
        """Return the vectors from stores that are contents of these images, as inputs by name."""
        features = self._schema.stored_contents()
        of_kinds = content_vectors(self._schema, batch, images)
        return {features[kind].vector_key: tf.constant(values) for kind, values in of_kinds.items()}

    def _pictures_input(self, pictures: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the input for pictures by its name; {} if the models take none."""
        return {self._image_input: pictures} if self._schema.uses_image else {}

    def _with_constants(self, batch: Batch, kept_fields: dict[str, tf.Tensor]) -> Batch:
        """Return the batch with the features that follow from the constants of fields."""
        if not self._constants:
            return batch
        constants, _ = parts.broadcast_fields(self._schema, self._constants, tf.constant(batch.num_samples))
        return batch._replace(features=batch.features | self._of_constants({**kept_fields, **constants}))

    @staticmethod
    def _compiled(model: MultimodalModel, batch: Batch) -> dict[str, tf.Tensor]:
        # In a graph, as exported: TensorFlow fuses operations of a graph, which changes the last digits.
        outputs: dict[str, tf.Tensor] = tf.function(model.predict, autograph=False, reduce_retracing=True)(batch)
        return outputs

    def _with_no_image(self, shown: ShownItems, values: tf.Tensor) -> tf.Tensor:
        """Extend text `[K]` or vectors `[K, D]` of the images that have a picture to all U images."""
        if len(shown.images) == shown.num_images:
            return values
        _, items = self._model.image_side()
        no_image = items.in_place()[None]
        stand_in = parts.vector_text(no_image) if values.dtype == tf.string else no_image
        row = np.full(shown.num_images, len(shown.images), np.int32)
        row[shown.images] = np.arange(len(shown.images))
        return tf.gather(tf.concat([values, stand_in], 0), row)

    def _run_total(self, batch: Batch, fields: dict[str, tf.Tensor], shown: ShownItems) -> Outputs:
        """Run the total model, which takes one picture per sample, repeatedly on all pictures with one sample of each.

        Thus the tower sees the same batch of pictures as in the other ways; this matters because kernels choose the
        order of their sums by the number of pictures.
        """
        sample_image = batch.sample_image.numpy()
        samples_of = [np.flatnonzero(sample_image == row) for row in range(batch.num_images)]
        outputs: Outputs = {}

        def add(samples: np.ndarray, predictions: dict[str, tf.Tensor]) -> None:
            for name, value in predictions.items():
                if name == manifest.IMAGE_TEXT:
                    continue
                array = value.numpy()
                outputs.setdefault(name, np.zeros((batch.num_samples, *array.shape[1:]), array.dtype))[samples] = array

        item = {manifest.PICTURE_ITEM: tf.constant(shown.item)} if self._schema.has_picture_item else {}
        for turn in range(max((len(samples_of[image]) for image in shown.images), default=0)):
            samples = np.array([samples_of[i][min(turn, len(samples_of[i]) - 1)] for i in shown.images])
            taken = {name: tf.gather(value, samples) for name, value in fields.items()}
            add(samples, self._total[manifest.DEFAULT](**taken, **self._pictures_input(shown.pixels), **item))
        without = np.flatnonzero(~np.isin(sample_image, shown.images))
        if len(without):
            taken = {name: tf.gather(value, without) for name, value in fields.items()}
            item = {name: tf.range(len(without), dtype=tf.int64) for name in item}
            nothing = {self._image_input: tf.fill([len(without)], "")}
            add(without, self._total[manifest.ENCODED](**taken, **nothing, **item))
        return outputs

    def _contents(self, shown: ShownItems) -> tf.Tensor:
        """Return the contents of the pictures' files `[N]`; for one that cannot be read, its substitute as a PNG."""
        if not shown.paths:
            return tf.constant([], tf.string)
        contents, problems = self._pictures.plain(*self._pictures.read(list(shown.paths)))
        for row in self._pictures.decode(contents, problems).problems:
            contents[row] = tf.io.encode_png(tf.cast(shown.pixels[row], tf.uint8)).numpy()
        return tf.constant(contents)

    def _onnx_vectors(
        self, batch: Batch, image: dict[str, tf.Tensor], side_inputs: dict[str, tf.Tensor], shown: ShownItems
    ) -> tf.Tensor | np.ndarray:
        """Return the vectors `[K, D]` of ONNX Runtime, or those of the SavedModel if image.onnx was not written."""
        if self._image_onnx is None:
            return image[manifest.IMAGE_VECTOR]
        if self._schema.uses_image and not shown.paths:
            return image[manifest.IMAGE_VECTOR]  # not all kernels of ONNX Runtime take nothing
        fields = {name: _values(value) for name, value in side_inputs.items() if name in self._image_fields}
        vectors = content_vectors(self._schema, batch, shown.images)
        image_inputs = self._onnx_inputs(fields, vectors, shown.item, len(shown.images))
        if self._schema.uses_image:
            image_inputs[self._image_input] = shown.pixels.numpy()
        made: np.ndarray = self._image_onnx.run([manifest.IMAGE_VECTOR], image_inputs)[0]
        return made

    def _run_onnx(
        self, batch: Batch, features: dict[str, tf.Tensor], vectors: tf.Tensor | np.ndarray, shown: ShownItems
    ) -> Outputs:
        vector = self._with_no_image(shown, tf.convert_to_tensor(vectors)).numpy()
        values = {name: _values(value) for name, value in features.items()}
        inputs = {
            **self._numpy_transform(values, batch.num_samples),
            **padded_vectors(self._schema, batch),
            manifest.IMAGE_VECTOR: vector[batch.sample_image.numpy()],
        }
        names = [output.name for output in self._rec_onnx.get_outputs()]
        taken = {value.name for value in self._rec_onnx.get_inputs()}
        return dict(zip(names, self._rec_onnx.run(names, {n: v for n, v in inputs.items() if n in taken}), strict=True))

    @staticmethod
    def _require_exact_text(image: dict[str, tf.Tensor]) -> None:
        vector = image[manifest.IMAGE_VECTOR]
        read = parts.text_vector(image[manifest.IMAGE_TEXT], int(vector.shape[1]))
        if not bool(tf.reduce_all(tf.equal(read, vector))):
            raise ExportError(
                f"{manifest.IMAGE_TEXT} does not give back the float32 numbers of {manifest.IMAGE_VECTOR}"
            )


def _report(
    schema: Schema, by_way: dict[str, Outputs], labels: Outputs, num_pictures: int, training_precision: bool
) -> dict[str, Any]:
    """Return the differences and AUCs; raise ExportError if a difference is too large."""
    differences: dict[str, dict[str, float]] = {}
    limits: dict[str, float] = {}
    problems: list[str] = []
    for first, second, limit in COMPARISONS:
        name = f"{first} vs {second}"
        limits[name] = limit
        differences[name] = {
            output: _difference(by_way[first][output], by_way[second][output]) for output in by_way[first]
        }
        for output, difference in differences[name].items():
            allowed = limit if output.startswith("probs_") else limit * _FACTOR_OF_OTHERS
            a, b = by_way[first][output], by_way[second][output]
            scale = 1.0 if output.startswith("probs_") else np.maximum(1.0, np.abs(b))
            if not np.max(np.abs(a - b) / scale, initial=0.0) <= allowed:
                problems.append(f"  {name}: {output} differs by {difference:.2e}, allowed is {allowed:.0e}")
    if problems:
        raise ExportError("the exported models disagree:\n" + "\n".join(problems))
    if training_precision:
        differences[f"{TRAINED} vs {GRAPH}"] = {
            output: _difference(by_way[TRAINED][output], by_way[GRAPH][output]) for output in by_way[GRAPH]
        }
    num_samples = len(next(iter(labels.values())))
    return {
        "num_samples": num_samples,
        "num_pictures": num_pictures,
        "max_abs_difference": differences,
        "limit_of_probabilities": limits,
        "auc": {way: _aucs(schema, outputs, labels) for way, outputs in by_way.items()},
    }


def _aucs(schema: Schema, outputs: Outputs, labels: Outputs) -> dict[str, float | None]:
    aucs: dict[str, float | None] = {}
    for task in schema.tasks:
        if task.activation == "binary":
            value = metric_value(AUC(), labels[task.label], outputs[task.score_name])
            aucs[f"auc_{task.name}"] = value if np.isfinite(value) else None
    return aucs


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.max(np.abs(first.astype(np.float64) - second), initial=0.0))


def _first_samples(batch: Batch, kept_fields: dict[str, tf.Tensor]) -> tuple[Batch, dict[str, tf.Tensor]]:
    """Return the first samples of every picture, up to _SAMPLES_OF_A_PICTURE."""
    sample_image = batch.sample_image.numpy()
    rows = [np.flatnonzero(sample_image == row)[:_SAMPLES_OF_A_PICTURE] for row in range(batch.num_images)]
    samples = np.sort(np.concatenate(rows))

    def gather(values: dict[str, Any]) -> dict[str, Any]:
        return {name: tf.gather(value, samples) for name, value in values.items()}

    taken = batch._replace(
        features=gather(batch.features),
        labels=gather(batch.labels),
        sample_weight=tf.gather(batch.sample_weight, samples),
        sample_image=tf.gather(batch.sample_image, samples),
    )
    return taken, gather(kept_fields)


def _values(tensor: tf.Tensor) -> Values:
    """Return a field's values in the form that the NumPy transform takes."""
    return [text.decode() for text in tensor.numpy()] if tensor.dtype == tf.string else tensor.numpy()


def _arrays(tensors: dict[str, tf.Tensor]) -> Outputs:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _joined(parts_of_all: list[Outputs]) -> Outputs:
    return {name: np.concatenate([outputs[name] for outputs in parts_of_all]) for name in parts_of_all[0]}


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
