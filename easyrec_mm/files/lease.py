"""Leases of folders where the operating system has no locks for them: in buckets, and on some network file systems.

A lease is a small file in the folder, which names its holder, and which the holder writes anew every RENEW_S seconds. A
lease that is not written for STALE_S seconds is stale, and whoever wants it takes it over. It finds that out by looking
at the file as long, on its own clock: clocks of machines may differ. A holder that has ended on the same machine is
known to have ended at once.

A file is created only if there is none, and replaced only if it is the one that was read, where the place can do that
in one step. Elsewhere whoever writes last has the lease: everybody reads it again after a moment, and before each
renewal, so that of two runs that came together the one that was too early ends.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from easyrec_mm.files.paths import join
from easyrec_mm.files.place import place_of
from easyrec_mm.files.processes import runs_here, this_process
from easyrec_mm.files.storage import Content, Failure, StorageError
from easyrec_mm.files.waiting import waiting

LEASE = ".lease"
RENEW_S, STALE_S = 20.0, 180.0
_LOOK_EVERY_S = 1.0
# Where the last writer has the lease, others have this long between reading and writing.
_SETTLE_S = 2.0
_NUM_TRIES = 10
# The version of a file that exists, where the place does not tell one.
_WRITTEN = "written"
_CAME_MEANWHILE = f"another process, which may have come while this one stood still for more than {STALE_S:.0f} s"


def this_holder() -> str:
    """Return what messages call this process as the holder of a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


class LeaseFile(Protocol):
    """The file of a lease."""

    path: str

    def read(self) -> Content | None:
        """Return its content; None if it does not exist."""

    def put(self, data: bytes, version: str) -> bool:
        """Write it if its version is still `version`, "" if it must not exist; see Storage.put."""

    def remove(self) -> None:
        """Remove it if it exists."""


class RemoteFile:
    """The file of a lease in a remote folder; a LeaseFile."""

    def __init__(self, folder: str) -> None:
        self.path = join(folder, LEASE)
        self._place = place_of(folder)

    def read(self) -> Content | None:
        """See LeaseFile.read."""
        try:
            content = self._place.read(self.path)
        except StorageError as error:
            if error.failure == Failure.MISSING:
                return None
            raise
        # Some places have no versions.
        return None if content is None else Content(content.data, content.version or _WRITTEN)

    def put(self, data: bytes, version: str) -> bool:
        """See LeaseFile.put."""
        return self._place.put(self.path, data, version)

    def remove(self) -> None:
        """See LeaseFile.remove."""
        self._place.remove(self.path)


class LocalFile:
    """The file of a lease in a folder of this machine, whose file system has no locks; a LeaseFile."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEASE
        self.path = str(self._path)

    def read(self) -> Content | None:
        """See LeaseFile.read."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        return Content(data, _WRITTEN)

    def put(self, data: bytes, version: str) -> bool:
        """See LeaseFile.put."""
        if version:
            temporary = self._path.with_name(f"{LEASE}.{os.getpid()}.tmp")
            temporary.write_bytes(data)
            os.replace(temporary, self._path)
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), self._path.open("xb") as file:
            file.write(data)
            return True
        return False

    def remove(self) -> None:
        """See LeaseFile.remove."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Holder:
    """Who has written a lease: what messages call it, the name of its process, and a name of the lease itself."""

    name: str
    process: str
    lease: str


def _holder_of(content: Content) -> _Holder:
    try:
        fields = json.loads(content.data)
        return _Holder(str(fields["holder"]), str(fields["process"]), str(fields["lease"]))
    except (ValueError, KeyError, TypeError):  # it is being written, or somebody else's
        return _Holder("another process", "", "")


class Lease:
    """The lease of a folder; a thread renews it while it is held.

    Args:
      file: its file.
      tell: is called with what a person should know, such as that a stale lease was taken over.
    """

    def __init__(self, file: LeaseFile, tell: Callable[[str], None]) -> None:
        self.path = file.path
        self._file, self._tell = file, tell
        self._own = _Holder(this_holder(), this_process(), uuid.uuid4().hex)
        self._num_written, self._written_s = 0, 0.0
        self._writing = threading.Lock()
        self._released: threading.Event | None = None

    def take(self) -> str:
        """Take the lease, or go on holding it; return "", or the name of the process that holds it.

        Raises:
          OSError, StorageError: if its file cannot be read or written.
        """
        with self._writing:
            holder = self._take()
        if not holder and self._released is None:
            self._released = threading.Event()
            threading.Thread(target=self._renew, args=[self._released], daemon=True, name="lease").start()
        return holder

    def release(self) -> None:
        """Give the lease back; if that fails, it becomes stale."""
        if self._released is None:
            return
        self._released.set()
        self._released = None
        with suppress(OSError, StorageError), self._writing:
            content = self._file.read()
            if content is not None and _holder_of(content) == self._own:
                self._file.remove()

    def _take(self) -> str:
        holder = self._own
        for _ in range(_NUM_TRIES):
            content = self._file.read()
            holder = self._own if content is None else _holder_of(content)
            if self._is_lost(content, holder):
                return _CAME_MEANWHILE if content is None else holder.name
            if content is not None and holder == self._own:
                if self._put(content.version):
                    return ""
                continue
            if content is not None:
                later = content if runs_here(holder.process) is not None else self._later(content, holder)
                if later is None:
                    continue
                if later.data != content.data or runs_here(holder.process):
                    return _holder_of(later).name
                self._tell(f"warning: {self.path}: {holder.name}, has not given its lock back; this run takes it over")
            version = "" if content is None else content.version
            # Where a second file can be created, and where one is replaced, whoever writes last may have the lease.
            if self._put(version) and (version or self._put("")):
                time.sleep(_SETTLE_S)
        return holder.name

    def _is_lost(self, content: Content | None, holder: _Holder) -> bool:
        """Return whether another process has, or may have had, the lease since this one took it.

        It is not taken back: that process may have written to the folder, and this one knows nothing of it.
        """
        if self._released is None:
            return False
        if content is not None:
            return holder != self._own
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self._written_s > STALE_S

    def _later(self, content: Content, holder: _Holder) -> Content | None:
        """Wait until a lease is renewed or stale, and return its content then; None if it has gone."""
        wait = f"waiting up to {STALE_S:.0f} s to see whether it renews it"
        self._tell(f"note: {self.path}: {holder.name}, has this lock; {wait}")
        until_s = time.monotonic() + STALE_S
        later: Content | None = content
        with waiting(lambda: f"the lock {self.path} of {holder.name}"):
            while later is not None and later.data == content.data and time.monotonic() < until_s:
                time.sleep(_LOOK_EVERY_S)
                later = self._file.read()
        return later

    def _put(self, version: str) -> bool:
        self._num_written += 1
        fields = {"holder": self._own.name, "process": self._own.process, "lease": self._own.lease}
        written = {"written": time.strftime("%Y-%m-%d %H:%M:%S"), "num_written": self._num_written}
        begun_s = time.clock_gettime(time.CLOCK_BOOTTIME)  # which goes on while a machine is suspended
        is_written = self._file.put(json.dumps({**fields, **written}).encode() + b"\n", version)
        if is_written:
            self._written_s = begun_s
        return is_written

    def _renew(self, released: threading.Event) -> None:
        """Write the lease again and again, until it is released; if another process has it, `take` tells that."""
        while not released.wait(RENEW_S):
            # What fails may succeed the next time.
            with suppress(OSError, StorageError), self._writing:
                content = self._file.read()
                if not released.is_set() and content is not None and _holder_of(content) == self._own:
                    self._put(content.version)
