"""Writes the checkpoints of a training to its model_dir."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from easyrec_mm.config.pipeline import write_config
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.files.lock import FolderLock
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_list import PREFIX
from easyrec_mm.runs.model_dir import PIPELINE_CONFIG, ModelDir
from easyrec_mm.runs.parts_of_workers import PartsOfWorkers


class Saver:
    """Writes checkpoints and the config; of several workers, the first one does, and the others their parts of tables.

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
        self.folder = self.shared if self._is_first else ModelDir(f"{work_folder()}/model_dir").open()
        self.checkpoints = Checkpoints(str(self.shared.local), config.train_config.keep_checkpoint_max)
        self._parts = PartsOfWorkers(self.shared, replicas)

    def write_config(self) -> None:
        """Write the config to the folder of this worker."""
        self.folder.local.mkdir(parents=True, exist_ok=True)
        write_config(self._config, str(self.folder.local / PIPELINE_CONFIG))

    def save(self, step: int, values: Mapping[str, tf.Variable | tf.Tensor], best_step: int | None) -> str:
        """Write the checkpoint of a step, and keep that of `best_step`; return its path.

        Raises:
          CheckpointError: if it cannot be written.
          UserError: if the folder was removed, and another training holds its lock.
        """
        has_parts = any(shard_of(value) is not None for value in values.values())
        if not self._is_first:
            if has_parts:
                self._parts.write_of_others(step, values)
            return str(self.shared.local / f"{PREFIX}-{step}")
        if self._lock is not None:
            self._lock.keep()
        if not (self.folder.local / PIPELINE_CONFIG).exists():
            self.write_config()  # somebody has removed model_dir meanwhile
        try:
            path = self.checkpoints.save(step, values, best_step, self._parts if has_parts else None)
        finally:
            self._parts.remove()
        self.folder.put_checkpoint(with_others=has_parts)
        return path
