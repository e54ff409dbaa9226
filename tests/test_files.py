"""Files of buckets and servers: what each kind of place offers, failures, copies on disk; S3 by moto on loopback."""

import gc
import glob
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import fsspec
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm import files
from easyrec_mm.errors import DataError
from easyrec_mm.files import (
    Failure,
    StorageError,
    content_cache,
    local_copies,
    paths,
    place,
    replace_folder,
    tensorflow_storage,
)
from easyrec_mm.files.content_cache import ContentCache
from easyrec_mm.files.disk_cache import DiskCache
from easyrec_mm.files.folders import Folder, shown
from easyrec_mm.files.local_copies import LocalCopies
from easyrec_mm.files.object_storage import ObjectStorage
from easyrec_mm.files.place import Place, place_of
from easyrec_mm.files.work_folder import work_folder

# Odd names are names, too.
CONTENTS = {
    "a/1.txt": b"one",
    "a/2.txt": b"two" * 1000,
    "a/b/3.txt": b"",
    "a/c d #?é%20&+.txt": b"odd",
    "a10/4.txt": b"four",
    "top": b"top",
}


@pytest.fixture
def bucket(s3):
    return s3.new_bucket()


def oss_bucket(s3, monkeypatch):
    for name, value in {"ENDPOINT": s3.endpoint, "ACCESS_KEY_ID": "a", "ACCESS_KEY_SECRET": "b"}.items():
        monkeypatch.setenv(f"OSS_{name}", value)
    return s3.new_bucket().replace("s3://", "oss://")


def gcs_bucket(s3, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", s3.endpoint)
    return s3.new_bucket().replace("s3://", "gs://")


@pytest.fixture(params=["s3", "oss", "gs", "memory", "tensorflow"])
def filled(request, s3, monkeypatch, tmp_path, tmp_path_factory):
    """A folder of a place that obstore, fsspec or TensorFlow reaches, and the place, with the contents."""
    if request.param == "tensorflow":
        folder = f"file://{tmp_path_factory.mktemp('box')}"
        monkeypatch.setattr(place, "open_storage", lambda path: tensorflow_storage.TensorFlowStorage())
        one = Place(folder)
    else:
        folder = {
            "s3": s3.new_bucket,
            "oss": lambda: oss_bucket(s3, monkeypatch),
            "gs": lambda: gcs_bucket(s3, monkeypatch),
            "memory": lambda: f"memory://box/{random.random()}",
        }[request.param]()
        one = place_of(folder)
    for name, content in CONTENTS.items():
        (tmp_path / "file").write_bytes(content)
        one.upload(tmp_path / "file", f"{folder}/{name}")
    return folder, one


# What every place offers.


def test_contents_come_back_as_they_were_put(filled, tmp_path):
    folder, one = filled
    for name, content in CONTENTS.items():
        path = f"{folder}/{name}"
        assert one.read(path).data == content
        assert one.start(path, 2) == content[:2]
        info = one.stat(path)
        assert (info.path, info.size, info.is_folder) == (path, len(content), False)
        one.download(info, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.parametrize(
    "pattern", ["a/*.txt", "a/*", "*/*.txt", "a?0/*", "a/[12].txt", "a/1.txt", "a/1.t", "none/*", "a/*/3.txt", "a"]
)
def test_patterns_find_what_they_find_in_a_folder_of_this_machine(filled, pattern, tmp_path):
    folder, one = filled
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    expected = [
        (path.removeprefix(f"{tmp_path}/"), os.path.isdir(path), 0 if os.path.isdir(path) else os.path.getsize(path))
        for path in sorted(glob.glob(f"{tmp_path}/{pattern}"))
    ]
    found = one.find(f"{folder}/{pattern}")
    assert [(i.path.removeprefix(f"{folder}/").rstrip("/"), i.is_folder, i.size) for i in found] == expected


def test_all_below_a_folder(filled):
    folder, one = filled
    assert {info.path for info in one.below(f"{folder}/a")} == {
        f"{folder}/{name}" for name in CONTENTS if name.startswith("a/")
    }
    assert one.below(f"{folder}/none") == []


def test_the_version_tells_that_a_file_was_written_anew(filled, tmp_path):
    folder, one = filled
    path = f"{folder}/a/1.txt"
    first = one.read(path, "")
    assert first.version
    assert first.version == one.stat(path).version
    assert one.read(path, first.version) is None
    time.sleep(0.01)
    (tmp_path / "new").write_bytes(b"another")
    one.upload(tmp_path / "new", path)
    assert one.read(path, first.version).data == b"another"
    with pytest.raises(StorageError, match=r"a/1.txt: has changed while it was read") as caught:
        one.download(files.FileInfo(path, 3, first.version), tmp_path / "copy")
    assert caught.value.failure == Failure.CHANGED


def test_a_file_that_is_not_there(filled, tmp_path):
    folder, one = filled
    one.remove(f"{folder}/top")
    one.remove(f"{folder}/top")  # gone is gone
    info = files.FileInfo(f"{folder}/top", 3, "")
    for action in (
        one.read,
        one.stat,
        lambda path: one.start(path, 1),
        lambda path: one.download(info, tmp_path / "x"),
    ):
        with pytest.raises(StorageError, match=r"/top: no such file$") as caught:
            action(f"{folder}/top")
        assert caught.value.failure == Failure.MISSING


def test_a_large_file_is_fetched_in_parts(s3, bucket, tmp_path):
    content = random.Random(0).randbytes(20 << 20)
    (tmp_path / "big").write_bytes(content)
    one = place_of(bucket)
    one.upload(tmp_path / "big", f"{bucket}/big")
    s3.faults.requests.clear()
    one.download(one.stat(f"{bucket}/big"), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert s3.faults.requests["GET", f"/{bucket[5:]}/big"] == 3


def test_files_of_a_web_server(s3, bucket):
    s3.put(f"{bucket}/x.txt", b"content")
    address = f"{s3.endpoint}/{bucket[5:]}"
    s3.client.put_object_acl(Bucket=bucket[5:], Key="x.txt", ACL="public-read")
    one = place_of(address)
    assert one.read(f"{address}/x.txt").data == b"content"
    assert one.read(f"{address}/x.txt?a=b").data == b"content"
    (info,) = one.find(f"{address}/x.txt")
    assert info.size == 7
    with pytest.raises(StorageError, match="no such file"):
        one.read(f"{address}/y.txt")


def test_a_web_server_takes_no_files(s3, bucket, tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(StorageError, match="/x: files cannot be written to a web server; choose another place"):
        place_of(s3.endpoint).upload(tmp_path / "x", f"{s3.endpoint}/{bucket[5:]}/x")


def test_tensorflow_reads_what_tensorflow_io_registers(monkeypatch):
    monkeypatch.setattr(place.tensorflow_storage, "knows", lambda scheme: scheme == "s3")
    assert type(Place("s3://bucket/x").reached()).__name__ == "TensorFlowStorage"
    assert isinstance(Place("gs://bucket/x").reached(), ObjectStorage)


def test_without_tensorflow_io_no_place_depends_on_tensorflow():
    assert "gs" in tf.io.gfile.get_registered_schemes()
    assert isinstance(Place("gs://bucket/x").reached(), ObjectStorage)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://oss-cn-hangzhou.aliyuncs.com", ("https://bucket.s3.oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou")),
        ("s3.oss-ap-southeast-1-internal.aliyuncs.com",
         ("https://bucket.s3.oss-ap-southeast-1-internal.aliyuncs.com", "ap-southeast-1")),
    ],
)  # fmt: skip
def test_oss_is_asked_by_the_name_of_the_bucket(monkeypatch, endpoint, expected):
    for name, value in {"ENDPOINT": endpoint, "ACCESS_KEY_ID": "a", "ACCESS_KEY_SECRET": "b"}.items():
        monkeypatch.setenv(f"OSS_{name}", value)
    config = ObjectStorage("oss://bucket/x").store.config
    assert (config["endpoint"], config["region"]) == expected
    assert config["virtual_hosted_style_request"] == "true"


# Failures.


def test_requests_are_tried_again(s3, bucket):
    s3.put(f"{bucket}/x", bytes(10_000))
    one = place_of(bucket)
    one.read(f"{bucket}/x")
    s3.faults.unavailable_share = 0.3
    assert [len(one.read(f"{bucket}/x").data) for _ in range(40)] == [10_000] * 40
    assert s3.faults.num_unavailable > 5


def test_contents_that_break_off_are_not_taken_for_whole(s3, bucket, tmp_path):
    content = random.Random(0).randbytes(50_000)
    s3.put(f"{bucket}/x", content)
    one = place_of(bucket)
    info = one.stat(f"{bucket}/x")
    s3.faults.cut_share = 0.5
    for _ in range(5):
        assert one.read(f"{bucket}/x").data == content
        one.download(info, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


def test_pauses_grow_and_end(monkeypatch):
    pauses = []
    monkeypatch.setattr(place.time, "sleep", pauses.append)
    now = iter(range(1000))
    monkeypatch.setattr(place.time, "monotonic", lambda: next(now) + sum(pauses))
    one = Place("memory://x")
    calls = []

    def fail(storage):
        calls.append(storage)
        raise StorageError("memory://x/y", "busy", Failure.PASSING)

    with pytest.raises(StorageError, match=r"^memory://x: no answer for .* s: busy; check the network") as caught:
        one.attempt(fail, 60)
    assert caught.value.failure == Failure.PLACE
    assert len(calls) == len(pauses) + 1 > 5
    for i, pause in enumerate(pauses):
        assert 0.5 <= pause / min(0.1 * 2**i, 8.0) <= 1.0


@pytest.mark.parametrize("failure", [Failure.MISSING, Failure.DENIED, Failure.PLACE, Failure.REFUSED])
def test_what_another_try_does_not_mend_is_tried_once(failure):
    calls = []

    def fail(storage):
        calls.append(storage)
        raise StorageError("memory://x/y", "no", failure)

    with pytest.raises(StorageError):
        Place("memory://x").attempt(fail, 60)
    assert len(calls) == 1


def test_a_place_of_which_nothing_can_be_had_is_not_asked_by_everyone(s3):
    name = f"s3://none-{random.randrange(10**9)}"
    one = place_of(name)
    s3.faults.requests.clear()
    for i in range(10):
        with pytest.raises(StorageError, match=f"^{name}: there is no such bucket; check its name$"):
            one.read(f"{name}/{i}")
    assert sum(s3.faults.requests.values()) == 1


def refusal(path, action=lambda one, path: one.read(path)):
    """What is said of a place that was never reached."""
    with pytest.raises(StorageError) as caught:
        action(Place(path), path)
    assert caught.value.failure == Failure.PLACE
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["x", "folder/x*"])
def test_a_bucket_that_does_not_exist(s3, pattern):
    message = refusal(f"s3://nowhere/{pattern}", lambda one, path: one.find(path))
    assert message == "s3://nowhere: there is no such bucket; check its name"


@pytest.mark.parametrize("ask", ["read", "stat", "find", "below"])
def test_wrong_credentials(s3, bucket, ask):
    s3.check_credentials(True)
    s3.faults.requests.clear()
    try:
        message = refusal(f"{bucket}/x", lambda one, path: getattr(one, ask)(path))
        assert set(s3.faults.requests.values()) == {1}  # what will not change is not tried again
    finally:
        s3.check_credentials(False)
    assert message.startswith(f"{bucket}: the credentials are refused (InvalidAccessKeyId: ")


def test_a_secret_key_that_is_wrong_and_a_bucket_that_is_another_s(s3, bucket, monkeypatch):
    iam = boto3.client(
        "iam", endpoint_url=s3.endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    iam.create_user(UserName="reader")
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    policy = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::*/open/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=document)
    s3.put(f"{bucket}/open/x", b"content")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    s3.check_credentials(True)
    try:
        message = refusal(f"{bucket}/open/x")
        assert message.startswith(f"{bucket}: the credentials are refused (SignatureDoesNotMatch: ")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        one = Place(bucket)
        assert one.read(f"{bucket}/open/x").data == b"content"
        # A path without a pattern needs no right to list.
        assert [info.size for info in one.find(f"{bucket}/open/x")] == [7]
        for path in (f"{bucket}/closed/x", f"{bucket}/closed/*"):
            with pytest.raises(StorageError, match=r"closed/.: access is denied \(AccessDenied: ") as caught:
                one.find(path)
            assert caught.value.failure == Failure.DENIED
    finally:
        s3.check_credentials(False)


def test_no_credentials(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    message = refusal("s3://bucket/x")
    assert message.startswith("s3://bucket: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert refusal("s3://bucket/x") == "s3://bucket: The config profile (nobody) could not be found"


def test_credentials_of_a_profile(s3, bucket, monkeypatch, tmp_path):
    s3.put(f"{bucket}/x", b"content")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile here]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    (tmp_path / "credentials").write_text("[here]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "here")
    assert Place(bucket).read(f"{bucket}/x").data == b"content"


def test_no_settings_of_oss(monkeypatch):
    monkeypatch.delenv("OSS_ENDPOINT", raising=False)
    assert refusal("oss://bucket/x").startswith("oss://bucket: is not set up; set OSS_ENDPOINT (")


def test_a_server_that_cannot_be_reached(s3, monkeypatch):
    monkeypatch.setattr(place, "FIRST_TRY_S", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    message = refusal("s3://bucket/x")
    assert message.startswith("s3://bucket: no answer for ")
    assert "127.0.0.1:9" in message
    assert "\n" not in message


def test_a_server_that_never_answers(s3, monkeypatch):
    # In time, with some left for the start of the process.
    assert place.FIRST_TRY_S < place.FIRST_WAIT_S <= 20
    monkeypatch.setattr(place, "FIRST_WAIT_S", 1.0)
    s3.faults.answers = False
    message = refusal("s3://bucket/x")
    assert message == "s3://bucket: no answer within 1 s; check the network, the endpoint and the credentials"


def test_schemes_that_nobody_knows_or_that_lack_a_library(monkeypatch):
    message = refusal("storage://box/x")
    known = "use s3, oss, gs, hdfs, http or https"
    assert message == f"storage://box: no file system has the scheme 'storage://'; {known}"
    monkeypatch.setitem(sys.modules, "smbclient", None)
    assert refusal("smb://box/x").startswith("smb://box: ")
    monkeypatch.setenv("HADOOP_HOME", "/nowhere")
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert refusal("hdfs://box:8020/x").startswith("hdfs://box:8020: cannot be reached: ")


def test_hdfs_is_told_its_address(monkeypatch):
    told = {}
    one = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **options: told.update(options, scheme=scheme) or one)
    Place("hdfs://user@box:8020/x").reached()
    assert told == {"scheme": "hdfs", "host": "box", "port": 8020, "user": "user", "use_listings_cache": False}


def test_a_name_that_no_object_can_have(bucket):
    with pytest.raises(StorageError) as caught:
        place_of(bucket).read(f"{bucket}/a/../b")
    assert caught.value.failure == Failure.REFUSED


# Paths.


@pytest.mark.parametrize(
    ("path", "scheme", "plain"),
    [
        ("a/b", "", "a/b"),
        ("/a://b", "", "/a://b"),
        ("file:///a/b", "", "/a/b"),
        ("S3://b/c", "s3", "S3://b/c"),
        ("web+hdfs://b", "web+hdfs", "web+hdfs://b"),
    ],
)
def test_schemes(path, scheme, plain):
    assert paths.scheme_of(path) == scheme
    assert paths.is_remote(path) == bool(scheme)
    assert paths.plain(path) == plain


@pytest.mark.parametrize(
    ("folder", "name", "path"),
    [
        ("", "a", "a"),
        ("a", "b", "a/b"),
        ("a", "/b", "/b"),
        ("s3://a", "b/c", "s3://a/b/c"),
        ("s3://a/", "/b", "s3://a/b"),
        ("s3://a", "s3://b/c", "s3://b/c"),
        ("a", "gs://b", "gs://b"),
    ],
)
def test_joining(folder, name, path):
    assert paths.join(folder, name) == path


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


# DiskCache.


def add(cache, key, size):
    cache.add(key, size, lambda path: path.write_bytes(b"x" * size))


def kept(folder):
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
        assert kept(folder) <= 100
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
    assert kept(tmp_path) == 0


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
    assert 10_000 < kept(tmp_path) <= 20_000
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
    path, one = f"{bucket}/x", place_of(bucket)
    s3.put(path, b"first")
    one.read(path)

    def requests(cache, expected):
        s3.faults.requests.clear()
        assert [cache.read(one, path) for _ in range(3)] == [expected] * 3
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
        cache.read(one, path)


def test_an_entry_that_is_damaged_is_fetched_anew(s3, bucket, tmp_path):
    path, one = f"{bucket}/x", place_of(bucket)
    s3.put(path, b"content" * 100)
    disk = DiskCache(str(tmp_path), 10_000, "setting")
    cache = ContentCache(disk)
    cache.read(one, path)
    whole = disk.place(path).read_bytes()
    for damaged in (b"", whole[:5], whole[:-1], whole[:-1] + b"?", bytes(len(whole))):
        disk.place(path).write_bytes(damaged)
        assert cache.read(one, path) == b"content" * 100


def test_contents_of_a_place_without_versions_are_fetched_once_a_run(tmp_path, run_begins):
    class Unversioned:
        number = 0

        def read(self, path, known_version):
            self.number += 1
            return files.Content(b"content", "")

    one = Unversioned()
    cache = ContentCache(DiskCache(str(tmp_path), 10_000, "setting"))
    for expected in (1, 2):
        assert [cache.read(one, "memory://x/y") for _ in range(3)] == [b"content"] * 3
        assert one.number == expected
        run_begins()


def test_a_cache_on_a_full_disk_is_no_reason_to_stop(s3, bucket, tmp_path, caplog):
    s3.put(f"{bucket}/x", b"content")
    disk = DiskCache(str(tmp_path), 10_000, "setting")
    disk.place(f"{bucket}/x").parent.touch()  # a file where a folder is needed
    cache = ContentCache(disk)
    for _ in range(2):
        assert cache.read(place_of(bucket), f"{bucket}/x") == b"content"
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
    assert kept(tmp_path) <= 3000
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
    assert kept(tmp_path) == 0


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
        f"local_copies().begin(place_of('{bucket}').stat('{bucket}/x'))\n"
    )
    s3.faults.bytes_per_s = 30_000  # a quarter of an hour for the file
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Folder.


def test_a_folder_is_put_back_in_order_and_replaced_without_a_mixture(s3, bucket, tmp_path):
    order = []
    folder = Folder(f"{bucket}/run")
    assert shown(f"{folder.local}/x: broken") == f"{bucket}/run/x: broken"
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
    assert all("run/last" not in keys for keys in seen)
    assert seen[-1] == {"run/a", "run/c"}


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
    one = Place(bucket)
    results = []
    threads = [threading.Thread(target=lambda: results.append(one.read(f"{bucket}/x").data)) for _ in range(20)]
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
