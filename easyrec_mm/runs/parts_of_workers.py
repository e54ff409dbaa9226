"""The parts of a checkpoint that several workers write, because each holds rows of tables that no other one has.

Every worker writes into a folder of its own beside the checkpoints, and the first one merges all parts when all are
there. Only then is the checkpoint listed, so that the end of any worker before leaves the one that was listed last.
A folder's name contains the step: network file systems remember for a while that a name did not exist.

With a remote model_dir, the first worker gets only the indexes of the parts, and merges them with empty files in place
of the values. This tells the others the names that their files have in the checkpoint, under which they upload them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import CheckpointError
from easyrec_mm.files import StorageError
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_parts import Increment, Piece, Table
from easyrec_mm.runs.meetings import Meetings
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.names import PREFIX
from easyrec_mm.runs.snapshot import WRITE_ERRORS, Snapshot, Target, UnwritablePartsError, reason_of

# TensorFlow's names of the values of a part, which is one file, and of its index.
_VALUES, _INDEX = ".data-00000-of-00001", ".index"


class PartsOfWorkers:
    """Writes the parts of checkpoints, one after another; all workers take part in each. It is their OtherWriters.

    Args:
      shared: the model_dir, the same on all workers.
      replicas: the workers.

    Attributes:
      meetings: those of the checkpoint that a thread writes; None if the thread of the training writes it.
      has_failed: whether a worker has reported a problem at the last meeting.
    """

    def __init__(self, shared: ModelDir, replicas: Replicas) -> None:
        self._shared, self._folder, self._replicas = shared, shared.local, replicas
        self.meetings: Meetings | None = None
        self.has_failed = False
        # Empty file in place of values that another worker has -> its number, and the name of the part.
        self._places: dict[int, tuple[int, str]] = {}
        self._uploaded: list[str] = []
        # Where a worker other than the first one writes its parts.
        self._own = Path()

    def agree(self, base: tuple[str, str] | None, rows: Mapping[str, NDArray[np.int64]]) -> Increment | None:
        """Begin a checkpoint; return what it contains of the changes, or None if it is a full one.

        Args:
          base: on the first worker, the name of the checkpoint that it rests on, and the digest of its index; None for
            a full checkpoint.
          rows: the changed rows that this worker holds, by table.
        """
        if not self._replicas.number:
            self.remove()
        counts = {name: len(numbers) for name, numbers in rows.items()}
        reports = [json.loads(text) for text in self._replicas.texts(json.dumps([base, counts]))]
        if reports[0][0] is None:
            return None
        name_of_base, digest = reports[0][0]
        places = {}
        for name in rows:
            of_all = [counts.get(name, 0) for _, counts in reports]
            places[name] = sum(of_all[: self._replicas.number]), sum(of_all)
        return Increment(name_of_base, digest, rows, places)

    def snapshot(
        self,
        checkpoints: Checkpoints,
        step: int,
        pieces: Iterable[Piece],
        kept_step: int | None = None,
        streamed: Sequence[Table] = (),
        is_meanwhile: bool = False,
    ) -> Snapshot:
        """Return a checkpoint to be written by all workers, after they have called `agree`.

        Args:
          checkpoints: those of model_dir.
          step: step of the checkpoint.
          pieces: what this worker writes.
          kept_step: the step of a checkpoint to keep in addition.
          streamed: the tables of this worker that are copied between steps.
          is_meanwhile: whether the workers write while the training goes on, rather than at once.

        Raises:
          CheckpointError: if the folder cannot be written to.
        """
        self.meetings = Meetings(self._exchange) if is_meanwhile else None
        if not self._replicas.number:
            around = partial(self._shared.checkpoint_put, with_others=True)
            return checkpoints.snapshot(step, pieces, kept_step, streamed, around, self)
        path = f"{self._folder / PREFIX}-{step}"
        self._own = self._folder / f".{PREFIX}-{step}.worker-{self._replicas.number}"
        target = Target(path, self._own, lambda parts: None, nullcontext, partial(_failed, path), self)
        return Snapshot(target, list(pieces), streamed)

    def collect(self, write: Callable[[], list[str]]) -> list[str]:
        """Write the parts of this worker; return, on the first one, the prefixes of the parts of all workers.

        Raises:
          UnwritablePartsError: if a worker cannot write, or its parts are not seen by the first one.
        """
        if self._replicas.number:
            self._write_of_other(write)
            return []
        of_all = self._write_and_report(write)
        if self._shared.is_remote:
            self._places = self._take(of_all)
        for number, parts in enumerate(of_all):
            if not all((self._folder / f"{name}{_INDEX}").exists() for name in parts):
                raise UnwritablePartsError(
                    f"worker {number} has written its part of the tables to a folder that worker 0 does not see; give "
                    "all workers the same model_dir, on a shared file system or in a bucket"
                )
        return [str(self._folder / name) for parts in of_all for name in parts]

    def finish(self, path: str) -> None:
        """Let the other workers upload their values of a merged checkpoint, if model_dir is remote."""
        if not self._shared.is_remote:
            return
        names: dict[int, dict[str, str]] = {}
        for values in self._folder.glob(f"{Path(path).name}.data-*"):
            place = self._places.get(values.stat().st_ino)
            if place is not None:
                names.setdefault(place[0], {})[place[1]] = values.name
                values.unlink()
        self._reports(names)
        self._reports(None)

    def remove(self) -> None:
        """Remove the folders of the other workers, also those that killed trainings have left behind."""
        for folder in self._folder.glob(f".{PREFIX}-*.worker-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _write_of_other(self, write: Callable[[], list[str]]) -> None:
        """Write the parts of a worker that is not the first one."""

        def written() -> list[str]:
            # What a killed save of the same step has left behind.
            shutil.rmtree(self._own, ignore_errors=True)
            self._own.mkdir(parents=True)
            return write()

        self._write_and_report(written)
        if self._shared.is_remote:
            names = self._reports(None)[0]
            self._reports(None, self._upload(names.get(str(self._replicas.number), {})))
            shutil.rmtree(self._own, ignore_errors=True)

    def _write_and_report(self, write: Callable[[], list[str]]) -> list[dict[str, str]]:
        """Write the parts of this worker; return those of each: name -> its index, which "" stands for if it is seen.

        Raises:
          UnwritablePartsError: if one of them cannot write.
        """
        parts, problem = {}, ""
        try:
            for path in write():
                index = Path(f"{path}{_INDEX}").read_bytes() if self._shared.is_remote else b""
                # Each worker may know the shared folder by another path.
                parts[str(Path(path).relative_to(self._folder))] = base64.b64encode(index).decode()
        except WRITE_ERRORS as error:
            problem = reason_of(error)
        return self._reports(parts, problem)

    def _reports(self, report: object, problem: str = "") -> list[Any]:
        """Return what all workers report, in JSON's types.

        Raises:
          UnwritablePartsError: if one of them has a problem.
        """
        exchange = self._exchange if self.meetings is None else self.meetings.texts
        reports = [json.loads(text) for text in exchange(json.dumps([problem, report]))]
        for number, (reason, _) in enumerate(reports):
            if reason:
                raise UnwritablePartsError(f"worker {number}: {reason}")
        return [report for _, report in reports]

    def _exchange(self, text: str) -> list[str]:
        """Return the texts of all workers, and note whether there is a problem among them."""
        texts = self._replicas.texts(text)
        self.has_failed = any(json.loads(other)[0] for other in texts)
        return texts

    def _take(self, of_all: Sequence[Mapping[str, str]]) -> dict[int, tuple[int, str]]:
        """Write the indexes of the other workers' parts, and empty files in place of their values."""
        places = {}
        for number, parts in enumerate(of_all):
            for name, index in parts.items():
                if number != self._replicas.number:
                    part = self._folder / name
                    part.parent.mkdir(parents=True, exist_ok=True)
                    part.with_name(part.name + _INDEX).write_bytes(base64.b64decode(index))
                    values = part.with_name(part.name + _VALUES)
                    values.touch()
                    places[values.stat().st_ino] = number, name
        return places

    def _upload(self, names: Mapping[str, str]) -> str:
        """Upload the values of parts under their names in the checkpoint; return why this fails, or ""."""
        try:
            self._shared.forget_values(self._uploaded)
            self._uploaded = list(names.values())
            for part, name in names.items():
                os.replace(self._folder / f"{part}{_VALUES}", self._folder / name)
            self._shared.put_values(self._uploaded)
        except (OSError, StorageError) as error:
            return str(error)
        return ""


def _failed(path: str, error: Exception) -> CheckpointError:
    """Return the error of a worker that is not the first one."""
    return CheckpointError(f"{path}: cannot be written: {reason_of(error)}")
