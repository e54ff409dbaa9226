"""The config that `group` infers, trained on clicks on photographs: new items are ranked better than features could."""

from __future__ import annotations

import glob
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from easyrec_mm.cli.main import main

PHOTOGRAPHS = Path(__file__).parent / "photographs/groceries.tar"
NUM_ROWS, NUM_USERS, NUM_TASTES = 24_000, 500, 4


def make_log(folder, seed):
    """Write pictures and clicks; the log, and of each row the probability of a click without and with its picture.

    Users have one of four tastes, which likes some kinds of groceries. That an item is a banana only its picture tells.
    """
    random = np.random.default_rng(seed)
    with tarfile.open(PHOTOGRAPHS) as tar:
        tar.extractall(folder, filter="data")
        pictures = sorted(tar.getnames())
    kinds, kind = np.unique([picture.split("/")[0] for picture in pictures], return_inverse=True)
    taste = random.integers(0, NUM_TASTES, NUM_USERS)
    likes = random.normal(0, 1.2, (NUM_TASTES, len(kinds)))
    price = np.exp(random.normal(1, 0.6, len(pictures))).round(2)
    user, item = random.integers(0, NUM_USERS, NUM_ROWS), random.integers(0, len(pictures), NUM_ROWS)
    rest = -1.5 - 0.5 * np.log(price[item])
    with_picture = sigmoid(rest + likes[taste[user], kind[item]])
    without = sigmoid(rest[:, None] + likes[taste[user]]).mean(axis=1)
    log = {
        "item_id": np.array([f"item {i}" for i in range(len(pictures))])[item],
        "img_path": np.array(pictures)[item],
        "user_id": [f"user {i}" for i in user],
        "user_taste": np.array(list("abcd"))[taste[user]],
        "price": price[item],
        "click": (random.random(NUM_ROWS) < with_picture).astype(np.int64),
    }
    pq.write_table(pa.table(log), folder / "clicks.parquet")
    return log, without, with_picture


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.slow
def test_pictures_pay_on_items_that_are_new(tmp_path):
    log, without, truth = make_log(tmp_path, seed=0)
    config = tmp_path / "photographs.config"
    files = ["--input", f"{tmp_path}/clicks.parquet", "--output", f"{tmp_path}/grouped"]
    columns = ["--group_by", "item_id", "--image_field", "img_path", "--user_field", "user_id"]
    flags = ["--label_fields", "click", "--split_by", "item", "--pipeline_config_template", str(config)]
    assert main(["group", *files, *columns, *flags]) == 0
    assert main(["train", "--pipeline_config", str(config)]) == 0
    model = json.loads((tmp_path / "grouped_model/eval_result.json").read_text())["auc_click"]
    cold = pads.dataset(glob.glob(f"{tmp_path}/grouped/eval/*.parquet")).to_table()["item_id"].to_pylist()
    is_cold = np.isin(log["item_id"], cold)
    ceiling, best = [roc_auc_score(log["click"][is_cold], p[is_cold]) for p in (without, truth)]
    assert model > ceiling + 0.45 * (best - ceiling)
