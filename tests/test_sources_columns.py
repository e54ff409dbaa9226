"""Columns of other types that say the same, and lines of CSV, good and bad."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import schema
from source_helpers import (
    FEATURES,
    LABELS,
    expected_values,
    flat_rows,
    input_of,
    random_groups,
    refused,
    users,
    values_of,
    whole,
    write_csv,
)

from easyrec_mm.formats.checks import Problem


def test_check_sees_rows_that_cannot_be_read_at_their_places(tmp_path):
    """Though a block's rows are parsed at once; a check looks at the first rows only."""
    groups = [whole(group) for group in random_groups(200)]
    write_csv(tmp_path / "a", groups)
    lines = (tmp_path / "a").read_bytes().splitlines(keepends=True)
    lines[5] = b"1,2\n"
    lines[300] = b'"' + lines[300]
    (tmp_path / "a").write_bytes(b"".join(lines))
    texts = list(input_of("CSVInput", tmp_path / "a").source.texts())
    assert [row for _, row, _ in texts] == list(range(2, len(lines) + 1))
    assert [row for _, row, text in texts if isinstance(text, Problem)] == [6, 301]


def test_types_that_say_the_same(tmp_path):
    """Ids as numbers, whole numbers as floating ones, dictionaries, narrow types; of two files in two types each."""
    groups = random_groups(12, seed=4, missing=0)
    flat = flat_rows(groups)
    columns = {
        "click": pa.array([float(row["click"]) for row in flat]),
        "seconds": pa.array([row["seconds"] for row in flat], pa.float64()),
        "user": pa.array([row["user"] for row in flat]).dictionary_encode(),
        "age": pa.array([row["age"] for row in flat], pa.int8()),
        "weight": pa.array([row["weight"] for row in flat], pa.float64()),
        "vip": pa.array([int(row["vip"]) for row in flat], pa.uint8()),
        "tags": pa.array([[t for t in row["tags"].split("|") if t] for row in flat]),
        "scores": pa.array([row["scores"] for row in flat], pa.large_string()),
        "cate": pa.array([row["cate"] for row in flat]),
        "img_path": pa.array([row["img_path"] for row in flat], pa.binary()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a")
    columns["age"] = pa.array([float(row["age"]) for row in flat])
    pq.write_table(pa.table(columns), tmp_path / "b")
    values = values_of(input_of("ParquetInput", tmp_path / "*", training=True).batches())
    expected = expected_values(groups)
    for name in ("user", "age", "vip", "click"):
        assert sorted(values[name]) == sorted(expected[name] * 2), name
    assert sorted(map(tuple, values["tags"])) == sorted(map(tuple, expected["tags"] * 2))


def test_an_id_told_by_its_number(tmp_path):
    pq.write_table(pa.table({"click": [1], "seconds": [0.5], "user": [123], "img_path": ["p"]}), tmp_path / "a")
    small = schema(LABELS, {"user": "string"}, FEATURES[:1], tasks=[("click", "binary", 1)], uses_image=False)
    assert users(input_of("ParquetInput", tmp_path / "a", schema=small).batches()) == ["123"]


@pytest.mark.parametrize("compress", [False, True])
def test_bad_rows_of_csv_are_named_by_their_line(tmp_path, compress):
    lines = [
        b"img_path,user,age,weight,vip,click,seconds,tags,scores,cate",
        b"p,a,1,1.5,true,0,0.5,,,c",
        b"p,b,one,1.5,true,0,0.5,,,c",
        b"p,c,1,1.5,true,0,0.5,,,c,too many",
        b"p,d,1,1.5,true,2,0.5,,,c",
        b"p,e,1,nan,true,0,0.5,,,c",
        b"p,f,1",
        b"p,g,1,1.5,maybe,0,0.5,,,c",
        b'p,"h, ""i""",+1, 1.5 ,1,1,.5,x,1,c',
        b"p,j,1,1.5,0,,0.5,,,c",
        b"p,\xff,1,1.5,0,1,0.5,,,c",
    ]
    content = b"\r\n".join(lines)
    (tmp_path / "a").write_bytes(gzip.compress(content) if compress else content)
    bad, left = refused("CSVInput", tmp_path / "a")
    assert [(row, where) for row, where, _ in sorted(bad)] == [
        (3, "column 'age'"),
        (4, "row"),
        (5, "column 'click'"),
        (6, "column 'weight'"),
        (7, "row"),
        (8, "column 'vip'"),
        (10, "column 'click'"),
        (11, "column 'user'"),
    ]
    problems = {row: problem for row, _, problem in bad}
    assert problems[3] == "'one' is not a whole number"
    assert problems[4] == "11 values, not 10"
    assert problems[5] == "label 2 is not from 0 to 1"
    assert problems[11] == "'\ufffd' is not UTF-8"
    assert problems[8] == "'maybe' is not a bool"
    assert left == ["a", 'h, "i"']


def test_csv_without_a_header_is_in_the_order_of_input_fields(tmp_path):
    (tmp_path / "a").write_text("1;0.5;x;p\n0;1.5;y;q\n")
    small = schema(LABELS, {"user": "string"}, FEATURES[:1], tasks=[("click", "binary", 1)], uses_image=False)
    fields = [{"input_name": name} for name in ("click", "seconds", "user", "img_path")]
    inputs = input_of("CSVInput", tmp_path / "a", schema=small, with_header=False, separator=";", input_fields=fields)
    values = values_of(inputs.batches())
    assert values["user"] == [b"x", b"y"]
    assert values["click"] == [1.0, 0.0]
    assert [row for _, row, _ in inputs.source.texts()] == [1, 2]


def test_a_whole_number_that_is_not_whole(tmp_path):
    table = pa.table(
        {"click": [1.0, 0.0], "seconds": [0.5, 0.5], "age": [1.0, 1.5], "user": ["a", "b"], "img_path": ["p", "p"]}
    )
    pq.write_table(table, tmp_path / "a")
    small = schema(
        LABELS, {"user": "string", "age": "int64"}, FEATURES[:2], tasks=[("click", "binary", 1)], uses_image=False
    )
    bad, left = refused("ParquetInput", tmp_path / "a", schema=small)
    assert bad == [(2, "column 'age'", "1.5 is not a whole number")]
    assert left == ["a"]
