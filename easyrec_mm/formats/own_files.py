"""Which files each worker reads if all have files of their own (`data_config.file_shard`)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from easyrec_mm.errors import DataError


def own_files(sizes: Sequence[int], worker: int, num_workers: int, setting: str) -> tuple[int, ...]:
    """Return the indices of the files that a worker reads, ascending; each file is of one worker.

    The division depends on the sizes alone. From the largest file to the smallest, each goes to the worker that has the
    least so far, so that no worker has more than 4/3 of what the largest share of the best division is (R. L. Graham,
    Bounds on multiprocessing timing anomalies, 1969).

    Args:
      sizes: size of each file, in any unit.
      worker: number of the worker, from 0.
      num_workers: number of workers.
      setting: the setting that names the files, for messages.

    Raises:
      DataError: if there are fewer files with data than workers.
    """
    num_files = sum(size > 0 for size in sizes)
    if num_files < num_workers:
        files = "1 file" if num_files == 1 else f"{num_files} files"
        raise DataError(
            f"{setting}: {files} with data for {num_workers} workers, of which each reads files of its own "
            f"(data_config.file_shard); write at least {num_workers} files, train with fewer workers, or leave "
            "file_shard unset, so that the workers divide each batch"
        )
    loads = [(0, number) for number in range(num_workers)]
    own = []
    for file in sorted(range(len(sizes)), key=lambda file: -sizes[file]):
        load, number = loads[0]
        heapq.heapreplace(loads, (load + sizes[file], number))
        if number == worker:
            own.append(file)
    return tuple(sorted(own))
