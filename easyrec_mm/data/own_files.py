"""Lets workers that read files of their own (`data_config.file_shard`) tell each other what these contain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from easyrec_mm.data.divided_epoch import DividedEpoch
from easyrec_mm.errors import DataError


@dataclass(frozen=True)
class OwnFiles:
    """Facts about the files of all workers.

    worker    number of this worker
    epoch     the sizes of an epoch
    contents  index of each file -> its content, see contents_of
    """

    worker: int
    epoch: DividedEpoch
    contents: Mapping[int, str]

    @property
    def num_workers(self) -> int:
        """Return the number of workers."""
        return len(self.epoch.num_groups)

    def describe(self) -> str:
        """Return how much this worker reads."""
        return f"{self.epoch.num_groups[self.worker]:,} of {self.epoch.total:,} groups are in this worker's own files"


def meet(
    worker: int,
    num_groups: int,
    contents: Mapping[int, str],
    batch_size: int,
    drops_remainder: bool,
    exchange: Callable[[str], list[str]] | None,
) -> OwnFiles:
    """Tell all workers what this one has in its files, and return what all have.

    Args:
      worker: number of this worker.
      num_groups: number of groups in its files.
      contents: index of each of its files -> its content.
      batch_size, drops_remainder: see DividedEpoch.
      exchange: gives a text of this worker to all, and returns those of all; all workers call this.

    Raises:
      DataError: if drops_remainder leaves no batch.
    """
    if exchange is None:
        raise ValueError("workers that read files of their own need to exchange texts")
    of_all = [json.loads(text) for text in exchange(json.dumps([num_groups, dict(contents)]))]
    epoch = DividedEpoch([number for number, _ in of_all], batch_size, drops_remainder)
    if not epoch.num_batches():
        raise DataError(
            f"data_config.drop_remainder: no batch is full: a worker has at most {max(epoch.num_groups)} groups in its "
            f"files, and batches of {batch_size}; lower batch_size, or set drop_remainder to false"
        )
    return OwnFiles(worker, epoch, {int(file): text for _, own in of_all for file, text in own.items()})
