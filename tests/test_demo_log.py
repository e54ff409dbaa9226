"""samples/make_demo_log.py writes the simulated impressions as a log."""

from __future__ import annotations

import csv
import sys
from datetime import datetime

import make_demo_log
import numpy as np
import pytest
from make_demo_data import auc
from PIL import Image


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder, the simulated split, and the rows of the log."""
    folder = tmp_path_factory.mktemp("log") / "shop"
    split = make_demo_log.write_log(folder, num_items=20, seed=3)
    with (folder / "clicks.csv").open(encoding="utf-8", newline="") as file:
        return folder, split, list(csv.DictReader(file))


def test_each_impression_is_a_row_in_the_order_of_time(written):
    _, split, rows = written
    assert len(rows) == len(split.click)
    assert [row["impression_id"] for row in rows] == [f"{i:07d}" for i in range(len(rows))]
    times = [datetime.fromisoformat(row["shown_at"]) for row in rows]
    assert times == sorted(times)
    assert sorted(time.hour for time in times) == sorted(split.hour)
    assert len({time.date() for time in times}) > 14  # so that group takes hour and weekday as features


def test_rows_are_those_of_the_simulation(written):
    """Whatever their order: clicks by user and item, and the price of each item."""
    _, split, rows = written
    item = np.repeat(split.group_item, split.group_size)
    expected = [(f"u{u:05d}", split.item_ids[i], str(c)) for u, i, c in zip(split.user, item, split.click, strict=True)]
    assert sorted((row["user_id"], row["item_id"], row["click"]) for row in rows) == sorted(expected)
    prices = dict(zip(split.item_ids, split.price, strict=True))
    assert all(float(row["price"]) == prices[row["item_id"]] for row in rows)


def test_seconds_of_viewing_are_known_after_a_click_alone(written):
    _, split, rows = written
    assert all((row["play_time"] != "") == (row["click"] == "1") for row in rows)
    seconds = sorted(float(row["play_time"]) for row in rows if row["play_time"])
    assert seconds == sorted(split.play_time[split.click == 1])


def test_each_item_has_its_picture(written):
    folder, split, rows = written
    assert {row["img_path"] for row in rows} <= {f"images/{item}.jpg" for item in split.item_ids}
    for item in split.item_ids:
        assert Image.open(folder / "images" / f"{item}.jpg").size == (64, 64)


def test_the_same_seed_gives_the_same_bytes(written, tmp_path):
    make_demo_log.write_log(tmp_path, num_items=20, seed=3)
    assert (tmp_path / "clicks.csv").read_bytes() == (written[0] / "clicks.csv").read_bytes()


def test_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_demo_log.py", "--output", str(tmp_path / "shop"), "--num_items", "20"])
    make_demo_log.main()
    split = make_demo_log.write_log(tmp_path / "again", num_items=20, seed=0)
    printed = capsys.readouterr().out
    assert f"{len(split.click)} impressions, {split.click.sum()} clicks" in printed
    assert f"with pictures    {auc(split.click, split.p_true):.4f}" in printed
    with pytest.raises(SystemExit, match=r"has a clicks\.csv"):
        make_demo_log.main()


def test_too_few_items_are_a_usage_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_demo_log.py", "--output", str(tmp_path), "--num_items", "3"])
    with pytest.raises(SystemExit):
        make_demo_log.main()
    assert "--num_items: 3 is less than 10" in capsys.readouterr().err
