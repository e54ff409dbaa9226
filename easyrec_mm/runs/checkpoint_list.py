"""The file `checkpoint` of a folder: TensorFlow's list of the folder's complete checkpoints."""

from __future__ import annotations

import os
import re
from pathlib import Path

from google.protobuf import text_format
from tensorflow.python.training.checkpoint_state_pb2 import CheckpointState  # the public way prints what is damaged

from easyrec_mm.errors import DamagedCheckpointError
from easyrec_mm.runs.checkpoint_index import read_index
from easyrec_mm.runs.names import PREFIX, STATE


def read_list(folder: Path) -> list[str]:
    """Return the names of the checkpoints, oldest first.

    If the list is missing or damaged, or nothing of what it names is there but other checkpoints are, it is made anew
    from the checkpoints `model.ckpt-<step>` that lie in the folder, in the order of their steps. A checkpoint with an
    incomplete index is left out: it was being written when its training was killed.
    """
    names = _listed(folder)
    return names if names is not None else _lying(folder)


def is_damaged(folder: Path) -> bool:
    """Return whether the list is missing or damaged although there are checkpoints."""
    return _listed(folder) is None and bool(read_list(folder))


def write_list(folder: Path, names: list[str]) -> None:
    """Write the list, with relative paths, so that the folder can be moved."""
    lines = [f'model_checkpoint_path: "{name}"' for name in names[-1:]]
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
    temporary = folder / f"{STATE}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / STATE)
    finally:
        temporary.unlink(missing_ok=True)


def _lying(folder: Path) -> list[str]:
    """Return the names of the checkpoints that lie in the folder, in the order of their steps."""
    steps = [re.fullmatch(rf"{PREFIX}-(\d+)\.index", path.name) for path in folder.glob(f"{PREFIX}-*.index")]
    names = [f"{PREFIX}-{step}" for step in sorted(int(match[1]) for match in steps if match)]
    return [name for name in names if _has_index(folder / name)]


def _listed(folder: Path) -> list[str] | None:
    """Return the names in the list; None if it is missing, not as TensorFlow writes it, or of other checkpoints."""
    try:
        state = text_format.Parse((folder / STATE).read_text(encoding="utf-8"), CheckpointState())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, UnicodeError, text_format.ParseError):
        return None
    if not state.model_checkpoint_path:
        return None
    names = [Path(path).name for path in state.all_model_checkpoint_paths]
    # A list that was cut at the end of a line lacks its last lines, among them that of the newest checkpoint.
    if Path(state.model_checkpoint_path).name not in names:
        return None
    is_any_there = any((folder / f"{name}.index").exists() for name in names)
    return names if is_any_there or not _lying(folder) else None


def _has_index(checkpoint: Path) -> bool:
    try:
        read_index(str(checkpoint), with_values=False)
    except DamagedCheckpointError:
        return False
    return True
