"""Tars as the program tar makes them: links and absolute paths among their members."""

import os
import subprocess

import pytest
from decode_helpers import FILES

from easyrec_mm.data.packed_pictures import PackedPictures, packed_path
from easyrec_mm.files.local_copies import local_copies


@pytest.fixture
def pictures(tmp_path):
    """A file, a hard link, symbolic links (relative, absolute, one to another), and one that leads outside."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(FILES["png rgb"])
    (folder / "deep" / "hard.png").hardlink_to(folder / "a.png")
    (folder / "deep" / "soft.png").symlink_to("../a.png")
    (folder / "again.png").symlink_to("deep/soft.png")
    (folder / "absolute.png").symlink_to(folder / "a.png")
    (folder / "loop.png").symlink_to("loop.png")
    return folder


def contents(tmp_path, names, *options, folder=None):
    (tmp_path / "paths.txt").write_text("".join(f"{name}\n" for name in names))
    tar = ["tar", "--create", *options, "--file", tmp_path / "x.pictures.tar", "--files-from", tmp_path / "paths.txt"]
    subprocess.run(tar, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    packed = PackedPictures(local_copies())
    return [packed.read(packed_path(f"{tmp_path}/x.parquet", os.fsencode(name)), 1000) for name in names]


def test_links_between_members_are_followed(pictures, tmp_path):
    names = ["a.png", "./deep/hard.png", "deep/soft.png", "again.png"]
    assert contents(tmp_path, names, folder=pictures) == [FILES["png rgb"]] * 4


def test_absolute_paths_and_links_to_them(pictures, tmp_path):
    names = [f"{pictures}/a.png", f"{pictures}/absolute.png", f"{pictures}/deep/hard.png"]
    assert contents(tmp_path, names) == [FILES["png rgb"]] * 3
    assert contents(tmp_path, names, "--absolute-names") == [FILES["png rgb"]] * 3


def test_links_that_lead_out_of_the_tar_or_nowhere(pictures, tmp_path):
    for name in ("again.png", "loop.png"):
        with pytest.raises(OSError, match="is not in x"):
            contents(tmp_path, [name], folder=pictures)
    assert contents(tmp_path, ["again.png"], "--dereference", folder=pictures) == [FILES["png rgb"]]
