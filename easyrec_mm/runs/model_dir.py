"""The folder of a training: where it is worked on, and how a remote one gets what was written.

TensorFlow's checkpoints and event files, and what is appended to, need a folder of this machine. A remote model_dir is
therefore worked on in a copy: all but the values of checkpoints and the event files is copied when it is opened, the
values of a checkpoint when it is read. What was written is put back so that the list of checkpoints never names one
that is not there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from easyrec_mm.errors import CheckpointError
from easyrec_mm.files import is_remote, place_of, plain
from easyrec_mm.files.folders import Folder
from easyrec_mm.files.storage import StorageError
from easyrec_mm.runs.checkpoint import PREFIX, STATE, resolve_checkpoint

# Files of a training, beside its checkpoints.
EVAL_RESULT = "eval_result.json"
BAD_RECORDS = "bad_records.jsonl"
PIPELINE_CONFIG = "pipeline.config"
# Logs of a training that goes on are put back this often.
_PUT_LOGS_EVERY_S = 60.0
_VALUES = re.compile(r"\.data-\d+-of-\d+$")
_EVENTS = "events.out.tfevents."


class ModelDir:
    """A model_dir; `local` is where it is worked on.

    Args:
      path: of the folder; nothing is read yet.
    """

    def __init__(self, path: str) -> None:
        self._folder = Folder(path)
        self.local = self._folder.local
        self._put_s = time.monotonic()

    def open(self) -> ModelDir:
        """Copy what is needed to go on, but for the values of checkpoints.

        Raises:
          StorageError: if it cannot be read.
        """
        if self._folder.is_remote:
            self.local.mkdir(parents=True, exist_ok=True)
            self._folder.look()
            self._folder.fetch(lambda name: not ("/" in name or _VALUES.search(name) or name.startswith(_EVENTS)))
        return self

    def checkpoint(self, setting: str, name: str = "") -> str:
        """The path in `local` of a checkpoint, of the newest by default, with its values.

        Raises:
          CheckpointError: naming the setting, if there is none.
          StorageError: if it cannot be read.
        """
        path: str = resolve_checkpoint(str(self.local / name), setting)
        self.fetch_checkpoint(path)
        return path

    def fetch_checkpoint(self, path: str | None) -> None:
        """Copy the values of a checkpoint of `local`, to be read.

        Raises:
          StorageError: if they cannot be read.
        """
        if self._folder.is_remote and path:
            prefix = f"{Path(path).name}.data-"
            self._folder.fetch(lambda name: name.startswith(prefix))

    def refresh(self, names: Collection[str]) -> None:
        """Copy what another process has written since: the list of checkpoints and what it names, and these files.

        Raises:
          StorageError: if it cannot be read.
        """
        if self._folder.is_remote:
            # The list may change and keep its size, which is all that some places tell.
            self._folder.refresh(
                lambda name: name in (STATE, *names) or (name.endswith(".index") and "/" not in name),
                always=lambda name: name == STATE,
            )

    def forget_checkpoint(self, path: str) -> None:
        """Remove the copy of the values of a remote checkpoint, which is not read again."""
        if self._folder.is_remote:
            for values in self.local.glob(f"{Path(path).name}.data-*"):
                values.unlink()

    def put_checkpoint(self) -> None:
        """Put back what was written, a checkpoint before the list that names it; remove those that are gone here.

        Raises:
          CheckpointError: if it cannot be written; it stays here.
        """
        if not self._folder.is_remote:
            return
        try:
            self._put()
            kept = {path.stem for path in self.local.glob(f"{PREFIX}-*.index")}
            of_checkpoints = [name for name in self._folder.names() if name.startswith(f"{PREFIX}-")]
            self._folder.remove([name for name in of_checkpoints if _checkpoint_of(name) not in kept])
        except StorageError as error:
            raise CheckpointError(f"{error}; the checkpoint could not be put there") from error

    def put_logs(self, at_once: bool = True) -> None:
        """Put back what was written, but when it was done lately unless it is `at_once`.

        What cannot be written now is with the next checkpoint.
        """
        if self._folder.is_remote and (at_once or time.monotonic() - self._put_s > _PUT_LOGS_EVERY_S):
            try:
                self._put()
            except StorageError:
                if at_once:
                    raise

    @contextmanager
    def logs_put(self) -> Iterator[None]:
        """Put back what was written when it is left, also by an error, which counts more than one of putting."""
        try:
            yield
        except BaseException:
            with suppress(StorageError):
                self.put_logs()
            raise
        self.put_logs()

    def _put(self) -> None:
        self._put_s = time.monotonic()
        self._folder.put(_order)


def _checkpoint_of(name: str) -> str:
    return _VALUES.sub("", name).removesuffix(".index")


def find_checkpoint(path: str, setting: str) -> str:
    """The checkpoint that a user names, as checkpoint.resolve_checkpoint; of a remote one, a copy.

    Raises:
      CheckpointError: naming the setting, if there is none.
      StorageError: if it cannot be read.
    """
    if not is_remote(path):
        here: str = resolve_checkpoint(plain(path), setting)
        return here
    folder, name = path.rstrip("/"), ""
    if not place_of(path).below(folder):
        folder, _, name = folder.rpartition("/")
    return ModelDir(folder).open().checkpoint(setting, name)


def _order(name: str) -> int | None:
    """Values, then the index that says they are complete, then the list of checkpoints; not what is being written."""
    if name.startswith(".") or name.endswith(".tmp"):
        return None
    if name == STATE:
        return 2
    return int(name.endswith(".index"))
