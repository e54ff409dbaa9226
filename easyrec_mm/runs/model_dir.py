"""The folder of a training, and the local copy of a remote folder.

TensorFlow's checkpoints and event files, and files that are appended to, need a local folder. A remote model_dir is
therefore used through a local copy: when it is opened, everything except event files and the values of checkpoints is
copied; the values of a checkpoint are copied when it is read. New files are uploaded in such an order that the list of
checkpoints never names a missing checkpoint.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from easyrec_mm.errors import CheckpointError
from easyrec_mm.files import is_remote, place_of, plain
from easyrec_mm.files.folders import Folder
from easyrec_mm.files.lease import LEASE
from easyrec_mm.files.storage import StorageError
from easyrec_mm.runs.checkpoint import resolve_checkpoint
from easyrec_mm.runs.checkpoint_reader import chain_of
from easyrec_mm.runs.names import PREFIX, STATE

# Files of a training other than its checkpoints.
EVAL_RESULT = "eval_result.json"
BAD_RECORDS = "bad_records.jsonl"
EVAL_BAD_RECORDS, PREDICT_BAD_RECORDS = "eval_bad_records.jsonl", "predict_bad_records.jsonl"
PIPELINE_CONFIG = "pipeline.config"
# Folder of the steps that `easyrec-mm replay` can run again.
REPLAY = "replay"
# Seconds between two uploads of the logs of a running training.
_PUT_LOGS_EVERY_S = 60.0
_VALUES = re.compile(r"\.data-\d+-of-\d+$")
_EVENTS = "events.out.tfevents."


class ModelDir:
    """A model_dir; `local` is the folder itself, or the local copy of a folder that `is_remote`.

    Args:
      path: path of the folder; nothing is read yet.

    Attributes:
      path: as above.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._folder = Folder(path)
        self.local, self.is_remote = self._folder.local, self._folder.is_remote
        self._put_s = time.monotonic()
        # A checkpoint may be written and uploaded beside the training, which uploads its logs.
        self._putting = threading.RLock()

    def open(self) -> ModelDir:
        """Copy what is needed to continue the training, except the values of checkpoints; return this folder.

        Raises:
          StorageError: if the folder cannot be read.
        """
        if self._folder.is_remote:
            self.local.mkdir(parents=True, exist_ok=True)
            self._folder.look()
            self._folder.fetch(
                lambda name: not ("/" in name or _VALUES.search(name) or name.startswith((_EVENTS, LEASE)))
            )
        return self

    def checkpoint(self, setting: str, name: str = "") -> str:
        """Return the path in `local` of a checkpoint, by default the newest, after copying its values.

        Raises:
          CheckpointError: if there is no checkpoint; the message names the setting.
          StorageError: if it cannot be read.
        """
        path: str = resolve_checkpoint(str(self.local / name), setting)
        self.fetch_checkpoint(path)
        return path

    def fetch_checkpoint(self, path: str | None) -> None:
        """Copy the values of a checkpoint, and of those that it rests on, to `local`, so that it can be read.

        Raises:
          StorageError: if they cannot be read.
        """
        if self._folder.is_remote and path:
            names = {Path(part).name for part in chain_of(path)}
            self._folder.fetch(lambda name: bool(_VALUES.search(name)) and _checkpoint_of(name) in names)

    def fetch_replays(self) -> None:
        """Copy the steps that can be run again to `local`.

        Raises:
          StorageError: if they cannot be read.
        """
        self._folder.fetch(lambda name: name.startswith(f"{REPLAY}/"))

    def remove_replay(self, name: str) -> None:
        """Remove the folder of a step that could be run again, here and where model_dir is remote.

        Raises:
          StorageError: if it cannot be removed.
        """
        shutil.rmtree(self.local / REPLAY / name, ignore_errors=True)
        if self._folder.is_remote:
            self._folder.remove([file for file in self._folder.names() if file.startswith(f"{REPLAY}/{name}/")])

    def refresh(self, names: Collection[str]) -> None:
        """Copy what another process has written since: the list of checkpoints, their indexes, and the files `names`.

        Raises:
          StorageError: if the folder cannot be read.
        """
        if self._folder.is_remote:
            # The list may change without changing its size, and some storages report only the size.
            self._folder.refresh(
                lambda name: name in (STATE, *names) or (name.endswith(".index") and "/" not in name),
                always=lambda name: name == STATE,
            )

    def forget_checkpoint(self, path: str) -> None:
        """Remove the local copy of the values of a remote checkpoint, and of those that it rests on."""
        if self._folder.is_remote:
            names = [name for part in chain_of(path) for name in self.local.glob(f"{Path(part).name}.data-*")]
            self._folder.forget([values.name for values in names])

    def forget_values(self, names: Collection[str]) -> None:
        """Remove the local copies of files with values that were uploaded; fetch_checkpoint copies them again."""
        self._folder.forget(names)

    def put_values(self, names: Collection[str]) -> None:
        """Upload files with values of a checkpoint that another process is about to list.

        Raises:
          StorageError: if one cannot be written.
        """
        self._folder.put(lambda name: 0 if name in names else None)

    @contextmanager
    def checkpoint_put(self, with_others: bool = False) -> Iterator[None]:
        """Upload the checkpoint that is completed in the context; meanwhile nothing else is uploaded.

        Args:
          with_others: whether other processes have uploaded values of checkpoints, too.

        Raises:
          CheckpointError: if the checkpoint cannot be uploaded; it stays in `local`.
        """
        with self._putting:
            yield
            self._put_checkpoint(with_others)

    def _put_checkpoint(self, with_others: bool) -> None:
        """Upload what was written, checkpoints before the list that names them; remove checkpoints deleted locally.

        Raises:
          CheckpointError: if the checkpoint cannot be uploaded; it stays in `local`.
        """
        if not self._folder.is_remote:
            return
        try:
            self._put()
            if with_others:
                self._folder.look()
            local_names = {path.stem for path in self.local.glob(f"{PREFIX}-*.index")}
            of_checkpoints = [name for name in self._folder.names() if name.startswith(f"{PREFIX}-")]
            self._folder.remove([name for name in of_checkpoints if _checkpoint_of(name) not in local_names])
        except StorageError as error:
            raise CheckpointError(f"{error}; the checkpoint could not be uploaded") from error

    def put_logs(self, at_once: bool = True) -> None:
        """Upload what was written; unless `at_once`, skip the upload if the last one was recent, and ignore errors.

        What cannot be uploaded now, as while a checkpoint is uploaded, will be uploaded with the next checkpoint.
        """
        is_due = self._folder.is_remote and (at_once or time.monotonic() - self._put_s > _PUT_LOGS_EVERY_S)
        if not is_due or not self._putting.acquire(blocking=at_once):
            return
        try:
            self._put()
        except StorageError:
            if at_once:
                raise
        finally:
            self._putting.release()

    @contextmanager
    def logs_put(self) -> Iterator[None]:
        """Upload what was written when the context ends; an error in the context hides an error of the upload."""
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
    """Return the checkpoint that a user names, as checkpoint.resolve_checkpoint; for a remote one, a local copy.

    Raises:
      CheckpointError: if there is no checkpoint; the message names the setting.
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
    """Return the rank of a file in an upload: values, then index, then list; None for files that are being written."""
    if name.startswith(".") or name.endswith(".tmp"):
        return None
    if name == STATE:
        return 2
    return int(name.endswith(".index"))
