"""Caches and copies of files on disk keep their size, and what they hold is whole, whatever happens."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm import files
from easyrec_mm.errors import DataError
from easyrec_mm.files import StorageError, content_cache, local_copies
from easyrec_mm.files.content_cache import ContentCache
from easyrec_mm.files.disk_cache import DiskCache
from easyrec_mm.files.local_copies import LocalCopies
from easyrec_mm.files.place import place_of

# DiskCache.


def add(cache, key, size):
    cache.add(key, size, lambda path: path.write_bytes(b"x" * size))


def used_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).glob("*/*"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=40))
def test_a_cache_never_exceeds_its_size_and_loses_what_was_not_used_for_longest(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("cache")
    cache = DiskCache(str(folder), 100, "setting")
    used = {}  # key -> size, the one used last at the end
    for i, (key, size) in enumerate(steps):
        name = f"{key}"
        held = cache.hold(name)
        if held is not None:
            used[name] = used.pop(name)
            held.release()
        else:
            add(cache, name, size)
            used.pop(name, None)
            used[name] = size
        os.utime(cache.place(name), ns=(i + 1, i + 1))  # the clock may not tell them apart
        assert used_bytes(folder) <= 100
        there = [name for name in used if cache.place(name).exists()]
        assert there == list(used)[len(used) - len(there) :]  # the ones used last
        used = {name: used[name] for name in there}


def test_what_is_held_is_not_removed(tmp_path):
    cache = DiskCache(str(tmp_path), 100, "setting")
    add(cache, "old", 60)
    held = cache.hold("old")
    add(cache, "new", 60)
    assert held.path.read_bytes() == b"x" * 60
    held.release()
    add(cache, "newer", 60)
    assert cache.hold("old") is None


def test_an_entry_is_whole_or_not_there(tmp_path):
    cache = DiskCache(str(tmp_path), 1000, "setting")

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cache.add("x", 10, fail)
    assert cache.hold("x") is None
    assert used_bytes(tmp_path) == 0


def test_what_a_killed_process_left_is_removed(tmp_path):
    cache = DiskCache(str(tmp_path), 100, "setting")
    place_of_x = cache.place("x")
    place_of_x.parent.mkdir()
    left, recent = (place_of_x.with_name(f"tmp-{i}-{place_of_x.name}") for i in range(2))
    for path in (left, recent):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    add(cache, "y", 10)
    assert (left.exists(), recent.exists()) == (False, True)


def fill(folder, seed):
    cache = DiskCache(folder, 20_000, "setting")
    rng = random.Random(seed)
    for _ in range(200):
        key = str(rng.randrange(40))
        held = cache.hold(key)
        if held is None:
            add(cache, key, 1000 + int(key))
        else:
            assert len(held.path.read_bytes()) == 1000 + int(key)
            held.release()


def test_several_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(str(tmp_path), seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert 10_000 < used_bytes(tmp_path) <= 20_000
    assert not list(tmp_path.glob("*/tmp-*"))


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^data_config.image_cache_dir: '.*/file/x' cannot be written: "):
        DiskCache(f"{tmp_path}/file/x", 100, "data_config.image_cache_dir")


# ContentCache.


@pytest.fixture
def run_begins(monkeypatch):
    """Begins a new run, as a new process would."""
    return lambda: monkeypatch.setattr(content_cache, "RUN_BEGUN_NS", time.time_ns())


def test_contents_are_kept_and_asked_about_once_a_run(s3, bucket, tmp_path, run_begins):
    path, place = f"{bucket}/x", place_of(bucket)
    s3.put(path, b"first")
    place.read(path)

    def requests(cache, expected):
        s3.faults.requests.clear()
        assert [cache.read(place, path, 10_000) for _ in range(3)] == [expected] * 3
        return sum(s3.faults.requests.values())

    cache = ContentCache(DiskCache(str(tmp_path), 10_000, "setting"))
    assert requests(cache, b"first") == 1
    assert requests(cache, b"first") == 0
    run_begins()
    cache = ContentCache(DiskCache(str(tmp_path), 10_000, "setting"))
    assert requests(cache, b"first") == 1
    s3.put(path, b"second")
    assert requests(cache, b"first") == 0  # within a run
    run_begins()
    assert requests(cache, b"second") == 1
    run_begins()
    s3.delete(path)
    with pytest.raises(StorageError, match="no such file"):
        cache.read(place, path, 10_000)


def test_an_entry_that_is_damaged_is_fetched_anew(s3, bucket, tmp_path):
    path, place = f"{bucket}/x", place_of(bucket)
    s3.put(path, b"content" * 100)
    disk = DiskCache(str(tmp_path), 10_000, "setting")
    cache = ContentCache(disk)
    cache.read(place, path, 10_000)
    whole = disk.place(path).read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], whole[:-1] + b"?", bytes(len(whole))):
        disk.place(path).write_bytes(damaged)
        assert cache.read(place, path, 10_000) == b"content" * 100


def test_a_file_that_is_read_in_part_is_not_cached(s3, bucket, tmp_path):
    path, place = f"{bucket}/x", place_of(bucket)
    s3.put(path, b"content")
    cache = ContentCache(DiskCache(str(tmp_path), 10_000, "setting"))
    assert [cache.read(place, path, size) for size in (3, 7, 8, 3)] == [b"con", b"content", b"content", b"content"]


def test_contents_of_a_place_without_versions_are_fetched_once_a_run(tmp_path, run_begins):
    class Unversioned:
        number = 0

        def read(self, path, known_version, max_bytes):
            self.number += 1
            return files.Content(b"content", "")

    place = Unversioned()
    cache = ContentCache(DiskCache(str(tmp_path), 10_000, "setting"))
    for expected in (1, 2):
        assert [cache.read(place, "memory://x/y", 10_000) for _ in range(3)] == [b"content"] * 3
        assert place.number == expected
        run_begins()


def test_a_cache_on_a_full_disk_is_no_reason_to_stop(s3, bucket, tmp_path, caplog):
    s3.put(f"{bucket}/x", b"content")
    disk = DiskCache(str(tmp_path), 10_000, "setting")
    disk.place(f"{bucket}/x").parent.touch()  # a file where a folder is needed
    cache = ContentCache(disk)
    for _ in range(2):
        assert cache.read(place_of(bucket), f"{bucket}/x", 10_000) == b"content"
    assert [record.message.split(":")[0] for record in caplog.records] == [str(tmp_path)]


# LocalCopies.


def test_copies_are_made_once_and_the_next_ahead(s3, bucket, tmp_path):
    for name in "abc":
        s3.put(f"{bucket}/{name}", name.encode() * 100)
    infos = place_of(bucket).find(f"{bucket}/*")
    copies = LocalCopies(str(tmp_path), 1.0)
    s3.faults.requests.clear()
    copies.begin(infos[1])
    assert Path(copies.get(infos[0])).read_bytes() == b"a" * 100
    assert Path(copies.get(infos[1])).read_bytes() == b"b" * 100
    assert [Path(copies.get(info)).read_bytes()[:1] for info in infos * 2] == [b"a", b"b", b"c"] * 2
    gets = {path[-1]: n for (method, path), n in s3.faults.requests.items() if method == "GET"}
    assert gets == {"a": 1, "b": 1, "c": 1}
    # Also for the next run.
    LocalCopies(str(tmp_path), 1.0).get(infos[2])
    assert s3.faults.requests["GET", f"/{bucket[5:]}/c"] == 1


def test_a_copy_that_is_being_read_outlives_its_removal(s3, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(local_copies, "NUM_HELD", 2)
    for i in range(6):
        s3.put(f"{bucket}/{i}", f"{i}".encode() * 1000)
    infos = place_of(bucket).find(f"{bucket}/*")
    copies = LocalCopies(str(tmp_path), 2500 / 2**30)
    opened = [open(copies.get(info), "rb") for info in infos]  # noqa: SIM115
    assert used_bytes(tmp_path) <= 3000
    for i, file in enumerate(opened):
        assert file.read() == f"{i}".encode() * 1000
        file.close()


@pytest.mark.parametrize("change", ["put", "delete"])
def test_a_file_that_is_no_longer_what_was_listed(s3, bucket, tmp_path, change):
    s3.put(f"{bucket}/x", b"content")
    info = place_of(bucket).stat(f"{bucket}/x")
    s3.put(f"{bucket}/x", b"another") if change == "put" else s3.delete(f"{bucket}/x")
    copies = LocalCopies(str(tmp_path), 1.0)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"^{bucket}/x: has changed since the data were listed; start again"):
            copies.get(info)
    assert used_bytes(tmp_path) == 0


def test_a_copy_for_which_there_is_no_room(s3, bucket, tmp_path):
    s3.put(f"{bucket}/x", b"content")
    copies = LocalCopies(str(tmp_path / "c"), 1.0)
    info = place_of(bucket).stat(f"{bucket}/x")
    copies.cache.place(local_copies.key_of(info)).parent.touch()
    with pytest.raises(DataError, match=rf"no room for a copy of {bucket}/x \(7 bytes\): .*; give a larger disk"):
        copies.get(info)


def test_a_process_does_not_wait_for_what_it_fetches_ahead(s3, bucket):
    s3.put(f"{bucket}/x", bytes(30_000_000))
    code = (
        "from easyrec_mm.files.local_copies import local_copies; from easyrec_mm.files import place_of\n"
        f"local_copies().begin(place_of('{bucket}').stat('{bucket}/x')); time.sleep(1)\n"
    )
    s3.faults.bytes_per_s = 30_000  # a quarter of an hour for the file
    subprocess.run([sys.executable, "-c", f"import time; {code}"], check=True, timeout=30)
