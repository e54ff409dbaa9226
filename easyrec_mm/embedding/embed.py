"""Offline embedding: applies the image model to the pictures of items, and writes the vectors to a store.

Each batch is read and decoded in threads by the model's own `decode`, embedded, and written durably before the next
one is written, so that a killed run continues where it stopped. A bad picture is marked as absent and listed; it never
becomes a vector of zeros.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.data.packed_pictures import PackedPictures, path_in
from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.embedding.image_model import ImageModel
from easyrec_mm.embedding.items import Item
from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote, naming, plain, put, written_at
from easyrec_mm.files.local_copies import local_copies
from easyrec_mm.runs.progress import PictureProgress
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.schema import Schema
from easyrec_mm.store import Record, Store
from easyrec_mm.store.generations import Generation, Tasks, VectorDtype
from easyrec_mm.store.records import NO_CONTENT, content_hash
from easyrec_mm.tasks import Task

Refresh = Literal["new", "changed", "all"]
_LOOKED_UP_AT_A_TIME = 1000
_PIXELS_AT_A_TIME = 64 * 224 * 224


@dataclass(frozen=True)
class EmbedResult:
    """Numbers of items embedded, unchanged and without valid pictures; the generation, and what it waits for until it
    becomes current, or ""; items per second.
    """

    embedded: int
    unchanged: int
    bad: int
    generation: int
    per_s: float
    waits_for: str = ""


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
    batch_size: int = 0
    max_bad_share: float = 0.1
    task: Task | None = None


class Written(NamedTuple):
    """The result for some items, and the first bad picture; "" if all were good."""

    result: EmbedResult
    first_bad: str


class _Loaded(NamedTuple):
    """A batch ready for the tower.

    items           K items to embed
    hashes          [K], the hash of the content of each
    pixels          uint8 [N, H, W, C], of all their pictures
    owner           int64 [N]: which of the K items each picture belongs to
    absent          items without a valid picture, and the hashes of their content
    bad             (item, path, problem) of each bad picture
    num_unchanged   number of items that need no new vector
    """

    items: list[Item]
    hashes: list[bytes]
    pixels: np.ndarray
    owner: np.ndarray
    absent: list[tuple[Item, bytes]]
    bad: list[tuple[Item, str, str]]
    num_unchanged: int


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
        tasks = Tasks(task.num, _description(items))
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
    progress = PictureProgress("embed", len(items))
    started = time.perf_counter()
    threads = os.cpu_count() or 1
    batches = _to_load(store, generation, items, options.refresh, batch_size)
    with ThreadPoolExecutor(threads) as readers:
        loaded = _ahead(readers, batches, loader.load, threads + 2)
        counts, first_bad = _embed_batches(model, store, generation, loaded, bad_list, progress)
    progress.close()
    per_s = (counts["embedded"] + counts["bad"]) / (time.perf_counter() - started)
    result = EmbedResult(counts["embedded"], counts["unchanged"], counts["bad"], generation.number, per_s)
    return generation, Written(result, first_bad)


def _description(items: Sequence[Item]) -> str:
    """Return a text that is the same for tasks that divide the same items."""
    checksum = 0
    for item in items:
        checksum = zlib.crc32(f"{item.key}\n".encode(), checksum)
    return f"{len(items)} items ({checksum:08x})"


def _embed_batches(
    model: ImageModel,
    store: Store,
    generation: Generation,
    batches: Iterable[_Loaded],
    bad_list: TextIO,
    progress: PictureProgress,
) -> tuple[dict[str, int], str]:
    """Embed batches, each while the one before is written; return numbers of items, and the first bad picture."""
    counts = {"embedded": 0, "unchanged": 0, "bad": 0}
    first_bad = ""
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for loaded in batches:
            records = _records(model, loaded)
            for item, path, problem in loaded.bad:
                first_bad = first_bad or f"{path} {problem}"
                line = json.dumps({"key": item.key, "path": path, "problem": problem})
                bad_list.write(hide_secrets(line) + "\n")
            bad_list.flush()
            if writing is not None:
                writing.result()
            writing = writer.submit(store.put_many, generation, records) if records else None
            counts["embedded"] += len(loaded.items)
            counts["unchanged"] += loaded.num_unchanged
            counts["bad"] += len(loaded.absent)
            progress.add(len(loaded.items) + len(loaded.absent) + loaded.num_unchanged)
        if writing is not None:
            writing.result()
    return counts, first_bad


def require_valid(written: Written, options: EmbedOptions, store: str) -> None:
    """Check that not too many items are without a valid picture.

    Raises:
      UserError: if they are.
    """
    result, first_bad = written
    num_items = result.embedded + result.unchanged + result.bad
    if result.bad and (result.bad > options.max_bad_share * num_items or result.bad == num_items):
        raise UserError(
            f"{result.bad} of {num_items} items have no valid picture, more than --max_bad_share "
            f"({options.max_bad_share}); generation {result.generation} of {store} was not made current. Check "
            f"--image_root and the list {options.bad_pictures}. The first: {first_bad}"
        )


def _records(model: ImageModel, loaded: _Loaded) -> list[Record]:
    """Embed a batch; return the records to write."""
    records = [Record(item.key, None, hash_, int(time.time())) for item, hash_ in loaded.absent]
    if loaded.items:
        vectors = model.embed(loaded.pixels, _values(loaded.items, model.manifest.schema), loaded.owner)
        now = int(time.time())
        for item, vector, hash_ in zip(loaded.items, vectors, loaded.hashes, strict=True):
            records.append(Record(item.key, vector, hash_, now))
    return records


def _to_load(
    store: Store, generation: Generation, items: Sequence[Item], refresh: Refresh, batch_size: int
) -> Iterator[tuple[list[Item], list[bytes | None], int]]:
    """Yield batches of items to load, their hashes in the store, and the number of items skipped as done."""
    waiting: list[tuple[Item, bytes | None]] = []
    num_done = 0
    remaining = iter(items)
    while portion := list(islice(remaining, _LOOKED_UP_AT_A_TIME)):
        hashes: list[bytes | None] = [None] * len(portion)
        if refresh != "all":
            # What is marked as absent is tried again, because the picture may be there now.
            hashes = store.hashes(generation, [item.key for item in portion], with_absent=refresh == "changed")
        for item, hash_ in zip(portion, hashes, strict=True):
            if refresh == "new" and hash_ is not None:
                num_done += 1
            else:
                waiting.append((item, hash_))
        while len(waiting) >= batch_size:
            yield *_columns(waiting[:batch_size]), num_done
            waiting, num_done = waiting[batch_size:], 0
        if num_done:
            yield [], [], num_done
            num_done = 0
    if waiting:
        yield *_columns(waiting), 0


def _columns(pairs: list[tuple[Item, bytes | None]]) -> tuple[list[Item], list[bytes | None]]:
    return [item for item, _ in pairs], [hash_ for _, hash_ in pairs]


class _Loader:
    """Reads and decodes batches."""

    def __init__(self, model: ImageModel, image_root: str, refresh: Refresh) -> None:
        reader = PictureReader(image_root, packed=PackedPictures(local_copies()))
        self._pictures = PictureLoader(model.manifest.schema.image, reader, model.decode)
        self._schema = model.manifest.schema
        self._paths = model.paths
        self._refresh = refresh

    def load(self, batch: tuple[list[Item], list[bytes | None], int]) -> _Loaded:
        """Load items, and select the ones to embed by comparison with their stored hashes."""
        items, stored_hashes, num_done = batch
        pictures = [(row, path) for row, item in enumerate(items) for path in self._paths_of(item)]
        contents, unreadable = self._pictures.read([_place(items[row], path) for row, path in pictures])
        hashes = self._hashes(items, pictures, contents, unreadable)
        chosen_rows = {
            row for row in range(len(items)) if self._refresh != "changed" or hashes[row] != stored_hashes[row]
        }
        chosen = [i for i, (row, _) in enumerate(pictures) if row in chosen_rows]
        problems = {at: unreadable[i] for at, i in enumerate(chosen) if i in unreadable}
        loaded = self._pictures.decode([contents[i] for i in chosen], problems) if chosen else None
        all_problems = loaded.problems if loaded else {}
        good = [at for at in range(len(chosen)) if at not in all_problems]
        row_of_good = np.array([pictures[chosen[at]][0] for at in good], np.int64)
        with_text = [row for row in sorted(chosen_rows) if self._has_text(items[row])]
        rows = np.unique([*row_of_good.tolist(), *with_text]).astype(np.int64)
        owner = np.searchsorted(rows, row_of_good)
        pixels = loaded.pixels.numpy() if loaded else np.zeros((0, 1, 1, 1), np.uint8)
        bad = [(*pictures[chosen[at]], problem) for at, problem in all_problems.items()]
        return _Loaded(
            items=[items[row] for row in rows],
            hashes=[hashes[row] for row in rows],
            pixels=pixels if len(good) == len(chosen) else pixels[good],
            owner=owner,
            absent=[(items[row], hashes[row]) for row in sorted(chosen_rows.difference(rows.tolist()))],
            bad=[(items[row], path, problem) for row, path, problem in bad],
            num_unchanged=num_done + len(items) - len(chosen_rows),
        )

    def _paths_of(self, item: Item) -> list[str]:
        """Return the paths of an item's pictures; "" for an item that should have one and names none."""
        paths = [path for path in self._paths(item.path) if path]
        return paths or ([] if self._has_text(item) else [""])

    def _has_text(self, item: Item) -> bool:
        """Return whether an item's text is enough to embed it, without a picture."""
        return self._schema.is_text_enough(dict(zip(self._schema.image_fields(), item.fields, strict=True)))

    def _hashes(
        self,
        items: list[Item],
        pictures: list[tuple[int, str]],
        contents: list[bytes],
        unreadable: dict[int, str],
    ) -> list[bytes]:
        """Return the hash of each item's content: the contents of its readable pictures, and its category."""
        parts: list[list[bytes]] = [[] for _ in items]
        for i, (row, _) in enumerate(pictures):
            if i not in unreadable:
                parts[row].append(contents[i])
        return [hash_of_item(part, item.fields, self._has_text(item)) for item, part in zip(items, parts, strict=True)]


def hash_of_item(pictures: Sequence[bytes], fields: Sequence[str], has_text: bool = False) -> bytes:
    """Return the hash of an item's content: its readable pictures, and the texts of the model's other inputs.

    Without pictures an item has no content, unless its text is enough.
    """
    if not pictures and not has_text:
        return NO_CONTENT
    if len(pictures) == 1 and not fields:
        return content_hash(pictures[0])
    return content_hash(b"".join([*map(content_hash, pictures), *(text.encode() for text in fields)]))


def _place(item: Item, path: str) -> bytes:
    """Return where the reader of pictures finds one of an item's pictures."""
    return path_in(item.tar, os.fsencode(path)) if item.tar else os.fsencode(path)


def _values(items: Sequence[Item], schema: Schema) -> dict[str, Sequence[Any]]:
    """Return the values of the fields that the image model takes, by name."""
    return {
        name: [schema.field(name).value(item.fields[i]) for item in items]
        for i, name in enumerate(schema.image_fields())
    }


def _ahead(
    pool: ThreadPoolExecutor,
    batches: Iterator[tuple[list[Item], list[bytes | None], int]],
    load: Callable[[tuple[list[Item], list[bytes | None], int]], _Loaded],
    num_ahead: int,
) -> Iterator[_Loaded]:
    """Yield loaded batches in order, with up to `num_ahead` of them loaded in advance."""
    pending: deque[Future[_Loaded]] = deque()
    for batch in batches:
        pending.append(pool.submit(load, batch))
        if len(pending) > num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def open_list(path: str, refused: Sequence[BadRecord]) -> Iterator[TextIO]:
    """Yield a file that lists these groups, to write bad pictures to; closed, it is uploaded or, if empty, removed."""
    place = written_at(path) if is_remote(path) else Path(plain(path))
    try:
        file = place.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--bad_pictures {path}: cannot be written: {error.strerror}") from error
    try:
        with naming(path), file:
            file.writelines(hide_secrets(json.dumps(asdict(record))) + "\n" for record in refused)
            yield file
    finally:
        if is_remote(path):
            put(place, path)
        elif place.is_file() and not place.stat().st_size:
            place.unlink()
