"""Flat logs as groups are made of them, and what is in the folder that `group` writes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from easyrec_mm.cli.main import main

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


def refused(folder, capsys, *flags, **more):
    """The message of a run that fails; nothing is left but the list of what is bad."""
    capsys.readouterr()
    run(folder, *flags, expect=1, **more)
    assert not (folder / "out").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return capsys.readouterr().err


GOOD = [(f"i{i % 5}", f"{i % 5}.jpg", f"u{i}", i % 2, i / 4) for i in range(300)]


def make_pictures(folder, names, random):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = tuple(random.integers(20, 50, 2))
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
