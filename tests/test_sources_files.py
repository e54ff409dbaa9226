"""Files of every input type that cannot be read at all are named, with what is wrong with them."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_helpers import (
    WRITERS,
    example,
    feature_of,
    grouped_table,
    input_of,
    random_groups,
    users,
    users_of,
    write_csv,
    write_records,
    write_tfrecord,
)

from easyrec_mm.errors import DataError
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.table_files import InOrder


def test_a_column_that_is_missing_or_of_another_type(tmp_path):
    table = grouped_table(random_groups(3))
    pq.write_table(table.rename_columns(["clik" if n == "click" else n for n in table.column_names]), tmp_path / "a")
    with pytest.raises(DataError, match=r"/a: no column 'click'; did you mean 'clik'\?"):
        input_of("GroupParquetInput", tmp_path / "a")
    texts = pa.array([[str(v) for v in values] for values in table["age"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("age"), "age", texts), tmp_path / "a")
    with pytest.raises(DataError, match=r"/a: column 'age' is list<element: string>, .* says whole numbers"):
        input_of("GroupParquetInput", tmp_path / "a")
    write_csv(tmp_path / "a", random_groups(3))
    (tmp_path / "a").write_text((tmp_path / "a").read_text().replace("user", "usr", 1))
    with pytest.raises(DataError, match=r"/a: no column 'user'; "):
        input_of("CSVInput", tmp_path / "a")


def test_files_of_one_input_are_alike(tmp_path):
    table = grouped_table(random_groups(3))
    pq.write_table(table, tmp_path / "a")
    cate = pa.array([values[0] for values in table["cate"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("cate"), "cate", cate), tmp_path / "b")
    with pytest.raises(
        DataError, match=r"/b: column 'cate' is large_binary, and list<.*> in .*/a; write all files with the same types"
    ):
        list(input_of("GroupParquetInput", tmp_path / "*").batches())


def test_an_error_is_met_by_all_that_ask_for_what_is_behind_it():
    def elements():
        yield from "ab"
        raise DataError("broken")

    shared = InOrder(elements())
    # Whichever thread asks first.
    for index in (3, 2, 4):
        with pytest.raises(DataError, match="broken"):
            shared.get(index)
    assert [shared.get(1), shared.get(0)] == ["b", "a"]
    whole = InOrder(iter("ab"))
    assert [whole.get(index) for index in (2, 0, 1, 3)] == [None, "a", "b", None]


def test_a_feature_that_is_missing_or_of_another_type(tmp_path):
    records = [example(group) for group in random_groups(300)]
    del records[0].features.feature["age"]
    write_records(tmp_path / "a", records)
    with pytest.raises(DataError, match=r"/a: no column 'age'; "):
        input_of("GroupTFRecordInput", tmp_path / "a")
    records = [example(group) for group in random_groups(300)]
    records[0].features.feature["age"].CopyFrom(feature_of([1.0], "float32"))
    write_records(tmp_path / "a", records)
    with pytest.raises(DataError, match=r"/a: feature 'age' is float_list, .* needs int64_list"):
        input_of("GroupTFRecordInput", tmp_path / "a")
    # Behind the first, it is found when it is read.
    records = [example(group) for group in random_groups(300)]
    records[280].features.feature["age"].CopyFrom(feature_of([1.0], "float32"))
    write_records(tmp_path / "a", records)
    with pytest.raises(DataError, match=r"/a: record 281 cannot be read: .*age"):
        list(input_of("GroupTFRecordInput", tmp_path / "a").batches())


def test_records_that_are_no_examples(tmp_path):
    write_records(tmp_path / "a", [b"\xff\xff\xff"])
    with pytest.raises(DataError, match=r"/a: record 1 is not a tf.train.Example"):
        input_of("GroupTFRecordInput", tmp_path / "a")


@pytest.mark.parametrize("position", [40, -40])
def test_a_tfrecord_with_a_bad_checksum(tmp_path, position):
    write_tfrecord(tmp_path / "a", random_groups(600))
    content = bytearray((tmp_path / "a").read_bytes())
    content[position] ^= 0xFF
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=r"/a: cannot be read to its end: .*, after row (0|599)$"):
        list(input_of("GroupTFRecordInput", tmp_path / "a").batches())


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput", "GroupTFRecordInput"])
def test_a_file_that_breaks_off(kind, tmp_path):
    WRITERS[kind](tmp_path / "a", random_groups(300))
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"/a: cannot be read"):
        list(input_of(kind, tmp_path / "a").batches())


def test_a_csv_gzip_that_breaks_off(tmp_path):
    write_csv(tmp_path / "a", random_groups(300))
    (tmp_path / "a").write_bytes(gzip.compress((tmp_path / "a").read_bytes())[:-100])
    with pytest.raises(DataError, match=r"/a: cannot be read as CSV"):
        list(input_of("CSVInput", tmp_path / "a").batches())


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "GroupRTPInput"])
def test_files_without_a_row(kind, tmp_path):
    WRITERS[kind](tmp_path / "a", [])
    with pytest.raises(DataError, match=r"/a: no (row|record) of data"):
        input_of(kind, tmp_path / "a")
    # One among others is as good as none.
    WRITERS[kind](tmp_path / "b", random_groups(5))
    assert users(input_of(kind, tmp_path / "*").batches()) == users_of(random_groups(5))


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput"])
def test_a_parquet_file_of_0_bytes(kind, tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match=r"/a: cannot be read as Parquet"):
        input_of(kind, tmp_path / "a")


def test_a_problem_passes_through_bytes():
    problem = Problem("column 'é'", "sample 1: '\x02' is bad")
    assert Problem.decode(problem.encode()) == problem
