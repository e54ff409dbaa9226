"""Reading flat logs: hashes, kinds of columns, blocks of CSV, statistics in bounded memory."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm import stable_hash
from easyrec_mm.errors import DataError
from easyrec_mm.formats import csv_blocks
from easyrec_mm.formats.columns import ORDER, join_kinds, kind_of, to_kind
from easyrec_mm.grouping import flat_files
from easyrec_mm.grouping.column_kinds import scan_split
from easyrec_mm.grouping.column_stats import MAX_COUNTED, ColumnStats, LogStats
from easyrec_mm.grouping.flat_files import pieces, plan_file
from easyrec_mm.grouping.spill import read_bucket, write_spill
from easyrec_mm.stable_hash import hash_column

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


# --- Hashes


def reference_hash(text: str) -> int:
    """The polynomial of the bytes modulo 2^64, in Python's whole numbers."""
    data, modulus = text.encode(), 1 << 64
    value = sum(byte * pow(stable_hash.BASE, i, modulus) for i, byte in enumerate(data)) % modulus
    value ^= len(data) * 0xA0761D6478BD642F % modulus
    z = (value + 0x9E3779B97F4A7C15) % modulus
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % modulus
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % modulus
    return z ^ (z >> 31)


@settings(deadline=None)
@given(st.lists(st.none() | TEXTS, max_size=20), st.integers(0, 5))
def test_hash_of_texts_is_its_formula_wherever_they_stand(texts, start):
    array = pa.array([*["x"] * start, *texts], pa.string()).slice(start)
    hashes = hash_column(array).tolist()
    assert [h for h, text in zip(hashes, texts, strict=True) if text is not None] == [
        reference_hash(text) for text in texts if text is not None
    ]
    assert len({h for h, text in zip(hashes, texts, strict=True) if text is None}) <= 1
    np.testing.assert_array_equal(hash_column(array.dictionary_encode()), hashes)


def test_hashes_are_these_for_ever():
    """What they decide (the side of an item, the order of groups) must not change with a version."""
    assert hash_column(pa.array(["", "item", None])).tolist() == [
        16294208416658607535, reference_hash("item"), 6768574230986378843
    ]  # fmt: skip
    assert hash_column(pa.array([1, -1])).tolist() == [10451216379200822465, 16490336266968443936]


def test_texts_longer_than_the_powers_are_hashed(monkeypatch):
    monkeypatch.setattr(stable_hash, "MAX_POWERS", 16)
    texts = ["a" * 40, "", "b" * 10, "c" * 10, "a" * 16, "x"]
    assert hash_column(pa.array(texts)).tolist() == [reference_hash(text) for text in texts]


def test_hashes_of_like_texts_are_spread():
    hashes = hash_column(pa.array([f"item_{i}" for i in range(200_000)]))
    assert len(np.unique(hashes)) == 200_000
    counts = np.bincount((hashes % np.uint64(100)).astype(int))
    assert abs(counts - 2000).max() < 6 * math.sqrt(2000)


def test_equal_numbers_have_equal_hashes():
    zeros = hash_column(pa.array([0.0, -0.0]))
    assert zeros[0] == zeros[1]
    assert hash_column(pa.array([True])) == hash_column(pa.array([1]))


# --- Kinds of columns


@pytest.mark.parametrize(
    ("array", "kind", "values"),
    [
        (pa.array([1, None], pa.int8()), "int64", [1, None]),
        (pa.array([2**64 - 1], pa.uint64()), "string", ["18446744073709551615"]),
        (pa.array([1.5], pa.float16()), "float32", [1.5]),
        (pa.array([1.5, math.nan, None]), "float64", [1.5, None, None]),
        (pa.array([decimal.Decimal("1.5")]), "float64", [1.5]),
        (pa.array([True, None]), "bool", [True, None]),
        (pa.array(["a", None]).dictionary_encode(), "string", ["a", None]),
        (pa.array([b"a"]), "string", ["a"]),
        (pa.array([["a", "b"], None, [], [None, "c"]]), "string", ["a|b", None, "", "|c"]),
        (pa.array([[1, 2], [3]]), "string", ["1|2", "3"]),
        (pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5)]), "string", ["2026-01-02 03:04:05.000000"]),
        (pa.array([datetime.date(2026, 1, 2)]), "string", ["2026-01-02"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_parquet_columns_in_their_kind(array, kind, values):
    assert kind_of(array.type) == kind
    typed = to_kind(array, kind)
    assert (typed.values.to_pylist(), typed.is_bad) == (values, None)


@pytest.mark.parametrize(
    ("kind", "texts", "values", "bad"),
    [
        ("int64", ["1", "007", "+5", " 6 ", "-0", ""], [1, 7, 5, 6, 0, None], []),
        ("int64", ["1", "0x1F", "1.5", "1" * 19, "abc"], [1, None, None, None, None], [1, 2, 3, 4]),
        ("int64", ["NULL", "NaN", r"\N", "3"], [None, None, None, 3], []),
        ("float64", ["1e3", ".5", "5.", "nan", " -1 "], [1000.0, 0.5, 5.0, None, -1.0], []),
        ("float64", ["1", "inf", "1e400", "0x1p3", "1,5"], [1.0, None, None, None, None], [1, 2, 3, 4]),
        ("bool", ["true", "FALSE", "1", "0", "", "yes"], [True, False, True, False, None, None], [5]),
    ],
)
def test_texts_as_numbers(kind, texts, values, bad):
    typed = to_kind(pa.array(texts), kind)
    assert typed.values.to_pylist() == values
    assert (np.flatnonzero(typed.is_bad).tolist() if typed.is_bad is not None else []) == bad


def test_bytes_that_are_no_text_and_numbers_that_are_none_are_bad():
    typed = to_kind(pa.array([b"ab", b"\xff", None]), "string")
    assert (typed.values.to_pylist(), typed.is_bad.tolist()) == (["ab", None, None], [False, True, False])
    typed = to_kind(pa.array([1.0, math.inf, 0.5]), "float64")
    assert (typed.values.to_pylist(), typed.is_bad.tolist()) == ([1.0, None, 0.5], [False, True, False])
    typed = to_kind(pa.array([1.0, 1.5, 2.0**63]), "int64")
    assert (typed.values.to_pylist(), typed.is_bad.tolist()) == ([1, None, None], [False, True, True])


def test_kinds_that_go_together():
    assert join_kinds("int64", "float32") == join_kinds("float64", "float32") == "float64"
    assert join_kinds("bool", "int64") == "int64"
    assert join_kinds(None, "string") == "string"
    with pytest.raises(ValueError, match="is int64 in one file and string in another"):
        join_kinds("int64", "string")


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["1", "2", ""], "int64"),
        (["1", "2.0"], "int64"),
        (["1", "nan", "NULL"], "int64"),
        (["007", "1"], "string"),
        (["1234567890123456789"], "string"),
        (["true", "False"], "bool"),
        (["0", "1"], "int64"),
        (["0.5", "1"], "float64"),
        (["a", "1"], "string"),
        ([*["1"] * 299, "x"], "int64"),
        ([*["1"] * 50, "x"], "string"),
        ([""], "string"),
    ],
)
def test_kind_of_a_csv_column_is_that_of_nearly_all_values(tmp_path, texts, kind):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "".join(f"{text},x\n" for text in texts))
    (split,) = plan_file(0, str(path), ",").splits
    scanned = scan_split(split, ",")
    assert scanned.num_rows == len(texts)
    assert (scanned.counts["a"].kind(0.01) or "string") == kind


# --- CSV


def test_a_large_file_is_divided_where_rows_end(tmp_path, monkeypatch):
    monkeypatch.setattr(flat_files, "SPLIT_BYTES", 200)
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 64)
    rows = [[str(i), "x\ny" if i % 7 == 0 else "z"] for i in range(100)]
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    plan = plan_file(3, str(path), ",")
    assert len(plan.splits) == 3
    tables = [piece.table for split in plan.splits for piece in pieces(split, ["text", "id"], ",")]
    assert [list(row.values())[:2] for table in tables for row in table.to_pylist()] == [row[::-1] for row in rows]
    assert plan.splits[0].start == len(b"id,text\r\n")
    assert plan.splits[-1].end == path.stat().st_size


def test_gzip_is_read_and_told_when_it_breaks_off(tmp_path):
    path = tmp_path / "a.csv.gz"
    content = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(10_000)))
    path.write_bytes(content)
    (split,) = plan_file(0, str(path), ",").splits
    assert scan_split(split, ",").num_rows == 10_000
    path.write_bytes(content[:-100])
    (split,) = plan_file(0, str(path), ",").splits
    with pytest.raises(DataError, match=r"a.csv.gz: cannot be read: .*ended"):
        scan_split(split, ",")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("a,,c\n", "column 1 of the header has no name"),
        ("a,b,a\n", "two columns are named 'a'"),
    ],
)
def test_headers_that_name_no_columns(tmp_path, header, problem):
    (tmp_path / "a.csv").write_text(header + "1,2,3\n")
    with pytest.raises(DataError, match=problem):
        plan_file(0, str(tmp_path / "a.csv"), ",")


def test_a_header_with_quotes_and_a_mark_of_its_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"item; id";b\r\n1;2\r\n')
    plan = plan_file(0, str(tmp_path / "a.csv"), ";")
    assert list(plan.columns) == ["item; id", "b"]
    (piece,) = pieces(plan.splits[0], ["item; id"], ";")
    assert piece.table["item; id"].to_pylist() == ["1"]


def test_parquet_is_divided_by_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(flat_files, "SPLIT_ROWS", 20)
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": range(100), "b": ["x"] * 100}), path, row_group_size=7)
    plan = plan_file(2, path, ",")
    assert [(s.first_row, s.num_rows) for s in plan.splits] == [(1, 21), (22, 21), (43, 21), (64, 21), (85, 16)]
    rows = [piece.table for split in plan.splits for piece in pieces(split, ["a"], ",")]
    table = pa.concat_tables(rows)
    assert table["a"].to_pylist() == list(range(100))
    np.testing.assert_array_equal(table[ORDER], (2 << 40) + np.arange(1, 101))


# --- Statistics


@settings(deadline=None)
@given(st.lists(st.lists(st.none() | st.integers(-5, 5), max_size=8), min_size=1, max_size=5), st.randoms())
def test_statistics_do_not_depend_on_the_pieces(parts, random):
    values = [value for part in parts for value in part]
    whole = LogStats.of({"a": "int64"}, 3)
    whole.add(table_of(values, 0))
    starts = np.cumsum([0, *map(len, parts)])[:-1].tolist()
    pieces_of = []
    for part, start in zip(parts, starts, strict=True):
        piece_stats = LogStats.of({"a": "int64"}, 3)
        piece_stats.add(table_of(part, start))
        pieces_of.append(piece_stats)
    random.shuffle(pieces_of)
    joined = whole.empty()
    for piece_stats in pieces_of:
        joined.merge(piece_stats)
    mine, its = joined.columns["a"], whole.columns["a"]
    present = [value for value in values if value is not None]
    assert mine.counts == its.counts == {value: present.count(value) for value in set(present)}
    assert (mine.num_rows, mine.num_missing) == (len(values), values.count(None))
    assert (mine.least, mine.greatest) == (min(present, default=None), max(present, default=None))
    assert mine.num_distinct == len(set(present))
    np.testing.assert_array_equal(mine.registers, its.registers)
    samples = [(stats.sample.rows() or pa.table({})).to_pylist() for stats in (joined, whole)]
    assert samples[0] == samples[1]
    assert len(samples[0]) == min(3, len(values))


def table_of(values, start):
    return pa.table({"a": pa.array(values, pa.int64()), ORDER: pa.array(np.arange(start, start + len(values)))})


@pytest.mark.parametrize("number", [MAX_COUNTED, MAX_COUNTED + 1, 20_000, 1_000_000])
def test_distinct_values_are_counted_or_estimated(number):
    stats = ColumnStats("string")
    for start in range(0, number, 100_000):
        texts = pa.array([f"user_{i}" for i in range(start, min(start + 100_000, number))])
        stats.add(texts)
        stats.add(texts)
    if number <= MAX_COUNTED:
        assert stats.num_distinct == number
        assert set(stats.counts.values()) == {2}
    else:
        assert stats.counts is None
        assert stats.num_distinct == pytest.approx(number, rel=0.04)


def test_a_sample_is_drawn_evenly():
    stats = LogStats.of({"a": "int64"}, 1000)
    for start in range(0, 100_000, 10_000):
        stats.add(table_of(list(range(start, start + 10_000)), start))
    places = np.array(stats.sample.rows()["a"].to_pylist())
    assert len(set(places.tolist())) == 1000
    counts = np.histogram(places, 10, (0, 100_000))[0]
    assert abs(counts - 100).max() < 60


# --- Spilling


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), TEXTS), min_size=1, max_size=30), st.integers(1, 4))
def test_a_bucket_comes_back_in_its_order(rows, num_files):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in range(num_files):
            file_rows = rows[number::num_files]
            if file_rows:
                buckets = np.array([bucket for bucket, _ in file_rows])
                table = pa.table({"bucket": buckets, "text": [text for _, text in file_rows]})
                files.append(write_spill(f"{folder}/{number}", table, buckets))
        for bucket in range(6):
            expected = [row for number in range(num_files) for row in rows[number::num_files] if row[0] == bucket]
            bucket_table = read_bucket(files, bucket)
            assert (bucket_table.to_pylist() if bucket_table else []) == [
                {"bucket": b, "text": text} for b, text in expected
            ]
            only_text = read_bucket(files, bucket, ["text"])
            assert (only_text.column_names if only_text else ["text"]) == ["text"]
            assert sum(file.rows.get(bucket, 0) for file in files) == len(expected)
