"""Folders: that of a process is gone when it ends, others are put back, copied and replaced as wholes."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from easyrec_mm import files
from easyrec_mm.files import replace_folder
from easyrec_mm.files.folders import Folder, shown
from easyrec_mm.files.place import Place, place_of
from easyrec_mm.files.work_folder import work_folder

# The folder of a process.


def test_copies_of_a_process_are_gone_when_it_ends_or_soon_after(tmp_path):
    code = (
        "import os, signal, sys; from easyrec_mm.files.work_folder import work_folder\n"
        "print(work_folder(), flush=True); open(work_folder() + '/x', 'w').close()\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def run(more):
        done = subprocess.run([sys.executable, "-c", code + more], capture_output=True, text=True, env=environment)
        return Path(done.stdout.strip())

    assert not run("").exists()
    left = run("os.kill(os.getpid(), signal.SIGKILL)")
    assert (left / "x").exists()
    with subprocess.Popen(
        [sys.executable, "-c", code + "sys.stdout.flush(); input()"], stdin=-1, stdout=-1, text=True, env=environment
    ) as running:
        used = Path(running.stdout.readline().strip())
        run("")
        assert not left.exists()
        assert (used / "x").exists()
        running.communicate("\n")
    assert list(tmp_path.iterdir()) == []


def test_put_in_its_place_at_once(tmp_path, bucket, s3):
    for path in (f"{tmp_path}/out.txt", f"{bucket}/out.txt"):
        local = files.written_at(path)
        assert str(local) != path
        local.write_bytes(b"content")
        files.put(local, path)
        assert files.read(path) == b"content"
        assert not local.exists()
    assert files.read(f"file://{tmp_path}/out.txt") == b"content"


# Folder.


def test_a_folder_is_put_back_in_order_and_replaced_without_a_mixture(s3, bucket, tmp_path):
    order = []
    folder = Folder(f"{bucket}/run")
    others = [Folder(f"{bucket}/{i}") for i in range(11)]  # so that paths of copies begin alike
    for each in (folder, *others):
        assert shown(f"{each.local}/x: broken") == f"{each.path}/x: broken"
    folder.local.mkdir(parents=True)
    for name in ("z", "a", "inner/b", "last", "not"):
        (folder.local / name).parent.mkdir(exist_ok=True)
        (folder.local / name).write_bytes(b"1")
    folder.look()
    upload = place_of(bucket).upload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "upload", lambda self, local, path: (order.append(path), upload(local, path)))
        folder.put(lambda name: {"last": 1, "not": None}.get(name, 0))
        assert order[-1] == f"{bucket}/run/last"
        assert sorted(order[:-1]) == [f"{bucket}/run/{name}" for name in ("a", "inner/b", "z")]
        order.clear()
        (folder.local / "a").write_bytes(b"22")
        folder.put(lambda name: 0)
        assert sorted(order) == [f"{bucket}/run/{name}" for name in ("a", "not")]

    new = Folder(f"{bucket}/run")
    new.local.mkdir(parents=True)
    for name in ("a", "c", "last"):
        (new.local / name).write_bytes(b"333")
    new.look()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Place, "upload", lambda self, local, path: (seen.append(set(s3.keys(f"{bucket}/run"))), upload(local, path))
        )
        new.replace(last="last")
    assert set(s3.keys(f"{bucket}/run")) == {"run/a", "run/c", "run/last"}
    assert {s3.get(f"{bucket}/run/{name}") for name in ("a", "c", "last")} == {b"333"}
    assert "run/last" in seen[0]
    assert all("run/last" not in keys and "run/.unfinished" in keys for keys in seen[1:])
    assert seen[-1] == {"run/a", "run/c", "run/.unfinished"}


def test_a_folder_is_copied_but_for_what_is_not_wanted(s3, bucket):
    for name in ("a", "inner/b", "not"):
        s3.put(f"{bucket}/run/{name}", name.encode())
    folder = Folder(f"{bucket}/run/")
    folder.look()
    assert sorted(folder.names()) == ["a", "inner/b", "not"]
    folder.fetch(lambda name: name != "not")
    assert (folder.local / "inner/b").read_bytes() == b"inner/b"
    assert not (folder.local / "not").exists()
    s3.faults.requests.clear()
    folder.put(lambda name: 0)
    assert sum(s3.faults.requests.values()) == 0


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(replace_folder, "exchange", lambda first, second: False)
    target = tmp_path / "a"
    seen, is_done = [], threading.Event()

    def look():
        while not is_done.is_set():
            seen.append((target / "x").exists())

    for number in range(50):
        new = tmp_path / "new"
        new.mkdir()
        (new / "x").write_text(str(number))
        replace_folder.replace_folder(new, target)
        assert (target / "x").read_text() == str(number)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        if not number:
            looking = threading.Thread(target=look)
            looking.start()
    is_done.set()
    looking.join()
    assert seen
    assert all(seen) or not can_exchange


def test_threads_ask_a_place_at_once(s3, bucket):
    s3.put(f"{bucket}/x", b"content")
    s3.faults.latency_s = 0.3
    s3.faults.most_at_once = 0
    place = Place(bucket)
    results = []
    threads = [threading.Thread(target=lambda: results.append(place.read(f"{bucket}/x").data)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"content"] * 20
    assert s3.faults.most_at_once >= 10
    gc.collect()


def test_the_work_folder_is_that_of_the_process():
    assert work_folder() == work_folder()
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, work_folder().encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.read(read, 1000).decode() != work_folder()
