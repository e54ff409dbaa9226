"""Starts several workers of a training on this machine, each a process, and waits for them; never loads TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

from easyrec_mm.console import pass_on
from easyrec_mm.distribution.cluster import IS_EXPANDED, VARIABLE
from easyrec_mm.exit_status import LOST_WORKER, after_signal

# After the first failure, the other workers have this long to notice it and to end, before they are killed.
END_S = 60.0
_POLL_S = 0.1
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class LocalWorkers:
    """Workers to start on this machine.

    command   what each of them runs
    workers   addresses of all workers of the training, on other machines, too
    first     number of the first worker of this machine
    num       how many this machine has
    gpus      a GPU for each, as CUDA_VISIBLE_DEVICES names it; empty to leave the choice to the workers
    """

    command: tuple[str, ...]
    workers: tuple[str, ...]
    first: int
    num: int
    gpus: tuple[str, ...] = ()

    def environment(self, place: int) -> dict[str, str]:
        """Return what a worker of this machine finds in its environment besides that of this process."""
        task = {"type": "worker", "index": self.first + place}
        tf_config = {"cluster": {"worker": list(self.workers)}, "task": task, IS_EXPANDED: True}
        own = {VARIABLE: json.dumps(tf_config)}
        return own | ({"CUDA_VISIBLE_DEVICES": self.gpus[place]} if self.gpus else {})


def run_workers(local: LocalWorkers, output: IO[str], errors: IO[str]) -> int:
    """Run workers until all have ended; return 0 if all ended well, otherwise the status of the first failure.

    Each has an equal part of the cores, and the lines that it prints have its number before them. SIGINT, SIGTERM and
    SIGHUP are forwarded. When one fails, the others are told to end. A worker that was told to end, or lost another
    one, is the first failure only if none has failed by itself.

    Args:
      local: the workers.
      output: takes the lines that the workers print.
      errors: takes their errors.
    """
    processes: list[subprocess.Popen[str]] = []
    threads = []
    try:
        with _caught() as signals:
            for place, cores in enumerate(parts_of_cores(local.num)):
                with on_cores(cores):
                    process = start_worker(local.command, {**os.environ, **local.environment(place)})
                processes.append(process)
                for source, target in ((process.stdout, output), (process.stderr, errors)):
                    threads.append(
                        threading.Thread(target=_pass_on, args=(local.first + place, source, target), daemon=True)
                    )
                    threads[-1].start()
            statuses = _wait(processes, signals)
    finally:
        for process in processes:
            process.kill()  # nothing happens to one that has ended
    for thread in threads:
        thread.join()
    failures = [status if status > 0 else after_signal(-status) for status in statuses if status]
    causes = [status for status in failures if status not in (LOST_WORKER, after_signal(signal.SIGTERM))]
    return next(iter([*causes, *failures]), 0)


def start_worker(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process that runs a command, with pipes for its outputs."""
    # In a session of its own: a terminal would send its signals to it directly, and they would arrive twice.
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip


def _wait(processes: Sequence[subprocess.Popen[str]], signals: list[int]) -> list[int]:
    """Wait for all processes, and forward the signals that arrive; return the statuses in the order of their ends."""
    statuses, running = [], list(processes)
    kill_at_s, are_told = None, False
    while running:
        for number in signals[:]:
            signals.remove(number)
            are_told = True
            for process in running:
                process.send_signal(number)
        ended = [process for process in running if process.poll() is not None]
        running = [process for process in running if process not in ended]
        statuses += [process.returncode for process in ended]
        if any(process.returncode for process in ended) and kill_at_s is None:
            kill_at_s = time.monotonic() + END_S
            # A second signal would end at once those that a forwarded one has told to save and end.
            for process in () if are_told else running:
                process.terminate()
        if kill_at_s is not None and time.monotonic() > kill_at_s:
            for process in running:
                process.kill()
        if running and not ended:
            time.sleep(_POLL_S)
    return statuses


@contextmanager
def _caught() -> Iterator[list[int]]:
    """Collect the signals that are forwarded; one that this process ignores, as under nohup, is ignored further on."""
    signals: list[int] = []
    former = {}
    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            former[number] = signal.signal(number, lambda caught, _: signals.append(caught))
    try:
        yield signals
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def parts_of_cores(num: int) -> list[list[int]]:
    """Return the cores of each process; one core may be that of several if there are fewer cores than processes."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[place::num] or [cores[place % len(cores)]] for place in range(num)]


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run this thread on these cores only, so that a process that it starts inherits them."""
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)


def _pass_on(worker: int, source: IO[str], target: IO[str]) -> None:
    for line in source:
        pass_on(line, worker, target)


def free_addresses(num: int) -> tuple[str, ...]:
    """Return addresses of this machine, alone for processes on it, that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return tuple(f"127.0.0.1:{opened.getsockname()[1]}" for opened in sockets)
