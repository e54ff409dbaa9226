"""Continues a training from its last checkpoint that can be read, and tells what differs from then."""

from __future__ import annotations

from pathlib import Path

from easyrec_mm.errors import CheckpointError, DamagedCheckpointError
from easyrec_mm.files.folders import shown
from easyrec_mm.runs.checkpoint import Checkpoints, newest_whole
from easyrec_mm.runs.checkpoint_list import is_damaged
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.training.state import Restored, TrainingState


def resume(paths: list[str], folder: ModelDir, checkpoints: Checkpoints, state: TrainingState) -> Restored:
    """Restore the state of a training from its last checkpoint that is not damaged; print what is of interest.

    Newer checkpoints, which are damaged, are taken out of the list of checkpoints.

    Args:
      paths: all checkpoints, oldest first.
      folder: the model_dir.
      checkpoints: those of the folder.
      state: what is restored.

    Raises:
      CheckpointError: if all are damaged, or they are of another model.
    """
    if is_damaged(folder.local):
        names = ", ".join(Path(path).name for path in paths)
        print(f"warning: the list of checkpoints in {folder.local} is missing or damaged; found {names}", flush=True)

    def read(path: str) -> Restored:
        folder.fetch_checkpoint(path)
        return state.restore(path)

    try:
        restored, path, damaged = newest_whole(paths, read)
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
