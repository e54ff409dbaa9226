"""Offline embedding: applies the image model to the pictures of items, and writes the vectors to a store.

Pictures are read and decoded by the model's own `decode`; writing.py says how the vectors of batches are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TextIO

import numpy as np

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.data.packed_pictures import PackedPictures, path_in
from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.embedding.image_model import ImageModel
from easyrec_mm.embedding.items import Item
from easyrec_mm.embedding.writing import (
    EmbedResult,
    Loaded,
    Refresh,
    Target,
    ToLoad,
    Work,
    Written,
    description_of,
    open_list,
    too_many_bad,
    write_items,
)
from easyrec_mm.errors import UserError
from easyrec_mm.files.local_copies import local_copies
from easyrec_mm.ranges import NotNegative, Share
from easyrec_mm.schema import Schema
from easyrec_mm.store import Store
from easyrec_mm.store.generations import Generation, Tasks, VectorDtype
from easyrec_mm.store.records import NO_CONTENT, content_hash
from easyrec_mm.tasks import Task

_PIXELS_AT_A_TIME = 64 * 224 * 224


@dataclass(frozen=True)
class EmbedOptions:
    """How pictures are embedded.

    bad_pictures  file for the list of bad pictures, one JSON line each
    refresh       "new": items without a vector in the store; "changed": also items with changed content; "all"
    dtype         number format of the stored vectors
    image_root    folder to which relative paths refer
    batch_size    items per batch; 0: 64 for pictures of 224 x 224, more for smaller ones, up to 256
    max_bad_share  share of the items that may have no valid picture
    task          the task whose part of the items is embedded, if several divide them
    """

    bad_pictures: str
    refresh: Refresh = "new"
    dtype: VectorDtype = "float32"
    image_root: str = ""
    batch_size: NotNegative = 0
    max_bad_share: Share = 0.1
    task: Task | None = None


class _Inputs(NamedTuple):
    """The contents of a batch of K items.

    pixels   uint8 [N, H, W, C], the pictures
    owner    int64 [N], the item of each
    vectors  kind -> float32 [K, numbers], see ItemVectors
    """

    pixels: np.ndarray
    owner: np.ndarray
    vectors: dict[str, np.ndarray]


def embed(
    model: ImageModel, items: Sequence[Item], store: Store, options: EmbedOptions, refused: Sequence[BadRecord] = ()
) -> EmbedResult:
    """Write the vectors of items' pictures to a store, and make them current when all who write them are through.

    Args:
      model: the image model.
      items: the items to embed, each key once; with options.task, those of all tasks.
      store: the store to write to, open for writing.
      options: how pictures are embedded.
      refused: groups that were left out; they are listed with the bad pictures.

    Raises:
      StoreError: if the store cannot be written.
      UserError: if too many items have no valid picture, or the list of bad pictures cannot be written.
    """
    task, tasks = options.task, None
    if task:
        tasks = Tasks(task.num, description_of(items))
        items = [items[i] for i in task.part_of(len(items))]
    with open_list(options.bad_pictures, refused) as bad_list:
        generation, written = write_vectors(model, items, store, options, bad_list, tasks)
    require_valid(written, options, store.uri)
    return replace(written.result, waits_for=store.complete(generation, (task.index + 1, task.num) if task else None))


def write_vectors(
    model: ImageModel,
    items: Sequence[Item],
    store: Store,
    options: EmbedOptions,
    bad_list: TextIO,
    tasks: Tasks | None = None,
) -> tuple[Generation, Written]:
    """Write the vectors of items' pictures to a generation, which is not made current.

    Args:
      model, store, options: see embed.
      items: the items to embed.
      bad_list: file to which the bad pictures are written.
      tasks: see Store.begin.

    Raises:
      StoreError: if the store cannot be written.
    """
    manifest = model.manifest
    image = manifest.schema.image
    batch_size = options.batch_size or max(64, min(256, _PIXELS_AT_A_TIME // (image.height * image.width)))
    generation = store.begin(manifest.image_tower_fingerprint, manifest.image_width, options.dtype, tasks)
    loader = _Loader(model, options.image_root, options.refresh)

    def compute(loaded: Loaded) -> list[np.ndarray]:
        inputs: _Inputs = loaded.inputs
        values = _values(loaded.items, manifest.schema)
        return [model.embed(inputs.pixels, values, inputs.owner, inputs.vectors)]

    work = Work("embed", loader.load, compute, batch_size, options.refresh)
    return generation, write_items(work, items, [Target(store, generation)], bad_list)


def require_valid(written: Written, options: EmbedOptions, store: str) -> None:
    """Check that not too many items are without a valid picture.

    Raises:
      UserError: if they are.
    """
    result, first_bad = written
    if share := too_many_bad(result, options.max_bad_share):
        raise UserError(
            f"{share} have no valid picture, more than --max_bad_share "
            f"({options.max_bad_share}); generation {result.generation} of {store} was not made current. Check "
            f"--image_root and the list {options.bad_pictures}. The first: {first_bad}"
        )


class _Loader:
    """Reads and decodes batches."""

    def __init__(self, model: ImageModel, image_root: str, refresh: Refresh) -> None:
        reader = PictureReader(image_root, packed=PackedPictures(local_copies()))
        self._pictures = PictureLoader(model.manifest.schema.image, reader, model.decode)
        self._schema = model.manifest.schema
        self._vectors = model.vectors
        self._paths = model.paths
        self._refresh = refresh

    def load(self, batch: ToLoad) -> Loaded:
        """Load items, and select the ones to embed by comparison with their stored hashes."""
        items, stored_hashes, num_done = batch
        vectors = self._vectors.of_items(_values(items, self._schema), len(items))
        has_others = [self._is_without_picture(item, vectors, row) for row, item in enumerate(items)]
        pictures = [(row, path) for row, item in enumerate(items) for path in self._paths_of(item, has_others[row])]
        contents, unreadable = self._pictures.read([_place(items[row], path) for row, path in pictures])
        readable = [(row, contents[i]) for i, (row, _) in enumerate(pictures) if i not in unreadable]
        hashes = _hashes(items, readable, vectors, has_others)
        chosen_rows = {
            row for row in range(len(items)) if self._refresh != "changed" or hashes[row] != stored_hashes[row]
        }
        chosen = [i for i, (row, _) in enumerate(pictures) if row in chosen_rows]
        problems = {at: unreadable[i] for at, i in enumerate(chosen) if i in unreadable}
        loaded = self._pictures.decode([contents[i] for i in chosen], problems) if chosen else None
        all_problems = loaded.problems if loaded else {}
        good = [at for at in range(len(chosen)) if at not in all_problems]
        row_of_good = np.array([pictures[chosen[at]][0] for at in good], np.int64)
        others = [row for row in sorted(chosen_rows) if has_others[row]]
        rows = np.unique([*row_of_good.tolist(), *others]).astype(np.int64)
        owner = np.searchsorted(rows, row_of_good)
        pixels = loaded.pixels.numpy() if loaded else np.zeros((0, 1, 1, 1), np.uint8)
        pixels = pixels if len(good) == len(chosen) else pixels[good]
        bad = [(*pictures[chosen[at]], problem) for at, problem in all_problems.items()]
        return Loaded(
            items=[items[row] for row in rows],
            hashes=[hashes[row] for row in rows],
            inputs=_Inputs(pixels, owner, {kind: of_items[rows] for kind, of_items in vectors.items()}),
            absent=[(items[row], hashes[row]) for row in sorted(chosen_rows.difference(rows.tolist()))],
            bad=[
                (items[row], path, problem) for row, path, problem in bad + self._missing(items, vectors, chosen_rows)
            ],
            num_unchanged=num_done + len(items) - len(chosen_rows),
        )

    def _paths_of(self, item: Item, has_others: bool) -> list[str]:
        """Return the paths of an item's pictures; "" for an item that should have one and names none."""
        paths = [path for path in self._paths(item.path) if path]
        return paths or ([] if has_others else [""])

    def _is_without_picture(self, item: Item, vectors: Mapping[str, np.ndarray], row: int) -> bool:
        """Return whether an item can be embedded without a picture, by its other contents."""
        values = dict(zip(self._schema.image_fields(), item.fields, strict=True))
        for kind, feature in self._schema.stored_contents().items():
            if not vectors[kind][row].any():
                values[feature.inputs[0]] = ""  # a key without a vector is nothing
        return self._schema.is_without_picture(values)

    def _missing(
        self, items: Sequence[Item], vectors: Mapping[str, np.ndarray], rows: Iterable[int]
    ) -> list[tuple[int, str, str]]:
        """Return row, key and problem of each of these items whose vector is not in its store."""
        missing: list[tuple[int, str, str]] = []
        for kind, feature in self._schema.stored_contents().items():
            place = self._schema.image_fields().index(feature.inputs[0])
            without = [row for row in sorted(rows) if not vectors[kind][row].any() and items[row].fields[place]]
            problem = f"feature '{feature.name}': its store has no vector of this key"
            missing += [(row, items[row].fields[place], problem) for row in without]
        return missing


def _hashes(
    items: Sequence[Item],
    pictures: Sequence[tuple[int, bytes]],
    vectors: Mapping[str, np.ndarray],
    has_others: Sequence[bool],
) -> list[bytes]:
    """Return the hash of each item's content, given (row of the item, content) of each readable picture."""
    parts: list[list[bytes]] = [[] for _ in items]
    for row, content in pictures:
        parts[row].append(content)
    return [
        hash_of_item(parts[row], item.fields, has_others[row], b"".join(v[row].tobytes() for v in vectors.values()))
        for row, item in enumerate(items)
    ]


def hash_of_item(
    pictures: Sequence[bytes], fields: Sequence[str], has_others: bool = False, vectors: bytes = b""
) -> bytes:
    """Return the hash of an item's content: its readable pictures, the texts of the model's other inputs, vectors.

    Without pictures an item has no content, unless it has others than pictures.
    """
    if not pictures and not has_others:
        return NO_CONTENT
    if len(pictures) == 1 and not fields:
        return content_hash(pictures[0])
    return content_hash(b"".join([*map(content_hash, pictures), *(text.encode() for text in fields), vectors]))


def _place(item: Item, path: str) -> bytes:
    """Return where the reader of pictures finds one of an item's pictures."""
    return path_in(item.tar, os.fsencode(path)) if item.tar else os.fsencode(path)


def _values(items: Sequence[Item], schema: Schema) -> dict[str, Sequence[Any]]:
    """Return the values of the fields that the image model takes, by name."""
    return {
        name: [schema.field(name).value(item.fields[i]) for item in items]
        for i, name in enumerate(schema.image_fields())
    }
