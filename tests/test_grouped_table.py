"""Formats of grouped samples: what is written is read again, by ourselves and by plain readers; what is bad is told."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from grouped_helpers import (
    FIELDS,
    KINDS,
    from_table,
    groups,
    numbered,
    plain_parquet,
    plain_rtp,
    plain_tfrecord,
    to_table,
    typed,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.errors import DataError
from easyrec_mm.formats import parquet
from easyrec_mm.formats.grouped_table import GroupFields, joined
from easyrec_mm.formats.parquet import read_parquet
from easyrec_mm.formats.rtp import find_forbidden, read_rtp
from easyrec_mm.formats.tfrecord import read_tfrecord
from easyrec_mm.grouping.shards import FORMATS

READERS = {
    "parquet": read_parquet,
    "tfrecord": read_tfrecord,
    "rtp": read_rtp,
}
PLAIN = {"parquet": plain_parquet, "tfrecord": plain_tfrecord, "rtp": plain_rtp}


def read(path, kind, fields=FIELDS):
    """Groups of a file without bad ones."""
    pieces = list(READERS[kind](str(path), fields, typed(fields)))
    assert [piece.refused for piece in pieces] == [[]] * len(pieces)
    rows = [row for piece in pieces for row in piece.rows.tolist()]
    assert rows == list(range(1, len(rows) + 1))
    return joined(piece.groups for piece in pieces) if pieces else None


@settings(max_examples=60, deadline=None)
@given(groups(), st.sampled_from(list(FORMATS)))
def test_every_format_keeps_every_value(originals, kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"part.{FORMATS[kind].ending}")
        write(path, to_table(originals), kind)
        table = read(path, kind)
        assert (from_table(table) if table else []) == originals
        assert PLAIN[kind](path) == originals
        assert FORMATS[kind].count(str(path), FIELDS) == (
            len(originals),
            sum(len(group["click"]) for group in originals),
        )


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_do_not_depend_on_the_portions(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 700)
    table = numbered(2500)
    write(tmp_path / "a", table, kind)
    write(tmp_path / "b", table, kind, portions=(1, 13, 700, 1024, 1400, 2499))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert from_table(read(tmp_path / "a", kind)) == from_table(table)
    if kind == "parquet":
        metadata = pq.read_metadata(tmp_path / "a")
        assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [700, 700, 700, 400]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_of_no_groups(tmp_path, kind):
    write(tmp_path / "a", numbered(0), kind)
    assert (tmp_path / "a").exists()
    assert [
        piece for piece in READERS[kind](str(tmp_path / "a"), FIELDS, typed(FIELDS)) if len(piece.rows) or piece.refused
    ] == []
    assert FORMATS[kind].count(str(tmp_path / "a"), FIELDS) == (0, 0)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 10**18 - 1, -1, -(10**17)])
def test_whole_numbers_of_any_size_are_what_tensorflow_reads(tmp_path, value):
    table = numbered(2)
    table.columns["age"] = pa.array([value] * 6)
    write(tmp_path / "a", table, "tfrecord")
    assert [group["age"] for group in plain_tfrecord(tmp_path / "a")] == [[value] * 3] * 2


def test_long_values_and_many_samples_of_a_tfrecord(tmp_path):
    size = 300
    table = numbered(2, size)
    table.columns["user"] = pa.array(["ü" * (i % 200) + "x" for i in range(2 * size)])
    write(tmp_path / "a", table, "tfrecord")
    assert plain_tfrecord(tmp_path / "a") == from_table(table)
    assert FORMATS["tfrecord"].count(str(tmp_path / "a"), FIELDS) == (2, 2 * size)


def test_doubles_are_whole_in_parquet_and_text(tmp_path):
    table = numbered(1)
    table.columns["weight"] = pa.array([0.1, 1 / 3, 1e-30])
    for kind in ("parquet", "rtp"):
        write(tmp_path / "a", table, kind)
        assert read(tmp_path / "a", kind).columns["weight"].to_pylist() == [0.1, 1 / 3, 1e-30]


def test_numbers_next_to_nothing_are_0_in_text(tmp_path):
    """With three digits of an exponent, training could not read them."""
    table = numbered(1)
    table.columns["weight"] = pa.array([1e-300, -1e-100, None])
    write(tmp_path / "a", table, "rtp")
    assert read(tmp_path / "a", "rtp").columns["weight"].to_pylist() == [0, 0, None]


@pytest.mark.parametrize("text", ["a|b", "a\x01b", "a\x02b", "a\nb", "a\rb"])
@pytest.mark.parametrize("name", ["user", "cate", "img"])
def test_text_that_would_divide_a_line_is_refused(tmp_path, text, name):
    table = numbered(3)
    place = 5 if name == "user" else 1
    values = table.columns[name].to_pylist()
    values[place] = text
    table.columns[name] = pa.array(values)
    problems = find_forbidden(table, FIELDS)
    assert problems.is_bad.tolist() == [False, True, False]
    (bad,) = problems.at_rows(np.array([11, 12, 13]))
    assert (bad.row, bad.where) == (12, f"column '{name}'")
    assert repr(text) in bad.problem
    with pytest.raises(DataError, match="contains a line break or a separator"):
        write(tmp_path / "a", table, "rtp")


def test_other_separators_of_columns(tmp_path):
    fields = GroupFields(**{**vars(FIELDS), "column_separator": "\x03"})
    table = numbered(2)
    table.columns["user"] = pa.array(["a|b"] * 6)
    write(tmp_path / "a", table, "rtp", fields=fields)
    (piece,) = read_rtp(str(tmp_path / "a"), fields, typed(fields))
    assert from_table(piece.groups) == from_table(table)


# --- What is bad


def test_a_record_that_is_damaged_or_breaks_off(tmp_path):
    path = tmp_path / "a.tfrecord"
    write(path, numbered(3), "tfrecord")
    content = bytearray(path.read_bytes())
    size = 12 + struct.unpack("<Q", content[:8])[0] + 4
    for place, length, problem in [
        (size + 20, None, "record 2 has a wrong checksum"),
        (size + 3, None, "record 2 has a length whose checksum is wrong"),
        (None, size + 30, "record 2 is truncated"),
        (None, size + 5, "record 2 is truncated"),
        (None, len(content) - 1, "record 3 is truncated"),
    ]:
        changed = content[:length]
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DataError, match=f"a.tfrecord: {problem}"):
            list(read_tfrecord(str(path), FIELDS, typed(FIELDS)))


def test_checksums_are_those_of_tensorflow(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        writer.write(b"abc")
    content = (tmp_path / "a").read_bytes()
    crc = google_crc32c.value(b"abc")
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert content[-4:] == struct.pack("<I", masked)


def test_groups_of_a_tfrecord_that_cannot_be_used(tmp_path):
    def example(**changes):
        lists = {
            "click": [1, 0], "user": [b"a", b"b"], "age": [1, 2], "img": [b"i"], "weight": [0.5, 1.0],
            "seconds": [0.0, 1.0], "vip": [0, 1], "cate": [b"c"], "price": [1.0], "new": [1], "group_size": [2],
        } | changes  # fmt: skip
        feature = {}
        for name, values in lists.items():
            if values is not None:
                kinds = {int: "int64_list", float: "float_list", bytes: "bytes_list"}
                kind = kinds[type(values[0])] if values else "int64_list"
                feature[name] = tf.train.Feature(**{kind: {"value": values}})
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    bad = {
        "column 'age': is missing; ": example(age=None),
        "column 'age': is a float_list, not a int64_list": example(age=[1.0, 2.0]),
        "column 'click': 3 entries, group size 2": example(click=[1, 0, 1]),
        "column 'group_size': group size 0 is not 1 or more": example(group_size=[0]),
        "column 'weight': sample 1: inf is not a number from -1e19 to 1e19": example(weight=[0.5, float("inf")]),
        "column 'seconds': sample 0: label nan is not from -1e+19 to 1e+19": example(seconds=[float("nan"), 0.0]),
        "column 'cate': sample 1: 'd', but sample 0 has 'c'": example(cate=[b"c", b"d"]),
        "column 'user': sample 1: '\ufffd' is not UTF-8": example(user=[b"a", b"\xff"]),
        "record: is not a tf.train.Example": b"\xff\xff",
    }
    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        writer.write(example())
        for record in bad.values():
            writer.write(record)
        writer.write(example(cate=[b"c", b"c"], group_size=None, price=[1.0, 1.0]))
    (piece,) = read_tfrecord(str(tmp_path / "a"), FIELDS, typed(FIELDS))
    assert piece.rows.tolist() == [1, len(bad) + 2]
    problems = [f"{refusal.where}: {refusal.problem}" for refusal in piece.refused]
    assert [refusal.row for refusal in piece.refused] == list(range(2, len(bad) + 2))
    for text, expected in zip(problems, bad, strict=True):
        assert text.startswith(expected)
    first, last = from_table(piece.groups)
    assert first == last | {"img": "i"}


def test_groups_of_parquet_that_cannot_be_used(tmp_path):
    table = pa.table(
        {
            "click": [[1], [1, 0], [0, 1], [1, 1], None, [1, 1], [0, 0]],
            "user": [["a"], ["a"], ["a", "b"], ["a", "b"], ["a"], ["a", "b"], ["a", "b"]],
            "cate": [["c"], ["c", "c"], ["c", "d"], ["c", "c"], ["c"], [None, None], [None, "c"]],
            "seconds": [1.0, 1.0, 1.0, float("inf"), 1.0, 1.0, 1.0],
            "img": ["i", "i", "i", "i", "i", None, "i"],
        }
    )
    fields = GroupFields(
        {"click": "int64", "user": "string", "cate": "string", "seconds": "float32", "img": "string"},
        ("click",), "img", "group_size", frozenset({"img", "cate", "seconds"}), {},
    )  # fmt: skip
    pq.write_table(table, tmp_path / "a")
    (piece,) = read_parquet(str(tmp_path / "a"), fields, typed(fields))
    assert piece.rows.tolist() == [1, 6]
    assert piece.groups.columns["cate"].to_pylist() == ["c", None]
    assert piece.groups.columns["img"].to_pylist() == ["i", ""]
    assert [(refusal.row, refusal.where, refusal.problem.split(";")[0]) for refusal in piece.refused] == [
        (2, "column 'user'", "1 entries, group size 2"),
        (3, "column 'cate'", "sample 1: 'd', but sample 0 has 'c'"),
        (4, "column 'seconds'", "sample 0: inf is not a number from -1e19 to 1e19"),
        (5, "column 'click'", "is null"),
        (7, "column 'cate'", "sample 1: 'c', but sample 0 has ''"),
    ]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"clicks": [[1]], "user": [["a"]]}, "no column 'click'; did you mean 'clicks'"),
        ({"click": [["x"]], "user": [["a"]]}, "column 'click' is list<element: string>, and data_config"),
        ({"click": [[[1]]], "user": [["a"]]}, "column 'click' is list<"),
    ],
)
def test_parquet_of_other_columns(tmp_path, columns, problem):
    fields = GroupFields({"click": "int64", "user": "string"}, ("click",), "", "n", frozenset(), {})
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"a.parquet: {problem}"):
        list(read_parquet(str(tmp_path / "a.parquet"), fields, typed(fields)))


def test_parquet_that_breaks_off(tmp_path):
    write(tmp_path / "a.parquet", numbered(10), "parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        list(read_parquet(str(tmp_path / "a.parquet"), FIELDS, typed(FIELDS)))


def test_kinds_cover_what_is_written():
    assert set(KINDS.values()) == {"int64", "string", "float32", "float64", "bool"}
