"""Counts the groups of an input, or estimates their number where counting would take long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from easyrec_mm.files.waiting import waiting
from easyrec_mm.formats.source import Source

# Limit of the bytes that are read only to count groups, which takes one or two seconds.
_MOST_COUNTED_BYTES = 1 << 28


def count_groups(source: Source, files: Sequence[int], setting: str) -> int:
    """Return the number of groups in the files with these indices.

    Args:
      source: the groups.
      files: indices of files.
      setting: the setting that names the files, for messages.

    Raises:
      DataError: if a file cannot be read.
    """
    try:
        with waiting(lambda: f"the number of groups in {setting}"):
            return source.count(files)
    except tf.errors.OpError as error:
        raise source.failure(error) or error from error


def estimate_groups(source: Source, sizes: Sequence[int], setting: str) -> tuple[int, bool]:
    """Return the number of groups in all files, and whether it is exact.

    For large data that must be read to be counted, only some files are counted, and the number is extrapolated from
    file sizes. These are always the same files, so that every start of a training finds the same number.

    Args:
      source: the groups.
      sizes: size of each file in bytes.
      setting: the setting that names the files, for messages.

    Raises:
      DataError: if a file cannot be read.
    """
    counted = list(range(len(sizes)))
    if not source.counts_at_once and sum(sizes) > _MOST_COUNTED_BYTES:
        # Files from the whole list, because files are often in the order of time.
        order = np.random.default_rng(0).permutation(len(sizes))
        num_files = 1 + int(np.searchsorted(np.cumsum([sizes[i] for i in order]), _MOST_COUNTED_BYTES // 4))
        counted = sorted(int(i) for i in order[:num_files])
    num_groups = count_groups(source, counted, setting)
    if len(counted) == len(sizes):
        return num_groups, True
    return round(num_groups * sum(sizes) / max(sum(sizes[i] for i in counted), 1)), False
