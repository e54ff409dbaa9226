"""Data and pictures that are in a bucket, in tars, or change while they are read; S3 by moto on loopback."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import threading

import numpy as np
import pytest
from data_helpers import image
from PIL import Image as Pillow
from source_helpers import WRITERS, input_of, random_groups, values_of
from text_input_helpers import colours, line, small_schema
from text_input_helpers import input_of as text_input

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.packed_pictures import PackedPictures
from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.errors import DataError
from easyrec_mm.files import StorageError, place_of
from easyrec_mm.files import place as place_module
from easyrec_mm.files.local_copies import local_copies

NUM_PICTURES = 200


def picture(colour):
    stream = io.BytesIO()
    Pillow.new("RGB", (5, 4), (colour,) * 3).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def bucket(s3):
    return s3.new_bucket()


@pytest.fixture(scope="module")
def gallery(s3):
    """A bucket with pictures 0.png to 199.png, of one colour each, which is their number."""
    name = s3.new_bucket()
    for i in range(NUM_PICTURES):
        s3.put(f"{name}/{i}.png", picture(i))
    return name


def colours_of(loaded):
    return loaded.pixels.numpy()[:, 0, 0, 0].tolist()


def picture_input(path, records=None, **settings):
    return text_input(path, records, small_schema(uses_image=True), **settings)


# Data files.


@pytest.mark.parametrize("kind", WRITERS)
def test_a_bucket_gives_what_the_folder_gives(kind, s3, bucket, tmp_path):
    for i, last in enumerate((40, 1, 90)):
        WRITERS[kind](tmp_path / f"part-{i}", random_groups(last, seed=i))
    s3.put_folder(tmp_path, bucket)
    s3.faults.unavailable_share, s3.faults.cut_share, s3.faults.bytes_per_s = 0.05, 0.05, 1e6
    here, there = (
        input_of(kind, f"{folder}/*", training=True, shuffle=True, shuffle_buffer_size=20)
        for folder in (tmp_path, bucket)
    )
    assert values_of(there.batches(2)) == values_of(here.batches(2))
    assert there.estimate_groups() == here.estimate_groups()


def test_a_compressed_file_of_a_bucket(s3, bucket, tmp_path):
    content = gzip.compress(b"".join(line([f"u{i}"]) + b"\n" for i in range(50)))
    s3.put(f"{bucket}/whole", content)
    assert [batch.num_groups for batch in text_input(f"{bucket}/whole", batch_size=25).batches()] == [25, 25]
    s3.put(f"{bucket}/broken", content[:-10])
    with pytest.raises(DataError, match=rf"{bucket}/broken: cannot be read to its end: the gzip file is truncated"):
        list(text_input(f"{bucket}/broken").batches())


@pytest.mark.parametrize("kind", ["GroupTFRecordInput", "GroupParquetInput"])
def test_damage_is_told_by_the_name_in_the_bucket(kind, s3, bucket, tmp_path):
    WRITERS[kind](tmp_path / "a", random_groups(600))
    content = bytearray((tmp_path / "a").read_bytes())
    content[-60] ^= 0xFF
    s3.put(f"{bucket}/a", bytes(content[:-50]) if kind == "GroupParquetInput" else bytes(content))
    with pytest.raises(DataError, match=rf"^{bucket}/a: cannot be read"):
        list(input_of(kind, f"{bucket}/a").batches())


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, "shrinks") for kind in WRITERS),
        *(("GroupRTPInput", c) for c in ("grows", "is replaced", "vanishes")),
    ],
)
def test_a_file_that_changes_while_it_is_read(kind, change, tmp_path):
    path = tmp_path / "a"
    WRITERS[kind](path, random_groups(2000))
    batches = input_of(kind, path, prefetch_size=1).batches()
    next(batches)
    if change == "shrinks":
        os.truncate(path, path.stat().st_size // 3)
    elif change == "grows":
        with path.open("ab") as file:
            file.write(b"\n")
    elif change == "is replaced":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"/a: (cannot be read|has changed while it was read|was |existed |record)"):
        list(batches)


@pytest.mark.parametrize("change", ["put", "delete"])
def test_a_file_of_a_bucket_that_changes_before_it_is_read(s3, bucket, change):
    for name in "abcdef":
        s3.put(f"{bucket}/{name}", b"".join(line(["x"]) + b"\n" for _ in range(300)))
    batches = text_input(f"{bucket}/*", batch_size=10, prefetch_size=1).batches()
    next(batches)
    s3.put(f"{bucket}/f", b"other") if change == "put" else s3.delete(f"{bucket}/f")
    with pytest.raises(DataError, match=rf"^{bucket}/f: has changed since the data were listed; start again"):
        list(batches)


# Pictures.


def test_pictures_are_read_many_at_a_time_and_again_when_that_fails(s3, gallery):
    s3.faults.latency_s, s3.faults.unavailable_share, s3.faults.cut_share = 0.3, 0.05, 0.05
    order = np.random.default_rng(0).permutation(NUM_PICTURES).tolist()
    loader = PictureLoader(image(), PictureReader(gallery))
    loaded = loader.load([b"%d.png" % i for i in order])
    assert colours_of(loaded) == order
    assert loaded.problems == {}
    assert s3.faults.num_unavailable > 0
    assert s3.faults.most_at_once >= 64


@pytest.mark.slow
def test_pictures_of_the_next_batches_are_read_meanwhile(s3, bucket, gallery):
    s3.put(f"{bucket}/data", b"".join(line(["x"], f"{i}.png") + b"\n" for i in range(NUM_PICTURES)))
    s3.faults.latency_s = 0.3
    inputs = picture_input(f"{bucket}/data", batch_size=10, prefetch_size=12, image_root=gallery)
    assert [colours(item.batch) for item in inputs.batches()] == [
        [*range(i, i + 10)] for i in range(0, NUM_PICTURES, 10)
    ]
    assert s3.faults.most_at_once >= 64  # of batches of ten


def test_bad_pictures_of_a_bucket(s3, bucket):
    s3.put(f"{bucket}/good.png", picture(7))
    s3.put(f"{bucket}/empty.png", b"")
    s3.put(f"{bucket}/text.png", b"no picture")
    loader = PictureLoader(image(), PictureReader(bucket))
    pixels, problems = loader.load([b"good.png", b"none.png", b"empty.png", b"text.png", b"", b"a/../b", b"\xff.png"])
    assert pixels.numpy()[:2, 0, 0, 0].tolist() == [7, 128]
    assert problems == {
        1: "cannot be read: no such file",
        2: "is empty (0 bytes)",
        3: problems[3],
        4: "cannot be read: the path is empty",
        5: problems[5],
        6: problems[6],
    }
    assert problems[3].startswith("is not a JPEG")


def test_pictures_that_all_are_refused_stop_the_run(s3, bucket):
    s3.put(f"{bucket}/x.png", picture(1))
    s3.check_credentials(True)
    try:
        with pytest.raises(DataError, match=rf"^{bucket}: the credentials are refused .*; none of 8 pictures can be"):
            PictureLoader(image(), PictureReader(bucket)).load([b"%d.png" % i for i in range(100)])
    finally:
        s3.check_credentials(False)


def test_one_place_that_does_not_exist_is_a_bad_picture(s3, gallery):
    loader = PictureLoader(image(), PictureReader(gallery))
    _, problems = loader.load([*[b"%d.png" % i for i in range(20)], b"s3://nowhere-at-all/x.png"])
    assert problems == {20: "cannot be read: there is no such bucket; check its name"}


def test_a_bucket_that_is_gone_stops_the_run(s3, bucket, monkeypatch):
    s3.put(f"{bucket}/0.png", picture(0))
    monkeypatch.setattr(place_module, "TRY_S", 1.0)
    loader = PictureLoader(image(), PictureReader(bucket))
    loader.load([b"0.png"])
    s3.faults.unavailable_share = 1.0
    with pytest.raises(StorageError, match=rf"^{bucket}: no answer for .*; check the network and the endpoint$"):
        loader.load([b"1.png"])


def test_the_cache_of_pictures(s3, gallery, tmp_path):
    settings = {"image_cache_dir": str(tmp_path / "cache"), "image_cache_gib": 0.0001, "image_root": gallery}
    s3.faults.requests.clear()
    data = tmp_path / "data"
    data.write_bytes(b"".join(line(["x"], f"{i % 50}.png") + b"\n" for i in range(400)))
    inputs = picture_input(data, batch_size=20, prefetch_size=1, **settings)
    expected = [[(i + j) % 50 for j in range(20)] for i in range(0, 400, 20)]
    assert [colours(item.batch) for item in inputs.batches()] == expected
    assert {n for (_, path), n in s3.faults.requests.items() if path.endswith(".png")} == {1}
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert 50 * 60 < size < 0.0001 * 2**30


# Pictures in tars.


def pack(path, pictures):
    with tarfile.open(path, "w") as tar:
        for name, content in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def packed(tmp_path):
    """Two data files, of 30 and 10 groups, and their tars; group i has picture i.png."""
    folder = tmp_path / "packed"
    folder.mkdir()
    for name, rows in {"a.txt": range(30), "b.txt": range(30, 40)}.items():
        (folder / name).write_bytes(b"".join(line(["x"], f"p/{i}.png") + b"\n" for i in rows))
        pack(folder / f"{name[0]}.pictures.tar", {f"p/{i}.png": picture(i) for i in rows if i != 7})
    return folder


@pytest.mark.parametrize("is_remote", [False, True])
def test_packed_pictures(s3, packed, tmp_path, is_remote):
    folder = str(packed)
    if is_remote:
        folder = s3.new_bucket()
        s3.put_folder(packed, folder)
        s3.faults.requests.clear()
    records = BadRecords(str(tmp_path / "bad.jsonl"), 1.0)
    # Nothing is read from the folder of single pictures.
    inputs = picture_input(f"{folder}/*.txt", records, batch_size=8, packed_images=True, image_root="/nowhere")
    all_colours = [colour for item in inputs.batches(2) for colour in colours(item.batch)]
    assert all_colours == [128 if i == 7 else i for i in range(40)] * 2
    (bad,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (bad["file"], bad["row"], bad["problem"]) == (
        f"{folder}/a.txt",
        8,
        "cannot be read: is not in a.pictures.tar",
    )
    assert records.counts["bad_pictures"] == 2
    if is_remote:
        gets = {path.partition("/")[2][-14:]: n for (method, path), n in s3.faults.requests.items() if method == "GET"}
        assert {n for path, n in gets.items() if path.endswith(".tar")} == {1}


def test_many_threads_read_one_tar(packed):
    loader = PictureLoader(image(), PictureReader(packed=PackedPictures(local_copies())))
    paths = [os.fsencode(f"{packed}/a.pictures.tar") + b"\x00p/%d.png" % (i % 7) for i in range(70)]
    results = []
    threads = [threading.Thread(target=lambda: results.append(colours_of(loader.load(paths)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[i % 7 for i in range(70)]] * 8


def test_a_tar_that_is_missing_or_shared_or_damaged(packed):
    def read(path):
        return list(picture_input(path, packed_images=True).batches())

    (packed / "c.txt").write_bytes(line(["x"], "p/0.png") + b"\n")
    with pytest.raises(DataError, match=r"packed_images: .*/c.txt needs .*/c.pictures.tar beside it, which cannot be"):
        read(f"{packed}/*.txt")
    (packed / "c.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"packed_images: 2 files need the same .*/c.pictures.tar; give them differ"):
        read(f"{packed}/c.*")
    (packed / "c.pictures.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"/c.pictures.tar: cannot be read: "):
        read(f"{packed}/c.txt")


def test_a_tar_that_is_cut_while_it_is_read(packed):
    loader = PictureLoader(image(), PictureReader(packed=PackedPictures(local_copies())))
    paths = [os.fsencode(f"{packed}/a.pictures.tar") + b"\x00p/%d.png" % i for i in (0, 29)]
    assert colours_of(loader.load(paths)) == [0, 29]
    os.truncate(packed / "a.pictures.tar", 5000)
    with pytest.raises(DataError, match=r"/a.pictures.tar: has changed while it was read; start again"):
        loader.load(paths)


def test_no_more_tars_are_open_than_said(packed, monkeypatch):
    from easyrec_mm.data import packed_pictures

    monkeypatch.setattr(packed_pictures, "NUM_OPEN_TARS", 1)
    reader = PictureReader(packed=PackedPictures(local_copies()))
    paths = [os.fsencode(f"{packed}/{name}.pictures.tar") + b"\x00p/%d.png" % i for name, i in (("a", 0), ("b", 30))]
    for _ in range(3):
        assert reader.read(paths, 10**6)[1] == {}
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_is_open(fd)]
    assert sum(str(packed) in path for path in opened) == 1


def fd_is_open(fd):
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_a_place_counts_as_answered_when_it_says_no(s3, bucket):
    place = place_of(bucket)
    with pytest.raises(StorageError, match="no such file"):
        place.read(f"{bucket}/x")
    assert place.answered_s > 0
