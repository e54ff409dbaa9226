"""Flat logs to groups: pictures are packed once a shard, as they are or resized."""

from __future__ import annotations

import tarfile

import numpy as np
import pyarrow.parquet as pq
from group_helpers import GOOD, bad_rows, contents, make_pictures, refused, run, stats, write_csv


def test_pictures_are_packed_once_a_shard(tmp_path):
    random = np.random.default_rng(0)
    rows = [(f"i{i % 9}", f"images/{i % 9 // 2}.png", f"u{i}", 0, 1.0) for i in range(200)]
    rows += [("j", "", "u", 0, 1.0), ("k", "images/none.png", "u", 0, 1.0), ("l", "images/empty.png", "u", 0, 1.0)]
    write_csv(tmp_path / "log.csv", rows)
    make_pictures(tmp_path, [f"images/{i}.png" for i in range(5)], random)
    (tmp_path / "images/empty.png").write_bytes(b"")
    flags = {"num_shards": 3, "image_root": tmp_path, "max_bad_share": 1}
    output = run(tmp_path, "--embed_images", **flags)
    statistics = stats(output)
    assert statistics["bad_pictures"] == 2
    for shard in statistics["shards"]:
        table = pq.read_table(output / shard["file"])
        shown = list(dict.fromkeys(path for path in table["img_path"].to_pylist() if path))
        with tarfile.open(output / shard["file"].replace(".parquet", ".pictures.tar"), "r:") as tar:
            members = tar.getmembers()
            names = [member.name for member in members]
            assert names == [name for name in shown if name not in ("images/none.png", "images/empty.png")]
            assert len(names) == shard["pictures"]
            for member in members:
                assert tar.extractfile(member).read() == (tmp_path / member.name).read_bytes()
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
    bad = {
        bad_row["where"]: (bad_row["kind"], bad_row["row"], bad_row["problem"])
        for bad_row in bad_rows(output / "bad_rows.jsonl")
        if bad_row["kind"] == "picture"
    }
    assert bad == {
        "images/none.png": ("picture", 203, "cannot be read: No such file or directory"),
        "images/empty.png": ("picture", 204, "is empty (0 bytes)"),
    }
    assert contents(run(tmp_path, "--embed_images", output="again", **flags)) == contents(output)


def test_packed_pictures_that_are_resized_decode_to_the_same_pixels(tmp_path):
    import tensorflow as tf

    from easyrec_mm.data.picture_reader import PictureReader
    from easyrec_mm.data.pictures import PictureLoader
    from easyrec_mm.schema import Image as Shape

    random = np.random.default_rng(0)
    write_csv(tmp_path / "log.csv", [(f"i{i}", f"{i}.png", "u", i % 2, 1.0) for i in range(6)])
    make_pictures(tmp_path, [f"{i}.png" for i in range(5)], random)
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes()[:200])
    flags = {"num_shards": 1, "image_root": tmp_path, "image_size": "24x16", "max_bad_share": 1}
    output = run(tmp_path, "--embed_images", **flags)
    loader = PictureLoader(Shape("", 16, 24, 3, "BILINEAR", True, 10**6), PictureReader(str(tmp_path)))
    with tarfile.open(output / "part-00000.pictures.tar") as tar:
        assert sorted(tar.getnames()) == [f"{i}.png" for i in range(5)]
        for name in tar.getnames():
            packed = tf.io.decode_png(tar.extractfile(name).read()).numpy()
            assert packed.shape == (16, 24, 3)
            np.testing.assert_array_equal(packed, loader.load([name.encode()]).pixels[0])
    (bad_row,) = bad_rows(output / "bad_rows.jsonl")
    assert (bad_row["where"], bad_row["problem"].split(":")[0]) == ("5.png", "is damaged")


def test_a_file_that_no_picture_needs_is_not_packed(tmp_path):
    """This one is a hole of 1 TiB."""
    write_csv(tmp_path / "log.csv", GOOD)
    make_pictures(tmp_path, ["0.jpg", "1.jpg"], np.random.default_rng(0))
    with (tmp_path / "2.jpg").open("wb") as file:
        file.truncate(1 << 40)
    output = run(tmp_path, "--embed_images", image_root=tmp_path, max_bad_share=1)
    problems = {row["where"]: row["problem"] for row in bad_rows(output / "bad_rows.jsonl")}
    assert problems["2.jpg"].startswith("has more bytes than a picture of max_image_pixels can need (")


def test_too_many_pictures_that_cannot_be_packed(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", GOOD)
    message = refused(tmp_path, capsys, "--embed_images")
    assert "5 of 5 pictures cannot be packed, more than --max_bad_share (0.01)" in message
    assert "log.csv:2: 0.jpg: cannot be read: No such file or directory" in message
