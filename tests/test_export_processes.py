"""Exports in processes of their own, which are killed, or find the disk full."""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
from flow_helpers import KINDS, ROOT, use_small_backbone_alone
from forked import Command, Process

from easyrec_mm.cli.main import main
from easyrec_mm.export import folders
from easyrec_mm.files.lock import LOCK
from easyrec_mm.files.replace_folder import exchange
from easyrec_mm.manifest import MANIFEST

# An export without a limit of the size of files, and one for each limit to a folder of its own.
LIMITS = (3_000, 60_000, 300_000)


def kill_in_the_worst_moment():
    """When the first of three models has been put in place."""
    use_small_backbone_alone()
    folders.exchange = lambda new, place: exchange(new, place) and os.kill(os.getpid(), signal.SIGKILL)


def export_with_limits(arguments, place):
    use_small_backbone_alone()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for most_bytes in (-1, *LIMITS):
        flags = [f"--{flag}_model_export_dir={place / str(most_bytes) / kind}" for kind, flag in KINDS.items()]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, -1))
        # What it prints goes to a file, too.
        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
            status = main([*arguments, *flags])
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        print(f"{printed.getvalue()}\nstatus {status}")


def contents(folder):
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file() and path.name != LOCK}
    return {name: path.read_bytes() for name, path in files.items()}


def place_of(path):
    """Where a file belongs that an export has left beside its place."""
    kind, *inner = path.parts
    return Path(kind[1:].removesuffix(".tmp"), *inner[1:]) if kind.startswith(".") else path


@pytest.mark.slow
def test_kills_and_full_disks(exported, tmp_path):
    """A kill loses no model. The next export writes the same bytes. A full disk is told, and nothing is left."""
    folder = tmp_path / "-1"
    shutil.copytree(exported.folder, folder)
    old = contents(folder)
    printed = tmp_path / "printed.txt"
    process = Command(ROOT, exported.export_arguments(folder), printed, prepare=kill_in_the_worst_moment)
    assert process.end()[0] == -signal.SIGKILL
    killed = contents(folder)
    assert set(old.items()) <= {(place_of(path), content) for path, content in killed.items()}

    limited = partial(export_with_limits, exported.export_arguments(tmp_path), tmp_path)
    status, text = Process(limited, ROOT, printed).end()
    assert status == 0
    assert "Traceback" not in text
    _, first, *reports = re.split(r"^status (\d)$", text, flags=re.MULTILINE)
    assert first == "0"
    assert sorted(path.name for path in folder.iterdir()) == sorted(KINDS)
    files = contents(folder)
    assert files.keys() == old.keys()
    new = {place_of(path): content for path, content in killed.items() if content != old[place_of(path)]}
    assert {path for path, content in new.items() if files[path] != content} == {Path(kind, MANIFEST) for kind in KINDS}
    for most_bytes, of_export, status in zip(LIMITS, reports[::2], reports[1::2], strict=False):
        assert status == "1"
        assert re.search(r"^error: .*(cannot be written|File too large)", of_export, re.MULTILINE), of_export
        assert list((tmp_path / str(most_bytes)).iterdir()) == []
    assert len(reports) == 2 * len(LIMITS) + 1
