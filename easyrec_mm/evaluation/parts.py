"""Where predictions are written: a file, or a folder in which each of several tasks writes its part.

A file appears only when it is complete. The tasks of a folder have no other connection than a file in it, TASKS, which
the first of them writes: what the others must have in common with it, so that their parts together are one prediction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote, join, place_of, plain, put_text, read, written_at
from easyrec_mm.files.data_names import is_data
from easyrec_mm.files.opening import exists
from easyrec_mm.files.written_file import moved_to
from easyrec_mm.tasks import Task

TASKS, SUCCESS = "_tasks.json", "_SUCCESS"


class PartsFolder:
    """A folder in which each task writes a part; names sort like the tasks, and SUCCESS appears with the last part.

    Args:
      folder: path of the folder, which is created.
      task: the task that writes.
      ending: ending of the parts, such as ".parquet".
      in_common: what is the same for all tasks, JSON values by the name of a flag or setting.

    Raises:
      UserError: if the folder holds something else, cannot be written, or was begun with other values.
    """

    def __init__(self, folder: str, task: Task, ending: str, in_common: Mapping[str, Any]) -> None:
        self._folder, self._task, self._ending = folder.rstrip("/") or "/", task, ending
        self._in_common = {"--task_num": task.num, "format": ending.removeprefix("."), **in_common}
        self.path = self._part(task.index)
        try:
            if not is_remote(folder):
                os.makedirs(plain(folder), exist_ok=True)
            if not self._agrees():
                self._require_empty()
                put_text(join(self._folder, TASKS), json.dumps(self._in_common) + "\n")
        except OSError as error:
            raise UserError(f"--output {folder}: cannot be written: {error.strerror or error}") from error

    @contextmanager
    def written_part(self) -> Iterator[str]:
        """Yield a path of this machine at which to write the part, which appears in the folder when it is complete.

        Raises:
          UserError: if it cannot be written, or other tasks have begun another prediction meanwhile.
        """
        with moved_to(self.path, self._temporary()) as path:
            yield path
            if not self._agrees():
                raise UserError(f"--output {self._folder}: was removed while it was written; start all tasks again")
        self._remove_left()

    def finish(self) -> None:
        """Say that the prediction is complete, if all parts are there."""
        if all(exists(self._part(index)) for index in range(self._task.num)):
            put_text(join(self._folder, SUCCESS), "")

    def discard(self) -> None:
        """Remove all parts, which have too many bad records together."""
        for index in range(self._task.num):
            part = self._part(index)
            if is_remote(part):
                place_of(part).remove(part)
            else:
                Path(plain(part)).unlink(missing_ok=True)

    def _part(self, index: int) -> str:
        return join(self._folder, Task(index, self._task.num).file_name("part", self._ending))

    def _temporary(self) -> Path:
        """Return where to write the part: in a hidden file, which readers of the folder pass over."""
        if is_remote(self._folder):
            return written_at(self.path)
        part = Path(plain(self.path))
        # Processes on several machines may have the same number.
        return part.with_name(f".{part.name}.tmp-{os.urandom(4).hex()}")

    def _remove_left(self) -> None:
        """Remove what killed runs of this task have left."""
        if not is_remote(self._folder):
            part = Path(plain(self.path))
            for left in part.parent.glob(f".{part.name}.tmp-*"):
                left.unlink(missing_ok=True)

    def _agrees(self) -> bool:
        """Return whether another task has begun the same prediction; False if none has begun any.

        Raises:
          UserError: if it has begun another one.
        """
        path = join(self._folder, TASKS)
        if not exists(path):
            return False
        try:
            values = json.loads(read(path))
            differing = next((name for name, value in self._in_common.items() if values[name] != value), None)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: is not a file of easyrec-mm predict; name another folder") from error
        if differing is not None:
            raise UserError(
                f"--output {self._folder}: has parts of another prediction: {differing} is {_shown(values[differing])} "
                f"there, and {_shown(self._in_common[differing])} here; start all tasks with the same flags and files, "
                "or name another folder"
            )
        return True

    def _require_empty(self) -> None:
        if is_remote(self._folder):
            names = [info.path for info in place_of(self._folder).below(self._folder)]
        else:
            names = os.listdir(plain(self._folder))
        if name := next(filter(is_data, names), None):
            raise UserError(
                f"--output {self._folder}: has other files, such as {name.rpartition('/')[2]}; name another folder"
            )


def _shown(value: Any) -> str:
    return ",".join(value) or "empty" if isinstance(value, list) else str(value)
