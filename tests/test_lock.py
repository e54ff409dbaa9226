"""Two runs never write into one folder."""

import os
import shutil
import signal
import subprocess
import sys

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
        expected = rf"model_dir '{folder}': is in use by process {holder.pid} on "
        assert str(error.value).startswith(expected)
        assert str(error.value).endswith("; wait until it has ended, or choose another folder")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(str(folder), "model_dir"):
        assert f"process {os.getpid()} on" in (folder / ".lock").read_text()


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
