"""Continues a training from its last checkpoint that can be read, and tells what differs from then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError
from easyrec_mm.files.folders import shown
from easyrec_mm.runs.checkpoint import Checkpoints, newest_whole
from easyrec_mm.runs.checkpoint_list import PREFIX, STATE, is_damaged
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.training.state import Restored, TrainingState


def checkpoints_in(folder: ModelDir, checkpoints: Checkpoints) -> list[str]:
    """Return the paths of the checkpoints that should be in a model_dir, oldest first, also of damaged ones.

    Raises:
      CheckpointError: if there were checkpoints, and all of them are gone.
    """
    paths: list[str] = checkpoints.listed()
    if paths and not checkpoints.all():
        names = ", ".join(Path(path).name for path in paths)
        raise CheckpointError(
            f"model_dir '{folder.local}': its list of checkpoints names {names}, of which no file .index is left; put "
            f"them back, or remove the list (the file '{STATE}') to train from the start"
        )
    return paths


def resume(
    paths: list[str], folder: ModelDir, checkpoints: Checkpoints, state: TrainingState, replicas: Replicas
) -> Restored:
    """Restore the state of a training from its last checkpoint that is not damaged; print what is of interest.

    Newer checkpoints, which are damaged, are taken out of the list of checkpoints. Of several workers, the first
    chooses the checkpoint.

    Args:
      paths: all checkpoints, oldest first.
      folder: the model_dir.
      checkpoints: those of the folder.
      state: what is restored.
      replicas: the workers.

    Raises:
      CheckpointError: if all are damaged, they are of another model, or a worker does not see the first one's choice.
    """
    if is_damaged(folder.local):
        names = ", ".join(Path(path).name for path in paths)
        print(f"warning: the list of checkpoints in {folder.local} is missing or damaged; found {names}", flush=True)

    def read(path: str) -> Restored:
        folder.fetch_checkpoint(path)
        return state.restore(path)

    try:
        restored, path, damaged = _same_of_all(paths, read, folder, replicas)
    except DamagedCheckpointError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"model_dir '{folder.local}' holds the training of another model. {error}") from error
    for problem in damaged:
        print(f"warning: {shown(problem)}", flush=True)
    if damaged:
        checkpoints.leave_out(paths[paths.index(path) + 1 :])
    print(f"continuing from {shown(path)} (step {state.step})", flush=True)
    if restored.changes:
        print("settings that differ from those of the checkpoint:", *restored.changes, sep="\n  ", flush=True)
    if not restored.has_same_data:
        print("the training data or their order have changed since the checkpoint: reading from the start", flush=True)
    return restored


def warn_of_remains(folder: ModelDir) -> None:
    """Print a warning if a training that starts anew finds files of checkpoints that are not complete."""
    remains = sorted(path.name for path in folder.local.glob(f"{PREFIX}-*"))
    if remains:
        print(
            f"warning: {folder.local} holds no complete checkpoint, but {', '.join(remains[:5])}, as after a kill while"
            " the first one was written; training from the start",
            flush=True,
        )


def _same_of_all(
    paths: list[str], read: Callable[[str], Restored], folder: ModelDir, replicas: Replicas
) -> tuple[Restored, str, list[str]]:
    """Return what newest_whole returns to the first worker; the others read the checkpoint that it has chosen."""
    found = newest_whole(paths, read) if replicas.number == 0 else None
    name = replicas.texts(Path(found[1]).name if found else "")[0]
    if found:
        return found
    path = str(folder.local / name)
    if path not in paths:
        raise CheckpointError(
            f"model_dir '{folder.local}' has no {name} here, from which worker 0 goes on; give all workers the same "
            "folder, on a shared file system or in a bucket"
        )
    return read(path), path, []
