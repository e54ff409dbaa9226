"""The checkpoints of a folder: written so that the last good one always stays.

A checkpoint consists of `model.ckpt-<step>.index` and `.data-*`, and contains each variable under its name
(model.MultimodalModel.named_variables), or the rows that have changed since another one (checkpoint_parts.py). It is
listed in the folder's `checkpoint` file (checkpoint_list.py) only when it is complete. A checkpoint whose numbers are
not finite, or too large to compute with, is neither written nor read.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import tensorflow as tf

from easyrec_mm.errors import CheckpointError, DamagedCheckpointError
from easyrec_mm.runs.checkpoint_list import read_list, write_list
from easyrec_mm.runs.checkpoint_parts import Piece, Table, pieces_of
from easyrec_mm.runs.checkpoint_reader import chain_of
from easyrec_mm.runs.names import PREFIX, STATE
from easyrec_mm.runs.snapshot import OtherWriters, Snapshot, Target, reason_of

# What the system says of a full disk.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

_Result = TypeVar("_Result")


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
        # Where parts are written. One name for all steps, so that each save removes what a killed save left behind.
        self._temporary = self._folder / f".{PREFIX}.tmp"

    def all(self) -> list[str]:
        """Return the paths of the complete checkpoints, oldest first."""
        return [path for path in self.listed() if tf.io.gfile.exists(f"{path}.index")]

    def listed(self) -> list[str]:
        """Return the paths of all checkpoints that should be there, oldest first, also of those that are incomplete."""
        return [str(self._folder / name) for name in read_list(self._folder)]

    def latest(self) -> str | None:
        """Return the path of the newest checkpoint; None if there is none."""
        paths = self.all()
        return paths[-1] if paths else None

    def save(self, step: int, variables: Mapping[str, tf.Variable | tf.Tensor], kept_step: int | None = None) -> str:
        """Write the variables as `model.ckpt-<step>` and remove the oldest checkpoints beyond `keep`.

        The checkpoint of `kept_step` is kept in addition, and so are those that a kept one rests on.

        Raises:
          CheckpointError: if it cannot be written, as on a full disk, or its numbers are of no use; earlier checkpoints
            stay.
        """
        return self.snapshot(step, pieces_of(variables), kept_step).write()

    def snapshot(
        self,
        step: int,
        pieces: Iterable[Piece],
        kept_step: int | None = None,
        streamed: Sequence[Table] = (),
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
        others: OtherWriters | None = None,
    ) -> Snapshot:
        """Return a checkpoint to be written; see `save`.

        Args:
          step: its step.
          pieces: what it contains.
          kept_step: the step of a checkpoint to keep in addition.
          streamed: the tables that are copied between steps.
          around: the context in which its parts become a checkpoint.
          others: other processes that write parts of it.

        Raises:
          CheckpointError: if the folder cannot be written to.
        """
        path = str(self._folder / f"{PREFIX}-{step}")
        commit, failed = partial(self._commit, path, kept_step, others), partial(self._failed, path, others)
        target = Target(path, self._temporary, commit, around, failed, others)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir()
        except OSError as error:
            raise self._failed(path, others, error) from error
        return Snapshot(target, list(pieces), streamed)

    def _commit(self, path: str, kept_step: int | None, others: OtherWriters | None, parts: list[str]) -> None:
        """Make a checkpoint of its parts, list it, and remove those that are not kept."""
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=True)
        if others is not None:
            others.finish(path)
        paths = [*[p for p in self.all() if p != path], path]
        kept = {*paths[-self._keep :], str(self._folder / f"{PREFIX}-{kept_step}")}
        kept = {part for p in kept.intersection(paths) for part in chain_of(p)}
        write_list(self._folder, [Path(p).name for p in paths if p in kept])
        shutil.rmtree(self._temporary, ignore_errors=True)
        if others is not None:
            others.remove()
        for old in set(paths) - kept:
            _remove(old)

    def _failed(self, path: str, others: OtherWriters | None, error: Exception) -> CheckpointError:
        """Remove what was written of a checkpoint; return the error that says why."""
        if path not in self.all():
            _remove(path)
        shutil.rmtree(self._temporary, ignore_errors=True)
        if others is not None:
            others.remove()
        good = self.latest()
        fallback = f"the last good one is {good}" if good else "there is none before it"
        reason = reason_of(error)
        advice = "; make room there, and start again" if any(full in reason for full in _FULL) else ""
        return CheckpointError(f"{path}: cannot be written: {reason}; {fallback}{advice}")

    def leave_out(self, paths: Collection[str]) -> None:
        """Take checkpoints out of the list; their files stay."""
        write_list(self._folder, [Path(path).name for path in self.all() if path not in paths])


def resolve_checkpoint(path: str, setting: str) -> str:
    """Return the checkpoint that a user names: by its path, by one of its files, or by a folder (its newest).

    Raises:
      CheckpointError: if there is no checkpoint; the message names the setting.
    """
    if tf.io.gfile.isdir(path):
        listed = Checkpoints(path).listed()
        newest = listed[-1] if listed else tf.train.latest_checkpoint(path)
        if not newest:
            raise CheckpointError(f"{setting}: folder '{path}' holds no checkpoint; train first, or name another")
        if not tf.io.gfile.exists(f"{newest}.index"):
            raise DamagedCheckpointError(f"{setting}: {newest}.index is missing; put it back, or name a checkpoint")
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
      DamagedCheckpointError: if all are damaged; the message names each, the newest first.
    """
    problems: list[DamagedCheckpointError] = []
    for path in reversed(list(paths)):
        try:
            return read(path), path, [str(problem) for problem in problems]
        except DamagedCheckpointError as error:
            problems.append(error)
    raise DamagedCheckpointError(
        "\n  ".join(map(str, problems))
        + f"\nno whole checkpoint is left: put one back from a copy, or remove the list "
        f"(the file '{STATE}') and the files {PREFIX}-* of this folder to train from the start"
    ) from problems[0]


def _remove(path: str) -> None:
    for file in tf.io.gfile.glob([f"{path}.index", f"{path}.data-*"]):
        with suppress(tf.errors.OpError):
            tf.io.gfile.remove(file)
