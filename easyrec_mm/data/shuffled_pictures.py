"""Pictures that change places: each path loads the picture of another path, the same one wherever the path occurs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError

_SETTING = "data_config.shuffled_pictures"
_PATH, _INSTEAD = "path", "instead"
_SCHEMA = pa.schema([(_PATH, pa.binary()), (_INSTEAD, pa.binary())])


class ShuffledPictures:
    """The file of data_config.shuffled_pictures.

    Raises:
      DataError: if it is not such a file.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        try:
            columns = pq.read_table(file, columns=[_PATH, _INSTEAD]).cast(_SCHEMA)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{_SETTING}: {file} is not a Parquet file of {_PATH} and {_INSTEAD}: {error}") from error
        self._instead: dict[bytes, bytes] = dict(
            zip(columns[_PATH].to_pylist(), columns[_INSTEAD].to_pylist(), strict=True)
        )

    def instead_of(self, paths: Iterable[bytes]) -> list[bytes]:
        """Return the argument of PictureLoader for each path; an empty path stays as it is.

        Raises:
          DataError: if the file does not contain a path.
        """
        try:
            return [self._instead[path] if path else path for path in paths]
        except KeyError as error:
            path = os.fsdecode(error.args[0])
            raise DataError(
                f"{_SETTING}: {self._file} does not contain '{path}'; the data have changed since it was written"
            ) from error


def write_shuffled(paths: Sequence[bytes], loaded: Sequence[bytes], seed: int, file: Path) -> None:
    """Write a file in which each picture takes the place of another, along one cycle through all of them.

    The file appears only when it is complete.

    Args:
      paths: paths of the pictures, as the data have them, each once.
      loaded: the argument of PictureLoader for each picture.
      seed: seed of the order of the cycle.
      file: the file to write.
    """
    order = np.random.default_rng(seed).permutation(len(paths))
    columns = [[paths[i] for i in order], [loaded[i] for i in np.roll(order, -1)]]
    temporary = file.with_name(file.name + ".tmp")
    pq.write_table(pa.table(columns, schema=_SCHEMA), temporary)
    os.replace(temporary, file)
