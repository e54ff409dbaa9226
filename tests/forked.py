"""Commands in processes of their own that start in no time: copies of a process that has imported TensorFlow."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from easyrec_mm.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["forked", "easyrec_mm.training.trainer", "easyrec_mm.distribution.joining"])


class Command:
    """A command of easyrec-mm that runs in a folder; `constants` are values of constants of modules, by their paths."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        output: Path,
        environment: Mapping[str, str] | None = None,
        constants: Mapping[str, object] | None = None,
    ) -> None:
        self._output = output
        arguments_of_run = folder, arguments, output, dict(environment or {}), dict(constants or {})
        self._process = _CONTEXT.Process(target=_run, args=arguments_of_run)
        self._process.start()

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

    def wait_for(self, path: Path, timeout_s: float = 60) -> None:
        """Wait until it has made that file."""
        until = time.monotonic() + timeout_s
        while not path.exists():
            assert self.poll() is None, self._output.read_text()
            assert time.monotonic() < until, self._output.read_text()
            time.sleep(0.005)


def _run(
    folder: Path, arguments: list[str], output: Path, environment: dict[str, str], constants: dict[str, object]
) -> None:
    os.chdir(folder)
    for path, value in constants.items():
        module, _, name = path.rpartition(".")
        setattr(importlib.import_module(module), name, value)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdout.flush()
    for standard in (1, 2):
        os.dup2(file, standard)
    # Python's own streams of this process may be those of the test that started it.
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.exit(main(arguments))
