"""Reading of checkpoints: of this project, whole or as increments, and of any other in TensorFlow's format.

What is read is verified: every byte of the index (checkpoint_index.py), the sizes of the files, the checksum of each
value that is read, and that a model works with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.distribution.shards import Shard, shard_of, whole_shape
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError, did_you_mean, tensorflow_reason
from easyrec_mm.runs.checkpoint_index import Entry, Index, read_index
from easyrec_mm.runs.checkpoint_parts import (
    BASE,
    INCREMENT,
    ROWS,
    VALUES,
    UselessNumberError,
    require_usable,
    slice_spec,
    slices,
)

OTHER_CONFIG_ADVICE = (
    "Use the config it was trained with (model_dir/pipeline.config), another model_dir or fine_tune_checkpoint."
)


class _Link(NamedTuple):
    """A checkpoint of those that an increment consists of.

    path     its path
    entries  what it contains, by name
    changed  variable -> the names of its changed rows and of their values
    """

    path: str
    entries: dict[str, Entry]
    changed: dict[str, tuple[str, str]]


def bases_of(path: str, has_all_values: bool = True) -> list[str]:
    """Return the paths of the checkpoints that an increment needs, newest first; [] for a whole checkpoint.

    `has_all_values` as for CheckpointReader.

    Raises:
      DamagedCheckpointError: if one of them is damaged, or not the one that it was.
    """
    return [link.path for link in _links(path, has_all_values)[1:]]


def chain_of(path: str) -> list[str]:
    """Return the paths of a checkpoint and of those that it rests on, newest first, as far as their indexes are whole.

    Their values are not looked for, as before they are downloaded.
    """
    paths: list[str] = []
    at: str | None = path
    while at is not None and at not in paths:
        paths.append(at)
        try:
            base = _base(read_index(at, with_values=False))
        except DamagedCheckpointError:
            break
        at = None if base is None else str(Path(path).parent / base[0])
    return paths


class CheckpointReader:
    """Reads a checkpoint; of an increment, the values of a whole checkpoint of its step.

    Args:
      path: the checkpoint.
      has_all_values: whether all files with values have to be there, and not only those that are read.

    Attributes:
      shapes: name -> shape of everything in the checkpoint.

    Raises:
      DamagedCheckpointError: if it, or one that it rests on, is damaged.
    """

    def __init__(self, path: str, has_all_values: bool = True) -> None:
        self._path = path
        self._links = _links(path, has_all_values)
        self.shapes = {name: self._whole(name).entries[name].shape for name in _names(self._links[0])}

    def read(self, name: str) -> tf.Tensor:
        """Return a value that does not belong to a table.

        Raises:
          DamagedCheckpointError: if it cannot be read.
        """
        link = self._whole(name)
        return self._restored(link.path, name, name, "", link.entries[name].dtype)

    def read_into(self, name: str, variable: tf.Variable, rows: NDArray[np.int64] | None = None) -> None:
        """Assign the value named `name`, or rows of it, to a variable.

        Args:
          name: name of the value.
          variable: a variable of the same shape, or one that holds a part of its rows (shards.py); with `rows`, one
            whose rows have the shape of those of the value.
          rows: for each row of the variable, or of the table of which it holds a part, the row that it takes, -1 for
            none; by default the same.

        Raises:
          DamagedCheckpointError: if the value cannot be read, or no model works with it.
        """
        shard = shard_of(variable)
        if rows is not None:
            self._read_rows(name, variable, rows if shard is None else rows[shard.first : shard.stop])
            return
        first = 0 if shard is None else shard.first
        for numbers, value in self._parts(name, variable.dtype, shard):
            if numbers is None:
                variable.assign(value)
            else:
                variable.scatter_update(tf.IndexedSlices(value, numbers - first))

    def _read_rows(self, name: str, variable: tf.Variable, rows: NDArray[np.int64]) -> None:
        order = np.argsort(rows, kind="stable")
        sources = rows[order]
        for part, value in self._parts(name, variable.dtype):
            numbers = np.arange(self.shapes[name][0]) if part is None else part
            if not len(numbers):
                continue
            first, last = np.searchsorted(sources, [numbers[0], numbers[-1] + 1])
            places = np.searchsorted(numbers, sources[first:last])
            is_here = numbers[places] == sources[first:last]
            taken = tf.gather(value, places[is_here])
            variable.scatter_update(tf.IndexedSlices(taken, order[first:last][is_here]))

    def _parts(
        self, name: str, dtype: tf.DType, shard: Shard | None = None
    ) -> Iterator[tuple[NDArray[np.int64] | None, tf.Tensor]]:
        """Yield the parts of a value, each with its rows in ascending order, or None for all; later ones count.

        With `shard`, only its rows.
        """
        whole = self._whole(name)
        for start, stop, spec in _slices(self.shapes[name], dtype, shard):
            value = self._restored(whole.path, name, name, spec, dtype)
            yield (np.arange(start, stop) if spec else None), value
        for link in reversed(self._links[: self._links.index(whole)]):
            rows_name, values_name = link.changed[name]
            shape = link.entries[values_name].shape
            for start, stop, spec in _slices(shape, dtype):
                rows_spec = slice_spec(shape[:1], start, stop) if spec else ""
                rows = self._restored(link.path, name, rows_name, rows_spec, tf.int64).numpy()
                value = self._restored(link.path, name, values_name, spec, dtype)
                if shard is not None:
                    first, last = np.searchsorted(rows, [shard.first, shard.stop])
                    rows, value = rows[first:last], value[first:last]
                yield rows, value

    def _whole(self, name: str) -> _Link:
        """Return the newest checkpoint that has all of a value.

        Raises:
          DamagedCheckpointError: if an increment has rows of a value that its base does not have.
        """
        for link in self._links:
            if name in link.entries:
                return link
            if name not in link.changed:
                break
        raise DamagedCheckpointError(f"{self._path}: {name} is not in the checkpoints that it rests on")

    def _restored(self, path: str, name: str, key: str, spec: str, dtype: tf.DType) -> tf.Tensor:
        """Read a part of a checkpoint; `name` is that of the value that it belongs to."""
        try:
            (value,) = tf.raw_ops.RestoreV2(prefix=path, tensor_names=[key], shape_and_slices=[spec], dtypes=[dtype])
            require_usable(name, value)
        except (tf.errors.OpError, UselessNumberError) as error:
            reason = (
                str(error)
                if isinstance(error, UselessNumberError)
                else f"{name} cannot be read: {tensorflow_reason(error.message)}"
            )
            raise DamagedCheckpointError(f"{_resting(self._path, path)}: {reason}") from error
        return value


def _slices(shape: list[int], dtype: tf.DType, shard: Shard | None = None) -> Iterator[tuple[int, int, str]]:
    """Yield (first row, row after the last, TensorFlow's slice spec) per slice; the spec "" is the whole value."""
    if not shape or dtype == tf.string:
        yield 0, 0, ""
        return
    first, end = (0, shape[0]) if shard is None else (shard.first, shard.stop)
    if shard is not None and first == end:
        return
    for start, stop in slices(end - first, dtype.size * math.prod(shape[1:])):
        is_all = stop - start == shape[0]
        yield first + start, first + stop, "" if is_all else slice_spec(shape, first + start, first + stop)


def checkpoint_shapes(path: str) -> dict[str, list[int]]:
    """Return name -> shape of everything in a checkpoint.

    Raises:
      DamagedCheckpointError: if it cannot be read.
    """
    return CheckpointReader(path).shapes


def read_text_value(path: str, name: str) -> str | None:
    """Return a text of a checkpoint; None if the checkpoint does not contain it."""
    reader = CheckpointReader(path)
    return bytes(reader.read(name).numpy()).decode() if name in reader.shapes else None


def restore(path: str, variables: Mapping[str, tf.Variable], has_all_values: bool = True) -> None:
    """Assign the checkpoint's values to variables; `has_all_values` as for CheckpointReader.

    Raises:
      CheckpointError: if a variable is missing in the checkpoint or has another shape; the message shows both shapes.
    """
    reader = CheckpointReader(path, has_all_values)
    shapes = reader.shapes
    problems = []
    for name, variable in variables.items():
        if name not in shapes:
            problems.append(
                f"  {name}: model {whole_shape(variable)}, checkpoint has none; {did_you_mean(name, shapes)}"
            )
        elif whole_shape(variable) != list(shapes[name]):
            problems.append(f"  {name}: model {whole_shape(variable)}, checkpoint {list(shapes[name])}")
    if problems:
        omission = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"{path}: does not fit this config:\n" + "\n".join(problems[:10]) + omission + f"\n{OTHER_CONFIG_ADVICE}"
        )
    for name, variable in variables.items():
        reader.read_into(name, variable)


def _links(path: str, has_all_values: bool = True) -> list[_Link]:
    """Return a checkpoint and those that it rests on, newest first."""
    links: list[_Link] = []
    at: str | None = path
    digest = ""
    while at is not None:
        try:
            index = read_index(at, with_values=has_all_values)
        except DamagedCheckpointError as error:
            if not links:
                raise
            raise DamagedCheckpointError(f"{path}: rests on {error}") from error
        if links and index.digest != digest:
            raise DamagedCheckpointError(f"{path}: rests on {at}, which is another one than when it was written")
        links.append(_Link(at, index.entries, _changed(index.entries)))
        base = _base(index)
        at, digest = (None, "") if base is None else (str(Path(path).parent / base[0]), base[1])
    return links


def _base(index: Index) -> tuple[str, str] | None:
    """Return the name of the checkpoint that an increment rests on, and the digest of its index."""
    for name in index.entries:
        if name.startswith(BASE):
            base, _, digest = name.removeprefix(BASE).rpartition("/")
            return base, digest
    return None


def _changed(entries: Mapping[str, Entry]) -> dict[str, tuple[str, str]]:
    changed = {}
    for key in entries:
        if key.startswith(VALUES):
            number, _, name = key.removeprefix(VALUES).partition("/")
            changed[name] = (f"{ROWS}{number}", key)
    return changed


def _names(link: _Link) -> list[str]:
    """Return the names of the values in a checkpoint."""
    return [*(name for name in link.entries if not name.startswith(INCREMENT)), *link.changed]


def _resting(path: str, part: str) -> str:
    return path if part == path else f"{path}: rests on {part}"
