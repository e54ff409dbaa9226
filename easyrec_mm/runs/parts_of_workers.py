"""The parts of a checkpoint that several workers write, because each holds rows of tables that no other one has.

Every worker writes into a folder of its own beside the checkpoints, and the first one merges all parts when all are
there. A folder's name contains the step: network file systems remember for a while that a name did not exist.

With a remote model_dir, the first worker gets only the indexes of the parts, and merges them with empty files in place
of the values. This tells the others the names that their files have in the checkpoint, under which they upload them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.errors import CheckpointError
from easyrec_mm.files import StorageError
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_list import PREFIX
from easyrec_mm.runs.checkpoint_parts import pieces_of, write_pieces
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.snapshot import WRITE_ERRORS, UnwritablePartsError, reason_of

# TensorFlow's names of the values of a part, which is one file, and of its index.
_VALUES, _INDEX = ".data-00000-of-00001", ".index"


class _Report(NamedTuple):
    """What a worker tells all others: the names of its parts, their indexes, and why they could not be written."""

    names: list[str]
    indexes: list[str]
    problem: str


class PartsOfWorkers:
    """Writes the parts of checkpoints; all workers take part in each. For the first one, these are OtherWriters.

    Args:
      shared: the model_dir, the same on all workers.
      replicas: the workers.
    """

    def __init__(self, shared: ModelDir, replicas: Replicas) -> None:
        self._shared, self._folder, self._replicas = shared, shared.local, replicas
        # Empty file in place of values that another worker has -> its number, and the name of the part.
        self._places: dict[int, tuple[int, str]] = {}
        self._uploaded: list[str] = []

    def write_of_first(
        self,
        checkpoints: Checkpoints,
        step: int,
        values: Mapping[str, tf.Variable | tf.Tensor],
        kept_step: int | None = None,
    ) -> str:
        """Write and list a checkpoint of which the other workers write their parts; return its path.

        Args:
          checkpoints: those of model_dir.
          step: step of the checkpoint.
          values: what the first worker holds.
          kept_step: the step of a checkpoint to keep in addition.

        Raises:
          CheckpointError: if a worker cannot write.
        """
        self.remove(all_but=step)
        around = partial(self._shared.checkpoint_put, with_others=True)
        try:
            return checkpoints.snapshot(step, pieces_of(values), kept_step, around=around, others=self).write()
        finally:
            self.remove()

    def collect(self, write: Callable[[], list[str]]) -> list[str]:
        """Write the parts of the first worker; return the prefixes of the parts of all workers.

        Raises:
          UnwritablePartsError: if a worker cannot write, or its parts are not seen here.
        """
        reports = self._exchanged(*self._written(write))
        if self._shared.is_remote:
            self._places = self._take(reports)
        for number, report in enumerate(reports):
            if not all((self._folder / f"{name}{_INDEX}").exists() for name in report.names):
                raise UnwritablePartsError(
                    f"worker {number} has written its part of the tables to a folder that worker 0 does not see; give "
                    "all workers the same model_dir, on a shared file system or in a bucket"
                )
        return [str(self._folder / name) for report in reports for name in report.names]

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
        self._replicas.texts(json.dumps(names))
        self._exchanged([], "")

    def write_of_others(self, step: int, variables: Mapping[str, tf.Variable | tf.Tensor]) -> None:
        """Write the rows of tables that this worker holds, any but the first, which calls write_of_first.

        Raises:
          CheckpointError: if a worker cannot write.
        """
        own = {name: variable for name, variable in variables.items() if shard_of(variable) is not None}
        folder = self._folder / f".{PREFIX}-{step}.worker-{self._replicas.number}"

        def write() -> list[str]:
            # What a killed save of the same step has left behind.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            return write_pieces(folder, pieces_of(own))

        try:
            self._exchanged(*self._written(write))
            if self._shared.is_remote:
                names = json.loads(self._replicas.texts("")[0])
                self._exchanged([], self._upload(names.get(str(self._replicas.number), {})))
                shutil.rmtree(folder, ignore_errors=True)
        except UnwritablePartsError as error:
            raise CheckpointError(f"{self._folder / PREFIX}-{step}: cannot be written: {error}") from error

    def remove(self, all_but: int | None = None) -> None:
        """Remove the folders of workers, also those that killed trainings have left behind."""
        for folder in self._folder.glob(f".{PREFIX}-*.worker-*"):
            if all_but is None or not folder.name.startswith(f".{PREFIX}-{all_but}."):
                shutil.rmtree(folder, ignore_errors=True)

    def _written(self, write: Callable[[], list[str]]) -> tuple[list[str], str]:
        """Write the parts of this worker; return their names, and why they cannot be written, or ""."""
        try:
            # Each worker may know the shared folder by another path.
            return [str(Path(part).relative_to(self._folder)) for part in write()], ""
        except WRITE_ERRORS as error:
            return [], reason_of(error)

    def _exchanged(self, names: Sequence[str], problem: str) -> list[_Report]:
        """Return what all workers report.

        Raises:
          UnwritablePartsError: if one of them reports a problem.
        """
        indexes = []
        if self._shared.is_remote:
            contents = [(self._folder / f"{name}{_INDEX}").read_bytes() for name in names]
            indexes = [base64.b64encode(content).decode() for content in contents]
        texts = self._replicas.texts(json.dumps(_Report(list(names), indexes, problem)))
        reports = [_Report(*json.loads(text)) for text in texts]
        for number, report in enumerate(reports):
            if report.problem:
                raise UnwritablePartsError(f"worker {number}: {report.problem}")
        return reports

    def _take(self, reports: Sequence[_Report]) -> dict[int, tuple[int, str]]:
        """Write the indexes of the other workers' parts, and empty files in place of their values."""
        places = {}
        for number, report in enumerate(reports):
            for name, index in zip(report.names, report.indexes, strict=True):
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
            for name in self._uploaded:
                (self._folder / name).unlink(missing_ok=True)
            self._uploaded = list(names.values())
            for part, name in names.items():
                os.replace(self._folder / f"{part}{_VALUES}", self._folder / name)
            self._shared.put_values(self._uploaded)
        except (OSError, StorageError) as error:
            return str(error)
        return ""
