"""Collects what TensorBoard shows of an evaluation: items with pictures and vectors, and predictions.

The vectors and pixels are those that the evaluation has computed and loaded anyway. Of several workers, each collects
what it evaluates itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import tensorflow as tf
from PIL import ImageOps

from easyrec_mm.config.evaluation import projector_fields
from easyrec_mm.data.batch import InputBatch
from easyrec_mm.data.packed_pictures import own_path
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.shown import MOST_NUMBERS
from easyrec_mm.safe_text import hide_secrets, printable
from easyrec_mm.schema import TEXT, Schema, Task

Array = npt.NDArray[Any]
# Sides in pixels of a picture among those with labels and predictions, and in the projector.
LARGE_SIDE, SMALL_SIDE = 96, 48


@dataclass
class Item:
    """An item with a picture, or with another content if the model takes no pictures.

    path       of its first picture; "" without one
    contents   kind -> its other contents: a text in bytes, a vector as float32 `[numbers]`
    fields     input field -> text of its first sample
    bank_rows  rows of its pictures in the prediction bank
    thumbnail  of its first picture, square
    """

    path: str
    fields: dict[str, str]
    bank_rows: Array
    thumbnail: PIL.Image.Image
    contents: dict[str, Any] = field(default_factory=dict)


@dataclass
class Collected:
    """What was collected in an evaluation; N items, in the order in which they appear in the data.

    items        the items
    num_samples  int64 `[N]`
    labels       task -> mean label `[N]`
    predictions  task -> mean prediction `[N]`
    vectors      float32 `[N, D]`
    scores       name of a model output -> its first values
    part_weights part of an item -> its mean weight in the vectors; {} for a fusion without weights
    """

    items: list[Item]
    num_samples: Array
    labels: dict[str, Array]
    predictions: dict[str, Array]
    vectors: Array
    scores: dict[str, Array]
    part_weights: dict[str, float] = field(default_factory=dict)


@dataclass
class _Sums:
    """Sums over the samples of each item, float64 `[limit]`."""

    samples: Array
    labels: dict[str, Array] = field(default_factory=dict)
    predictions: dict[str, Array] = field(default_factory=dict)


class ShownItems:
    """Collects the first items with pictures of each evaluation; with other contents if the model takes no pictures.

    Args:
      config: its train_config says how many; see num_summary_pictures and num_projector_items.
      schema: the Schema of the config.

    Attributes:
      fields: input fields that the batches have to contain.
      collected: what was collected in the last evaluation that has ended; None before.
      tasks: the tasks whose labels and predictions have means.
      has_pictures: whether items have pictures.
    """

    def __init__(self, config: EasyRecConfig, schema: Schema) -> None:
        settings = config.train_config
        self._num_large = settings.num_summary_pictures
        self._limit = max(self._num_large, settings.num_projector_items) if schema.has_item_vector else 0
        self.has_pictures = schema.uses_image
        self._texts = schema.text.inputs if schema.text is not None and self._limit else ()
        shown = projector_fields(config, schema) if self._limit and settings.num_projector_items else ()
        self.fields = tuple(dict.fromkeys([*shown, *self._texts]))
        self.tasks: list[Task] = [task for task in schema.tasks if task.activation != "multiclass"]
        self.collected: Collected | None = None
        # Key of a picture -> thumbnail. A frozen tower needs the pixels of a picture in the first evaluation only.
        self._thumbnails: dict[int, PIL.Image.Image] = {}
        self.begin()

    def begin(self) -> None:
        """Begin an evaluation."""
        self._places: dict[int, int] = {}  # key of an image -> place among the items
        self._items: list[Item] = []
        self._scores: dict[str, list[Array]] = {task.score_name: [] for task in self.tasks}
        self._num_scores = 0
        self._sums = _Sums(np.zeros(self._limit))
        for sums in (self._sums.labels, self._sums.predictions):
            sums |= {task.name: np.zeros(self._limit) for task in self.tasks}

    def add(self, item: InputBatch, outputs: dict[str, tf.Tensor]) -> None:
        """Add a batch with samples and the model's outputs."""
        batch = item.batch
        scores = {task.name: outputs[task.score_name].numpy() for task in self.tasks}
        if self._num_scores < MOST_NUMBERS:
            for task in self.tasks:
                self._scores[task.score_name].append(scores[task.name])
            self._num_scores += batch.num_samples
        if not self._limit:
            return
        place_of_sample = self._places_of(item)[batch.sample_image.numpy()]
        is_shown = place_of_sample >= 0
        places = place_of_sample[is_shown]
        self._sums.samples += np.bincount(places, minlength=self._limit)
        for task in self.tasks:
            labels = batch.labels[task.label].numpy()[is_shown]
            self._sums.labels[task.name] += np.bincount(places, labels, self._limit)
            self._sums.predictions[task.name] += np.bincount(places, scores[task.name][is_shown], self._limit)

    def finish(self, model: MultimodalModel) -> None:
        """End an evaluation of a model, which still has the evaluated weights."""
        num = len(self._items)
        samples = self._sums.samples[:num]
        images, contents = self._image_vectors(model), self._contents(model)
        vectors = model.parts.of_items(images, contents) if model.schema.has_item_vector else None
        weights = model.parts.part_weights(images, contents) if self._items else {}
        self.collected = Collected(
            items=self._items,
            num_samples=samples.astype(np.int64),
            labels={name: sums[:num] / samples for name, sums in self._sums.labels.items()},
            predictions={name: sums[:num] / samples for name, sums in self._sums.predictions.items()},
            vectors=np.zeros([0, model.item_width], np.float32) if vectors is None else vectors.numpy(),
            scores={name: np.concatenate([*values, []])[:MOST_NUMBERS] for name, values in self._scores.items()},
            part_weights={part: float(weight) for part, weight in weights.items()},
        )

    def _image_vectors(self, model: MultimodalModel) -> tf.Tensor | None:
        """Return the image vectors of the items, from those of their pictures; None without pictures."""
        if model.image is None:
            return None
        if not self._items:
            return tf.zeros([0, model.image_width])
        rows = tf.constant(np.concatenate([item.bank_rows for item in self._items]), tf.int32)
        counts = [len(item.bank_rows) for item in self._items]
        _, item_image = model.image_side()
        of_pictures = model.predictions.picture_vectors(rows)
        place = tf.constant(np.repeat(np.arange(len(counts)), counts), tf.int32)
        return item_image.pooled(of_pictures, place, tf.constant(len(counts)))

    def _places_of(self, item: InputBatch) -> Array:
        """Return the places of the images of a batch among the items, -1 for those that are not shown: `[U]`."""
        images = item.batch.images
        keys = images.key.numpy().tolist()
        places = np.array([self._places.get(key, -1) for key in keys])
        if len(self._items) == self._limit:
            return places
        link_image = images.link_image.numpy()
        starts, ends = (np.searchsorted(link_image, np.arange(len(keys)), side) for side in ("left", "right"))
        if self.has_pictures:
            is_shown = images.has_picture.numpy() & (ends > starts)
        else:
            of_images = [of.is_there.numpy()[of.of_image.numpy()] for of in item.batch.contents.values()]
            is_shown = np.logical_or.reduce(of_images)
        for image in np.flatnonzero((places < 0) & is_shown).tolist():
            if len(self._items) == self._limit:
                break
            pictures = images.link_picture.numpy()[starts[image] : ends[image]]
            places[image] = self._places[keys[image]] = len(self._items)
            self._items.append(self._item(item, image, pictures))
        return places

    def _item(self, item: InputBatch, image: int, pictures: Array) -> Item:
        batch, first = item.batch, int(pictures[0]) if len(pictures) else None
        sample = int(np.argmax(batch.sample_image.numpy() == image))
        return Item(
            path="" if first is None else _text(own_path(item.picture_path[first])),
            fields={name: _text(item.kept_fields[name][sample].numpy()) for name in self.fields},
            bank_rows=batch.images.bank_row.numpy()[pictures],
            thumbnail=self._grey() if first is None else self._thumbnail(item, first),
            contents={kind: self._content(item, kind, image, sample) for kind in batch.contents},
        )

    def _content(self, item: InputBatch, kind: str, image: int, sample: int) -> Any:
        """Return the content of an image with this first sample."""
        if kind == TEXT:  # the batch has no text whose vector is in a bank
            return b" ".join(item.kept_fields[name][sample].numpy() for name in self._texts)
        contents = item.batch.contents[kind]
        return contents.values.numpy()[int(contents.of_image[image])]

    def _contents(self, model: MultimodalModel) -> dict[str, tf.Tensor]:
        """Return the contents of the items by kind, as Contents.values has them."""
        contents: dict[str, tf.Tensor] = {}
        for kind, nothing in model.parts.empty().items():
            values = [item.contents[kind] for item in self._items]
            contents[kind] = tf.constant(values, nothing.dtype, [len(values), *nothing.shape[1:]])
        return contents

    def _thumbnail(self, item: InputBatch, picture: int) -> PIL.Image.Image:
        """Return the thumbnail of a picture, of its pixels if the batch has them; grey if they were never loaded."""
        images = item.batch.images
        key, rows = int(images.picture_key.numpy()[picture]), np.flatnonzero(images.encoded.numpy() == picture)
        if len(rows):
            self._thumbnails[key] = square(item.batch.pixels.numpy()[rows[0]], self._side)
        return self._thumbnails.get(key) or self._grey()

    def _grey(self) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (self._side, self._side), "grey")

    @property
    def _side(self) -> int:
        """Return the side of the thumbnail of the next item."""
        return LARGE_SIDE if len(self._items) < self._num_large else SMALL_SIDE


def square(pixels: Array, side: int) -> PIL.Image.Image:
    """Return pixels uint8 `[H, W, C]` as a square picture, with bars beside them if they are not square."""
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return ImageOps.pad(picture, (side, side))


def _text(value: Any) -> str:
    """Return a value of a field as text that fits into a cell of a table."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else f"{value:g}"
    return printable(hide_secrets(text)).replace("\t", " ").replace("\n", " ")
