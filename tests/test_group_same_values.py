"""The same values give the same features, whatever the format of the log, the order of its rows and the split."""

from __future__ import annotations

import gzip
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from group_helpers import run

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.grouping import rows

NUM_ROWS = 3000


def log(seed):
    """A log of columns of all kinds; some rows occur several times."""
    random = np.random.default_rng(seed)
    n = NUM_ROWS
    item = random.integers(0, 150, n)

    def with_missing(values, share=0.1):
        return pd.Series(values).astype(object).where(random.random(n) >= share, None)

    columns = {
        "item_id": [f"i{i}" for i in item],
        "img_path": [f"{i}.jpg" for i in item],
        "user_id": with_missing(random.integers(10**9, 10**9 + 400, n), 0.002),
        "click": (random.random(n) < 0.3).astype(int),
        "age": with_missing(random.integers(16, 80, n)),
        "hour": random.integers(0, 24, n),
        "price": random.lognormal(3, 1, n).round(2),
        "rating": with_missing((random.random(n) * 5).round(1)),
        "views": random.zipf(1.5, n) % 100_000,
        "change": with_missing(random.integers(-500, 500, n)),
        "campaign_id": with_missing(random.integers(-300, 300, n)),
        "long_id": random.integers(10**17, 10**17 + 90, n),
        "vip": random.random(n) < 0.2,
        "mobile": with_missing(random.random(n) < 0.5),
        "city": with_missing(random.choice(["New York", "Oslo", "San Jose"], n)),
        "query": [f"query {i}" for i in random.integers(0, 400, n)],
        "tags": ["|".join(f"t{t}" for t in random.permutation(12)[: random.integers(0, 4)]) or None for _ in range(n)],
        "vector": ["|".join(f"{x:.3f}" for x in random.normal(size=3)) for _ in range(n)],
        "shown": pd.Timestamp("2026-10-01") + pd.to_timedelta(random.integers(0, 10**6, n), "s"),
        "epoch": 1_760_000_000 + random.integers(0, 10**6, n),
        "impression_id": random.permutation(n) + 10**6,
    }
    frame = pd.DataFrame(columns)
    return pd.concat([frame, frame.iloc[: n // 20]], ignore_index=True)


def write_floats(frame, path):
    """As pandas writes it: whole numbers with a missing one among them are floats."""
    numbers = ["user_id", "age", "rating", "change", "campaign_id"]
    frame.astype(dict.fromkeys(numbers, float)).to_parquet(path)


def write_nullable(frame, path):
    nullable = dict.fromkeys(["user_id", "age", "change", "campaign_id"], "Int64") | {"mobile": "boolean"}
    frame.astype({**nullable, "rating": "Float64"}).to_parquet(path)


def write_databases(frame, path):
    """Decimals, small and unsigned numbers, lists, dictionaries."""
    table = pa.Table.from_pandas(frame.astype({"age": "Int64", "change": "Int64"}), preserve_index=False)
    decimals = pa.array([None if pd.isna(v) else Decimal(int(v)) for v in frame["user_id"]], pa.decimal128(20, 0))
    lists = pa.array([[float(x) for x in text.split("|")] for text in frame["vector"]])
    tags = pa.array([None if text is None else text.split("|") for text in frame["tags"]])
    of_column = {"user_id": decimals, "vector": lists, "tags": tags}
    of_column |= {"age": table["age"].cast(pa.uint8()), "hour": table["hour"].cast(pa.uint64())}
    of_column |= {"city": table["city"].combine_chunks().dictionary_encode(), "views": table["views"].cast(pa.int32())}
    for name, column in of_column.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path, row_group_size=700)


def write_gzip(frame, path):
    path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))


WRITERS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "csv.gz": write_gzip,
    "floats.parquet": write_floats,
    "nullable.parquet": write_nullable,
    "databases.parquet": write_databases,
}


def infer(folder, frame, kind, **flags):
    """Features by name, the fields that they read, and the reasons of what is left out."""
    WRITERS[kind](frame, folder / f"log.{kind}")
    flags |= {"user_field": "user_id", "pipeline_config_template": folder / "x.config"}
    run(folder, "--overwrite", log=f"log.{kind}", label_fields="click", **flags)
    config = load_pipeline(str(folder / "x.config")).config
    names = [feature.input_names[0] for feature in config.feature_config.features]
    features = {name: str(f) for name, f in zip(names, config.feature_config.features, strict=True)}
    fields = {field.input_name: str(field) for field in config.data_config.input_fields if field.input_name in names}
    return features, fields


@pytest.fixture(scope="module", params=[0, 1])
def expected(request, tmp_path_factory):
    """A log, and its features."""
    frame = log(request.param)
    return frame, infer(tmp_path_factory.mktemp("expected"), frame, "csv")


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_has_the_same_features(expected, tmp_path, kind):
    frame, features_and_fields = expected
    features, fields = infer(tmp_path, frame, kind)
    assert (features, fields) == features_and_fields
    assert {"shown", "epoch", "impression_id"}.isdisjoint(features)
    assert {"age", "price", "campaign_id", "mobile", "city", "tags", "vector"} <= features.keys()


@pytest.mark.parametrize("kind", ["csv", "floats.parquet"])
def test_the_order_of_the_rows_changes_nothing(expected, tmp_path, kind):
    frame, features_and_fields = expected
    shuffled = frame.sample(frac=1, random_state=5)
    assert infer(tmp_path, shuffled, kind) == features_and_fields
    assert infer(tmp_path, frame.sort_values(["price", "age"]), kind) == features_and_fields


@pytest.mark.parametrize("split", ["item", "user", "time:shown", "time:epoch"])
def test_the_split_changes_nothing(expected, tmp_path, split):
    """But for the ids of which training sees none of those that evaluate; rows without a user are refused."""
    frame = expected[0].dropna(subset="user_id")
    whole = infer(tmp_path, frame, "csv")
    new = {"item": "item_id", "user": "user_id"}.get(split, "")
    of_split = infer(tmp_path, frame, "floats.parquet", split_by=split, eval_share=0.3)
    assert of_split == tuple({name: text for name, text in part.items() if name != new} for part in whole)


def test_a_sample_does_not_depend_on_the_order(expected, tmp_path, monkeypatch):
    """Also of logs that are larger than the sample from which buckets are fitted."""
    monkeypatch.setattr(rows, "SAMPLE_ROWS", 300)
    frame, _ = expected
    first = infer(tmp_path, frame, "csv")
    assert infer(tmp_path, frame.sample(frac=1, random_state=6), "nullable.parquet") == first
