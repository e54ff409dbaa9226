"""Flat logs to groups: every row once, groups as they should be, the same bytes again; what is bad is told."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from easyrec_mm.cli.main import main
from easyrec_mm.grouping import flat_files, group, shards
from easyrec_mm.grouping import local_engine as local_engine_module

COLUMNS = ("item_id", "img_path", "user", "click", "price")


def write_csv(path, rows, columns=COLUMNS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([["" if value is None else value for value in row] for row in rows])
    return path


def run(folder, *flags, log="log.csv", output="out", expect=0, **more):
    """Group a log in a folder, whose pictures need not be there; more flags by keyword."""
    arguments = ["--input", folder / log if "/" not in str(log) else log, "--group_by", "item_id"]
    arguments += ["--image_field", "img_path", "--output", folder / output, *flags, "--allow_missing_pictures"]
    arguments += [part for name, value in more.items() for part in (f"--{name}", value)]
    assert main(["group", *map(str, arguments)]) == expect
    return folder / output


def stats(output):
    return json.loads((output / "stats.json").read_text())


def bad_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def groups_of(output):
    """(shard, row of the table) of every group, in the order of the files."""
    return [
        (path.name, row) for path in sorted(output.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def rows_of(group):
    """A group's rows as tuples of COLUMNS."""
    size = group["group_size"]
    columns = [group[name] if isinstance(group[name], list) else [group[name]] * size for name in COLUMNS]
    return list(zip(*columns, strict=True))


# --- Properties

ROWS = st.lists(
    st.tuples(
        st.integers(1, 5).map("i{}".format),
        st.sampled_from(["a.jpg", "a.jpg", "a.jpg", "b.jpg", None]),
        st.none()
        | st.text(st.characters(categories=["Lu", "Ll", "Po"], exclude_characters='"'), min_size=1, max_size=3),
        st.integers(0, 1),
        st.none() | st.floats(0, 1, width=16),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
def test_every_row_is_in_one_group_of_its_item(rows, size, num_shards, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "log.csv", rows)
        flags = {"max_group_size": size, "num_shards": num_shards, "seed": seed, "max_bad_share": 1}
        flags["types"] = "price=DOUBLE,user=STRING"
        output = run(folder, **flags)
        found = groups_of(output)
        written = [row for _, one in found for row in rows_of(one)]
        expected = [(item, img or "", user, click, price) for item, img, user, click, price in rows]
        assert Counter(written) == Counter(expected)

        of_run = defaultdict(list)
        for row in expected:
            of_run[row[:2]].append(row)
        for _, one in found:
            assert 1 <= one["group_size"] <= size
            assert one["group_size"] == len(one["click"])
        for run_rows in of_run.values():
            # The groups are the rows in the order of the log, cut where a group is full.
            wanted = [run_rows[i : i + size] for i in range(0, len(run_rows), size)]
            mine = [rows_of(one) for _, one in found if (one["item_id"], one["img_path"]) == run_rows[0][:2]]
            assert sorted(wanted, key=repr) == sorted(mine, key=repr)

        shard_of = defaultdict(list)
        for shard, one in found:
            shard_of[one["item_id"]].append(shard)
        for item_shards in shard_of.values():
            counts = Counter(item_shards)
            assert len(counts) == min(num_shards, len(item_shards))  # as many shards as can be
            assert max(counts.values()) - min(counts.values()) <= (len(counts) < num_shards or 1)

        told = stats(output)
        assert told["rows_in"] == told["rows_out"] == told["rows"] == len(rows)
        assert told["rows_refused"] == 0
        assert told["groups"] == len(found)
        assert told["group_sizes"] == {
            str(k): v for k, v in sorted(Counter(one["group_size"] for _, one in found).items())
        }
        assert told["items"] == len({row[0] for row in expected})
        pictures = defaultdict(set)
        for item, img, *_ in expected:
            pictures[img].add(item)
        without = pictures.pop("", set())
        assert told["rows_without_picture"] == sum(row[1] == "" for row in expected)
        assert bool(without) == (told["rows_without_picture"] > 0)
        assert told["pictures"] == len(pictures)
        assert told["pictures_of_several_items"] == sum(len(items) > 1 for items in pictures.values())
        assert told["duplicate_rows"] == len(expected) - len(set(expected))
        of_item = defaultdict(set)
        for item, img, *_ in expected:
            of_item[item] |= {img} - {""}
        assert told["items_in_conflict"] == sum(len(some) > 1 for some in of_item.values())

        again = run(folder, output="again", **flags)
        assert contents(again) == contents(output)
        assert (output / "_SUCCESS").exists()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- A log of some size, from NumPy


def make_log(folder, num_rows=4000, num_items=120, num_users=300, seed=0):
    """Columns of all kinds; what describes an item is the same for all of its rows."""
    random = np.random.default_rng(seed)
    item = (num_items * random.random(num_rows) ** 2).astype(int)
    user = random.integers(0, num_users, num_rows)
    cate, price = random.integers(0, 12, num_items), random.lognormal(3, 1, num_items).round(2)
    columns = {
        "item_id": [f"i{i}" for i in item],
        "img_path": [f"images/{i}.png" for i in item],
        "user": [f"u{i}" for i in user],
        "age": user % 8,
        "cate": [f"c{i}" for i in cate[item]],
        "price": price[item],
        "tags": ["|".join(f"t{t}" for t in random.integers(0, 20, random.integers(0, 4))) for _ in range(num_rows)],
        "time": 1_700_000_000 + np.arange(num_rows) * 3,
        "views": random.zipf(1.5, num_rows) * 7 % 100_000,
        "score": random.normal(size=num_rows).astype(np.float32),
        "click": random.integers(0, 4, num_rows) == 0,
    }
    columns["click"] = columns["click"].astype(int)
    columns["play_time"] = (random.exponential(3, num_rows) * (0.3 + columns["click"])).round(2)
    table = pa.table(columns)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "log.parquet", row_group_size=700)
    return table


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    return folder, make_log(folder)


def test_another_seed_is_another_order_of_the_same_groups(log):
    folder, _ = log
    first = groups_of(run(folder, log="log.parquet", output="s1", seed=1))
    other = groups_of(run(folder, log="log.parquet", output="s2", seed=2))
    key = lambda pair: json.dumps(pair[1])  # noqa: E731
    assert sorted(map(key, first)) == sorted(map(key, other))
    assert [key(pair) for pair in first] != [key(pair) for pair in other]
    assert [pair[0] for pair in sorted(first, key=key)] != [pair[0] for pair in sorted(other, key=key)]


def test_csv_and_parquet_files_and_their_parts_make_the_same_groups(log):
    folder, table = log
    whole = contents(run(folder, log="log.parquet", output="p1"))
    for number in range(3):
        part = table.slice(number * 1500, 1500)
        pq.write_table(part, folder / f"parts/{number}.parquet") if (folder / "parts").mkdir(
            exist_ok=True
        ) is None else 0
        write_csv(folder / f"csv/{number}.csv", zip(*part.to_pydict().values(), strict=True), table.column_names)
    packed = gzip.compress((folder / "csv/2.csv").read_bytes())
    (folder / "csv/2.csv").unlink()
    (folder / "csv/2.csv.gz").write_bytes(packed)
    assert contents(run(folder, log=f"{folder}/parts", output="p2")) == whole
    # A float of 32 bits is one of 64 in text, so that its column is not the same.
    of_text = groups_of(run(folder, log=f"{folder}/csv/*", output="p3", types="score=FLOAT"))
    assert of_text == groups_of(folder / "p1")


@pytest.mark.parametrize("memory", [1 << 13, 1 << 17])
def test_little_memory_changes_nothing(log, monkeypatch, memory):
    """Rows are divided by item and by place in the shard, and go to disk several times."""
    folder, _ = log
    flags = {"log": "log.parquet", "num_shards": 2, "split_by": "user", "user_field": "user"}
    whole = contents(run(folder, "--overwrite", output="whole", **flags))
    engines = []

    class Small(local_engine_module.LocalEngine):
        def __init__(self, path, _, num_workers):
            super().__init__(path, memory, num_workers)
            engines.append(self)

    monkeypatch.setattr(local_engine_module, "LocalEngine", Small)
    monkeypatch.setattr(flat_files, "READ_ROWS", 300)
    assert contents(run(folder, output=f"m{memory}", **flags)) == whole
    if memory == 1 << 13:
        assert engines[0].num_partitions > 20
        assert engines[0].buckets_a_shard > 20


def test_groups_of_an_item_are_far_apart(tmp_path):
    """A batch rarely holds an item twice: by chance it would far more often."""
    rows = [(f"i{i % 40}", f"{i % 40}.jpg", "u", 0, 1.0) for i in range(4000)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, num_shards=4, max_group_size=5)  # 20 groups an item, 5 a shard
    repeats = places = by_chance = 0
    for path in sorted(output.glob("part-*")):
        items = [int(name[1:]) for name in pq.read_table(path)["item_id"].to_pylist()]
        assert len(items) == 200
        of_item = np.array([np.flatnonzero(np.array(items) == i) for i in range(40)])  # [item, group]: where it is
        assert np.diff(of_item, axis=1).min() > 10  # 40 apart on average
        for start in range(0, 200, 20):
            repeats += 20 - len(set(items[start : start + 20]))
        places += 200
        shuffled = np.random.default_rng(0).permutation(items)
        by_chance += sum(20 - len(set(shuffled[start : start + 20].tolist())) for start in range(0, 200, 20))
        assert sorted(items) == sorted(list(range(40)) * 5)
    assert repeats < by_chance / 5


# --- Train and eval


def sides(output):
    return {side: [one for _, one in groups_of(output / side)] for side in ("train", "eval")}


def test_a_split_by_item_shares_no_item(log):
    folder, table = log
    output = run(folder, log="log.parquet", output="by_item", split_by="item", eval_share=0.3)
    found = sides(output)
    items = {side: {one["item_id"] for one in some} for side, some in found.items()}
    assert not items["train"] & items["eval"]
    assert items["train"] | items["eval"] == set(table["item_id"].to_pylist())
    assert len(items["eval"]) / 120 == pytest.approx(0.3, abs=0.13)
    rows = {side: stats(output / side)["rows"] for side in found}
    assert rows == {side: sum(one["group_size"] for one in some) for side, some in found.items()}
    assert sum(rows.values()) == stats(output / "eval")["rows_out"] == 4000
    assert (output / "_SUCCESS").exists()
    assert {side: one["rows"] for side, one in stats(output)["splits"].items()} == rows
    for side in found:
        assert (output / side / "_SUCCESS").exists()
        assert stats(output / side)["split"] == side
        told = stats(output / side)["columns"]["item_id"]
        assert told["distinct"] == len(items[side])


def test_a_split_by_user_shares_no_user(log):
    folder, table = log
    output = run(folder, log="log.parquet", output="by_user", split_by="user", user_field="user", eval_share=0.2)
    users = {side: {u for one in some for u in one["user"]} for side, some in sides(output).items()}
    assert not users["train"] & users["eval"]
    assert users["train"] | users["eval"] == set(table["user"].to_pylist())
    assert len(users["eval"]) / 300 == pytest.approx(0.2, abs=0.07)


def test_a_split_by_time_trains_on_nothing_that_is_as_late(log):
    folder, _ = log
    cut = 1_700_000_000 + 3 * 2500
    output = run(folder, log="log.parquet", output="by_time", split_by=f"time:time:{cut}")
    times = {side: [t for one in some for t in one["time"]] for side, some in sides(output).items()}
    assert max(times["train"]) < cut <= min(times["eval"])
    assert (len(times["train"]), len(times["eval"])) == (2500, 1500)

    output = run(folder, log="log.parquet", output="by_share", split_by="time:time", eval_share=0.25)
    times = {side: [t for one in some for t in one["time"]] for side, some in sides(output).items()}
    assert max(times["train"]) < min(times["eval"])
    assert len(times["eval"]) == 1000


def test_times_as_text_are_cut_as_text(tmp_path):
    rows = [("i", "p", f"2026-01-{day:02d} 10:00:00", 0, 1.0) for day in range(1, 21)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, split_by="time:user:2026-01-18")
    times = {side: [t for one in some for t in one["user"]] for side, some in sides(output).items()}
    assert (max(times["train"]), min(times["eval"])) == ("2026-01-17 10:00:00", "2026-01-18 10:00:00")


def test_the_side_of_an_item_does_not_depend_on_the_log(tmp_path):
    rows = [(f"i{i}", "p", "u", 0, 1.0) for i in range(200)]
    write_csv(tmp_path / "log.csv", rows)
    write_csv(tmp_path / "half.csv", rows[50:150][::-1])
    for name in ("log", "half"):
        run(tmp_path, log=f"{name}.csv", output=name, split_by="item", max_bad_share=1)
    both = [{one["item_id"] for one in sides(tmp_path / name)["eval"]} for name in ("log", "half")]
    assert both[1] == both[0] & {f"i{i}" for i in range(50, 150)}


# --- Bad input


def refused(folder, capsys, *flags, **more):
    """The message of a run that fails; nothing is left but the list of what is bad."""
    capsys.readouterr()
    run(folder, *flags, expect=1, **more)
    assert not (folder / "out").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return capsys.readouterr().err


GOOD = [(f"i{i % 5}", f"{i % 5}.jpg", f"u{i}", i % 2, i / 4) for i in range(300)]


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
        ("a.csv", 11, "column 'item_id'", "is empty"),
        ("a.csv", 21, "column 'click'", "'yes' is not a whole number of at most 18 digits"),
        ("a.csv", 31, "column 'price'", "'inf' is not a finite number of 32 bits"),
        ("a.csv", 41, "column 'click'", "is empty"),
        ("a.csv", 51, "row", "4 values, not 5"),
        ("a.csv", 61, "row", "a quote is not closed"),
        ("a.csv", 71, "column 'user'", "'\\xff' is not UTF-8 text"),
        ("b.csv", 301, "column 'click'", "'no' is not a whole number of at most 18 digits"),
    ]
    told = [
        (Path(one["file"]).name, one["row"], one["where"], one["problem"])
        for one in bad_rows(output / "bad_rows.jsonl")
    ]
    assert told == expected
    counts = stats(output)
    assert (counts["rows_in"], counts["rows_refused"], counts["rows_out"]) == (601, 8, 593)
    assert "8 of 601 rows cannot be used; see" in capsys.readouterr().out
    message = (
        refused(tmp_path / "x", capsys, log=f"{tmp_path}/a.csv,{tmp_path}/b.csv", label_fields="click")
        if (tmp_path / "x").mkdir() is None
        else ""
    )
    assert "8 of 601 rows cannot be used, more than --max_bad_share (0.01). The first:" in message
    assert "a.csv:11: column 'item_id': is empty" in message
    assert len(bad_rows(tmp_path / "x" / "out.bad_rows.jsonl")) == 8


def test_two_pictures_of_an_item_are_a_conflict(tmp_path, capsys):
    rows = [list(row) for row in GOOD]
    rows[7][1] = "other.jpg"
    rows[12][1] = "third.jpg"
    rows[13][1] = None  # that alone is none
    write_csv(tmp_path / "log.csv", rows)
    message = refused(tmp_path, capsys)
    assert "1 of 5 items have two values where one is expected, more than --max_bad_share" in message
    assert "log.csv:8: column 'img_path': 'other.jpg', but an earlier row of item 'i2' has '2.jpg'" in message
    (one,) = bad_rows(tmp_path / "out.bad_rows.jsonl")
    assert (one["kind"], one["row"]) == ("conflict", 8)
    output = run(tmp_path, max_bad_share=0.2)
    pictures = {one["img_path"] for _, one in groups_of(output) if one["item_id"] == "i2"}
    assert pictures == {"2.jpg", "other.jpg", "third.jpg"}
    assert stats(output)["items_in_conflict"] == 1


def test_group_fields_must_agree(tmp_path, capsys):
    rows = [(f"i{i % 5}", f"{i % 5}.jpg", f"u{i % 5}", 0, 1.0) for i in range(100)]
    rows[33] = ("i3", "3.jpg", "u9", 0, 1.0)
    rows[44] = ("i4", "4.jpg", None, 0, 1.0)
    write_csv(tmp_path / "log.csv", rows)
    message = refused(tmp_path, capsys, group_fields="user")
    assert "2 of 5 items have two values where one is expected" in message
    assert "log.csv:34: column 'user': 'u9', but an earlier row of item 'i3' has 'u3'" in message
    assert "log.csv:45: column 'user': 'None', but an earlier row of item 'i4' has 'u4'" in message
    output = run(tmp_path, group_fields="user", max_bad_share=0.5)
    assert "user" in stats(output)["per_group"]
    assert Counter((one["item_id"], one["user"]) for _, one in groups_of(output))["i3", "u9"] == 1


def test_rows_without_a_picture_stay(tmp_path):
    rows = [(f"i{i % 5}", None if i % 5 == 2 else f"{i % 5}.jpg", f"u{i}", i % 2, 1.0) for i in range(100)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, pipeline_config_template=tmp_path / "c.config")
    assert {one["img_path"] for _, one in groups_of(output) if one["item_id"] == "i2"} == {""}
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
        ({"separator": "ab"}, "--separator 'ab': give one character"),
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
    scan = flat_files.scan_split

    def scan_and_change(split, separator):
        result = scan(split, separator)
        write_csv(tmp_path / "log.csv", GOOD[:-1])
        return result

    from easyrec_mm.grouping import log_plan

    monkeypatch.setattr(log_plan, "scan_split", scan_and_change)
    assert (
        "log.csv: cannot be read: the file has changed: 299 rows from row 1 on, but 300 when they were counted"
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
    kept = contents(tmp_path / "out")
    run(tmp_path, expect=1)
    assert "is not empty; name another folder, or replace it with --overwrite" in capsys.readouterr().err
    run(tmp_path, "--overwrite", seed=3, log="missing.csv", expect=1)
    assert contents(tmp_path / "out") == kept
    run(tmp_path, "--overwrite", seed=3)
    assert contents(tmp_path / "out") != kept
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
        assert sorted(one["groups"] for one in stats(output)["shards"]) == [0, 0, 0, 0, 1, 1, 1]


def test_a_value_that_would_divide_a_line_of_text(tmp_path, capsys):
    rows = [(*row[:2], "a|b" if i == 17 else row[2], *row[3:]) for i, row in enumerate(GOOD)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, format="rtp")
    (one,) = bad_rows(output / "bad_rows.jsonl")
    assert (one["row"], one["where"]) == (18, "column 'user'")
    assert "'a|b' contains a line break or a separator" in one["problem"]
    assert stats(output)["rows_out"] == 299
    output = run(tmp_path, "--overwrite", format="rtp", rtp_separator=r"\003")
    assert stats(output)["rows_out"] == 300
    assert b"a|b" in b"".join(path.read_bytes() for path in output.glob("part-*"))


def test_ids_of_more_than_18_digits_are_text(tmp_path):
    table = pa.table(dict(zip(COLUMNS, map(list, zip(*GOOD, strict=True)), strict=True)))
    ids = pa.array([2**62 + i % 7 for i in range(300)])
    pq.write_table(table.set_column(2, "user", ids), tmp_path / "log.parquet")
    output = run(tmp_path, log="log.parquet")
    assert {u for _, one in groups_of(output) for u in one["user"]} == {str(2**62 + i) for i in range(7)}


# --- Pictures


def make_pictures(folder, names, random):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = tuple(random.integers(20, 50, 2))
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


def test_pictures_are_packed_once_a_shard(tmp_path):
    random = np.random.default_rng(0)
    rows = [(f"i{i % 9}", f"images/{i % 9 // 2}.png", f"u{i}", 0, 1.0) for i in range(200)]
    rows += [("j", "", "u", 0, 1.0), ("k", "images/none.png", "u", 0, 1.0), ("l", "images/empty.png", "u", 0, 1.0)]
    write_csv(tmp_path / "log.csv", rows)
    make_pictures(tmp_path, [f"images/{i}.png" for i in range(5)], random)
    (tmp_path / "images/empty.png").write_bytes(b"")
    flags = {"num_shards": 3, "image_root": tmp_path, "max_bad_share": 1}
    output = run(tmp_path, "--embed_images", **flags)
    told = stats(output)
    assert told["bad_pictures"] == 2
    for shard in told["shards"]:
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
        one["where"]: (one["kind"], one["row"], one["problem"])
        for one in bad_rows(output / "bad_rows.jsonl")
        if one["kind"] == "picture"
    }
    assert bad == {
        "images/none.png": ("picture", 202, "cannot be read: No such file or directory"),
        "images/empty.png": ("picture", 203, "is empty (0 bytes)"),
    }
    assert contents(run(tmp_path, "--embed_images", output="again", **flags)) == contents(output)


def test_packed_pictures_that_are_resized_decode_to_the_same_pixels(tmp_path):
    import tensorflow as tf

    from easyrec_mm.data.pictures import PictureLoader
    from easyrec_mm.schema import Image as Shape

    random = np.random.default_rng(0)
    write_csv(tmp_path / "log.csv", [(f"i{i}", f"{i}.png", "u", i % 2, 1.0) for i in range(6)])
    make_pictures(tmp_path, [f"{i}.png" for i in range(5)], random)
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes()[:200])
    flags = {"num_shards": 1, "image_root": tmp_path, "image_size": "24x16", "max_bad_share": 1}
    output = run(tmp_path, "--embed_images", **flags)
    loader = PictureLoader(Shape("", 16, 24, 3, "BILINEAR", True, 10**6), str(tmp_path))
    with tarfile.open(output / "part-00000.pictures.tar") as tar:
        assert sorted(tar.getnames()) == [f"{i}.png" for i in range(5)]
        for name in tar.getnames():
            packed = tf.io.decode_png(tar.extractfile(name).read()).numpy()
            assert packed.shape == (16, 24, 3)
            np.testing.assert_array_equal(packed, loader.load([name.encode()]).pixels[0])
    (one,) = bad_rows(output / "bad_rows.jsonl")
    assert (one["where"], one["problem"].split(":")[0]) == ("5.png", "is damaged")


def test_too_many_pictures_that_cannot_be_packed(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", GOOD)
    message = refused(tmp_path, capsys, "--embed_images")
    assert "5 of 5 pictures cannot be packed, more than --max_bad_share (0.01)" in message
    assert "log.csv:1: 0.jpg: cannot be read: No such file or directory" in message


# --- What it takes


def test_no_tensorflow_is_loaded(tmp_path):
    write_csv(tmp_path / "log.csv", GOOD)
    code = f"""
import sys
from easyrec_mm.cli.main import main
for kind in ("parquet", "tfrecord", "rtp"):
    arguments = ["group", "--input", r"{tmp_path}/log.csv", "--group_by", "item_id", "--image_field", "img_path",
                 "--output", r"{tmp_path}/" + kind, "--format", kind,
                 "--allow_missing_pictures"]
    template = ["--pipeline_config_template", r"{tmp_path}/c.config"] if kind != "tfrecord" else []
    assert main(arguments + template) == 0
loaded = [name for name in ("tensorflow", "keras", "pyspark") if name in sys.modules]
assert loaded == [], loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_shards_are_of_the_size_that_is_aimed_at(tmp_path, monkeypatch):
    make_log(tmp_path)
    monkeypatch.setattr(group, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(group, "MIN_GROUPS", 1)
    output = run(tmp_path, log="log.parquet")
    assert 8 <= len(stats(output)["shards"]) <= 14
