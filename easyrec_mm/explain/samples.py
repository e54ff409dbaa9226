"""The samples and items of evaluation data that are explained: a reproducible choice, read without any picture.

Whole units are chosen: the clusters that the bootstrap of the evaluation draws, which by default are the items. Those
with the smallest hashes are kept, so that the choice depends neither on the order of the data nor on batches.
Legend: S samples, U images of a batch, I items (distinct images), P pictures of an item.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from easyrec_mm.data.batch import Batch, InputBatch
from easyrec_mm.data.input import Input
from easyrec_mm.data.vector_bank import NO_BANKS, Plan, VectorBank
from easyrec_mm.evaluation.evaluator import as_arrays
from easyrec_mm.evaluation.plan import EvalPlan
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import IMAGE, TEXT, Schema
from easyrec_mm.stable_hash import Hashes, hash_array, mix, seeded

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Features = dict[str, tf.Tensor | tf.RaggedTensor]

# Seed of the hashes by which units and items are chosen: another one than those of replicates usually have.
_SEED = 0x5A3D
_NO_KEYS = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Limits:
    """How much is explained: at most so many samples, the pictures of their items, and so many of all pictures."""

    num_samples: int = 20_000
    num_pictures: int = 5_000


@dataclass(frozen=True)
class Item:
    """An image of the data: its key, the paths of its pictures for PictureLoader, and values of its first sample.

    key       equal only for the same content of the image field and category, and the same text
    paths     one path, several, or none
    category  id that the image tower takes in addition to the picture; 0 if it takes none
    field     value of the field by which items are told apart on pages; "" without one
    contents  kind -> its other contents: a text, a vector as float32 `[numbers]`
    """

    key: int
    paths: tuple[bytes, ...]
    category: int
    field: str
    contents: Mapping[str, Any]

    @property
    def text(self) -> str:
        """Return its text; "" without one."""
        return str(self.contents.get(TEXT, ""))

    @property
    def size(self) -> int:
        """Return how much of the limit of pictures it takes; an item without a picture takes as much as one."""
        return max(len(self.paths), any(is_something(content) for content in self.contents.values()))


@dataclass(frozen=True)
class Samples:
    """Samples with their features, without pictures.

    features  feature name -> values, as in Batch
    labels    label name -> float32 [S]
    fields    field name -> [S], the fields that were kept
    item      int64 [S]: sample -> its item in ReadSamples.items; 0 for a model without pictures
    number    int64 [S]: number of the sample in the evaluation data, from 0
    """

    features: Features
    labels: dict[str, Array]
    fields: dict[str, Array]
    item: Ints
    number: Ints

    def __len__(self) -> int:
        return len(self.number)

    def rows(self, rows: Ints | list[int]) -> Features:
        """Return the features of these samples."""
        return take(self.features, np.asarray(rows, np.int64))


class ReadSamples(NamedTuple):
    """What was read of the evaluation data.

    samples      the chosen samples
    asked        the samples that were asked for, by ascending number
    items        the items of all these, and further ones up to the limit
    num_samples  number of samples in the evaluation data
    num_items    number of items in the evaluation data
    """

    samples: Samples
    asked: Samples
    items: tuple[Item, ...]
    num_samples: int
    num_items: int


def take(features: Mapping[str, tf.Tensor | tf.RaggedTensor], rows: Ints) -> Features:
    """Return these rows of the values of features."""
    return {name: tf.gather(value, rows) for name, value in features.items()}


def explained_plan(config: EasyRecConfig, schema: Schema) -> EvalPlan:
    """Return the config's plan of an evaluation with intervals, but without slices."""
    without_slices = EasyRecConfig()
    without_slices.CopyFrom(config)
    without_slices.eval_config.ClearField("slices")
    return EvalPlan(without_slices, schema, True, lambda field: (_NO_KEYS, np.zeros(0, np.int64)))


def read_samples(
    inputs: Input,
    schema: Schema,
    plan: EvalPlan,
    limits: Limits,
    shown_field: str = "",
    asked: Collection[int] = (),
    num_read: int | None = None,
) -> ReadSamples:
    """Read the evaluation data once, and keep a choice of their samples and items.

    Args:
      inputs: the evaluation data, with the fields of the plan and `shown_field` kept.
      schema: the schema of the config.
      plan: result of `explained_plan`, whose clusters are kept or left out as a whole.
      limits: how much to keep.
      shown_field: field of items by which they are told apart on pages; "" for none.
      asked: numbers of samples to keep in any case.
      num_read: number of samples after which reading ends; by default all are read.

    Raises:
      DataError: if the data cannot be read.
    """
    has_unit = plan.cluster_field in plan.fields and plan.cluster_field != schema.image.field
    unit = plan.cluster_field if has_unit else ""
    chosen, of_asked = _Chosen(limits, unit), _Pieces()
    items = _Items(limits.num_pictures, shown_field)
    asked_numbers = np.array(sorted(asked), np.int64)
    banks = {IMAGE: _NoPictures(1)} if schema.uses_image else NO_BANKS
    number = 0
    for batch in inputs.batches(banks_of=lambda step: banks):
        if not batch.batch.num_samples:
            continue
        of_batch = list(items.of_batch(batch))
        items.add(of_batch)
        piece = _piece(batch, of_batch, number, chosen.units(batch, of_batch))
        if num_read is not None and number + len(piece.number) > num_read:
            piece = piece.at(np.arange(num_read - number))
        number += len(piece.number)
        rows = np.flatnonzero(np.isin(piece.number, asked_numbers))
        if len(rows):
            of_asked.add(piece.at(rows))
        chosen.add(piece)
        if number == num_read:
            break
    chosen.prune()
    used = {item.key: item for pieces in (chosen, of_asked) for item in pieces.items()}
    kept = {item.key: item for item in items.kept()} | used
    place = {key: i for i, key in enumerate(kept)}
    return ReadSamples(chosen.joined(place), of_asked.joined(place), tuple(kept.values()), number, items.number)


class _NoPictures(VectorBank):
    """A bank by which batches are read without loading their pictures."""

    def plan(self, keys: list[bytes], step: int) -> Plan:
        return Plan(np.zeros(len(keys), np.int32), np.zeros(0, np.int32))


class _Items:
    """The items with the smallest hashes that have at most so many pictures, and the number of all."""

    def __init__(self, num_pictures: int, shown_field: str) -> None:
        self._num_pictures, self._shown_field = num_pictures, shown_field
        self._items: dict[int, Item] = {}
        self._keys: set[int] = set()

    def of_batch(self, item: InputBatch) -> Iterator[Item]:
        """Yield the items of a batch in the order of its images."""
        images = item.batch.images
        keys = images.key.numpy().tolist()
        if not keys:
            return
        category = images.category.numpy()
        paths: list[list[int]] = [[] for _ in keys]
        for picture, image in zip(images.link_picture.numpy(), images.link_image.numpy(), strict=True):
            paths[image].append(int(picture))
        first = np.unique(item.batch.sample_image.numpy(), return_index=True)[1]
        texts = [""] * len(keys)
        if self._shown_field:
            texts = [as_text(value) for value in tf.gather(item.kept_fields[self._shown_field], first).numpy()]
        contents = _contents_of_images(item.batch)
        for key, pictures, text, content in zip(keys, paths, texts, contents, strict=True):
            number = int(category[pictures[0]]) if pictures else 0
            yield Item(key, tuple(item.picture_path[picture] for picture in pictures), number, text, content)

    def add(self, items: list[Item]) -> None:
        """Count the items of a batch, and keep those with the smallest hashes."""
        for item in items:
            self._keys.add(item.key)
            if item.size:
                self._items.setdefault(item.key, item)
        if len(self._items) > 2 * self._num_pictures:
            self._items = {item.key: item for item in self.kept()}

    def kept(self) -> list[Item]:
        """Return the chosen items by ascending hash; each has a picture or another content."""
        items = list(self._items.values())
        hashes = _hashes(np.array([item.key for item in items], np.int64).view(np.uint64))
        order = np.argsort(hashes, kind="stable")
        num_pictures = np.cumsum([items[i].size for i in order])
        return [items[i] for i in order[num_pictures <= self._num_pictures]]

    @property
    def number(self) -> int:
        """Return the number of all items."""
        return len(self._keys)


@dataclass
class _Piece:
    """Samples of a batch, with the hash of the unit of each; `items` are those of the whole batch, by key."""

    features: Features
    labels: dict[str, Array]
    fields: dict[str, tf.Tensor]  # not arrays, in which each text would be an object
    hashes: Hashes
    number: Ints
    item_key: Ints  # [n], or empty for a model without pictures
    items: dict[int, Item]

    def at(self, rows: Ints) -> _Piece:
        """Return these rows."""
        return replace(
            self,
            features=take(self.features, rows),
            labels={name: values[rows] for name, values in self.labels.items()},
            fields=take(self.fields, rows),
            hashes=self.hashes[rows],
            number=self.number[rows],
            item_key=self.item_key[rows] if len(self.item_key) else self.item_key,
        )


def _piece(item: InputBatch, items: list[Item], first: int, hashes: Hashes) -> _Piece:
    """Return the samples of a batch, which are numbered from `first`."""
    batch: Batch = item.batch
    keys = np.array([each.key for each in items], np.int64)
    return _Piece(
        features=dict(batch.features),
        labels=as_arrays(batch.labels),
        fields=item.kept_fields,
        hashes=hashes,
        number=np.arange(first, first + batch.num_samples),
        item_key=keys[batch.sample_image.numpy()] if items else keys,
        items={each.key: each for each in items},
    )


class _Pieces:
    """Samples of several batches."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []

    def add(self, piece: _Piece) -> None:
        """Add samples of a batch."""
        if len(piece.number):
            self._pieces.append(piece)

    def items(self) -> Iterator[Item]:
        """Yield the items of the samples, some of them several times."""
        for piece in self._pieces:
            for key in np.unique(piece.item_key).tolist():
                yield piece.items[key]

    def joined(self, place: Mapping[int, int]) -> Samples:
        """Return the samples; `place` is key of an item -> its index."""
        pieces = self._pieces
        features = _together([piece.features for piece in pieces])
        number = _concatenated([piece.number for piece in pieces])
        keys = _concatenated([piece.item_key for piece in pieces])
        return Samples(
            features=features,
            labels=as_arrays(_together([piece.labels for piece in pieces])),
            fields=as_arrays(_together([piece.fields for piece in pieces])),
            item=np.array([place[key] for key in keys.tolist()], np.int64) if len(keys) else np.zeros_like(number),
            number=number,
        )


class _Chosen(_Pieces):
    """The samples of the units with the smallest hashes; of a single unit that is too large, its first samples."""

    def __init__(self, limits: Limits, unit_field: str) -> None:
        super().__init__()
        self._limits, self._unit_field = limits, unit_field
        self._limit: np.uint64 | None = None  # units from this hash on are left out
        self._num_groups = 0

    def add(self, piece: _Piece) -> None:
        """Keep the samples of a batch that belong to the chosen units."""
        super().add(piece if self._limit is None else piece.at(np.flatnonzero(piece.hashes < self._limit)))
        if sum(len(each.number) for each in self._pieces) > 2 * self._limits.num_samples:
            self.prune()

    def units(self, item: InputBatch, items: list[Item]) -> Hashes:
        """Return the hash of the unit of each sample, uint64 `[S]`: by a field, by item, or by group."""
        if self._unit_field:
            return _hashes(hash_array(item.kept_fields[self._unit_field].numpy()))
        if items:
            keys = np.array([each.key for each in items], np.int64).view(np.uint64)
            of_samples: Hashes = _hashes(keys)[item.batch.sample_image.numpy()]
            return of_samples
        sizes = item.origin.numpy()[2]
        groups = np.repeat(np.arange(self._num_groups, self._num_groups + len(sizes), dtype=np.uint64), sizes)
        self._num_groups += len(sizes)
        return _hashes(groups)

    def prune(self) -> None:
        """Leave out the units with the largest hashes, until the rest is within the limits."""
        hashes = np.concatenate([piece.hashes for piece in self._pieces] or [_NO_KEYS])
        order = np.argsort(hashes, kind="stable")
        is_within = np.arange(len(order)) < self._limits.num_samples
        is_within &= np.cumsum(self._pictures(order)) <= self._limits.num_pictures
        if is_within.all():
            return
        cut = int(np.argmin(is_within))
        self._limit = hashes[order[cut]]
        rows = np.flatnonzero(hashes < self._limit)
        if not len(rows):
            rows = np.sort(order[: max(1, cut)])
            above = hashes[hashes > self._limit]
            self._limit = above.min() if len(above) else None
        start, pieces = 0, []
        for piece in self._pieces:
            end = start + len(piece.number)
            of_piece = rows[(rows >= start) & (rows < end)] - start
            if len(of_piece):
                pieces.append(piece.at(of_piece))
            start = end
        self._pieces = pieces

    def _pictures(self, order: Ints) -> Ints:
        """Return how many pictures each row adds to those of the rows before it, in an order of the rows."""
        keys = _concatenated([piece.item_key for piece in self._pieces])
        added = np.zeros(len(order), np.int64)
        if len(keys):
            by_key = {key: item.size for piece in self._pieces for key, item in piece.items.items()}
            distinct, first = np.unique(keys[order], return_index=True)
            added[first] = [by_key[key] for key in distinct.tolist()]
        return added


def is_something(content: Any) -> bool:
    """Return whether a content is something: a text that is not empty, numbers that are not all 0."""
    return bool(content) if isinstance(content, str) else bool(np.any(content))


def _contents_of_images(batch: Batch) -> list[dict[str, Any]]:
    """Return the contents, other than pictures, of each image of a batch, which encodes all of them: `[U]`."""
    columns: dict[str, list[Any]] = {}
    for kind, contents in batch.contents.items():
        values = tf.gather(tf.gather(contents.values, tf.argsort(contents.encoded)), contents.of_image).numpy()
        columns[kind] = [as_text(value) if isinstance(value, bytes) else value for value in values]
    return [{kind: column[i] for kind, column in columns.items()} for i in range(batch.num_images)]


def as_text(value: bytes | float) -> str:
    """Return the value of a field as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else f"{value:g}"


def _hashes(values: Hashes) -> Hashes:
    return seeded(mix(values), _SEED)


def _together(parts: Sequence[Mapping[str, Any]]) -> Features:
    """Return the values of several batches, one behind the other."""
    return {name: tf.concat([part[name] for part in parts], 0) for name in parts[0]} if parts else {}


def _concatenated(parts: list[Ints]) -> Ints:
    return np.concatenate(parts or [np.zeros(0, np.int64)])
