"""Writes the checkpoints of a training to its model_dir."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import tensorflow as tf

from easyrec_mm.config.pipeline import write_config
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError
from easyrec_mm.files.lock import FolderLock
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_index import read_index
from easyrec_mm.runs.checkpoint_parts import Increment, pieces_of
from easyrec_mm.runs.checkpoint_reader import bases_of
from easyrec_mm.runs.model_dir import PIPELINE_CONFIG, ModelDir
from easyrec_mm.runs.names import PREFIX
from easyrec_mm.runs.parts_of_workers import PartsOfWorkers
from easyrec_mm.runs.snapshot import Changed, Snapshot
from easyrec_mm.training.changed_rows import ChangedRows


class Saver:
    """Writes checkpoints and the config; of several workers, the first one does, and the others their parts of tables.

    A checkpoint with large tables is written while the training goes on: until `finish`, or the next one, the files of
    the path that `save` returns may be incomplete, and are not listed. Workers that hold parts of tables call `save`
    and `finish` after the same steps.

    Args:
      config: config of the training.
      replicas: the workers.
      lock: the lock of model_dir, which is kept up even if somebody removes the folder; None for none.

    Attributes:
      shared: the model_dir.
      folder: where this worker writes its logs: model_dir, or a folder of its own, which is removed at the end.
      checkpoints: those of model_dir.
    """

    def __init__(self, config: EasyRecConfig, replicas: Replicas, lock: FolderLock | None) -> None:
        self._config, self._is_first, self._lock = config, replicas.number == 0, lock
        self.shared = ModelDir(config.model_dir).open()
        self._parts = PartsOfWorkers(self.shared, replicas)
        self.folder = self.shared if self._is_first else ModelDir(f"{work_folder()}/model_dir").open()
        self.checkpoints = Checkpoints(str(self.shared.local), config.train_config.keep_checkpoint_max)
        self._rows = ChangedRows([], False)
        self._snapshot: Snapshot | None = None
        # The checkpoint since which rows are noted as changed.
        self._base: str | None = None

    def begin(self, rows: ChangedRows, base: str | None) -> None:
        """Begin a training.

        Args:
          rows: the rows that its steps change.
          base: the checkpoint from which it goes on.
        """
        self._rows, self._base = rows, base

    def write_config(self) -> None:
        """Write the config to the folder of this worker."""
        self.folder.local.mkdir(parents=True, exist_ok=True)
        write_config(self._config, str(self.folder.local / PIPELINE_CONFIG))

    def save(
        self, step: int, values: Mapping[str, tf.Variable | tf.Tensor], best_step: int | None, at_once: bool = True
    ) -> str:
        """Write the checkpoint of a step, and keep that of `best_step`; return its path.

        Args:
          step: the step, which has just been done.
          values: what the checkpoint contains.
          best_step: the step of a checkpoint to keep.
          at_once: whether the checkpoint is needed before the next step.

        Raises:
          CheckpointError: if it, or the one before, cannot be written.
          UserError: if the folder was removed, and another training holds its lock.
        """
        self.finish()
        path = str(self.shared.local / f"{PREFIX}-{step}")
        has_parts = any(shard_of(value) is not None for value in values.values())
        if not self._is_first and not has_parts:
            return path
        if self._is_first:
            if self._lock is not None:
                self._lock.keep()
            if not (self.folder.local / PIPELINE_CONFIG).exists():
                self.write_config()  # somebody has removed model_dir meanwhile
        is_meanwhile = self._rows.is_meanwhile and not at_once
        snapshot = self._begun(step, path, values, best_step, is_meanwhile, has_parts)
        self._base = path
        if is_meanwhile:
            snapshot.start()
            self._snapshot = snapshot
            self._rows.record()
        else:
            snapshot.write()
        return path

    def _begun(
        self,
        step: int,
        path: str,
        values: Mapping[str, tf.Variable | tf.Tensor],
        best_step: int | None,
        is_meanwhile: bool,
        has_parts: bool,
    ) -> Snapshot:
        """Return the checkpoint of a step, of which this worker writes its own parts if it `has_parts` of tables."""
        rows, base = self._rows.take_changed(), self._base_of(path, has_parts) if self._is_first else None
        streamed = self._rows.streamed if is_meanwhile else []
        if has_parts:
            pieces = pieces_of(values, self._rows.tables, self._parts.agree(base, rows), self._is_first)
            return self._parts.snapshot(self.checkpoints, step, pieces, best_step, streamed, is_meanwhile)
        increment = None if base is None else Increment(*base, rows)
        pieces = pieces_of(values, self._rows.tables, increment)
        return self.checkpoints.snapshot(step, pieces, best_step, streamed, self.folder.checkpoint_put)

    @property
    def is_writing(self) -> bool:
        """Return whether a checkpoint is being written while the training goes on."""
        return self._snapshot is not None

    @property
    def is_waiting(self) -> bool:
        """Return whether the checkpoint that is being written goes on only when all workers `meet`."""
        return self._snapshot is not None and self._snapshot.is_waiting

    def meet(self) -> None:
        """Exchange what the workers that write a checkpoint tell each other; all call this when all are waiting."""
        if self._snapshot is not None:
            self._snapshot.meet()

    def after_step(self, changed: Changed) -> None:
        """Go on with a checkpoint that is being written, given the rows that a step has changed.

        Raises:
          CheckpointError: if it cannot be written.
        """
        if self._snapshot is not None:
            self._snapshot.after_step(changed)
            if self._snapshot.is_done:
                self.finish()

    def finish(self) -> None:
        """Complete the checkpoint that is being written.

        Raises:
          CheckpointError: if it cannot be written.
        """
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self._rows.record_no_more()
            snapshot.finish()

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Complete the checkpoint that is being written at the end of the context, whose own errors come first.

        After an error, one that needs the other workers, too, is abandoned.
        """
        try:
            yield
        except BaseException:
            if self._snapshot is not None and self._snapshot.needs_others:
                self._abandon()
            with suppress(CheckpointError):
                self.finish()
            raise
        self.finish()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Abandon the checkpoint that is being written if a step fails in the context, and may be done in parts."""
        try:
            yield
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.abandon()

    def _base_of(self, path: str, has_parts: bool) -> tuple[str, str] | None:
        """Return the name and the digest of the last checkpoint, if the next one is to contain only changes since then.

        A checkpoint is full, too, if the one before was damaged or removed meanwhile.
        """
        num = self._config.train_config.increments_per_full_checkpoint
        if not num or self._base in (None, path):
            return None
        base = str(self._base)
        # In a bucket, the values that other workers have written are not here.
        has_all_values = not (has_parts and self.shared.is_remote)
        try:
            if len(bases_of(base, has_all_values)) >= num:
                return None
            return Path(base).name, read_index(base, has_all_values).digest
        except DamagedCheckpointError:
            return None
