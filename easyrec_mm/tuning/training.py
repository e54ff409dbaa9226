"""The training of a trial: a process of its own, with its model_dir and its log in the folder of the trial."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from easyrec_mm.distribution.local_workers import on_cores
from easyrec_mm.errors import UserError
from easyrec_mm.files.lock import locked
from easyrec_mm.runs.evaluations import METRICS, read_lines
from easyrec_mm.runs.names import PREFIX, STATE

MODEL, LOG = "model", "train.log"
# A training that was told to end has this long to save a checkpoint, before it is killed.
END_S = 60.0
_POLL_S = 0.1
_ERROR = re.compile(r"^error: (.*)$")
# As much of the end of a log as is searched for the reason of a failure.
_END_BYTES = 20_000


class Training:
    """A running training.

    Args:
      command: what runs, such as easyrec-mm train.
      folder: folder of the trial.
      cores: the cores that it may use.
      environment: variables in addition to those of this process.

    Raises:
      UserError: if a process of an earlier start still trains in the folder.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, cores: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._started_s = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        _wait_until_free(folder / MODEL)
        with (folder / LOG).open("ab") as log, on_cores(cores):
            # In a session of its own: a terminal would send its signals to it directly, and it would get them twice.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Return the number of its process."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Return how long it runs."""
        return time.monotonic() - self._started_s

    def poll(self) -> int | None:
        """Return the exit status, negative after a signal; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once, and wait for that."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """Tell it to save a checkpoint and end."""
        self._process.terminate()

    def wait(self, until_s: float) -> None:
        """Wait for its end; kill it at a time of time.monotonic."""
        try:
            self._process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def failure(self) -> str:
        """Return why it failed: the last error in its log, or how it ended."""
        status = self._process.returncode
        if status < 0:
            memory = "; memory may have run out" if -status == signal.SIGKILL else ""
            return f"ended by signal {-status} ({signal.Signals(-status).name}){memory}"
        lines = _last_lines(self.folder / LOG)
        errors = [match[1] for line in lines if (match := _ERROR.match(line))]
        return errors[-1] if errors else f"exit status {status}: {lines[-1] if lines else 'nothing was printed'}"

    def has_trained(self) -> bool:
        """Return whether it has reported steps: most mistakes in the config or the data end it before."""
        return any(line["step"] > 0 for line in read_lines(self.folder / MODEL / METRICS))


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a trial, which would fill the disk."""
    for path in (folder / MODEL).glob(f"{PREFIX}-*"):
        path.unlink(missing_ok=True)
    (folder / MODEL / STATE).unlink(missing_ok=True)


def _wait_until_free(model_dir: Path) -> None:
    """Wait until a training of a search that was killed has saved and ended."""
    until_s = time.monotonic() + END_S
    while True:
        try:
            with locked(str(model_dir), "model_dir"):
                return
        except UserError:
            if time.monotonic() > until_s:
                raise
        time.sleep(_POLL_S)


def _last_lines(path: Path) -> list[str]:
    """Return the last lines of a file that are not empty."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        return [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
