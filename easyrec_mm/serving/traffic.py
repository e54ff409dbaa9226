"""Which requests a process admits, how many are under way, and how it ends: by answering those first.

When a process has to end, it says at once that it is not ready, so that no further client is sent to it. It still
admits what has arrived by then, refuses what comes later, and ends when all that it admitted is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from easyrec_mm.serving import monitoring

_LOG = logging.getLogger("easyrec_mm.serving")
# How long requests are admitted after the signal: those that were sent before it are read within this time.
_ADMITTED_S = 0.1
# How long refusals are answered at least: clients that send one request after the other learn that they have to stop.
_REFUSED_S = 0.5
_REFUSED_AFTER_S = 0.05


class Refusal(NamedTuple):
    """Why a request is not answered: a word for metrics, and a sentence for the client."""

    reason: str
    message: str


class Traffic:
    """The requests of a process.

    Args:
      most: how many may be answered at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way = {"rest": 0, "grpc": 0}
        self._admits = True
        self._num_body_bytes = 0
        self._hurry = asyncio.Event()
        # Whether further clients may be sent here, and whether connections shall be kept for further requests.
        self.is_ready = True

    def refusal(self, being_answered: int) -> Refusal | None:
        """Return why a request that has just arrived is refused, and count it; None if it is admitted.

        Args:
          being_answered: how many requests the listener is answering, this one included.
        """
        if not self._admits:
            return self.count(Refusal("ending", "the server is about to end; send the request to another one"))
        if being_answered > self._most:
            text = f"more than {self._most} requests at a time; try again later"
            return self.count(Refusal("too_many", text))
        return None

    def hold(self, num_bytes: int, most: int) -> bool:
        """Count bytes of a body that is kept in memory, until it is released; return whether there is room for them."""
        self._num_body_bytes += num_bytes
        return self._num_body_bytes <= most

    def release(self, num_bytes: int) -> None:
        """Count bytes of a body as no longer kept."""
        self._num_body_bytes -= num_bytes

    def count(self, refusal: Refusal) -> Refusal:
        """Count a refusal in the metrics, and return it."""
        monitoring.REFUSALS.labels(refusal.reason).inc()
        return refusal

    async def wait_before_refusing(self) -> None:
        """Wait a moment if the process is about to end.

        A client that tries again at once would often send its request at the very moment when the listener is closed.
        """
        if not self._admits:
            await asyncio.sleep(_REFUSED_AFTER_S)

    def begin(self, protocol: str) -> None:
        """Count an admitted request as under way, until `end`."""
        self._under_way[protocol] += 1

    def end(self, protocol: str) -> None:
        """Count a request as answered."""
        self._under_way[protocol] -= 1

    def under_way(self, protocol: str) -> int:
        """Return how many admitted requests are under way."""
        return self._under_way[protocol]

    def hurry(self) -> None:
        """End `drain` without waiting for the requests under way."""
        self._hurry.set()

    async def drain(self, seconds: float, not_ready: Callable[[], Awaitable[None]]) -> bool:
        """Refuse new requests and wait until those under way are answered; return whether all were.

        Args:
          seconds: how long to wait at most.
          not_ready: tells watchers that the process is no longer ready.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self.is_ready = False
        await not_ready()
        await self._wait(min(_ADMITTED_S, seconds))
        self._admits = False
        refused_until = min(loop.time() + _REFUSED_S, deadline)
        while not self._hurry.is_set():
            number = sum(self._under_way.values())
            now = loop.time()
            if now >= deadline or (not number and now >= refused_until):
                break
            await self._wait(0.02)
        number = sum(self._under_way.values())
        if number:
            _LOG.warning("ends with %d requests that are not answered after %.3g s (--drain_s)", number, seconds)
        return not number

    async def _wait(self, seconds: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)
