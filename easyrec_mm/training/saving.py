"""Writes the checkpoints of a training to its model_dir."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from easyrec_mm.config.pipeline import write_config
from easyrec_mm.files.lock import FolderLock
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_list import PREFIX
from easyrec_mm.runs.model_dir import PIPELINE_CONFIG, ModelDir


class Saver:
    """Writes checkpoints and the config; of several workers, only the first one does.

    Args:
      config: config of the training.
      is_first: whether this is the first worker.
      lock: the lock of model_dir, which is kept up even if somebody removes the folder; None for none.

    Attributes:
      shared: the model_dir.
      folder: where this worker writes its logs: model_dir, or a folder of its own, which is removed at the end.
      checkpoints: those of model_dir.
    """

    def __init__(self, config: EasyRecConfig, is_first: bool, lock: FolderLock | None) -> None:
        self._config, self._is_first, self._lock = config, is_first, lock
        self.shared = ModelDir(config.model_dir).open()
        self.folder = self.shared if is_first else ModelDir(f"{work_folder()}/model_dir").open()
        self.checkpoints = Checkpoints(str(self.shared.local), config.train_config.keep_checkpoint_max)

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
        if not self._is_first:
            return str(self.shared.local / f"{PREFIX}-{step}")
        if self._lock is not None:
            self._lock.keep()
        if not (self.folder.local / PIPELINE_CONFIG).exists():
            self.write_config()  # somebody has removed model_dir meanwhile
        path = self.checkpoints.save(step, values, best_step)
        self.folder.put_checkpoint()
        return path
