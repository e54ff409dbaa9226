"""Distinct items and users in the batches that training draws, as `check` tells them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from flat_helpers import CONFIG

from easyrec_mm.cli import main as cli
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.stats.batches import batch_varieties, variety_lines

NUM_ROWS, BATCH = 2000, 50
FEATURES = """
  features { input_names: "item" feature_type: IdFeature hash_bucket_size: 500 embedding_dim: 2 }
  features { input_names: "user" feature_type: IdFeature hash_bucket_size: 500 embedding_dim: 2 }
  features { input_names: "price" feature_type: RawFeature }
"""
FIELD = 'input_fields { input_name: "item" input_type: STRING }'
CHANGES = {
    'features { input_names: "price" feature_type: RawFeature }': FEATURES,
    '["price", "tags"]': '["price", "tags", "item", "user"]',
    'label_fields: "click"': f'label_fields: "click" {FIELD}',
    'eval_input_path: "eval.csv"': "",
}
IN_ORDER = "data_config.shuffle=false"


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """Makes the config of a log of 100 items and 300 users, whose rows are in some order."""
    monkeypatch.chdir(tmp_path)

    def make(key=None, *settings):
        draw = random.Random(1)
        rows = [(f"i{draw.randrange(100)}", f"u{draw.randrange(300)}") for _ in range(NUM_ROWS)]
        rows.sort(key=key or (lambda row: 0))
        lines = [f"{i % 2},{item},0.5,{user},a" for i, (item, user) in enumerate(rows)]
        (tmp_path / "train.csv").write_text("\n".join(["click,item,price,user,tags", *lines]) + "\n")
        text = CONFIG
        for old, new in CHANGES.items():
            text = text.replace(old, new)
        (tmp_path / "x.config").write_text(text)
        return rows, load_pipeline("x.config", overrides_of(settings))

    return make


def overrides_of(settings):
    return cli.make_parser().parse_args(["check", "--pipeline_config=x", *(f"--set={s}" for s in settings)]).set


def distinct(values):
    """Mean number of distinct values in batches of rows one after the other."""
    return np.mean([len(set(values[i : i + BATCH])) for i in range(0, len(values), BATCH)])


def test_rows_in_the_order_of_items(pipeline):
    rows, sorted_by_item = pipeline(lambda row: row[0], IN_ORDER)
    items, users = ({v.name: v for v in batch_varieties(sorted_by_item, NUM_ROWS)}[name] for name in ("item", "user"))
    assert items.drawn == distinct([item for item, _ in rows]) < 5
    assert users.drawn == distinct([user for _, user in rows])
    mixed = random.Random(7).sample(rows, NUM_ROWS)
    assert items.shuffled == pytest.approx(distinct([item for item, _ in mixed]), rel=0.03)
    assert users.shuffled == pytest.approx(distinct([user for _, user in mixed]), rel=0.03)
    assert (items.total, items.units, items.kind) == (100, BATCH, "group")
    assert (items.is_alike, users.is_alike) == (True, False)
    assert (
        "warning: the data are sorted by item, which makes the samples of a batch alike"
        in variety_lines(sorted_by_item, NUM_ROWS)[-1]
    )


def test_rows_in_random_order_are_not_alike(pipeline):
    rows, plain = pipeline(None, IN_ORDER)
    (items,) = (v for v in batch_varieties(plain, NUM_ROWS) if v.name == "item")
    assert items.drawn == distinct([item for item, _ in rows])
    assert items.drawn == pytest.approx(items.shuffled, rel=0.03)
    assert not any("warning" in line for line in variety_lines(plain, NUM_ROWS))


def test_shuffling_them_while_reading_helps(pipeline):
    _, shuffled = pipeline(lambda row: row[0], f"data_config.shuffle_buffer_size={NUM_ROWS}")
    (items,) = (v for v in batch_varieties(shuffled, NUM_ROWS) if v.name == "item")
    assert items.drawn == pytest.approx(items.shuffled, rel=0.05)


def test_batches_without_a_good_group_do_not_count(pipeline, tmp_path):
    rows, plain = pipeline(None, IN_ORDER)
    header, *lines = (tmp_path / "train.csv").read_text().splitlines()
    bad = ["7" + line[1:] for line in lines[: 2 * BATCH]]
    (tmp_path / "train.csv").write_text("\n".join([header, *bad, *lines[2 * BATCH :]]) + "\n")
    (items,) = (v for v in batch_varieties(plain, NUM_ROWS) if v.name == "item")
    assert items.drawn == distinct([item for item, _ in rows[2 * BATCH :]])
    (tmp_path / "train.csv").write_text("\n".join([header, *bad]) + "\n")
    assert batch_varieties(plain, NUM_ROWS) == []


def test_check_tells_it(pipeline, capsys):
    pipeline(lambda row: row[1])
    flags = ["check", "--pipeline_config=x.config", f"--set={IN_ORDER}"]
    assert cli.main(flags) == 0
    report = capsys.readouterr().out
    assert "\nbatches\n" in report
    assert "warning: the data are sorted by user," in report
    assert "data_config.shuffle is false" in report
    assert cli.main([*flags, "--set=data_config.batch_size=1500"]) == 0
    assert "too few groups for several batches" in capsys.readouterr().out
