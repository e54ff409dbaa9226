"""Writes vectors of items to generations of stores, whatever computes them.

Each batch is loaded in threads, computed, and written durably before the next one is written, so that a killed run
continues where it stopped. What cannot be loaded is marked as absent and listed; it never becomes a vector of zeros.
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
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from numpy.typing import NDArray

from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.embedding.items import Item
from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote, naming, plain, put, written_at
from easyrec_mm.files.written_file import require_folder
from easyrec_mm.runs.progress import PictureProgress
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.store import Generation, Record, Store

Refresh = Literal["new", "changed", "all"]
_LOOKED_UP_AT_A_TIME = 1000


@dataclass(frozen=True)
class EmbedResult:
    """Numbers of items embedded, unchanged and without valid content; the generation, and what it waits for until it
    becomes current, or ""; items per second.
    """

    embedded: int
    unchanged: int
    bad: int
    generation: int
    per_s: float
    waits_for: str = ""


class Written(NamedTuple):
    """The result for some items, and what is wrong with the first bad content; "" if all were good."""

    result: EmbedResult
    first_bad: str


class ToLoad(NamedTuple):
    """A batch to load: items, the hash of each one's content in the stores, and how many items were skipped as done."""

    items: list[Item]
    stored_hashes: list[bytes | None]
    num_done: int


class Loaded(NamedTuple):
    """A batch ready to be computed.

    items           K items to embed
    hashes          [K], the hash of the content of each
    inputs          what the vectors are computed from
    absent          items without valid content, and the hashes of their content
    bad             (item, path, problem) of each bad content
    num_unchanged   number of items that need no new vector
    """

    items: list[Item]
    hashes: list[bytes]
    inputs: Any
    absent: list[tuple[Item, bytes]]
    bad: list[tuple[Item, str, str]]
    num_unchanged: int


class Target(NamedTuple):
    """A generation that is written."""

    store: Store
    generation: Generation


@dataclass(frozen=True)
class Work:
    """How items become vectors.

    name        name of the work, for its progress
    load        loads a batch; it is called in several threads
    compute     returns the vectors float32 `[K, D]` of a loaded batch, an array for each target
    batch_size  items per batch
    refresh     "new": items that a target lacks; "changed": also items with changed content; "all"
    unit        name of an item
    """

    name: str
    load: Callable[[ToLoad], Loaded]
    compute: Callable[[Loaded], Sequence[NDArray[Any]]]
    batch_size: int
    refresh: Refresh
    unit: str = "image"


def write_items(work: Work, items: Sequence[Item], targets: Sequence[Target], bad_list: TextIO) -> Written:
    """Write the vectors of items to generations, which are not made current; the result has the number of the first.

    Args:
      work: how items become vectors.
      items: the items, each key once.
      targets: where each of the vectors of an item is written.
      bad_list: file to which bad contents are written.

    Raises:
      StoreError: if a store cannot be written.
    """
    progress = PictureProgress(work.name, len(items), work.unit)
    started = time.perf_counter()
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as readers:
        loaded = _ahead(readers, _to_load(work, items, targets), work.load, threads + 2)
        counts, first_bad = _write_batches(work, loaded, targets, bad_list, progress)
    progress.close()
    per_s = (counts["embedded"] + counts["bad"]) / (time.perf_counter() - started)
    number = targets[0].generation.number
    return Written(EmbedResult(counts["embedded"], counts["unchanged"], counts["bad"], number, per_s), first_bad)


def description_of(items: Sequence[Item]) -> str:
    """Return a text that is the same for tasks that divide the same items."""
    checksum = 0
    for item in items:
        checksum = zlib.crc32(f"{item.key}\n".encode(), checksum)
    return f"{len(items)} items ({checksum:08x})"


def _write_batches(
    work: Work, batches: Iterable[Loaded], targets: Sequence[Target], bad_list: TextIO, progress: PictureProgress
) -> tuple[dict[str, int], str]:
    """Compute batches, each while the one before is written; return numbers of items, and the first bad content."""
    counts = {"embedded": 0, "unchanged": 0, "bad": 0}
    first_bad = ""
    writing: Future[None] | None = None

    def put(records: Sequence[list[Record]]) -> None:
        for target, own in zip(targets, records, strict=True):
            target.store.put_many(target.generation, own)

    with ThreadPoolExecutor(1) as writer:
        for loaded in batches:
            records = _records(work, loaded, len(targets))
            for item, path, problem in loaded.bad:
                first_bad = first_bad or f"{path} {problem}"
                line = json.dumps({"key": item.key, "path": path, "problem": problem})
                bad_list.write(hide_secrets(line) + "\n")
            bad_list.flush()
            if writing is not None:
                writing.result()
            writing = writer.submit(put, records) if records[0] else None
            counts["embedded"] += len(loaded.items)
            counts["unchanged"] += loaded.num_unchanged
            counts["bad"] += len(loaded.absent)
            progress.add(len(loaded.items) + len(loaded.absent) + loaded.num_unchanged)
        if writing is not None:
            writing.result()
    return counts, first_bad


def _records(work: Work, loaded: Loaded, num_targets: int) -> list[list[Record]]:
    """Compute a batch; return the records to write to each target."""
    absent = [Record(item.key, None, hash_, int(time.time())) for item, hash_ in loaded.absent]
    if not loaded.items:
        return [absent] * num_targets
    outputs = work.compute(loaded)
    now = int(time.time())

    def records(vectors: NDArray[Any]) -> list[Record]:
        rows = zip(loaded.items, vectors, loaded.hashes, strict=True)
        return absent + [Record(item.key, vector, hash_, now) for item, vector, hash_ in rows]

    return [records(vectors) for vectors in outputs]


def _to_load(work: Work, items: Sequence[Item], targets: Sequence[Target]) -> Iterator[ToLoad]:
    """Yield batches of items to load, their hashes in the stores, and the number of items skipped as done."""
    waiting: list[tuple[Item, bytes | None]] = []
    num_done = 0
    remaining = iter(items)
    while portion := list(islice(remaining, _LOOKED_UP_AT_A_TIME)):
        hashes: list[bytes | None] = [None] * len(portion)
        if work.refresh != "all":
            hashes = _hashes(targets, [item.key for item in portion], work.refresh)
        for item, hash_ in zip(portion, hashes, strict=True):
            if work.refresh == "new" and hash_ is not None:
                num_done += 1
            else:
                waiting.append((item, hash_))
        while len(waiting) >= work.batch_size:
            yield _batch(waiting[: work.batch_size], num_done)
            waiting, num_done = waiting[work.batch_size :], 0
        if num_done:
            yield ToLoad([], [], num_done)
            num_done = 0
    if waiting:
        yield _batch(waiting, 0)


def _hashes(targets: Sequence[Target], keys: Sequence[str], refresh: Refresh) -> list[bytes | None]:
    """Return the hash of each key that all targets have; None where one of them has none or another one."""
    # What is marked as absent is tried again, because the content may be there now.
    columns = [t.store.hashes(t.generation, keys, with_absent=refresh == "changed") for t in targets]
    return [row[0] if len(set(row)) == 1 else None for row in zip(*columns, strict=True)]


def _batch(pairs: list[tuple[Item, bytes | None]], num_done: int) -> ToLoad:
    return ToLoad([item for item, _ in pairs], [hash_ for _, hash_ in pairs], num_done)


def _ahead(
    pool: ThreadPoolExecutor, batches: Iterator[ToLoad], load: Callable[[ToLoad], Loaded], num_ahead: int
) -> Iterator[Loaded]:
    """Yield loaded batches in order, with up to `num_ahead` of them loaded in advance."""
    pending: deque[Future[Loaded]] = deque()
    for batch in batches:
        pending.append(pool.submit(load, batch))
        if len(pending) > num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def too_many_bad(result: EmbedResult, max_bad_share: float) -> str:
    """Return the beginning of a message if more items than allowed, or all, are without valid content; otherwise ""."""
    num_items = result.embedded + result.unchanged + result.bad
    if result.bad and (result.bad > max_bad_share * num_items or result.bad == num_items):
        return f"{result.bad} of {num_items} items"
    return ""


@contextmanager
def open_list(path: str, refused: Sequence[BadRecord], flag: str = "--bad_pictures") -> Iterator[TextIO]:
    """Yield a file that lists these groups, to write bad items to; closed, it is uploaded or, if empty, removed."""
    require_folder(path, flag)
    place = written_at(path) if is_remote(path) else Path(plain(path))
    try:
        file = place.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror}") from error
    try:
        with naming(path), file:
            write_refused(file, refused)
            yield file
    finally:
        if is_remote(path):
            put(place, path)
        elif place.is_file() and not place.stat().st_size:
            place.unlink()


def write_refused(file: TextIO, refused: Sequence[BadRecord]) -> None:
    """Write groups that are left out to a list of bad items, one JSON line each."""
    file.writelines(hide_secrets(json.dumps(asdict(record))) + "\n" for record in refused)
