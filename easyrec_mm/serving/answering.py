"""Answers requests without holding up the event loop, which also answers health checks and all other requests.

A small request is answered in the loop: a thread costs more than its parsing. Large ones are parsed and computed
by a few threads of their own, so that the memory for them is bounded. A store on the network is waited for in threads,
and pictures whose vectors are computed are waited for without any.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from easyrec_mm.serving.service import Answer, Service

_LARGE_AT_A_TIME, _WAITING_AT_A_TIME = 2, 32

T = TypeVar("T")


class Answering:
    """Answers requests by a service.

    Args:
      is_remote: whether the store of the image vectors has to be waited for.
    """

    def __init__(self, is_remote: bool) -> None:
        self._is_remote = is_remote
        self._large = ThreadPoolExecutor(_LARGE_AT_A_TIME, "large requests")
        self._waiting = ThreadPoolExecutor(_WAITING_AT_A_TIME, "requests")

    async def answer(
        self, service: Service, read: Callable[[], object], write: Callable[[Answer], T], is_small: bool
    ) -> tuple[Answer, T]:
        """Return the answer to a request, and its form for the client.

        Args:
          service: answers it.
          read: returns the request in a form that Service.answer takes.
          write: converts the answer.
          is_small: whether `read`, and reading its result, take milliseconds at most.

        Raises:
          RequestError, ServingError: as Service.answer.
        """
        asked = await _run(None if is_small else self._large, lambda: service.read(read()))
        is_small = is_small and asked.candidates.is_small
        waits = self._is_remote or asked.release.lookup.is_remote
        pool = self._large if not is_small else self._waiting if waits else None
        found = await _run(pool, lambda: service.find_vectors(asked))
        if found.computing is not None:
            await asyncio.wrap_future(found.computing)

        def finish() -> tuple[Answer, T]:
            answer = service.finish(asked, found)
            return answer, write(answer)

        return await _run(pool, finish)


async def _run(pool: ThreadPoolExecutor | None, function: Callable[[], T]) -> T:
    if pool is None:
        return function()
    # With the context, by which the lines of the log name the request.
    return await asyncio.get_running_loop().run_in_executor(pool, contextvars.copy_context().run, function)
