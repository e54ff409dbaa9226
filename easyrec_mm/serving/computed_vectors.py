"""Computes the vectors of pictures that the store lacks, beside the requests that wait for them."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from numpy.typing import NDArray

from easyrec_mm.serving.picture_source import PictureSource
from easyrec_mm.serving.release import Embedder, Release

# Key of a picture, then the values of the embedder's fields.
Wanted = tuple[Any, ...]

_NUM_KEPT = 10_000
# Pictures that are read or wait to be embedded. Further ones are not begun: the queue would outlast all requests.
_MAX_BEGUN = 1_000
_MAX_PICTURES_OF_A_KEY, _MAX_WAITING_BYTES = 100, 256 << 20
_EMBEDDED_AT_A_TIME = 32
_CLOSING_S = 1.0
_LOG = logging.getLogger("easyrec_mm.serving")


class _Read(NamedTuple):
    """A picture that was read and is to be embedded."""

    embedder: Embedder
    wanted: Wanted
    contents: Sequence[bytes]
    vector: asyncio.Future[NDArray[Any] | None]


class ComputedVectors:
    """Reads pictures in an event loop of its own, and embeds them one batch after another in a thread.

    A request waits until its pictures are embedded, but not longer than `timeout_s`; it takes what is ready then, and
    the others are completed for later requests. All data here belong to the event loop.

    Args:
      pictures: reads the pictures.
      timeout_s: seconds that a request waits.
    """

    def __init__(self, pictures: PictureSource, timeout_s: float) -> None:
        self._pictures, self._timeout_s = pictures, timeout_s
        self._begun: dict[tuple[object, Wanted], asyncio.Task[NDArray[Any] | None]] = {}
        self._read: list[_Read] = []
        self._embedding_task: asyncio.Task[None] | None = None
        self._embedding = ThreadPoolExecutor(1, "embedding")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="pictures", daemon=True).start()
        atexit.register(self._close)

    def _close(self) -> None:
        with suppress(futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._pictures.close(), self._loop).result(_CLOSING_S)

    def start(self, release: Release, wanted: Sequence[Wanted]) -> Future[dict[Wanted, NDArray[Any]]]:
        """Begin to compute vectors; the result contains those that are ready in time, and always comes in time."""
        return asyncio.run_coroutine_threadsafe(self._vectors(release, wanted), self._loop)

    async def _vectors(self, release: Release, wanted: Sequence[Wanted]) -> dict[Wanted, NDArray[Any]]:
        computed = release.computed
        named = [key for key in wanted if key not in computed]
        tasks = [self._task(release, key) for key in named]
        if waiting := [task for task in tasks if task is not None]:
            await asyncio.wait(waiting, timeout=self._timeout_s)
        # A vector by the text alone, because the picture could not be read, is not kept.
        found = {key: v for key, task in zip(named, tasks, strict=True) if (v := _result(task)) is not None}
        found |= {key: computed[key] for key in wanted if key in computed}
        for key in found:
            if key in computed:
                computed.move_to_end(key)
        while len(computed) > _NUM_KEPT:
            computed.popitem(last=False)
        return found

    def _task(self, release: Release, wanted: Wanted) -> asyncio.Task[NDArray[Any] | None] | None:
        """Return the task that computes a vector, a new one if need be; None if too many are begun."""
        name = (release.identity, wanted)
        if name not in self._begun and len(self._begun) < _MAX_BEGUN:
            task = self._begun[name] = self._loop.create_task(self._compute(release, wanted))
            task.add_done_callback(lambda _: self._begun.pop(name))
        return self._begun.get(name)

    async def _compute(self, release: Release, wanted: Wanted) -> NDArray[Any] | None:
        """Compute a vector and keep it; None if none of the key's pictures can be read, and it has no other content."""
        embedder = release.embedder
        if embedder is None:
            return None
        paths = embedder.paths(wanted[0])
        if len(paths) > _MAX_PICTURES_OF_A_KEY:
            return None
        contents = [c for c in await asyncio.gather(*map(self._pictures.read, paths)) if c is not None]
        num_waiting = sum(len(content) for read in self._read for content in read.contents)
        is_enough = bool(contents) or embedder.is_without_picture(wanted[1:])
        if not is_enough or num_waiting > _MAX_WAITING_BYTES:
            return None
        result: asyncio.Future[NDArray[Any] | None] = self._loop.create_future()
        self._read.append(_Read(embedder, wanted, contents, result))
        if self._embedding_task is None:
            self._embedding_task = self._loop.create_task(self._embed())
        vector = await result
        if vector is not None and (contents or not paths):
            release.computed[wanted] = vector
        return vector

    async def _embed(self) -> None:
        """Embed the pictures that were read, until there are no more."""
        while self._read:
            embedder = self._read[0].embedder
            batch = [read for read in self._read if read.embedder is embedder][:_EMBEDDED_AT_A_TIME]
            self._read = [read for read in self._read if read not in batch]
            vectors = await self._loop.run_in_executor(self._embedding, _embedded, embedder, batch)
            for read, vector in zip(batch, vectors, strict=True):
                read.vector.set_result(vector)
        self._embedding_task = None


def _result(task: asyncio.Task[NDArray[Any] | None] | None) -> NDArray[Any] | None:
    """Return the vector of a task; None if it has none, or not yet."""
    is_done = task is not None and task.done() and not task.cancelled() and task.exception() is None
    return task.result() if task is not None and is_done else None


def _embedded(embedder: Embedder, batch: Sequence[_Read]) -> Sequence[NDArray[Any] | None]:
    fields = {name: [read.wanted[i] for read in batch] for i, name in enumerate(embedder.fields, 1)}
    try:
        return embedder.embed([read.contents for read in batch], fields)
    except Exception:  # of the runtimes; a request takes the stand-in
        _LOG.exception("pictures could not be embedded")
        return [None] * len(batch)
