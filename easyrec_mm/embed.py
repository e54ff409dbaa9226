"""Offline embedding: the image model over every picture of some items, into a store.

Each batch is read and decoded in threads by the model's own `decode`, embedded, and written for good before the next
one is: a run that is killed goes on where it was. A bad picture is marked absent and listed, never a vector of zeros.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import numpy as np
import onnxruntime
import tensorflow as tf

from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.errors import ExportError, UserError
from easyrec_mm.items import Item
from easyrec_mm.manifest import DECODE, DEFAULT, IMAGE_ONNX, IMAGE_VECTOR, PIXELS, Manifest, read_manifest
from easyrec_mm.progress import PictureProgress
from easyrec_mm.store import Record, Store
from easyrec_mm.store.base import HASH_BYTES, Generation, VectorDtype, content_hash

Refresh = Literal["new", "changed", "all"]
Runtime = Literal["auto", "onnx", "tensorflow"]
NO_CONTENT = bytes(HASH_BYTES)
_TRIALS, _TRIAL_PICTURES = 3, 64
_LOOKED_UP_AT_A_TIME = 1000
_PIXELS_AT_A_TIME = 64 * 224 * 224


@dataclass(frozen=True)
class EmbedResult:
    """Pictures embedded, found as they were, and bad; the generation that is current now; pictures a second."""

    embedded: int
    unchanged: int
    bad: int
    generation: int
    per_s: float


class _Loaded(NamedTuple):
    """A batch ready for the tower: items to embed with their pixels, bad ones, and how many stay as they are."""

    items: list[Item]
    hashes: list[bytes]
    pixels: np.ndarray  # uint8 [N, H, W, C]
    bad: list[tuple[Item, bytes, str]]
    num_unchanged: int


class ImageModel:
    """An exported image model: decodes pictures and embeds pixels, by the faster of its runtimes.

    Raises:
      ExportError: if the folder holds none.
    """

    def __init__(self, folder: str, runtime: Runtime = "auto") -> None:
        self.manifest: Manifest = read_manifest(folder, "image")
        self._input = self.manifest.image_input
        try:
            self._signatures = tf.saved_model.load(folder).signatures
            options = onnxruntime.SessionOptions()
            self._session = onnxruntime.InferenceSession(
                str(Path(folder) / IMAGE_ONNX), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # each runtime has its own kinds
            raise ExportError(f"{folder}: the image model cannot be loaded: {error}") from error
        self._runtimes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "onnx": lambda pixels: self._session.run([IMAGE_VECTOR], {self._input: pixels})[0],
            "tensorflow": lambda pixels: self._signatures[DEFAULT](**{self._input: tf.constant(pixels)})[
                IMAGE_VECTOR
            ].numpy(),
        }
        self.runtime: str = runtime

    def decode(self, contents: tf.Tensor) -> tf.Tensor:
        """Contents of files, string `[N]` -> uint8 `[N, H, W, C]`; see data/decode.py."""
        return self._signatures[DECODE](**{self._input: contents})[PIXELS]

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `[N, H, W, C]` -> float32 `[N, D]`."""
        numbers = pixels.astype(np.float32)
        if self.runtime == "auto":
            self.runtime = min(self._runtimes, key=lambda name: self._seconds(name, numbers[:_TRIAL_PICTURES]))
        return self._runtimes[self.runtime](numbers)

    def _seconds(self, runtime: str, pixels: np.ndarray) -> float:
        times = []
        for _ in range(_TRIALS):
            start = time.perf_counter()
            self._runtimes[runtime](pixels)
            times.append(time.perf_counter() - start)
        return min(times)


class PictureEmbedder:
    """Keys of pictures -> vectors by an image model, for a server whose store lacks them.

    Args:
      folder: an exported image model.
      image_root: folder that the keys, which are paths, start from; with one, a key that leads out of it is not read,
        for keys come from requests.

    Raises:
      ExportError: if the folder holds no image model.
    """

    def __init__(self, folder: str, image_root: str = "") -> None:
        self._model = ImageModel(folder)
        self.fingerprint = self._model.manifest.image_tower_fingerprint
        image = self._model.manifest.schema.image
        # Chooses the runtime now, not while a request waits.
        self._model.embed(np.zeros((1, image.height, image.width, image.channels), np.uint8))
        self._has_root = bool(image_root)
        self._pictures = PictureLoader(image, image_root, self._model.decode)

    def __call__(self, keys: list[str]) -> list[np.ndarray | None]:
        """Vectors `[D]`, None for a picture that cannot be had."""
        vectors: dict[str, np.ndarray] = {}
        allowed = [key for key in keys if not (self._has_root and _leads_out(key))]
        if allowed:
            pixels, problems = self._pictures.load([os.fsencode(key) for key in allowed])
            good = [row for row in range(len(allowed)) if row not in problems]
            if good:
                found = self._model.embed(pixels.numpy()[good])
                vectors = {allowed[row]: vector for row, vector in zip(good, found, strict=True)}
        return [vectors.get(key) for key in keys]


def embed(
    model: ImageModel,
    items: Sequence[Item],
    store: Store,
    bad_pictures: str,
    refresh: Refresh = "new",
    dtype: VectorDtype = "float32",
    image_root: str = "",
    batch_size: int = 0,
    num_threads: int = 0,
) -> EmbedResult:
    """Write the vectors of items' pictures into a store and make them current.

    Args:
      model: the image model.
      items: what to embed; of two with the same key, the first.
      store: where to, open for writing.
      bad_pictures: file to list bad pictures in, a JSON line each.
      refresh: "new": what the store does not have; "changed": also pictures whose content is another; "all".
      dtype: number format of the stored vectors.
      image_root: folder that relative paths start from.
      batch_size: pictures at a time; 0: 64 of 224 x 224, more of smaller ones, up to 256.
      num_threads: threads that read and decode; 0: one a core.

    Raises:
      StoreError: if the store cannot be written.
      UserError: if the list of bad pictures cannot be.
    """
    manifest = model.manifest
    image = manifest.schema.image
    batch_size = batch_size or max(64, min(256, _PIXELS_AT_A_TIME // (image.height * image.width)))
    generation = store.begin(manifest.image_tower_fingerprint, manifest.image_width, dtype)
    loader = _Loader(model, image_root, refresh)
    embedded = unchanged = bad = 0
    progress = PictureProgress("embed", len(items))
    started = time.perf_counter()
    threads = num_threads or os.cpu_count() or 1
    with _open_list(bad_pictures) as bad_list, ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for loaded in _ahead(
            readers, _to_load(store, generation, items, refresh, batch_size), loader.load, threads + 2
        ):
            records = [Record(item.key, None, hash_, int(time.time())) for item, hash_, _ in loaded.bad]
            if loaded.items:
                vectors = model.embed(loaded.pixels)
                now = int(time.time())
                for item, vector, hash_ in zip(loaded.items, vectors, loaded.hashes, strict=True):
                    records.append(Record(item.key, vector, hash_, now))
            for item, _, problem in loaded.bad:
                bad_list.write(json.dumps({"key": item.key, "path": item.path, "problem": problem}) + "\n")
            bad_list.flush()
            if writing is not None:
                writing.result()
            writing = writer.submit(store.put_many, generation, records) if records else None
            embedded += len(loaded.items)
            unchanged += loaded.num_unchanged
            bad += len(loaded.bad)
            progress.add(len(loaded.items) + len(loaded.bad) + loaded.num_unchanged)
        if writing is not None:
            writing.result()
    progress.close()
    store.complete(generation)
    per_s = (embedded + bad) / (time.perf_counter() - started)
    return EmbedResult(embedded, unchanged, bad, generation.number, per_s)


def _to_load(
    store: Store, generation: Generation, items: Sequence[Item], refresh: Refresh, batch_size: int
) -> Iterator[tuple[list[Item], list[bytes | None], int]]:
    """Batches of items to look at, the hashes that the store has of them, and how many were left out as done."""
    waiting: list[tuple[Item, bytes | None]] = []
    num_done = 0
    rest = iter(items)
    while some := list(islice(rest, _LOOKED_UP_AT_A_TIME)):
        known = store.hashes(generation, [item.key for item in some]) if refresh != "all" else [None] * len(some)
        for item, hash_ in zip(some, known, strict=True):
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
        self._pictures = PictureLoader(model.manifest.schema.image, image_root, model.decode)
        self._refresh = refresh

    def load(self, batch: tuple[list[Item], list[bytes | None], int]) -> _Loaded:
        """Items and their known hashes -> what is to be embedded of them."""
        items, known, num_done = batch
        contents, unreadable = self._pictures.read([os.fsencode(item.path) for item in items])
        hashes = [NO_CONTENT if row in unreadable else content_hash(content) for row, content in enumerate(contents)]
        rows = [row for row in range(len(items)) if self._refresh != "changed" or hashes[row] != known[row]]
        problems = {i: unreadable[row] for i, row in enumerate(rows) if row in unreadable}
        loaded = self._pictures.decode([contents[row] for row in rows], problems) if rows else None
        found = loaded.problems if loaded else {}
        good = [i for i in range(len(rows)) if i not in found]
        pixels = loaded.pixels.numpy() if loaded else np.zeros((0, 1, 1, 1), np.uint8)
        return _Loaded(
            items=[items[rows[i]] for i in good],
            hashes=[hashes[rows[i]] for i in good],
            pixels=pixels if len(good) == len(rows) else pixels[good],
            bad=[(items[rows[i]], hashes[rows[i]], problem) for i, problem in found.items()],
            num_unchanged=num_done + len(items) - len(rows),
        )


def _ahead(
    pool: ThreadPoolExecutor,
    batches: Iterator[tuple[list[Item], list[bytes | None], int]],
    load: Callable[[tuple[list[Item], list[bytes | None], int]], _Loaded],
    num_ahead: int,
) -> Iterator[_Loaded]:
    """Loaded batches in order, some loaded ahead."""
    pending: deque[Future[_Loaded]] = deque()
    for batch in batches:
        pending.append(pool.submit(load, batch))
        if len(pending) > num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _open_list(path: str) -> TextIO:
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--bad_pictures {path}: cannot be written: {error.strerror}") from error


def _leads_out(key: str) -> bool:
    """Whether a path is not below the folder that it is joined to."""
    return key.startswith("/") or "://" in key or ".." in key.split("/")
