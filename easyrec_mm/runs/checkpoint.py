"""Checkpoints: named variables in TensorFlow's checkpoint format, written so that the last good one always stays.

A checkpoint consists of `model.ckpt-<step>.index` and `.data-*`, and contains each variable under its name
(model.MultimodalModel.named_variables); `tf.train.load_checkpoint` reads it. Variables are written and read in slices,
so that a table of many gigabytes is never copied as a whole, and a checkpoint is listed in the folder's `checkpoint`
file (checkpoint_list.py) only when it is complete. A checkpoint whose numbers are not finite, or too large to compute
with, is neither written nor read.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.distribution.shards import Shard, shard_of, whole_shape
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError, did_you_mean, tensorflow_reason
from easyrec_mm.features.field import LARGEST_NUMBER
from easyrec_mm.runs.checkpoint_list import PREFIX, read_list, write_list

SLICE_BYTES = 16 << 20
# Ends of the names of running statistics that are means of squares.
_SQUARES = ("variance", "mean_of_square")
OTHER_CONFIG_ADVICE = (
    "Use the config it was trained with (model_dir/pipeline.config), another model_dir or fine_tune_checkpoint."
)
# Per variable: a table of 100 GiB is written to files of 400 MiB.
MOST_SLICES = 256


_Result = TypeVar("_Result")


class UselessNumberError(Exception):
    """A number of a checkpoint is not finite, or too large to compute with."""


class UnwritablePartsError(Exception):
    """A worker cannot write its parts of a checkpoint."""


# What writing raises if it fails for a reason that a user can change.
WRITE_ERRORS = (OSError, tf.errors.OpError, UselessNumberError)


class PartWriter:
    """Writes the files from which a checkpoint is merged: those of one process."""

    def write(self, step: int, folder: Path, variables: Mapping[str, tf.Variable | tf.Tensor]) -> list[str]:
        """Write the variables of a step to a folder; return the prefixes of the files."""
        return write_parts(folder, variables)

    def finish(self, path: str) -> None:
        """Do what remains when the files are merged, before the checkpoint is listed."""


class Checkpoints:
    """The checkpoints of a folder.

    Args:
      folder: the folder, which is created when the first checkpoint is saved.
      keep: number of newest checkpoints to keep.

    Raises:
      CheckpointError: if TensorFlow would interpret the folder's name as a pattern.
    """

    def __init__(self, folder: str, keep: int = 10) -> None:
        if re.search(r"[*?\[\\]", folder):
            raise CheckpointError(
                f"folder '{folder}': TensorFlow cannot read checkpoints from a folder with *, ?, [ or \\ in its name; "
                "choose another model_dir"
            )
        self._folder = Path(folder)
        self._keep = keep

    def all(self) -> list[str]:
        """Return the paths of the complete checkpoints, oldest first."""
        paths = [str(self._folder / name) for name in read_list(self._folder)]
        return [path for path in paths if tf.io.gfile.exists(f"{path}.index")]

    def latest(self) -> str | None:
        """Return the path of the newest checkpoint; None if there is none."""
        paths = self.all()
        return paths[-1] if paths else None

    def save(
        self,
        step: int,
        variables: Mapping[str, tf.Variable | tf.Tensor],
        kept_step: int | None = None,
        parts: PartWriter | None = None,
    ) -> str:
        """Write the variables as `model.ckpt-<step>` and remove the oldest checkpoints beyond `keep`.

        Args:
          step: number of the step.
          variables: the variables by name.
          kept_step: the step of a checkpoint that is kept in addition.
          parts: writes the files that are merged; None for those of this process alone.

        Raises:
          CheckpointError: if it cannot be written, as on a full disk, or its numbers are of no use; earlier checkpoints
            stay.
        """
        path = self._folder / f"{PREFIX}-{step}"
        # One name for all steps, so that each save removes what a killed save left behind.
        temporary = self._folder / f".{PREFIX}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            parts = parts or PartWriter()
            files = parts.write(step, temporary, variables)
            tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=files, destination_prefix=str(path), delete_old_dirs=True)
            parts.finish(str(path))
            paths = [*[p for p in self.all() if p != str(path)], str(path)]
            removed = [old for old in paths[: -self._keep] if Path(old).name != f"{PREFIX}-{kept_step}"]
            write_list(self._folder, [Path(p).name for p in paths if p not in removed])
        except (*WRITE_ERRORS, UnwritablePartsError) as error:
            if str(path) not in self.all():
                _remove(str(path))
            good = self.latest()
            fallback = f"the last good one is {good}" if good else "there is none before it"
            raise CheckpointError(f"{path}: cannot be written: {reason_of(error)}; {fallback}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in removed:
            _remove(old)
        return str(path)

    def leave_out(self, paths: Collection[str]) -> None:
        """Take checkpoints out of the list; their files stay."""
        write_list(self._folder, [Path(path).name for path in self.all() if path not in paths])


def resolve_checkpoint(path: str, setting: str) -> str:
    """Return the checkpoint that a user names: by its path, by one of its files, or by a folder (its newest).

    Raises:
      CheckpointError: if there is no checkpoint; the message names the setting.
    """
    if tf.io.gfile.isdir(path):
        newest = Checkpoints(path).latest() or tf.train.latest_checkpoint(path)
        if not newest:
            raise CheckpointError(f"{setting}: folder '{path}' holds no checkpoint; train first, or name another")
        return str(newest)
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path)
    if not tf.io.gfile.exists(f"{prefix}.index"):
        raise CheckpointError(f"{setting}: no checkpoint '{path}'; give a path such as model_dir/{PREFIX}-1000")
    return prefix


def newest_whole(paths: Iterable[str], read: Callable[[str], _Result]) -> tuple[_Result, str, list[str]]:
    """Read the newest checkpoint that is not damaged.

    Args:
      paths: the checkpoints, oldest first; at least one.
      read: reads the checkpoint with a path, and raises DamagedCheckpointError if it is damaged.

    Returns:
      The result of `read`, the path of that checkpoint, and the problems of the newer ones.

    Raises:
      DamagedCheckpointError: if all are damaged; the message is that of the newest.
    """
    problems: list[DamagedCheckpointError] = []
    for path in reversed(list(paths)):
        try:
            return read(path), path, [str(problem) for problem in problems]
        except DamagedCheckpointError as error:
            problems.append(error)
    raise problems[0]


def checkpoint_shapes(path: str) -> dict[str, list[int]]:
    """Return name -> shape of everything in a checkpoint.

    Raises:
      DamagedCheckpointError: if it cannot be read.
    """
    try:
        return dict(tf.train.load_checkpoint(path).get_variable_to_shape_map())
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise DamagedCheckpointError(f"{path}: is not a readable checkpoint: {error}") from error


def read_text_value(path: str, name: str) -> str | None:
    """Return a text of a checkpoint; None if the checkpoint does not contain it."""
    if name not in checkpoint_shapes(path):
        return None
    try:
        return bytes(tf.train.load_checkpoint(path).get_tensor(name)).decode()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise DamagedCheckpointError(f"{path}: {name} cannot be read: {error}") from error


def restore(path: str, variables: Mapping[str, tf.Variable]) -> None:
    """Assign the checkpoint's values to variables.

    Raises:
      CheckpointError: if a variable is missing in the checkpoint or has another shape; the message shows both shapes.
    """
    shapes = checkpoint_shapes(path)
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
        read_into(path, name, variable)


def read_into(path: str, name: str, variable: tf.Variable) -> None:
    """Assign the value named `name` of a checkpoint to a variable of the same shape.

    Raises:
      DamagedCheckpointError: if the value cannot be read, or no model works with it.
    """
    shard = shard_of(variable)
    first = shard.first if shard else 0
    for start, stop, value in _read_slices(path, name, whole_shape(variable), variable.dtype, shard):
        if stop:
            variable.scatter_update(tf.IndexedSlices(value, tf.range(start - first, stop - first)))
        else:
            variable.assign(value)


def read_rows(path: str, name: str, shape: Sequence[int], variable: tf.Variable, rows: NDArray[np.int64]) -> None:
    """Assign rows of the value named `name` of a checkpoint to rows of a variable.

    Args:
      path: the checkpoint.
      name: name of the value.
      shape: its shape.
      variable: a variable whose rows have the shape of those of the value.
      rows: for each row of the variable, or of the table of which it holds a part, the row that it takes; -1 leaves it
        as it is.

    Raises:
      DamagedCheckpointError: if the value cannot be read, or no model works with it.
    """
    shard = shard_of(variable)
    if shard is not None:
        rows = rows[shard.first : shard.stop]
    order = np.argsort(rows, kind="stable")
    sources = rows[order]
    for start, stop, value in _read_slices(path, name, shape, variable.dtype):
        first, last = np.searchsorted(sources, [start, stop or shape[0]])
        if first < last:
            taken = tf.gather(value, sources[first:last] - start)
            variable.scatter_update(tf.IndexedSlices(taken, order[first:last]))


def _read_slices(
    path: str, name: str, shape: Sequence[int], dtype: tf.DType, shard: Shard | None = None
) -> Iterator[tuple[int, int, tf.Tensor]]:
    """Yield (first row, row after the last, value) per slice; (0, 0, value) for a value that is read as a whole."""
    try:
        for start, stop, spec in _slices(shape, dtype, shard):
            (value,) = tf.raw_ops.RestoreV2(prefix=path, tensor_names=[name], shape_and_slices=[spec], dtypes=[dtype])
            _require_usable(name, value)
            yield start, stop, value
    except (tf.errors.OpError, UselessNumberError) as error:
        place = "" if isinstance(error, UselessNumberError) else f"{name} cannot be read: "
        raise DamagedCheckpointError(f"{path}: {place}{reason_of(error)}") from error


def is_weight(name: str) -> bool:
    """Return whether a checkpoint's entry is a weight rather than the state of a training."""
    return not name.startswith(("optimizer_", "average/", "progress/", "picture_bank/"))


def write_parts(folder: Path, variables: Mapping[str, tf.Variable]) -> list[str]:
    """Write the variables to files of about one slice each; return the prefixes of the files."""
    parts: list[str] = []
    names: list[str] = []
    specs: list[str] = []
    values: list[tf.Tensor] = []

    def flush() -> None:
        if names:
            parts.append(str(folder / f"part-{len(parts)}"))
            tf.raw_ops.SaveV2(prefix=parts[-1], tensor_names=names, shape_and_slices=specs, tensors=values)
            for buffered in (names, specs, values):
                buffered.clear()

    num_bytes = 0
    for name, variable in variables.items():
        shard = shard_of(variable)
        first = shard.first if shard else 0
        for start, stop, spec in _slices(whole_shape(variable), variable.dtype, shard):
            ids = tf.range(start - first, stop - first)
            value = tf.gather(variable, ids) if spec else tf.convert_to_tensor(variable)
            _require_usable(name, value)
            num_bytes += value.dtype.size * int(tf.size(value))
            names.append(name)
            specs.append(spec)
            values.append(value)
            if num_bytes >= SLICE_BYTES:
                flush()
                num_bytes = 0
    flush()
    return parts


def _require_usable(name: str, value: tf.Tensor) -> None:
    """Check that a model works with a value of a checkpoint.

    Raises:
      UselessNumberError: if a number is not finite, or a weight is larger than LARGEST_NUMBER.
    """
    if not value.dtype.is_floating:
        return
    is_square = not is_weight(name) or name.endswith(_SQUARES)
    limit = value.dtype.max if is_square else min(value.dtype.max, LARGEST_NUMBER)
    if not bool(tf.reduce_all(tf.abs(value) <= tf.cast(limit, value.dtype))):
        largest = float(tf.reduce_max(tf.cast(tf.abs(value), tf.float32)))
        raise UselessNumberError(f"{name} holds {largest:g}, with which no model works")


def reason_of(error: Exception) -> str:
    """Return the reason for one of WRITE_ERRORS, or for an UnwritablePartsError."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return tensorflow_reason(error.message) if isinstance(error, tf.errors.OpError) else str(error)


def _slices(shape: Sequence[int], dtype: tf.DType, shard: Shard | None = None) -> list[tuple[int, int, str]]:
    """Return (first row, row after the last, TensorFlow's slice spec) per slice; the spec "" is the whole value.

    They are slices of the rows of `shard` alone, if it is given; `shape` is that of the whole value.
    """
    row_bytes = dtype.size * math.prod(shape[1:]) if shape else 1
    if shard is None and (not shape or shape[0] * row_bytes <= SLICE_BYTES):
        return [(0, 0, "")]
    first, end = (shard.first, shard.stop) if shard else (0, shape[0])
    rows_at_a_time = max(1, SLICE_BYTES // row_bytes, math.ceil((end - first) / MOST_SLICES))
    dims = " ".join(str(dim) for dim in shape)
    other_dims = ":-" * (len(shape) - 1)
    slices = []
    for start in range(first, end, rows_at_a_time):
        stop = min(start + rows_at_a_time, end)
        slices.append((start, stop, f"{dims} {start},{stop - start}{other_dims}"))
    return slices


def _remove(path: str) -> None:
    for file in tf.io.gfile.glob([f"{path}.index", f"{path}.data-*"]):
        with suppress(tf.errors.OpError):
            tf.io.gfile.remove(file)
