"""Watches whether the other workers still answer, so that a training ends soon after one of them is lost.

A worker that is killed closes its connections, which ends the exchanges of the others. One that freezes, or whose
machine vanishes, closes nothing, and the others would wait for it. TensorFlow's server of a worker answers from threads
of its own, in compiled code: a worker that computes, writes, evaluates or waits for its input for long answers all the
same.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import grpc

from easyrec_mm.console import say_at_once
from easyrec_mm.distribution.cluster import Cluster
from easyrec_mm.exit_status import LOST_WORKER

# Each other worker is asked every ASK_EVERY_S seconds. It is lost when it has not answered NUM_QUESTIONS questions in a
# row within ANSWER_S each, which takes 30 s. A process that notices a loss has END_S seconds to end by itself. Together
# these are less than a minute.
ASK_EVERY_S, NUM_QUESTIONS, ANSWER_S, END_S = 5.0, 6, 5.0, 15.0
# A proxy would answer for every server; and a connection that others of this process have would not be a question.
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


def has_answered(address: str) -> bool:
    """Ask TensorFlow's server at an address whether it runs, by a new connection; return whether it answers in time."""
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def silent(cluster: Cluster) -> list[int]:
    """Return the numbers of the other workers that do not answer now."""
    return [number for number in cluster.others if not has_answered(cluster.workers[number])]


@contextmanager
def watched(
    cluster: Cluster, end_exchanges: Callable[[int], None], message: Callable[[Collection[int]], str]
) -> Iterator[None]:
    """Notice when another worker is lost within the context.

    If the process does not leave the context soon after its exchanges have ended, because it is busy with something
    else, it ends with a message and LOST_WORKER: nothing that it could still do would count, and what it writes may be
    cut off at any time.

    Args:
      cluster: the workers.
      end_exchanges: lets the exchanges of this process fail, because of the loss of the worker with that number.
      message: tells of lost workers.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(ASK_EVERY_S):
            for number in cluster.others:
                if _is_lost(cluster.workers[number], ended):
                    end_exchanges(number)
                    if not ended.wait(END_S):
                        sys.stdout.flush()
                        say_at_once(f"error: {message([number])}")
                        os._exit(LOST_WORKER)
                    return

    threading.Thread(target=watch, daemon=True, name="other workers").start()
    try:
        yield
    finally:
        ended.set()


def _is_lost(address: str, ended: threading.Event) -> bool:
    for _ in range(NUM_QUESTIONS):
        begun_s = time.monotonic()
        if ended.is_set() or has_answered(address):
            return False
        # A connection that is refused at once is tried for as long as one that does not answer.
        ended.wait(max(0.0, ANSWER_S - (time.monotonic() - begun_s)))
    return not ended.is_set()
