"""Workers that train or evaluate together read the same data."""

from __future__ import annotations

from easyrec_mm.data.input import Input
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import DataError


def require_same_data(inputs: Input, replicas: Replicas) -> None:
    """Check that all workers have found the same files, with the same contents.

    Raises:
      DataError: if a worker has found others than the first one; all workers raise it.
    """
    if replicas.num == 1:
        return
    first, *others = (text.splitlines() for text in replicas.texts("\n".join(inputs.described_files())))
    for number, files in enumerate(others, 1):
        if files == first:
            continue
        missing, more = sorted(set(first) - set(files)), sorted(set(files) - set(first))
        difference = f"worker 0 has {missing[0]}" if missing else f"worker {number} has {more[0]}"
        both = f", worker {number} has {more[0]}" if missing and more else ""
        raise DataError(
            f"{inputs.setting}: the workers have found different files: {difference}{both}; give all workers the same "
            "files under the same names"
        )
