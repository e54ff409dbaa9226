"""What `group` takes the values of a column for: times, lists, texts, missing values; and what it says of doubt."""

from __future__ import annotations

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from group_helpers import groups_of, run
from test_group_config import NUM_ROWS, infer
from test_group_leaks import left_out

from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig

RANDOM = np.random.default_rng(2)
SECONDS = RANDOM.integers(0, 10**7, NUM_ROWS)
MOMENTS = pd.Timestamp("2026-01-01") + pd.to_timedelta(SECONDS, "s")
DAYS = MOMENTS.normalize()


def one(folder, values, name="x", **flags):
    """The feature of one column, or None; the text of the config; and its input field."""
    features, text, config = infer(folder, {name: values}, label_fields="click", **flags)
    (field,) = [field for field in config.data_config.input_fields if field.input_name == name]
    return features.get(name), text, field


# --- Times


TIMES = {
    "timestamps": pa.array(MOMENTS),
    "timestamps of a zone": pa.array(MOMENTS.tz_localize("Asia/Tokyo")),
    "dates": pa.array(DAYS.date),
    "text": [str(moment) for moment in MOMENTS],
    "text with T": [moment.isoformat() + "Z" for moment in MOMENTS],
    "text of days": [f"{day.day}.{day.month}.{day.year}" for day in DAYS],
    "text of months first": [f"{day.month}/{day.day}/{day.year} 3:04" for day in DAYS],
    "names of months": [day.strftime("%d-%b-%Y") for day in DAYS],
    "letters": [moment.strftime("%a, %d %b %Y %H:%M:%S GMT") for moment in MOMENTS],
    "some unknown": [None if i % 7 == 0 else "n/a" if i % 200 == 1 else str(day) for i, day in enumerate(DAYS)],
    "seconds": SECONDS + 1_760_000_000,
    "seconds, not always known": np.where(RANDOM.random(NUM_ROWS) < 0.3, 0, SECONDS + 1_760_000_000),
    "milliseconds": (SECONDS + 1_760_000_000) * 1000,
    "nanoseconds": (SECONDS + 1_760_000_000) * 10**9,
    "nanoseconds in text": [str(s) for s in (SECONDS + 1_760_000_000) * 10**9],
    "fractions": SECONDS + 1_760_000_000.25,
    "with missing": pa.array([None if i % 3 == 0 else float(s) for i, s in enumerate(SECONDS + 1_760_000_000)]),
    "months, by name": RANDOM.choice([202511, 202512, 202601], NUM_ROWS),
    "days as numbers": DAYS.strftime("%Y%m%d").astype(int),
    "hours as numbers": MOMENTS.strftime("%Y%m%d%H").astype(int),
    "seconds as numbers": MOMENTS.strftime("%Y%m%d%H%M%S").astype(int),
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_are_no_features(tmp_path, kind):
    """Whatever their name: by their type and their values."""
    name = "dt" if "by name" in kind else "moment"
    feature, text, _ = one(tmp_path, TIMES[kind], name)
    assert feature is None
    assert left_out(text)[name] == "is a time: later rows have values that do not occur in training"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("hour", RANDOM.integers(0, 24, NUM_ROWS)),
        ("amount", RANDOM.lognormal(15, 4, NUM_ROWS).astype(int)),
        ("creator_id", RANDOM.integers(1_500_000_000, 1_500_000_300, NUM_ROWS)),
        ("member", RANDOM.integers(1_000_000_000, 1_000_000_300, NUM_ROWS)),
        ("month", RANDOM.integers(1, 13, NUM_ROWS)),
        ("year", RANDOM.integers(1990, 2026, NUM_ROWS)),
        ("version", [f"1.{i}.{j}" for i, j in RANDOM.integers(0, 9, (NUM_ROWS, 2))]),
        ("address", [f"10.0.{i}.{j}" for i, j in RANDOM.integers(0, 9, (NUM_ROWS, 2))]),
        ("zip", [f"{i:05d}" for i in RANDOM.integers(1000, 1900, NUM_ROWS)]),
        ("play_time", RANDOM.exponential(30, NUM_ROWS)),
        ("weekday", RANDOM.choice(["Mon", "Tue", "May"], NUM_ROWS)),
    ],
)
def test_what_is_no_time(tmp_path, name, values):
    feature, text, _ = one(tmp_path, values, name)
    assert feature is not None, text


# --- Lists and texts


VECTORS = RANDOM.normal(size=(NUM_ROWS, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        (pa.array(VECTORS.tolist(), pa.list_(pa.float32())), "|"),
        (pa.array(VECTORS.tolist(), pa.large_list(pa.float64())), "|"),
        (pa.array(VECTORS.tolist(), pa.list_(pa.float32(), 3)), "|"),
        (pa.array(RANDOM.integers(0, 9, (NUM_ROWS, 3)).tolist()), "|"),
        (pa.array([None if i % 5 == 0 else v for i, v in enumerate(VECTORS.tolist())]), "|"),
        ([" ".join(f"{x:.4f}" for x in v) for v in VECTORS], " "),
        ([";".join(f"{x:.4f}" for x in v) for v in VECTORS], ";"),
        ([",".join(f"{x:.4f}" for x in v) for v in VECTORS], ","),
    ],
)
def test_lists_of_numbers_are_numbers(tmp_path, values, separator):
    feature, _, field = one(tmp_path, values)
    assert (feature.feature_type, feature.raw_input_dim) == (FeatureConfig.RawFeature, 3)
    assert feature.separator == separator
    assert field.HasField("default_val") == (None in pa.array(values).to_pylist())


def test_lists_of_other_lengths(tmp_path):
    lengths = RANDOM.integers(1, 5, NUM_ROWS)
    ids = [[int(i) for i in RANDOM.integers(0, 90, length)] for length in lengths]
    feature, _, _ = one(tmp_path, pa.array(ids))
    assert feature.feature_type == FeatureConfig.TagFeature
    feature, text, _ = one(tmp_path, pa.array([[i / 7 for i in of_row] for of_row in ids]))
    assert feature is None
    assert left_out(text)["x"].startswith("holds 1 to 4 numbers in a text; add a SequenceFeature")
    feature, text, _ = one(tmp_path, [str(of_row) for of_row in ids])
    assert "holds lists in brackets, such as '[0" in left_out(text)["x"]


@pytest.mark.parametrize(
    "words",
    [
        ["Boston", "New York", "Los Angeles", "San Jose", "El Paso", "Rome"],
        ["Dresses, Shoes, Hats", "Bags", "Socks", "Belts", "Scarves", "Coats"],
        ["S,M", "M,L", "L", "XL"],
        ["men;women", "kids;men", "kids"],
    ],
)
def test_few_texts_are_a_vocabulary_whatever_is_in_them(tmp_path, words):
    feature, _, _ = one(tmp_path, RANDOM.choice(words, NUM_ROWS))
    assert feature.feature_type == FeatureConfig.IdFeature
    assert sorted(feature.vocab_list) == sorted(words)


def test_names_with_commas_are_no_tags_and_are_told(tmp_path, capsys):
    nouns = [f"Noun{i}" for i in range(120)]
    names = [noun if i % 5 else f"{noun}, Shoes, Hats" for i, noun in enumerate(nouns)]
    feature, text, _ = one(tmp_path, RANDOM.choice(names, NUM_ROWS))
    assert feature.feature_type == FeatureConfig.IdFeature
    assert feature.hash_bucket_size
    note = "of the texts hold ',', such as 'Noun0, Shoes, Hats', and are read as one value each"
    assert note in capsys.readouterr().out
    assert note in re.sub(r"\n# +", " ", text)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        ([f"{p:.2f}".replace(".", ",") for p in RANDOM.lognormal(3, 1, NUM_ROWS)], "a decimal comma, such as "),
        ([f"{p:g}".replace(".", ",") for p in RANDOM.integers(2, 900, NUM_ROWS) / 2], "a decimal comma, such as "),
        ([f"{p:,}".replace(",", ".") + ",50" for p in RANDOM.integers(0, 9999, NUM_ROWS)], "a decimal comma"),
        ([f"{p:,}" for p in RANDOM.integers(0, 99999, NUM_ROWS)], "a comma between thousands, such as "),
        ([f"{p:,.2f}" for p in RANDOM.lognormal(8, 1, NUM_ROWS)], "a comma between thousands, such as "),
        ([f"${p:.2f}" for p in RANDOM.lognormal(3, 1, NUM_ROWS)], "a unit, such as '$"),
        ([f"{p:.1f} %" for p in RANDOM.random(NUM_ROWS) * 100], "a unit, such as "),
    ],
)
def test_numbers_with_commas_are_told(tmp_path, capsys, texts, why):
    feature, _, _ = one(tmp_path, texts, "price")
    assert feature is None
    assert f"no feature: price: looks like numbers with {why}" in capsys.readouterr().out
    # Few texts are a vocabulary, but are told, too.
    feature, _, _ = one(tmp_path, [texts[i % 50] for i in range(NUM_ROWS)], "price")
    assert sorted(feature.vocab_list) == sorted(set(texts[:50]))
    assert f"note: column 'price': looks like numbers with {why}" in capsys.readouterr().out


def test_numbers_with_other_texts_among_them_are_told(tmp_path, capsys):
    ages = [str(age) if i % 20 else "unknown" for i, age in enumerate(RANDOM.integers(18, 80, NUM_ROWS))]
    feature, _, _ = one(tmp_path, ages, "age")
    assert "unknown" in feature.vocab_list
    note = "note: column 'age': 95 % of the texts are numbers, and others, such as 'unknown', are not"
    assert note in capsys.readouterr().out


# --- Missing values


@pytest.mark.parametrize(
    ("values", "kind", "default", "num_buckets"),
    [
        (pa.array([[True, False, None][i % 3] for i in range(NUM_ROWS)]), "INT64", "2", 3),
        (pa.array([[True, None][i % 2] for i in range(NUM_ROWS)]), "INT64", "2", 3),
        (pa.array([i % 2 == 0 for i in range(NUM_ROWS)]), "BOOL", None, 2),
        (pa.array([[0, 1, 2, None][i % 4] for i in range(NUM_ROWS)]), "INT64", "3", 4),
    ],
)
def test_a_missing_bool_or_small_number_is_a_value_of_its_own(tmp_path, values, kind, default, num_buckets):
    feature, _, field = one(tmp_path, values)
    assert DatasetConfig.FieldType.Name(field.input_type) == kind
    assert (field.default_val if field.HasField("default_val") else None) == default
    assert feature.num_buckets == num_buckets


@pytest.mark.parametrize("least", [0, 1, -300, 1 - 10**18])
def test_a_missing_id_is_an_id_that_no_row_has(tmp_path, least):
    ids = [None if i % 9 == 0 else int(least + i % 400 * 7) for i in range(NUM_ROWS)]
    feature, _, field = one(tmp_path, pa.array(ids), "shop_id")
    assert feature.hash_bucket_size
    assert int(field.default_val) not in ids


@pytest.mark.parametrize("values", [["rome", None, "oslo"], [f"q{i}" for i in range(500)] + [None], ["a|b", None, "b"]])
def test_a_missing_text_need_not_be_in_requests(tmp_path, values):
    column = [values[i % len(values)] for i in range(NUM_ROWS)]
    feature, _, field = one(tmp_path, column)
    assert field.HasField("default_val")
    assert field.default_val == ""
    assert feature.feature_type in (FeatureConfig.IdFeature, FeatureConfig.TagFeature)
    assert not one(tmp_path, ["a", "b"] * (NUM_ROWS // 2))[2].HasField("default_val")


def test_missing_users_have_an_id_of_their_own(tmp_path, capsys):
    """Also where the user is no feature, so that gauc does not give their rows to another user."""
    users = pd.Series(RANDOM.integers(0, 50, NUM_ROWS), dtype=float)
    users[7] = np.nan
    _, _, config = infer(tmp_path, {"user_id": users}, label_fields="click", user_field="user_id")
    (field,) = [field for field in config.data_config.input_fields if field.input_name == "user_id"]
    assert (DatasetConfig.FieldType.Name(field.input_type), field.default_val) == ("INT64", "50")
    assert "note: 1 rows without 'user_id' count as those of one user" in capsys.readouterr().out


def test_users_in_floats_that_run_together_have_no_gauc(tmp_path, capsys):
    users = 1.8e18 + RANDOM.integers(0, 500, NUM_ROWS) * 100.0
    _, text, _ = infer(tmp_path, {"user_id": users}, label_fields="click", user_field="user_id")
    assert "gauc {" not in text
    assert "column 'user_id' has floats so large that several ids are the same one" in capsys.readouterr().out
    _, text, _ = infer(tmp_path, {"user_id": np.arange(NUM_ROWS) * 1.0}, label_fields="click", user_field="user_id")
    assert 'gauc { uid_field: "user_id" }' in text


# --- Numbers, labels, names


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([7, 2**63 - 1], pa.uint64()), "string"),  # more than 18 digits
        (pa.array([7, 2**63 + 5], pa.uint64()), "string"),
        (pa.array([7, 2**64 - 1, None], pa.uint64()), "string"),
        (pa.array([Decimal(7), Decimal(10**25)], pa.decimal128(30, 0)), "string"),
        (pa.array([7, 8, None], pa.uint64()), "int64"),
    ],
)
def test_numbers_without_a_sign(tmp_path, column, kind):
    log = pa.table({"item_id": column, "img_path": ["a.jpg"] * len(column), "click": [0, 1, 1][: len(column)]})
    pq.write_table(log, tmp_path / "log.parquet")
    output = run(tmp_path, log="log.parquet", max_bad_share=1)
    expected = {str(v) if kind == "string" else v for v in column.to_pylist() if v is not None}
    assert {int(v) if kind != "string" else v for v in {g["item_id"] for _, g in groups_of(output)}} == expected
    # With a file of small numbers beside it, the ids of both are of one type.
    small = log.set_column(0, "item_id", pa.array([7] * len(column)))
    (tmp_path / "logs").mkdir()
    pq.write_table(log, tmp_path / "logs/a.parquet")
    pq.write_table(small, tmp_path / "logs/b.parquet")
    output = run(tmp_path, log=f"{tmp_path}/logs", output="both", max_bad_share=1)
    assert {g["item_id"] for _, g in groups_of(output)} == expected


def test_whole_numbers_that_run_together_with_32_bits_are_ids(tmp_path):
    feature, _, _ = one(tmp_path, RANDOM.integers(10**9, 10**9 + 300, NUM_ROWS), "member")
    assert (feature.feature_type, feature.hash_bucket_size) == (FeatureConfig.IdFeature, 600)
    feature, _, _ = one(tmp_path, RANDOM.lognormal(12, 1, NUM_ROWS).astype(int), "distance")
    assert feature.feature_type == FeatureConfig.RawFeature


def test_a_column_of_0_and_1_is_no_label_by_is_alone(tmp_path, capsys):
    columns = {
        "click": (RANDOM.random(NUM_ROWS) < 0.2).astype(int),
        "is_new": RANDOM.integers(0, 2, NUM_ROWS),
        "is_vip": RANDOM.random(NUM_ROWS) < 0.5,
        "is_buy": RANDOM.integers(0, 2, NUM_ROWS),
    }
    features, _, config = infer(tmp_path, columns)
    assert [tower.label_name for tower in config.model_config.e2e_mm_dbmtl.task_towers] == ["click", "is_buy"]
    assert {"is_new", "is_vip"} <= set(features)
    note = "note: column 'is_new' of 0 and 1 is a feature; if it is an outcome, name it in --label_fields"
    assert note in capsys.readouterr().out


def test_columns_that_cannot_be_inputs_of_an_export(tmp_path, capsys):
    columns = {
        "user id": RANDOM.integers(0, 9, NUM_ROWS),
        "c-1.x/y": RANDOM.random(NUM_ROWS),
        "größe": RANDOM.random(NUM_ROWS),
    }
    features, _, _ = infer(tmp_path, columns, label_fields="click")
    assert "größe" in features
    output = capsys.readouterr().out
    for name in ("user id", "c-1.x/y"):
        assert name not in features
        assert f"no feature: {name}: cannot be an input of an exported model: rename it" in output


def test_a_vocabulary_is_not_broken_within_a_word(tmp_path):
    words = [f"{'long ' * (i % 7)}name {i} of a place" for i in range(90)]
    feature, text, _ = one(tmp_path, RANDOM.choice(words, NUM_ROWS))
    assert sorted(feature.vocab_list) == sorted(words)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("size", [100_000, 10**9])
def test_groups_may_be_larger_than_a_batch(tmp_path, size):
    columns = {"item_id": ["a", "b"] * (NUM_ROWS // 2), "img_path": ["a.jpg", "b.jpg"] * (NUM_ROWS // 2)}
    features, _, config = infer(tmp_path, {**columns, "x": RANDOM.random(NUM_ROWS)}, max_group_size=size)
    assert "x" in features
    assert config.data_config.batch_size == 8


def test_row_numbers_are_told_whatever_the_order(tmp_path):
    counter = 10**6 + np.cumsum(RANDOM.integers(1, 1000, NUM_ROWS))
    for order in (np.arange(NUM_ROWS), RANDOM.permutation(NUM_ROWS)):
        feature, text, _ = one(tmp_path, counter[order], "seq")
        assert feature is None
        assert "has a different value in every row" in left_out(text)["seq"]
