"""Loading pictures: what is said of one that cannot be had, and what the others then look like."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image as Pillow

from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.files import place_of
from easyrec_mm.schema import Image

SIZE = 12
IMAGE = Image("img", SIZE, SIZE, 3, "BILINEAR", True, 1000)


def pixels_of(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def file_content(seed=0, file_format="PNG", size=SIZE):
    stream = io.BytesIO()
    Pillow.fromarray(pixels_of(seed)).resize((size, size)).save(stream, file_format)
    return stream.getvalue()


@pytest.fixture(scope="module")
def loader():
    """Paths are given in full."""
    return PictureLoader(IMAGE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture"


def problem_of(loader, path):
    """What is said of one path, whose picture must then be mid-grey."""
    pixels, problems = loader.load([os.fsencode(path)])
    np.testing.assert_array_equal(pixels, np.full((1, SIZE, SIZE, 3), 128))
    assert list(problems) == [0]
    return problems[0]


def test_good_pictures_stand_in_the_order_of_their_paths(loader, tmp_path):
    for seed in range(4):
        (tmp_path / f"{seed}").write_bytes(file_content(seed))
    order = [2, 0, 3, 1, 0]
    pixels, problems = loader.load([os.fsencode(tmp_path / f"{seed}") for seed in order])
    np.testing.assert_array_equal(pixels, [pixels_of(seed) for seed in order])
    assert problems == {}
    assert pixels.dtype == tf.uint8


def test_no_picture(loader):
    pixels, problems = loader.load([])
    assert pixels.shape == (0, SIZE, SIZE, 3)
    assert problems == {}


def test_a_missing_file(loader, path):
    assert problem_of(loader, path) == "cannot be read: No such file or directory"


def test_a_file_below_a_file(loader, path):
    path.write_bytes(file_content())
    assert problem_of(loader, path / "inner") == "cannot be read: Not a directory"


def test_a_directory(loader, path):
    path.mkdir()
    assert problem_of(loader, path) == "cannot be read: is not a regular file"


def test_a_file_that_no_picture_needs_is_not_read(loader, path):
    """It would take four times its size in memory; this one is a hole of 1 TiB."""
    with path.open("wb") as file:
        file.truncate(1 << 40)
    limit = 4 * IMAGE.max_pixels + 2**20
    reason = f"has more bytes than a picture of max_image_pixels can need ({limit:,})"
    assert problem_of(loader, path) == f"cannot be read: {reason}"


def test_an_empty_path(loader):
    assert problem_of(loader, "") == "cannot be read: the path is empty"


def test_an_empty_path_is_not_the_root_folder(tmp_path):
    assert problem_of(PictureLoader(IMAGE, PictureReader(str(tmp_path))), "") == "cannot be read: the path is empty"


def test_a_path_with_a_zero_byte(loader):
    assert problem_of(loader, "pic\x00ture") == "cannot be read: embedded null byte"


def test_a_path_that_is_too_long(loader):
    assert problem_of(loader, "/" + "x" * 5000) == "cannot be read: File name too long"


def test_a_path_that_is_no_utf_8(loader, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    assert loader.load([path]).problems == {0: "cannot be read: No such file or directory"}
    with open(path, "wb") as file:
        file.write(file_content(3))
    np.testing.assert_array_equal(loader.load([path]).pixels[0], pixels_of(3))


def test_a_link_to_itself(loader, path):
    path.symlink_to(path)
    assert problem_of(loader, path) == "cannot be read: Too many levels of symbolic links"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_stall(loader, path):
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as pool:
        problem = pool.submit(problem_of, loader, path)
        try:
            assert problem.result(timeout=60) == "cannot be read: is not a regular file"
        finally:
            with suppress(OSError):  # nobody reads, as it should be
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_a_device_does_not_flood(loader):
    assert problem_of(loader, "/dev/zero") == "cannot be read: is not a regular file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(loader, path):
    path.write_bytes(file_content())
    path.chmod(0)
    assert problem_of(loader, path) == "cannot be read: Permission denied"


def test_zero_bytes(loader, path):
    path.write_bytes(b"")
    assert problem_of(loader, path) == "is empty (0 bytes)"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_a_truncated_picture(loader, path, file_format):
    path.write_bytes(file_content(0, file_format)[:-30])
    problem = problem_of(loader, path)
    assert problem.startswith("is damaged: ")
    # What TensorFlow says, without the names of its functions and nodes.
    assert len(problem) > len("is damaged: ") + 10
    assert "{{" not in problem
    assert "[[" not in problem
    assert "__inference" not in problem


def test_a_reason_that_a_cancelled_loop_hides_is_found(path):
    cancelled = tf.errors.CancelledError(None, None, "Loop execution was cancelled.")
    damaged = tf.errors.InvalidArgumentError(None, None, "Invalid PNG. Failed to read")
    failures = iter([cancelled, cancelled, cancelled, damaged])

    def decode(data):
        raise next(failures)

    path.write_bytes(file_content())
    assert problem_of(PictureLoader(IMAGE, decode=decode), path) == "is damaged: Invalid PNG. Failed to read"


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x00" * 50, b"GIF"])
def test_no_picture_inside(loader, path, content):
    path.write_bytes(content)
    assert problem_of(loader, path) == "is not a JPEG, PNG, GIF, BMP, WebP or AVIF picture"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF"])
def test_too_many_pixels(loader, path, file_format):
    path.write_bytes(file_content(0, file_format, size=32))
    assert problem_of(loader, path) == "has more than 1000 pixels (data_config.max_image_pixels)"


def test_bad_pictures_leave_the_good_ones_as_they_are(loader, tmp_path):
    contents = [
        file_content(0),
        None,
        file_content(1),
        b"",
        file_content(2)[:-30],
        file_content(3),
        b"text",
        file_content(4, size=32),
        file_content(5, "BMP"),
    ]
    for row, content in enumerate(contents):
        if content is not None:
            (tmp_path / f"{row}").write_bytes(content)
    pixels, problems = loader.load([os.fsencode(tmp_path / f"{row}") for row in range(len(contents))])
    assert {row: problem.split()[0] for row, problem in problems.items()} == {
        1: "cannot", 3: "is", 4: "is", 6: "is", 7: "has"
    }  # fmt: skip
    good = {0: 0, 2: 1, 5: 3, 8: 5}
    for row, picture in enumerate(pixels.numpy()):
        np.testing.assert_array_equal(picture, pixels_of(good[row]) if row in good else np.full_like(picture, 128))


def test_only_a_damaged_one_among_good_ones(loader, tmp_path):
    # Nothing is wrong with the files until they are decoded.
    for seed in range(3):
        (tmp_path / f"{seed}").write_bytes(file_content(seed)[: -30 if seed == 1 else None])
    pixels, problems = loader.load([os.fsencode(tmp_path / f"{seed}") for seed in range(3)])
    assert list(problems) == [1]
    for seed, expected in enumerate([pixels_of(0), np.full((SIZE, SIZE, 3), 128), pixels_of(2)]):
        np.testing.assert_array_equal(pixels[seed], expected)


def test_grey_pictures_have_grey_stand_ins(path):
    loader = PictureLoader(Image("img", 3, 4, 1, "BILINEAR", True, 1000))
    np.testing.assert_array_equal(loader.load([os.fsencode(path)]).pixels, np.full((1, 3, 4, 1), 128))


def test_relative_paths_start_from_the_root_and_absolute_ones_stay(tmp_path, monkeypatch):
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "folder" / "picture").write_bytes(file_content(1))
    (tmp_path / "elsewhere").write_bytes(file_content(2))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "picture").write_bytes(file_content(3))
    monkeypatch.chdir(tmp_path)
    paths = [b"folder/picture", os.fsencode(tmp_path / "elsewhere"), b"../elsewhere"]
    pixels, problems = PictureLoader(IMAGE, PictureReader(str(tmp_path / "root"))).load(paths)
    np.testing.assert_array_equal(pixels, [pixels_of(1), pixels_of(2), pixels_of(2)])
    assert problems == {}
    without_root = PictureLoader(IMAGE).load(paths[:2]).pixels
    np.testing.assert_array_equal(without_root, [pixels_of(3), pixels_of(2)])


def test_paths_of_a_place(tmp_path):
    (tmp_path / "1").write_bytes(file_content(1))
    place_of("memory://pictures").upload(tmp_path / "1", "memory://pictures/1")
    pixels, problems = PictureLoader(IMAGE, PictureReader("memory://pictures")).load([b"1", b"2"])
    np.testing.assert_array_equal(pixels[0], pixels_of(1))
    assert problems == {1: "cannot be read: no such file"}
    # With a scheme a path is complete, whatever the root.
    pixels, problems = PictureLoader(IMAGE, PictureReader("/nowhere")).load([b"memory://pictures/1"])
    np.testing.assert_array_equal(pixels[0], pixels_of(1))
    assert problems == {}


@pytest.mark.parametrize("path", ["storage://bucket/picture", b"storage://\xff\xfe/picture"])
def test_a_storage_that_nobody_knows(loader, path):
    assert problem_of(loader, path).startswith("cannot be read: ")
