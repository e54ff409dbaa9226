"""Two runs never write into one folder where the operating system has no locks: in buckets, on some file systems."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from easyrec_mm.errors import UserError
from easyrec_mm.files import lease as lease_module
from easyrec_mm.files import place_of
from easyrec_mm.files.lease import LEASE, Lease, LocalFile, RemoteFile
from easyrec_mm.files.lock import locked
from easyrec_mm.files.object_storage import ObjectStorage
from easyrec_mm.files.processes import runs_here, this_process

# Locks a folder and waits; on a file system without locks if it is told so.
HOLD = """
import errno, fcntl, sys, time
def has_no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")
if len(sys.argv) > 2:
    fcntl.flock = has_no_locks
from easyrec_mm.files.lock import locked
with locked(sys.argv[1], "model_dir"):
    print("locked", flush=True)
    time.sleep(600)
"""
ELSEWHERE = "elsewhere/0/1:12:3456"


@pytest.fixture(params=["a bucket", "a bucket without conditions", "no locks"])
def folder(request, s3, tmp_path, monkeypatch):
    """A folder that the operating system cannot lock."""
    if request.param == "no locks":

        def has_no_locks(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", has_no_locks)
        return str(tmp_path / "m")
    if request.param == "a bucket without conditions":

        def put(self, path, data, version):
            s3.put(path, data)
            return True

        monkeypatch.setattr(ObjectStorage, "put", put)
    return f"{s3.new_bucket()}/runs/m"


@pytest.fixture
def soon(monkeypatch):
    """Leases are renewed, and become stale, after a fraction of a second."""
    for name, value in {"RENEW_S": 0.1, "STALE_S": 1.0, "_LOOK_EVERY_S": 0.02, "_SETTLE_S": 0.3}.items():
        monkeypatch.setattr(lease_module, name, value)


def file_of(folder):
    return RemoteFile(folder) if "://" in folder else LocalFile(Path(folder))


def put_lease_of_another_machine(folder, number=0):
    fields = {"holder": "process 12 on elsewhere, since 2026-01-02 03:04:05", "process": ELSEWHERE, "lease": "x"}
    file = file_of(folder)
    content = file.read()
    file.put(json.dumps({**fields, "num_written": number}).encode(), content.version if content else "")


def test_the_second_is_told_who_holds_it_until_the_first_has_ended(folder, soon):
    with locked(folder, "model_dir"):
        with pytest.raises(UserError) as error, locked(folder, "model_dir"):
            pass
        since = time.strftime("%Y-%m-%d %H:")
        holder = rf"process {os.getpid()} on {re.escape(socket.gethostname())}, since {since}\d\d:\d\d"
        assert re.match(rf"model_dir '{folder}': is in use by {holder}; wait until it has ended, or", str(error.value))
        assert f"It renews {folder}/{LEASE}; a lock that is not renewed for " in str(error.value)
    assert file_of(folder).read() is None
    with locked(folder, "model_dir"):
        pass


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(folder):
    no_locks = [] if "://" in folder else ["no locks"]
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder, *no_locks], stdout=subprocess.PIPE, text=True)
    told = []
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"is in use by process {holder.pid} on "), locked(folder, "model_dir"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    started = time.monotonic()
    with locked(folder, "model_dir", tell=told.append):
        assert time.monotonic() - started < 10
    (warning,) = told
    assert warning.startswith(f"warning: {folder}/{LEASE}: process {holder.pid} on {socket.gethostname()}, since 20")
    assert warning.endswith("has not given its lock back; this run takes it over")


def test_a_stale_lock_of_another_machine_is_taken_over(folder, soon):
    put_lease_of_another_machine(folder)
    told = []
    started = time.monotonic()
    with locked(folder, "model_dir", tell=told.append):
        assert time.monotonic() - started >= 1.0
    note, warning = told
    assert note.startswith(f"note: {folder}/{LEASE}: process 12 on elsewhere, since 2026-01-02 03:04:05, has this lock")
    assert warning.startswith(f"warning: {folder}/{LEASE}: process 12 on elsewhere, since 2026-01-02 03:04:05, has not")


@contextmanager
def renewed_by_another_machine(folder):
    ended = threading.Event()

    def renew():
        number = 0
        while not ended.wait(0.2):
            number += 1
            put_lease_of_another_machine(folder, number)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_lock_that_another_machine_renews_is_respected(folder, soon):
    put_lease_of_another_machine(folder)
    refused = pytest.raises(UserError, match="in use by process 12 on elsewhere, since 2026-")
    with renewed_by_another_machine(folder), refused, locked(folder, "model_dir"):
        pass


def test_a_lock_that_is_given_back_meanwhile_is_taken(folder, soon, monkeypatch):
    monkeypatch.setattr(lease_module, "STALE_S", 60.0)
    put_lease_of_another_machine(folder)
    threading.Timer(0.4, file_of(folder).remove).start()
    told = []
    started = time.monotonic()
    with locked(folder, "model_dir", tell=told.append):
        assert time.monotonic() - started < 30
    assert [message.partition(":")[0] for message in told] == ["note"]


def test_it_is_renewed_while_it_is_held(folder, soon):
    with locked(folder, "model_dir"):
        seen = set()
        until = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(json.loads(file_of(folder).read().data)["num_written"])
            time.sleep(0.02)
        assert len(seen) == 3


def test_whoever_lost_it_is_told_at_the_next_checkpoint_and_does_not_take_it_back(folder, soon):
    """As after it was frozen for long: the other may have trained on, even if it has ended since."""
    with locked(folder, "model_dir") as lock:
        put_lease_of_another_machine(folder)
        time.sleep(0.5)
        assert json.loads(file_of(folder).read().data)["process"] == ELSEWHERE
        with pytest.raises(UserError, match="in use by process 12 on elsewhere"):
            lock.keep()
    assert json.loads(file_of(folder).read().data)["process"] == ELSEWHERE


def test_whoever_stood_still_while_another_may_have_come_and_gone_ends(folder, soon, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_S", 60.0)
    with locked(folder, "model_dir") as lock:
        lock.keep()
        file_of(folder).remove()
        time.sleep(1.2)
        with pytest.raises(UserError, match="is in use by another process, which may have come while this one stood"):
            lock.keep()
    assert file_of(folder).read() is None


def test_a_folder_that_was_removed_is_locked_again(folder, soon):
    with locked(folder, "model_dir") as lock:
        file_of(folder).remove()
        lock.keep()
        assert json.loads(file_of(folder).read().data)["process"] == this_process()


def test_of_many_that_come_together_one_has_it(folder, soon):
    leases = [Lease(file_of(folder), lambda message: None) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        holders = list(pool.map(lambda lease: lease.take(), leases))
    try:
        assert holders.count("") == 1
        assert all(f"process {os.getpid()} on" in holder for holder in holders if holder)
    finally:
        for lease in leases:
            lease.release()


def test_what_is_no_lease_is_taken_over_when_it_is_stale(folder, soon, monkeypatch):
    monkeypatch.setattr(lease_module, "STALE_S", 0.1)
    for content in (b"", b"garbage", b"[]", b'{"holder": "x", "process": "a:b:c", "lease": "x"}'):
        file_of(folder).put(content, "")
        with locked(folder, "model_dir"):
            pass


def test_an_object_is_written_only_under_its_condition(s3):
    path = f"{s3.new_bucket()}/x"
    place = place_of(path)
    assert place.put(path, b"first", "")
    assert not place.put(path, b"second", "")
    version = place.read(path).version
    assert place.put(path, b"third", version)
    assert not place.put(path, b"fourth", version)
    assert s3.get(path) == b"third"
    s3.delete(path)
    assert not place.put(path, b"fifth", version)


def test_a_storage_that_knows_no_conditions_gets_the_object_without_one(s3, monkeypatch):
    """As Alibaba's OSS, which answers the header If-None-Match with 501."""
    path = f"{s3.new_bucket()}/x"
    answer = type(s3.faults).__call__

    def without_conditions(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT" and {"HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"} & environ.keys():
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("501 Not Implemented", [("Content-Length", "0")])
            return []
        return answer(self, environ, start_response)

    monkeypatch.setattr(type(s3.faults), "__call__", without_conditions)
    place = place_of(path)
    assert place.put(path, b"first", "")
    assert place.put(path, b"second", "")
    assert place.put(path, b"third", place.read(path).version)
    assert s3.get(path) == b"third"


def test_of_this_machine_it_is_known_which_processes_run():
    assert runs_here(this_process())
    assert runs_here(ELSEWHERE) is None
    assert runs_here("") is None
    machine, _, _ = this_process().rpartition(":")[0].rpartition(":")
    assert runs_here(f"{machine}:{os.getpid()}:1") is False
    assert runs_here(f"{machine}:x:1") is None
