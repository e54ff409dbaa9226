"""Exports in processes of their own, which are killed, or find the disk full."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from flow_helpers import KINDS, ROOT

from easyrec_mm.files.lock import LOCK
from easyrec_mm.manifest import MANIFEST

# With the small backbone, and without TensorFlow's optimization of graphs, which takes time.
EXPORT = (
    "import os, resource, signal, sys; sys.path.insert(0, 'tests'); sys.path.insert(0, 'samples')\n"
    "import pytest, flow_helpers, easyrec_mm.cli.main as cli\n"
    "import tensorflow as tf; from easyrec_mm.export import export\n"
    "tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})\n"
    "flow_helpers.use_small_backbone(pytest.MonkeyPatch())\n"
)
# In the worst moment, when the first of three models has been put in place.
KILLED = """
from easyrec_mm.export import folders; from easyrec_mm.files.replace_folder import exchange
folders.exchange = lambda new, place: exchange(new, place) and os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""
# An export without a limit of the size of files, and one for each limit to a folder of its own.
LIMITS = (3_000, 60_000, 300_000)
LIMITED = f"""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for most_bytes in {(-1, *LIMITS)}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, -1))
    place = f"{{sys.argv[1]}}/{{most_bytes}}"
    folders = [f"--{{flag}}_model_export_dir={{place}}/{{kind}}" for kind, flag in flow_helpers.KINDS.items()]
    print("status", cli.main([*sys.argv[2:], *folders]), file=sys.stderr)
"""


def process(code, *arguments):
    """Exit status and errors of exports in a new process."""
    command = [sys.executable, "-c", EXPORT + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, check=False)
    return done.returncode, done.stderr


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
    assert process(KILLED, *exported.export_arguments(folder))[0] == -signal.SIGKILL
    killed = contents(folder)
    assert set(old.items()) <= {(place_of(path), content) for path, content in killed.items()}

    status, text = process(LIMITED, tmp_path, *exported.export_arguments(tmp_path))
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
