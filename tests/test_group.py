"""Flat logs to groups: every row once, groups as they should be, the same bytes again, sides that share nothing."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from group_helpers import GOOD, contents, groups_of, make_log, rows_of, run, stats, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.grouping import flat_files
from easyrec_mm.grouping import group as group_module
from easyrec_mm.grouping import local_engine as local_engine_module

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


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
def test_every_row_is_in_one_group_of_its_item(rows, size, num_shards, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "log.csv", rows)
        flags = {"max_group_size": size, "num_shards": num_shards, "seed": seed, "max_bad_share": 1}
        flags["types"] = "price=DOUBLE,user=STRING"
        output = run(folder, **flags)
        groups = groups_of(output)
        written = [row for _, group in groups for row in rows_of(group)]
        expected = [(item, img or "", user, click, price) for item, img, user, click, price in rows]
        assert Counter(written) == Counter(expected)

        of_run = defaultdict(list)
        for row in expected:
            of_run[row[:2]].append(row)
        for _, group in groups:
            assert 1 <= group["group_size"] <= size
            assert group["group_size"] == len(group["click"])
        for run_rows in of_run.values():
            # The groups are the rows in the order of the log, cut where a group is full.
            chunks = [run_rows[i : i + size] for i in range(0, len(run_rows), size)]
            mine = [rows_of(group) for _, group in groups if (group["item_id"], group["img_path"]) == run_rows[0][:2]]
            assert sorted(chunks, key=repr) == sorted(mine, key=repr)

        shard_of = defaultdict(list)
        for shard, group in groups:
            shard_of[group["item_id"]].append(shard)
        for item_shards in shard_of.values():
            counts = Counter(item_shards)
            assert len(counts) == min(num_shards, len(item_shards))  # as many shards as can be
            assert max(counts.values()) - min(counts.values()) <= (len(counts) < num_shards or 1)

        statistics = stats(output)
        assert statistics["rows_in"] == statistics["rows_out"] == statistics["rows"] == len(rows)
        assert statistics["rows_refused"] == 0
        assert statistics["groups"] == len(groups)
        assert statistics["group_sizes"] == {
            str(k): v for k, v in sorted(Counter(group["group_size"] for _, group in groups).items())
        }
        assert statistics["items"] == len({row[0] for row in expected})
        pictures = defaultdict(set)
        for item, img, *_ in expected:
            pictures[img].add(item)
        without = pictures.pop("", set())
        assert statistics["rows_without_picture"] == sum(row[1] == "" for row in expected)
        assert bool(without) == (statistics["rows_without_picture"] > 0)
        assert statistics["pictures"] == len(pictures)
        assert statistics["pictures_of_several_items"] == sum(len(items) > 1 for items in pictures.values())
        assert statistics["duplicate_rows"] == len(expected) - len(set(expected))
        of_item = defaultdict(set)
        for item, img, *_ in expected:
            of_item[item] |= {img} - {""}
        assert statistics["items_in_conflict"] == sum(len(images) > 1 for images in of_item.values())

        again = run(folder, output="again", **flags)
        assert contents(again) == contents(output)
        assert (output / "_SUCCESS").exists()


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


@pytest.mark.slow
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
    return {side: [group for _, group in groups_of(output / side)] for side in ("train", "eval")}


def test_a_split_by_item_shares_no_item(log):
    folder, table = log
    output = run(folder, log="log.parquet", output="by_item", split_by="item", eval_share=0.3)
    by_side = sides(output)
    items = {side: {group["item_id"] for group in groups} for side, groups in by_side.items()}
    assert not items["train"] & items["eval"]
    assert items["train"] | items["eval"] == set(table["item_id"].to_pylist())
    assert len(items["eval"]) / 120 == pytest.approx(0.3, abs=0.13)
    rows = {side: stats(output / side)["rows"] for side in by_side}
    assert rows == {side: sum(group["group_size"] for group in groups) for side, groups in by_side.items()}
    assert sum(rows.values()) == stats(output / "eval")["rows_out"] == 4000
    assert (output / "_SUCCESS").exists()
    assert {side: split["rows"] for side, split in stats(output)["splits"].items()} == rows
    for side in by_side:
        assert (output / side / "_SUCCESS").exists()
        assert stats(output / side)["split"] == side
        column = stats(output / side)["columns"]["item_id"]
        assert column["distinct"] == len(items[side])


def test_a_split_by_user_shares_no_user(log):
    folder, table = log
    output = run(folder, log="log.parquet", output="by_user", split_by="user", user_field="user", eval_share=0.2)
    users = {side: {u for group in groups for u in group["user"]} for side, groups in sides(output).items()}
    assert not users["train"] & users["eval"]
    assert users["train"] | users["eval"] == set(table["user"].to_pylist())
    assert len(users["eval"]) / 300 == pytest.approx(0.2, abs=0.07)


def test_a_split_by_time_trains_on_nothing_that_is_as_late(log):
    folder, _ = log
    cut = 1_700_000_000 + 3 * 2500
    output = run(folder, log="log.parquet", output="by_time", split_by=f"time:time:{cut}")
    times = {side: [t for group in groups for t in group["time"]] for side, groups in sides(output).items()}
    assert max(times["train"]) < cut <= min(times["eval"])
    assert (len(times["train"]), len(times["eval"])) == (2500, 1500)

    output = run(folder, log="log.parquet", output="by_share", split_by="time:time", eval_share=0.25)
    times = {side: [t for group in groups for t in group["time"]] for side, groups in sides(output).items()}
    assert max(times["train"]) < min(times["eval"])
    assert len(times["eval"]) == 1000


def test_times_as_text_are_cut_as_text(tmp_path):
    rows = [("i", "p", f"2026-01-{day:02d} 10:00:00", 0, 1.0) for day in range(1, 21)]
    write_csv(tmp_path / "log.csv", rows)
    output = run(tmp_path, split_by="time:user:2026-01-18")
    times = {side: [t for group in groups for t in group["user"]] for side, groups in sides(output).items()}
    assert (max(times["train"]), min(times["eval"])) == ("2026-01-17 10:00:00", "2026-01-18 10:00:00")


def test_the_side_of_an_item_does_not_depend_on_the_log(tmp_path):
    rows = [(f"i{i}", "p", "u", 0, 1.0) for i in range(200)]
    write_csv(tmp_path / "log.csv", rows)
    write_csv(tmp_path / "half.csv", rows[50:150][::-1])
    for name in ("log", "half"):
        run(tmp_path, log=f"{name}.csv", output=name, split_by="item", max_bad_share=1)
    both = [{group["item_id"] for group in sides(tmp_path / name)["eval"]} for name in ("log", "half")]
    assert both[1] == both[0] & {f"i{i}" for i in range(50, 150)}


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
    monkeypatch.setattr(group_module, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(group_module, "MIN_GROUPS", 1)
    output = run(tmp_path, log="log.parquet")
    assert 8 <= len(stats(output)["shards"]) <= 14
