"""Two runs never write into one folder."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from easyrec_mm.errors import UserError
from easyrec_mm.files.lock import locked

HOLD = """
import sys, time
from easyrec_mm.files.lock import locked
with locked(sys.argv[1], "model_dir"):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_which_process_holds_the_lock_until_that_is_killed(tmp_path):
    folder = tmp_path / "runs" / "m"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError) as error, locked(str(folder), "model_dir"):
            pass
        assert time.strftime("%Y-%m-%d") in str(error.value)
        since = r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
        named = rf"process {holder.pid} on {re.escape(socket.gethostname())}, {since}"
        advice = "wait until it has ended, or choose another folder"
        assert re.fullmatch(rf"model_dir '{folder}': is in use by {named}; {advice}", str(error.value))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(str(folder), "model_dir"):
        assert f"process {os.getpid()} on" in (folder / ".lock").read_text()


def test_a_lock_of_a_machine_that_may_have_failed_is_explained(tmp_path):
    """The server of a network file system may keep its lock."""
    with locked(str(tmp_path), "model_dir"):
        (tmp_path / ".lock").write_text("process 12 on elsewhere, since 2026-01-02 03:04:05\n")
        with pytest.raises(UserError) as error, locked(str(tmp_path), "model_dir"):
            pass
    assert str(error.value) == (
        f"model_dir '{tmp_path}': is in use by process 12 on elsewhere, since 2026-01-02 03:04:05; wait until it has "
        "ended, or choose another folder; if that machine has failed or the process has certainly ended, remove "
        f"{tmp_path}/.lock"
    )


def test_what_the_message_advises_frees_the_folder(tmp_path):
    """And whoever held the lock all the same ends before it writes its next checkpoint."""
    with locked(str(tmp_path), "model_dir") as lock:
        (tmp_path / ".lock").unlink()
        with locked(str(tmp_path), "model_dir"), pytest.raises(UserError, match="is in use by"):
            lock.keep()


def test_a_lock_can_be_taken_again_after_its_end(tmp_path):
    for _ in range(2):
        with locked(str(tmp_path), "--output"):
            assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]


def test_a_lock_is_kept_when_its_folder_is_removed(tmp_path):
    folder = tmp_path / "m"
    with locked(str(folder), "model_dir") as lock:
        shutil.rmtree(folder)
        lock.keep()
        assert f"process {os.getpid()} on" in (folder / ".lock").read_text()
        with pytest.raises(UserError, match="is in use by process"), locked(str(folder), "model_dir"):
            pass


def test_a_lock_is_lost_when_its_folder_is_removed_and_another_run_comes(tmp_path):
    folder = tmp_path / "m"
    with locked(str(folder), "model_dir") as lock:
        shutil.rmtree(folder)
        with locked(str(folder), "model_dir"), pytest.raises(UserError, match=rf"model_dir '{folder}': is in use by"):
            lock.keep()
        lock.keep()
