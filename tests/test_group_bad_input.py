"""Flat logs to groups: what is refused and reported, and that nothing else is lost."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from group_helpers import COLUMNS, GOOD, bad_rows, contents, groups_of, make_log, refused, run, stats, write_csv

from easyrec_mm.grouping import column_kinds, shards
from easyrec_mm.grouping import local_engine as local_engine_module


def test_bad_rows_are_refused_counted_and_listed(tmp_path, capsys):
    rows = [list(row) for row in GOOD]
    rows[10][0] = None
    rows[20][3] = "yes"
    rows[30][4] = "inf"
    rows[40][3] = None
    write_csv(tmp_path / "a.csv", rows)
    text = (tmp_path / "a.csv").read_text().splitlines(keepends=True)
    text[51] = "i1,1.jpg,u,0\r\n"  # too few values
    text[61] = 'i1,"1.jpg,u,0,1\r\n'  # a quote that is not closed
    (tmp_path / "a.csv").write_text("".join(text))
    content = (tmp_path / "a.csv").read_bytes().replace(b"u70,", b"\xff,")
    (tmp_path / "a.csv").write_bytes(content)
    write_csv(tmp_path / "b.csv", [*GOOD, ["i1", "1.jpg", "u", "no", 1.0]])
    output = run(tmp_path, log=f"{tmp_path}/a.csv,{tmp_path}/b.csv", label_fields="click", max_bad_share=0.02)
    expected = [
        ("a.csv", 12, "column 'item_id'", "is empty"),
        ("a.csv", 22, "column 'click'", "'yes' is not a whole number of at most 18 digits"),
        ("a.csv", 32, "column 'price'", "'inf' is not a number from -1e19 to 1e19"),
        ("a.csv", 42, "column 'click'", "is empty"),
        ("a.csv", 52, "row", "4 values, not 5"),
        ("a.csv", 62, "row", "a quote is not closed"),
        ("a.csv", 72, "column 'user'", "'\\xff' is not UTF-8 text"),
        ("b.csv", 302, "column 'click'", "'no' is not a whole number of at most 18 digits"),
    ]
    problems = [
        (Path(bad_row["file"]).name, bad_row["row"], bad_row["where"], bad_row["problem"])
        for bad_row in bad_rows(output / "bad_rows.jsonl")
    ]
    assert problems == expected
    counts = stats(output)
    assert (counts["rows_in"], counts["rows_refused"], counts["rows_out"]) == (601, 8, 593)
    assert "8 of 601 rows cannot be used; see" in capsys.readouterr().out
    message = (
        refused(tmp_path / "x", capsys, log=f"{tmp_path}/a.csv,{tmp_path}/b.csv", label_fields="click")
        if (tmp_path / "x").mkdir() is None
        else ""
    )
    assert "8 of 601 rows cannot be used, more than --max_bad_share (0.01). The first:" in message
    assert "a.csv:12: column 'item_id': is empty" in message
    assert len(bad_rows(tmp_path / "x" / "out.bad_rows.jsonl")) == 8


def test_two_pictures_of_an_item_are_a_conflict(tmp_path, capsys):
    rows = [list(row) for row in GOOD]
    rows[7][1] = "other.jpg"
    rows[12][1] = "third.jpg"
    rows[13][1] = None  # that alone is none
    write_csv(tmp_path / "log.csv", rows)
    message = refused(tmp_path, capsys)
    assert "1 of 5 items have two values where one is expected, more than --max_bad_share" in message
    assert "log.csv:9: column 'img_path': 'other.jpg', but an earlier row of item 'i2' has '2.jpg'" in message
    (conflict,) = bad_rows(tmp_path / "out.bad_rows.jsonl")
    assert (conflict["kind"], conflict["row"]) == ("conflict", 9)
    output = run(tmp_path, max_bad_share=0.2)
    pictures = {group["img_path"] for _, group in groups_of(output) if group["item_id"] == "i2"}
    assert pictures == {"2.jpg", "other.jpg", "third.jpg"}
    assert stats(output)["items_in_conflict"] == 1


def test_group_fields_must_agree(tmp_path, capsys):
    rows = [(f"i{i % 5}", f"{i % 5}.jpg", f"u{i % 5}", 0, 1.0) for i in range(100)]
    rows[33] = ("i3", "3.jpg", "u9", 0, 1.0)
    rows[44] = ("i4", "4.jpg", None, 0, 1.0)
    write_csv(tmp_path / "log.csv", rows)
    message = refused(tmp_path, capsys, group_fields="user")
    assert "2 of 5 items have two values where one is expected" in message
    assert "log.csv:35: column 'user': 'u9', but an earlier row of item 'i3' has 'u3'" in message
    assert "log.csv:46: column 'user': 'None', but an earlier row of item 'i4' has 'u4'" in message
    output = run(tmp_path, group_fields="user", max_bad_share=0.5)
    assert "user" in stats(output)["per_group"]
    assert Counter((group["item_id"], group["user"]) for _, group in groups_of(output))["i3", "u9"] == 1


def test_rows_without_a_picture_stay(tmp_path):
    rows = [(f"i{i % 5}", None if i % 5 == 2 else f"{i % 5}.jpg", f"u{i}", i % 2, 1.0) for i in range(100)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, pipeline_config_template=tmp_path / "c.config")
    assert {group["img_path"] for _, group in groups_of(output) if group["item_id"] == "i2"} == {""}
    assert stats(output)["rows_without_picture"] == 20
    text = (tmp_path / "c.config").read_text()
    assert "# 20 rows have no picture: they get a trained vector." in text
    assert "no_image_vector: true" in text


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"group_fields": "prize"}, "--group_fields: .*log.csv has no column 'prize'; did you mean 'price'"),
        ({"label_fields": "user"}, "--label_fields: column 'user' is text, and a label must be a number"),
        ({"split_by": "user"}, "--split_by user: name the column of the user with --user_field"),
        ({"split_by": "hash"}, "--split_by hash: write item, user, time:<column>"),
        ({"split_by": "time:price:noon"}, "--split_by time:price:noon: column 'price' holds numbers"),
        ({"split_by": "time:click:2"}, None),
        ({"split_by": "time:click:0"}, "none of the 300 rows can be used for training; all are kept for evaluation"),
        ({"types": "price=NUMBER"}, "--types price=NUMBER: write column=TYPE with a type of INT32"),
        ({"image_size": "64"}, "--image_size 64: write width x height"),
        ({"columns": "user"}, None),
    ],
)
def test_flags_that_do_not_go_with_the_log(tmp_path, capsys, flags, problem):
    write_csv(tmp_path / "log.csv", GOOD)
    if problem is None:
        run(tmp_path, **flags)
        return
    import re

    assert re.search(problem, refused(tmp_path, capsys, **flags))


def test_a_column_that_a_file_lacks_or_has_in_another_type(tmp_path, capsys):
    table = pa.table(dict(zip(COLUMNS, map(list, zip(*GOOD, strict=True)), strict=True)))
    folder = tmp_path / "logs"
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    pq.write_table(table.drop_columns("price"), folder / "b.parquet")
    assert "b.parquet: no column 'price', which" in refused(tmp_path, capsys, log=folder)
    text = table.set_column(4, "price", pa.array(["x"] * 300))
    pq.write_table(text, folder / "b.parquet")
    message = refused(tmp_path, capsys, log=folder)
    assert "b.parquet: column 'price' is string, but float64 in" in message
    assert "--types price=STRING" in message
    run(tmp_path, log=folder, types="price=STRING")
    nested = table.set_column(4, "price", pa.array([{"x": 1}] * 300))
    pq.write_table(nested, folder / "b.parquet")
    assert (
        "b.parquet: column 'price' is struct<x: int64>, which cannot be a feature"
        in refused(tmp_path / "y", capsys, log=folder)
        if (tmp_path / "y").mkdir() is None
        else ""
    )


def test_a_column_that_is_half_missing_is_noted(tmp_path, capsys):
    rows = [(*row[:4], None if i % 8 else 1.5 + i) for i, row in enumerate(GOOD)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, pipeline_config_template=tmp_path / "c.config")
    assert stats(output)["columns"]["price"]["missing"] == 262
    assert "note: column 'price' is missing in 87% of the rows" in capsys.readouterr().out
    assert "missing in 87% of the rows" in (tmp_path / "c.config").read_text()


def test_files_that_break_off_or_hold_nothing(tmp_path, capsys):
    table = pa.table(dict(zip(COLUMNS, map(list, zip(*GOOD, strict=True)), strict=True)))
    folder = tmp_path / "logs"
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    pq.write_table(table.slice(0, 0), folder / "empty.parquet")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "header.csv").write_text(",".join(COLUMNS) + "\n")
    output = run(tmp_path, log=folder)
    assert stats(output)["rows_out"] == 300
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content[:-20])
    other = tmp_path / "z"
    other.mkdir()
    assert "a.parquet: cannot be read: " in refused(other, capsys, log=folder)
    (folder / "a.parquet").unlink()
    assert "no row of data" in refused(other, capsys, log=folder)


def test_a_file_that_is_damaged_within(tmp_path, capsys):
    make_log(tmp_path)
    content = bytearray((tmp_path / "log.parquet").read_bytes())
    content[3000:3400] = bytes(400)
    (tmp_path / "log.parquet").write_bytes(content)
    assert "log.parquet: cannot be read: " in refused(tmp_path, capsys, log="log.parquet")


def test_a_file_that_changes_meanwhile(tmp_path, capsys, monkeypatch):
    """Rows are counted when types are told, and again when they are read."""
    write_csv(tmp_path / "log.csv", GOOD)
    scan = column_kinds.scan_split

    def scan_and_change(split, separator):
        result = scan(split, separator)
        write_csv(tmp_path / "log.csv", GOOD[:-1])
        return result

    from easyrec_mm.grouping import log_plan

    monkeypatch.setattr(log_plan, "scan_split", scan_and_change)
    assert (
        "log.csv: cannot be read: the file has changed: 299 rows from row 2 on, but 300 when they were counted"
        in refused(tmp_path, capsys)
    )


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("size", [-1, 0, 0.5, 0.98])
def test_a_file_that_vanishes_or_shrinks_before_it_is_read(tmp_path, capsys, monkeypatch, kind, size):
    make_log(tmp_path)
    path = tmp_path / f"log.{kind}"
    if kind != "parquet":
        table = pq.read_table(tmp_path / "log.parquet")
        write_csv(tmp_path / "log.csv", zip(*table.to_pydict().values(), strict=True), table.column_names)
    if kind == "csv.gz":
        path.write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    read = local_engine_module.LocalEngine.read

    def shrink_and_read(*arguments):
        content = path.read_bytes()
        path.unlink()
        if size >= 0:
            path.write_bytes(content[: int(size * len(content))])
        return read(*arguments)

    monkeypatch.setattr(local_engine_module.LocalEngine, "read", shrink_and_read)
    message = refused(tmp_path, capsys, log=f"log.{kind}")
    assert f"log.{kind}: cannot be read: " in message
    assert "write it again, or leave it out" in message


def test_an_output_that_exists_is_kept(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", GOOD)
    (tmp_path / "out").mkdir()
    run(tmp_path)  # empty folders may be filled
    files = contents(tmp_path / "out")
    run(tmp_path, expect=1)
    assert "is not empty; name another folder, or replace it with --overwrite" in capsys.readouterr().err
    run(tmp_path, "--overwrite", seed=3, log="missing.csv", expect=1)
    assert contents(tmp_path / "out") == files
    run(tmp_path, "--overwrite", seed=3)
    assert contents(tmp_path / "out") != files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]


def test_what_is_lost_on_the_way_is_noticed(tmp_path, capsys, monkeypatch):
    write_csv(tmp_path / "log.csv", GOOD)
    to_groups = shards.to_groups
    monkeypatch.setattr(shards, "to_groups", lambda table, fields: to_groups(table.slice(1), fields))
    run(tmp_path, expect=1)
    assert "rows in" in (message := capsys.readouterr().err)
    assert "because of a bug in this program; no output is kept" in message
    assert not (tmp_path / "out").exists()


def test_more_shards_than_groups_are_files_without_groups(tmp_path):
    write_csv(tmp_path / "log.csv", GOOD[:3])
    for kind in ("parquet", "tfrecord", "rtp"):
        output = run(tmp_path, "--overwrite", num_shards=7, format=kind)
        assert len(list(output.glob("part-*"))) == 7
        assert sorted(shard["groups"] for shard in stats(output)["shards"]) == [0, 0, 0, 0, 1, 1, 1]


def test_a_value_that_would_divide_a_line_of_text(tmp_path, capsys):
    rows = [(*row[:2], "a|b" if i == 17 else row[2], *row[3:]) for i, row in enumerate(GOOD)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, format="rtp")
    (bad_row,) = bad_rows(output / "bad_rows.jsonl")
    assert (bad_row["row"], bad_row["where"]) == (19, "column 'user'")
    assert "'a|b' contains a line break or a separator" in bad_row["problem"]
    assert stats(output)["rows_out"] == 299
    output = run(tmp_path, "--overwrite", format="rtp", rtp_separator=r"\003")
    assert stats(output)["rows_out"] == 300
    assert b"a|b" in b"".join(path.read_bytes() for path in output.glob("part-*"))


def test_ids_of_more_than_18_digits_are_text(tmp_path):
    table = pa.table(dict(zip(COLUMNS, map(list, zip(*GOOD, strict=True)), strict=True)))
    ids = pa.array([2**62 + i % 7 for i in range(300)])
    pq.write_table(table.set_column(2, "user", ids), tmp_path / "log.parquet")
    output = run(tmp_path, log="log.parquet")
    assert {u for _, group in groups_of(output) for u in group["user"]} == {str(2**62 + i) for i in range(7)}
