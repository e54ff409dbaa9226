"""Processes of their own that start in no time: copies of a process that has imported TensorFlow.

They are for tests of kills, signals, limits and workers. Where importing TensorFlow is itself tested, or what a new
interpreter does, subprocess is the way; where no process of its own is needed, easyrec_mm.cli.main.main.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import tensorflow as tf
from less_work import collect_seldom, trace_without_stacks

from easyrec_mm.cli.main import main
from easyrec_mm.distribution import local_workers

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["easyrec_mm.cli.main", "easyrec_mm.training.trainer", "easyrec_mm.distribution.joining"]
)


class Process:
    """A function that runs in a folder, in a process of its own.

    Args:
      function: what runs, with its arguments: of a module, or a functools.partial of such a function.
      folder: working folder.
      output: file of what it prints.
      environment: variables in addition to those of this process.
    """

    def __init__(
        self,
        function: Callable[[], object],
        folder: Path,
        output: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._output = output
        # What forks the processes has the environment of its own start.
        whole = {**os.environ, **(environment or {})}
        self._process = _CONTEXT.Process(target=_run, args=(function, folder, output, whole))
        self._process.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Exit status as of subprocess.Popen; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self, timeout_s: float = 120) -> tuple[int, str]:
        """Exit status and output."""
        self._process.join(timeout_s)
        status = self.poll()
        if status is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout_s} s: {self._output.read_text()}")
        return status, self._output.read_text()

    def wait_for(self, path: Path, text: str = "", timeout_s: float = 60) -> None:
        """Wait until it has made that file, with that text in it."""
        until = time.monotonic() + timeout_s
        while not path.exists() or (text and text not in path.read_text()):
            assert self.poll() is None, self._output.read_text()
            assert time.monotonic() < until, self._output.read_text()
            time.sleep(0.005)


class Command(Process):
    """A command of easyrec-mm that runs in a folder, see Process.

    Args:
      constants: values of constants of modules, by their paths.
      prepare: is called before the command.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[object],
        output: Path,
        environment: Mapping[str, str] | None = None,
        constants: Mapping[str, object] | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        words = [str(argument) for argument in arguments]
        super().__init__(partial(_command, words, dict(constants or {}), prepare), folder, output, environment)


def _command(arguments: list[str], constants: dict[str, object], prepare: Callable[[], object] | None) -> int:
    for path, value in constants.items():
        module, _, name = path.rpartition(".")
        setattr(importlib.import_module(module), name, value)
    if prepare is not None:
        prepare()
    return main(arguments)


def _run(function: Callable[[], object], folder: Path, output: Path, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdout.flush()
    for standard in (1, 2):
        os.dup2(file, standard)
    # Python's own streams of this process may be those of the test that started it.
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    # As in the process of the tests: this takes a large part of the time of short trainings.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    trace_without_stacks()
    collect_seldom()
    sys.exit(function())


def fork_local_workers() -> None:
    """Let the workers that `train` starts on this machine be copies of its process, which is one of those above."""
    local_workers.start_worker = _start_copy


def _start_copy(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """As local_workers.start_worker, of `python -m easyrec_mm ...`, but without a new interpreter."""

    def go_on() -> None:
        os.closerange(3, 1024)  # Popen waits for the end of one of these pipes
        gc.enable()
        os.environ.update(environment)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Those of the process that was copied put their own marks on each line.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        status = 1
        try:
            status = main(command[3:])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=go_on,
    )  # fmt: skip
