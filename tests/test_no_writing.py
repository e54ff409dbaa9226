"""A model_dir that cannot be written: on a read-only file system, by this user, on a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from flat_helpers import make_log
from test_workers import CONFIG, TRAIN, size

from easyrec_mm.errors import UserError, advice_for
from easyrec_mm.files.lock import locked

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


def mounts_are_allowed():
    return not subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode


@pytest.fixture
def folder(tmp_path):
    make_log(tmp_path, CONFIG, num_rows=100)
    return tmp_path


def end_in_namespace(folder, mount):
    """Standard error of a training in a mount namespace, after a shell command that mounts `m`."""
    if not mounts_are_allowed():
        pytest.skip("mount namespaces are not allowed here")
    (folder / "m").mkdir()
    training = [sys.executable, "-m", "easyrec_mm", *TRAIN, *size(25)]
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *training]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@needs_root
@pytest.mark.slow
def test_a_read_only_file_system(folder):
    error = end_in_namespace(folder, "mount --bind m m && mount --options remount,bind,ro m")
    expected = (
        "error: model_dir 'm': cannot be written (m/.lock: Read-only file system); mount the file system so that it "
        "can be written, or choose another place\n"
    )
    assert error.endswith(expected)


@needs_root
@pytest.mark.slow
def test_a_full_file_system(folder):
    """It has room for the lock, but not for a checkpoint."""
    error = end_in_namespace(folder, "mount -t tmpfs -o size=16k tmpfs m")
    assert "No space left on device" in error
    assert "m/" in error
    assert error.endswith("; make room there, and start again\n")


@pytest.mark.slow
def test_a_folder_in_which_this_user_may_not_write(folder):
    """Root may write everywhere, unless it gives up the capability for that."""
    folder.chmod(0o555)
    capability = "dac_override"
    alone = ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"] if os.geteuid() == 0 else []
    training = [*alone, sys.executable, "-m", "easyrec_mm", *TRAIN, *size(25)]
    done = subprocess.run(training, cwd=folder, capture_output=True, text=True, check=False)
    folder.chmod(0o755)
    assert done.returncode == 1, done.stdout + done.stderr
    expected = (
        "error: model_dir 'm': cannot be written (m: Permission denied); change its owner or rights for this user "
        f"(number {os.geteuid()}), or choose another place\n"
    )
    assert done.stderr.endswith(expected)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT])
def test_what_to_do_is_said_of_each_reason(number, tmp_path, monkeypatch):
    def cannot(*_, **__):
        raise OSError(number, os.strerror(number), f"{tmp_path}/.lock")

    monkeypatch.setattr(os, "open", cannot)
    with pytest.raises(UserError) as error, locked(str(tmp_path), "model_dir"):
        pass
    problem = f"model_dir '{tmp_path}': cannot be written ({tmp_path}/.lock: {os.strerror(number)}); "
    advice = advice_for(OSError(number, ""))
    assert advice
    assert str(error.value) == problem + advice


def test_other_errors_stay_as_they_are(tmp_path):
    (tmp_path / "m").write_text("a file")
    with pytest.raises(FileExistsError, match="m'"), locked(str(tmp_path / "m"), "model_dir"):
        pass
