"""Files of buckets and servers: what each kind of place offers, and how paths to them are written."""

import glob
import os
import random
import time

import pytest
import tensorflow as tf

from easyrec_mm import files
from easyrec_mm.files import Failure, StorageError, paths, tensorflow_storage
from easyrec_mm.files import place as place_module
from easyrec_mm.files.object_storage import ObjectStorage
from easyrec_mm.files.place import Place, place_of

# Odd names are names, too.
CONTENTS = {
    "a/1.txt": b"one",
    "a/2.txt": b"two" * 1000,
    "a/b/3.txt": b"",
    "a/c d #?é%20&+.txt": b"odd",
    "a10/4.txt": b"four",
    "top": b"top",
}


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
        monkeypatch.setattr(place_module, "open_storage", lambda path: tensorflow_storage.TensorFlowStorage())
        place = Place(folder)
    else:
        folder = {
            "s3": s3.new_bucket,
            "oss": lambda: oss_bucket(s3, monkeypatch),
            "gs": lambda: gcs_bucket(s3, monkeypatch),
            "memory": lambda: f"memory://box/{random.random()}",
        }[request.param]()
        place = place_of(folder)
    for name, content in CONTENTS.items():
        (tmp_path / "file").write_bytes(content)
        place.upload(tmp_path / "file", f"{folder}/{name}")
    return folder, place


# What every place offers.


def test_contents_come_back_as_they_were_put(filled, tmp_path):
    folder, place = filled
    for name, content in CONTENTS.items():
        path = f"{folder}/{name}"
        assert place.read(path).data == content
        assert place.start(path, 2) == content[:2]
        assert place.read(path, max_bytes=2).data == content[:2]
        assert place.read(path, max_bytes=10**9).data == content
        info = place.stat(path)
        assert (info.path, info.size, info.is_folder) == (path, len(content), False)
        place.download(info, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


@pytest.mark.parametrize(
    "pattern", ["a/*.txt", "a/*", "*/*.txt", "a?0/*", "a/[12].txt", "a/1.txt", "a/1.t", "none/*", "a/*/3.txt", "a"]
)
def test_patterns_find_what_they_find_in_a_folder_of_this_machine(filled, pattern, tmp_path):
    folder, place = filled
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    expected = [
        (path.removeprefix(f"{tmp_path}/"), os.path.isdir(path), 0 if os.path.isdir(path) else os.path.getsize(path))
        for path in sorted(glob.glob(f"{tmp_path}/{pattern}"))
    ]
    infos = place.find(f"{folder}/{pattern}")
    assert [(i.path.removeprefix(f"{folder}/").rstrip("/"), i.is_folder, i.size) for i in infos] == expected


def test_all_below_a_folder(filled):
    folder, place = filled
    assert {info.path for info in place.below(f"{folder}/a")} == {
        f"{folder}/{name}" for name in CONTENTS if name.startswith("a/")
    }
    assert place.below(f"{folder}/none") == []


def test_the_version_tells_that_a_file_was_written_anew(filled, tmp_path):
    folder, place = filled
    path = f"{folder}/a/1.txt"
    first = place.read(path, "")
    assert first.version
    assert first.version == place.stat(path).version
    assert place.read(path, first.version) is None
    time.sleep(0.01)
    (tmp_path / "new").write_bytes(b"another")
    place.upload(tmp_path / "new", path)
    assert place.read(path, first.version).data == b"another"
    with pytest.raises(StorageError, match=r"a/1.txt: has changed while it was read") as caught:
        place.download(files.FileInfo(path, 3, first.version), tmp_path / "copy")
    assert caught.value.failure == Failure.CHANGED


def test_a_file_that_is_not_there(filled, tmp_path):
    folder, place = filled
    place.remove(f"{folder}/top")
    place.remove(f"{folder}/top")  # gone is gone
    info = files.FileInfo(f"{folder}/top", 3, "")
    for action in (
        place.read,
        place.stat,
        lambda path: place.start(path, 1),
        lambda path: place.download(info, tmp_path / "x"),
    ):
        with pytest.raises(StorageError, match=r"/top: no such file$") as caught:
            action(f"{folder}/top")
        assert caught.value.failure == Failure.MISSING


def test_a_large_file_is_fetched_in_parts(s3, bucket, tmp_path):
    content = random.Random(0).randbytes(20 << 20)
    (tmp_path / "big").write_bytes(content)
    place = place_of(bucket)
    place.upload(tmp_path / "big", f"{bucket}/big")
    s3.faults.requests.clear()
    place.download(place.stat(f"{bucket}/big"), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert s3.faults.requests["GET", f"/{bucket[5:]}/big"] == 3


def test_files_of_a_web_server(s3, bucket):
    s3.put(f"{bucket}/x.txt", b"content")
    address = f"{s3.endpoint}/{bucket[5:]}"
    s3.client.put_object_acl(Bucket=bucket[5:], Key="x.txt", ACL="public-read")
    place = place_of(address)
    assert place.read(f"{address}/x.txt").data == b"content"
    assert place.read(f"{address}/x.txt?a=b").data == b"content"
    for size in (3, 7, 8):
        assert place.read(f"{address}/x.txt", max_bytes=size).data == b"content"[:size]
    (info,) = place.find(f"{address}/x.txt")
    assert info.size == 7
    with pytest.raises(StorageError, match="no such file"):
        place.read(f"{address}/y.txt")


def test_a_web_server_takes_no_files(s3, bucket, tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(StorageError, match="/x: files cannot be written to a web server; choose another place"):
        place_of(s3.endpoint).upload(tmp_path / "x", f"{s3.endpoint}/{bucket[5:]}/x")


def test_tensorflow_reads_what_tensorflow_io_registers(monkeypatch):
    monkeypatch.setattr(place_module.tensorflow_storage, "knows", lambda scheme: scheme == "s3")
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


# Paths.


@pytest.mark.parametrize(
    ("path", "scheme", "plain"),
    [
        ("a/b", "", "a/b"),
        ("/a://b", "", "/a://b"),
        ("file:///a/b", "", "/a/b"),
        ("FILE://localhost/a/b", "", "/a/b"),
        ("file:/a/b", "", "/a/b"),
        ("file://localhost", "", "localhost"),
        ("file:a", "", "file:a"),
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
        ("a", "file:///b", "file:///b"),
        ("a", "file:/b", "file:/b"),
        ("s3://a", "file:///b", "file:///b"),
    ],
)
def test_joining(folder, name, path):
    assert paths.join(folder, name) == path
