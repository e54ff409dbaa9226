"""Remembers the last group that was read, for messages about a run that waits for the next one."""

from __future__ import annotations

from collections.abc import Generator

import tensorflow as tf

from easyrec_mm.data.batch import InputBatch
from easyrec_mm.files.waiting import waiting


class Arrivals:
    """The last group that was read, and the batches whose pictures and vectors are being loaded.

    Args:
      setting: the setting that names the files.
      files: the files, whose indices are those of InputBatch.origin.
    """

    def __init__(self, setting: str, files: list[str]) -> None:
        self._setting, self._files = setting, files
        self._origin: tf.Tensor | None = None
        self._num_loading = 0

    def begun(self, origin: tf.Tensor) -> None:
        """Note that the groups of a batch have been read, see InputBatch.origin, and that their pictures are loaded."""
        self._num_loading += 1
        if origin.shape[1]:
            self._origin = origin

    def finished(self) -> None:
        """Note that the pictures of a batch are loaded."""
        self._num_loading -= 1

    def describe(self) -> str:
        """Return what the next batch waits for, as far as it can be told from what has arrived."""
        last = "no group has arrived yet"
        if self._origin is not None:
            file, row, _ = self._origin[:, -1].numpy().tolist()
            last = f"the last group that has arrived is {self._files[file]}:{row}"
        loading = f", pictures or vectors of {self._num_loading} batches are being loaded" if self._num_loading else ""
        return f"a batch of {self._setting} ({last}{loading})"

    def awaited(self, batches: Generator[InputBatch, None, None]) -> Generator[InputBatch, None, None]:
        """Yield batches, and note that the process waits while the next one is not there yet."""
        try:
            while True:
                with waiting(self.describe):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
        finally:
            batches.close()
