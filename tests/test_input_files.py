"""Files of text that cannot be read, or only in part, are named."""

import gzip
import os
import threading
from itertools import islice

import numpy as np
import pytest
from text_input_helpers import input_of, line, users, write

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.errors import DataError
from easyrec_mm.formats.gzip_files import first_truncated


def test_a_file_that_cannot_be_opened(tmp_path):
    write(tmp_path / "a", [line(["x"])])
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"/b: cannot be read: .*No such file") as caught:
        input_of(tmp_path / "*")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    write(tmp_path / "a", [line(["x"])]).chmod(0)
    with pytest.raises(DataError, match=r"/a: cannot be read: .*[Pp]ermission denied"):
        input_of(tmp_path / "a")


def test_only_empty_files(tmp_path):
    paths = [write(tmp_path / name, [], compress=name == "b") for name in "ab"]
    with pytest.raises(DataError) as caught:
        input_of(f"{paths[0]},{paths[1]}")
    assert str(caught.value) == f"{paths[0]}, {paths[1]}: no line of data; give files that hold groups"


def test_too_few_columns_for_selected_cols(tmp_path):
    path = write(tmp_path / "a", [b"0|0.5|features|picture|1"] * 3)
    with pytest.raises(DataError) as caught:
        input_of(path)
    assert str(caught.value) == (
        f"{path}: lines have 1 column(s), and data_config.selected_cols reads column 4; "
        "check selected_cols and rtp_separator ';'"
    )


def test_the_number_of_columns_is_that_of_most_lines(tmp_path):
    records = BadRecords(None, 1.0)
    path = write(tmp_path / "a", [b"#;a;header;of;six;columns", line(["x"]), line(["y"]), line(["z"])])
    inputs = input_of(path, records)
    assert users(inputs.batches()) == [["x", "y", "z"]]
    assert records.counts["bad_groups"] == 1


def random_lines(count):
    rng = np.random.default_rng(0)
    return [line([rng.bytes(8).hex()]) for _ in range(count)]


@pytest.mark.parametrize("num_lines", [50, 3000])
def test_a_truncated_gzip_is_named(tmp_path, num_lines):
    # TensorFlow takes such a file for one that ends there.
    path = write(tmp_path / "b", random_lines(num_lines), compress=True)
    path.write_bytes(path.read_bytes()[:-200])
    write(tmp_path / "a", random_lines(10))
    with pytest.raises(DataError) as caught:
        list(input_of(f"{tmp_path}/*", batch_size=500).batches())
    expected = f"{path}: cannot be read to its end: the gzip file is truncated; write it again"
    assert str(caught.value) == expected


def test_training_without_end_stops_at_a_truncated_gzip(tmp_path):
    path = write(tmp_path / "a", random_lines(50), compress=True)
    path.write_bytes(path.read_bytes()[:-9])
    batches = input_of(path, training=True, batch_size=5).batches(num_epochs=0)
    with pytest.raises(DataError, match=r"/a: .*truncated"):
        for _ in islice(batches, 100_000):
            pass


def test_a_damaged_gzip_is_named(tmp_path):
    # At its start, where columns are counted, and behind, where batches are read.
    for position in (20, -5000):
        path = write(tmp_path / "a", random_lines(3000), compress=True)
        content = bytearray(path.read_bytes())
        content[position] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"/a: cannot be read to its end: inflate\(\) failed") as caught:
            list(input_of(path, batch_size=500).batches())
        assert "}}" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_which_gzip_file_breaks_off(tmp_path):
    whole = gzip.compress(random_lines(1)[0] * 5000)
    contents = {
        "whole": whole,
        "several parts": whole + gzip.compress(b"") + whole,
        "damaged": whole[:50] + b"\xff\xff" + whole[52:],
        "something behind": whole + b"something",
        "without its end": whole[:-1],
        "only a start": whole[:5],
        "without the end of its second part": whole + whole[:-8],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    def find(*names, stop=False):
        event = threading.Event()
        if stop:
            event.set()
        return first_truncated([str(tmp_path / name) for name in names], event)

    broken_files = {name: find(name) for name in contents}
    assert {name for name, file in broken_files.items() if file} == {
        "without its end", "only a start", "without the end of its second part"
    }  # fmt: skip
    assert find("missing", "whole", "only a start", "without its end") == str(tmp_path / "only a start")
    assert find("only a start", stop=True) is None


def test_a_file_that_vanishes_is_named(tmp_path):
    paths = [write(tmp_path / name, [line(["x"])] * 200) for name in "ab"]
    inputs = input_of(f"{paths[0]},{paths[1]}", batch_size=10, prefetch_size=1)
    paths[1].unlink()
    with pytest.raises(DataError, match=r"/b: cannot be read to its end: .*No such file"):
        list(inputs.batches())
