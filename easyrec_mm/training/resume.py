"""Continues a training from its last checkpoint that can be read, and tells what differs from then."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from easyrec_mm.console import say
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError, UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.runs.checkpoint import Checkpoints, newest_whole
from easyrec_mm.runs.checkpoint_list import is_damaged
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.names import PREFIX, STATE
from easyrec_mm.training.state import Restored, TrainingState


def checkpoints_in(folder: ModelDir, checkpoints: Checkpoints) -> list[str]:
    """Return the paths of the checkpoints that should be in a model_dir, oldest first, also of damaged ones.

    Raises:
      CheckpointError: if there were checkpoints, and all of them are gone, or their list cannot be written.
    """
    if (folder.local / STATE).is_dir():
        raise CheckpointError(
            f"model_dir '{folder.local}': '{STATE}' is a folder, but must be the list of checkpoints, which is a file; "
            "rename or remove that folder"
        )
    paths: list[str] = checkpoints.listed()
    if paths and not checkpoints.all():
        names = ", ".join(Path(path).name for path in paths)
        raise CheckpointError(
            f"model_dir '{folder.local}': its list of checkpoints names {names}, of which no file .index is left; put "
            f"them back, or remove the list (the file '{STATE}') and the files {PREFIX}-* to train from the start"
        )
    return paths


def resume(
    paths: list[str], folder: ModelDir, checkpoints: Checkpoints, state: TrainingState, replicas: Replicas
) -> tuple[Restored, str]:
    """Restore the state of a training from its last checkpoint that is not damaged; print what is of interest.

    Newer checkpoints, which are damaged, are taken out of the list of checkpoints. Of several workers, each reads other
    parts of divided tables: all try the checkpoints of the first one, and take one that all can read.

    Args:
      paths: all checkpoints, oldest first.
      folder: the model_dir.
      checkpoints: those of the folder.
      state: what is restored.
      replicas: the workers.

    Returns:
      What the checkpoint tells, and its path.

    Raises:
      CheckpointError: if all are damaged, they are of another model, or a worker does not have those of the first one.
    """
    if is_damaged(folder.local):
        names = ", ".join(Path(path).name for path in paths)
        say(f"warning: the list of checkpoints in {folder.local} is missing or damaged; found {names}")

    names_of_first = json.loads(replicas.texts(json.dumps([Path(path).name for path in paths]))[0])
    candidates = [str(folder.local / name) for name in names_of_first]
    read = partial(_read, paths, folder, state)
    restored, path, damaged = newest_whole(candidates, lambda path: _read_by_all(path, read, replicas))
    for problem in damaged:
        say(f"warning: {shown(problem)}")
    if damaged and not replicas.number:
        checkpoints.leave_out(candidates[candidates.index(path) + 1 :])
    say(f"continuing from {shown(path)} (step {state.step})")
    if restored.changes:
        say("\n  ".join(["settings that differ from those of the checkpoint:", *map(str, restored.changes)]))
    if not restored.has_same_data:
        say("the training data or their order have changed since the checkpoint: reading from the start")
    return restored, path


def _read(paths: list[str], folder: ModelDir, state: TrainingState, path: str) -> Restored:
    """Restore the state from one of the checkpoints of the first worker; arguments as for `resume`."""
    if path not in paths:
        raise CheckpointError(
            f"model_dir '{folder.path}' has no {Path(path).name} here, from which worker 0 goes on; give all workers "
            "the same folder, on a shared file system or in a bucket"
        )
    folder.fetch_checkpoint(path)
    try:
        return state.restore(path)
    except DamagedCheckpointError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"model_dir '{folder.local}' holds the training of another model. {error}") from error


def _read_by_all(path: str, read: Callable[[str], Restored], replicas: Replicas) -> Restored:
    """Return what `read` returns for a checkpoint that all workers read at the same time.

    Raises:
      DamagedCheckpointError: if it is damaged for some of them; all workers raise it.
      CheckpointError: if one of them cannot read it for another reason; all workers raise it.
    """
    if replicas.num == 1:
        return read(path)
    restored, reason = None, None
    try:
        restored = read(path)
    except UserError as error:
        reason = error
    report = [shown(str(reason or "")), isinstance(reason, DamagedCheckpointError)]
    reports = [json.loads(text) for text in replicas.texts(json.dumps(report))]
    problems = [(is_damage, number, text) for number, (text, is_damage) in enumerate(reports) if text]
    if restored is not None and not problems:
        return restored
    is_damage, number, text = min(problems)  # another reason than a damage comes first
    kind = DamagedCheckpointError if is_damage else CheckpointError
    raise kind(f"worker {number}: {text}") from reason


def warn_of_remains(folder: ModelDir) -> None:
    """Print a warning if a training that starts anew finds files of a checkpoint that is not complete.

    Raises:
      CheckpointError: if they are of several steps: a kill while the first one was written leaves those of one.
    """
    remains = sorted(path.name for path in folder.local.glob(f"{PREFIX}-*"))
    names = sorted({name.partition(".index")[0].partition(".data-")[0] for name in remains})
    if len(names) > 1:
        raise CheckpointError(
            f"model_dir '{folder.local}': holds files of {', '.join(names)}, of which none has a whole .index; put "
            f"these back, or remove the files {PREFIX}-* to train from the start"
        )
    if remains:
        say(
            f"warning: {folder.local} holds no complete checkpoint, but {', '.join(remains[:5])}, as after a kill while"
            " the first one was written; training from the start"
        )
