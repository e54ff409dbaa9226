"""Threads for which the process does not wait."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from easyrec_mm.files import daemon_pool
from easyrec_mm.files.daemon_pool import DaemonPool


def test_functions_run_in_order_in_as_many_threads_as_are_given():
    pool = DaemonPool(2, "test")
    both_run, order = threading.Barrier(2), []

    def meet(number):
        both_run.wait(10)  # fails unless two run at a time
        order.append(number)
        return number * number

    futures = [pool.submit(meet, number) for number in range(6)]
    assert [future.result(10) for future in futures] == [0, 1, 4, 9, 16, 25]
    assert [sorted(order[i : i + 2]) for i in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]


def test_errors_and_cancelled_futures():
    pool, may_end = DaemonPool(1, "test"), threading.Event()
    first = pool.submit(may_end.wait, 10)
    failing = pool.submit(int, "x")
    cancelled = pool.submit(pytest.fail, "runs though it was cancelled")
    assert cancelled.cancel()
    may_end.set()
    assert first.result(10)
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(10)
    assert pool.submit(int, "7").result(10) == 7


def test_threads_end_when_the_pool_is_closed_and_all_has_run():
    pool = DaemonPool(3, "threads of a closed pool")
    futures = [pool.submit(time.sleep, 0.01) for _ in range(9)]
    pool.close()
    for future in futures:
        future.result(10)
    until = time.monotonic() + 10
    while any(thread.name == "threads of a closed pool" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_context_waits_for_what_has_begun_and_cancels_the_rest():
    begun, done = threading.Event(), []

    def work():
        begun.set()
        time.sleep(0.2)
        done.append(1)

    with DaemonPool(1, "test") as pool:
        pool.submit(work)
        second = pool.submit(work)
        begun.wait(10)
    assert done == [1]
    assert second.cancelled()


def test_a_context_does_not_wait_for_what_hangs(monkeypatch):
    monkeypatch.setattr(daemon_pool, "LONGEST_END_S", 0.2)
    goes_on = threading.Event()
    with DaemonPool(3, "test") as pool:
        futures = [pool.submit(goes_on.wait, 60) for _ in range(3)]
        while not all(future.running() for future in futures):
            time.sleep(0.01)
    assert not any(future.done() for future in futures)
    goes_on.set()


def test_a_process_ends_while_functions_run():
    code = "import time; from easyrec_mm.files.daemon_pool import DaemonPool; DaemonPool(1, '').submit(time.sleep, 999)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
