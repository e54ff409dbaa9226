"""The folder of fetched weights: where it may be, whether it is complete, and its replacement in one step.

Its file `weights.json` contains the source of the folder, and the SHA-256 of every other file in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote
from easyrec_mm.files.replace_folder import replace_folder
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.weights.catalog import Weights

RECORD = "weights.json"
# Increased when the same weights file is converted to a different preset, so that older folders are made again.
_CONVERSION = 1


class PresetFolder:
    """The folder of the preset of some weights.

    Args:
      weights: the weights that it is to contain.
      path: a folder on this machine; it may exist if it is empty or was made for weights before.
      setting: name of the path in messages.

    Raises:
      UserError: if the path cannot be such a folder.
    """

    def __init__(self, weights: Weights, path: str, setting: str) -> None:
        self.path = path
        self._setting = setting
        self._source = {"package": weights.package, "sha256": weights.sha256, "conversion": _CONVERSION}
        if is_remote(path):
            raise self._error("is not on this machine; give a local folder")
        here = os.path.abspath(path)
        if os.path.commonpath([here, os.getcwd()]) == here:
            raise self._error("contains the current folder; choose another folder")
        if os.path.exists(path) and not os.path.isdir(path):
            raise self._error("is a file; give a folder")
        if os.path.isdir(path) and os.listdir(path) and not os.path.exists(os.path.join(path, RECORD)):
            raise self._error("contains other files than fetched weights; give another folder, or remove this one")

    def is_complete(self) -> bool:
        """Return whether the folder contains the preset of these weights, with every file as it was written."""
        try:
            record = json.loads((Path(self.path) / RECORD).read_text(encoding="utf-8"))
            return bool(record == {**self._source, "files": _digests(Path(self.path))})
        except (OSError, ValueError):
            return False

    def require_writable(self) -> None:
        """Create the parent folder and check that it is writable, so that a fetch does not fail at its end.

        Raises:
          UserError: if that is not possible.
        """
        parent = os.path.dirname(os.path.abspath(self.path))
        try:
            os.makedirs(parent, exist_ok=True)
            with tempfile.TemporaryFile(dir=parent):
                pass
        except OSError as error:
            raise self._error(f"cannot be written: {error.strerror}; give another folder with --output") from error

    @contextmanager
    def new(self) -> Iterator[Path]:
        """Provide an empty folder to write the preset to, which replaces this folder if there is no error."""
        with tempfile.TemporaryDirectory(dir=work_folder()) as scratch:
            preset = Path(scratch) / "preset"
            preset.mkdir()
            yield preset
            record = {**self._source, "files": _digests(preset)}
            (preset / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            self._replace(preset)

    def _replace(self, preset: Path) -> None:
        # On the disk of the target, so that renaming is one step.
        parent, name = os.path.split(os.path.abspath(self.path))
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=parent) as folder:
            new = shutil.copytree(preset, os.path.join(folder, "new"))
            try:
                replace_folder(Path(new), Path(self.path))
            except OSError:
                # Another process may have put the same preset in its place meanwhile.
                if not self.is_complete():
                    raise

    def _error(self, message: str) -> UserError:
        return UserError(f"{self._setting}: {self.path} {message}")


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a preset by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
