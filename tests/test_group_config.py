"""The config that `group` infers: what it says of each column, and that training takes it as it is."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow_helpers import use_small_backbone
from group_helpers import make_log, make_pictures, run, write_csv

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.grouping import feature_plans
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.model_pb2 import FeatureGroupConfig

NUM_ROWS = 6000


def infer(folder, columns, /, **flags):
    """Features by name and the text of the config for a log of these columns beside item, picture and click."""
    random = np.random.default_rng(5)
    item = np.arange(NUM_ROWS) % 200
    table = {"item_id": [f"i{i}" for i in item], "img_path": [f"{i}.jpg" for i in item]}
    table |= {"click": (random.random(NUM_ROWS) < 0.2).astype(int), **columns}
    pq.write_table(pa.table(table), folder / "log.parquet")
    run(folder, "--overwrite", log="log.parquet", pipeline_config_template=folder / "x.config", **flags)
    pipeline = load_pipeline(str(folder / "x.config"))
    features = {feature.input_names[0]: feature for feature in pipeline.config.feature_config.features}
    return features, (folder / "x.config").read_text(), pipeline.config


def why(text, name):
    """The comment over a feature."""
    match = re.search(rf'((?:  # .*\n)+)  features \{{\s*input_names: "{name}"', text)
    return re.sub(r"\n? *# *", " ", match[1]).strip()


def ids(feature):
    """What decides the table of an id."""
    return {
        field.name: value if isinstance(value, int | str) else list(value)
        for field, value in feature.ListFields()
        if field.name in ("hash_bucket_size", "num_buckets", "vocab_list", "embedding_dim", "per_group")
    }


def test_ids(tmp_path):
    random = np.random.default_rng(0)
    cities = random.choice(["rome", "oslo", "bonn"], NUM_ROWS, p=[0.2, 0.5, 0.3])
    features, text, config = infer(
        tmp_path,
        {
            "user_id": [f"u{i}" for i in random.integers(0, 3000, NUM_ROWS)],
            "city": cities,
            "gender": pa.array([["f", "m", None][i] for i in random.integers(0, 3, NUM_ROWS)]),
            "hour": random.integers(0, 24, NUM_ROWS),
            "device_id": random.integers(10**6, 10**6 + 500, NUM_ROWS),
            "slot": pa.array([None if i == 3 else i for i in random.integers(0, 4, NUM_ROWS)]),
            "is_new": random.random(NUM_ROWS) < 0.5,
            "brand": [f"b{i % 200 % 30}" for i in range(NUM_ROWS)],
        },
        label_fields="click",
        user_field="user_id",
    )
    num_users = json.loads((tmp_path / "out/stats.json").read_text())["columns"]["user_id"]["distinct"]
    assert 2 * num_users <= features["user_id"].hash_bucket_size < 2.1 * num_users
    order = sorted({"rome", "oslo", "bonn"}, key=lambda name: -np.count_nonzero(cities == name))
    assert ids(features["city"]) == {"vocab_list": order, "embedding_dim": 8}
    assert "3 distinct values: each has a row of the table" in why(text, "city")
    assert sorted(features["gender"].vocab_list) == ["f", "m"]
    assert "missing in 3" in why(text, "gender")
    assert ids(features["hour"]) == {"num_buckets": 24, "embedding_dim": 8}
    assert ids(features["device_id"]) == {"hash_bucket_size": 1000, "embedding_dim": 8}
    # A missing one has a row of its own.
    assert ids(features["slot"]) == {"num_buckets": 4, "embedding_dim": 8}
    defaults = {field.input_name: field.default_val for field in config.data_config.input_fields}
    assert defaults["slot"] == "3"
    assert ids(features["brand"]) == {**ids(features["brand"]), "per_group": True}
    assert "the same for all rows of an item" in why(text, "brand")
    assert features["item_id"].per_group
    assert not features["hour"].per_group
    groups = {group.group_name: group for group in config.model_config.feature_groups}
    wide = {name for name, group in groups.items() if group.wide_deep == FeatureGroupConfig.WIDE}
    # Ids with few rows each; the others are for the network.
    rows_of_user = NUM_ROWS / num_users
    assert "user_id_wide" in wide
    assert groups["user_id_wide"].wide_regularization == pytest.approx(1 / (0.4**2 * rows_of_user), rel=0.05)
    assert "user_id" not in groups["all"].feature_names
    assert {"city", "gender", "hour", "brand"} <= set(groups["all"].feature_names)
    (tower,) = config.model_config.e2e_mm_dbmtl.task_towers
    assert tower.label_name == "click"
    assert [metric.WhichOneof("metric") for metric in tower.metrics_set][:2] == ["auc", "gauc"]
    assert all(
        feature.feature_type == FeatureConfig.IdFeature for name, feature in features.items() if ids(feature) and name
    )


def test_numbers(tmp_path):
    random = np.random.default_rng(0)
    age, price = random.uniform(18, 80, NUM_ROWS), random.lognormal(3, 2, NUM_ROWS)
    price[::3] = np.nan
    views = random.zipf(1.3, NUM_ROWS).clip(max=10**6)
    features, text, config = infer(
        tmp_path, {"age_years": age, "price": price, "views": views, "same": np.full(NUM_ROWS, 2.5)}
    )
    defaults = {field.input_name: field.default_val for field in config.data_config.input_fields}
    for name, values in (("age_years", age), ("price", price[~np.isnan(price)])):
        limits = np.array(features[name].boundaries, np.float32)
        assert np.all(np.diff(limits) > 0)
        # Each bucket holds boundaries[i-1] <= x < boundaries[i]: a sixteenth of the rows.
        buckets = np.searchsorted(limits, values.astype(np.float32), side="right")
        has_missing = name == "price"
        assert len(limits) == 15 + has_missing
        counts = np.bincount(buckets - has_missing, minlength=16)
        np.testing.assert_allclose(counts / len(values), 1 / 16, atol=0.002)
        assert features[name].embedding_dim
        assert "16 buckets with about the same number of rows each" in why(text, name)
    assert float(defaults["price"]) < features["price"].boundaries[0]
    assert "and one for missing values" in why(text, "price")
    assert "missing in 33% of the rows" in why(text, "price")

    # A third of the views are 1: a bucket of their own, and the others hold about as many rows each.
    limits = np.array(features["views"].boundaries)
    counts = np.bincount(np.searchsorted(limits, views, side="right"), minlength=len(limits) + 1)
    assert counts[0] == np.count_nonzero(views == 1)
    assert len(counts) == 16
    assert counts[5:].max() < 1.5 * counts[5:].min()
    assert "same" not in features
    assert "# No feature: same: is 2.5 in all rows." in text


def test_numbers_are_fitted_to_a_sample_of_a_large_log(tmp_path, monkeypatch):
    from easyrec_mm.grouping import rows

    monkeypatch.setattr(rows, "SAMPLE_ROWS", 2000)
    price = np.random.default_rng(0).lognormal(3, 2, NUM_ROWS)
    features, _, _ = infer(tmp_path, {"price": np.sort(price)})
    limits = np.array(features["price"].boundaries)
    counts = np.bincount(np.searchsorted(limits, price, side="right"), minlength=16)
    np.testing.assert_allclose(counts / NUM_ROWS, 1 / 16, atol=0.02)


def test_texts_of_several_values(tmp_path):
    random = np.random.default_rng(0)
    samples = [random.permutation(40)[: random.integers(0, 5)] for _ in range(NUM_ROWS)]
    features, text, _ = infer(
        tmp_path,
        {
            "tags": ["|".join(f"t{i}" for i in sample) for sample in samples],
            "interests": [",".join(f"t{i}:{(i + 1) / 10}" for i in sample) for sample in samples],
            "vector": [";".join(f"{x:.3f}" for x in random.normal(size=4)) for _ in range(NUM_ROWS)],
            "listed": pa.array([[f"c{i}" for i in sample] for sample in samples]),
            "title": [f"a title, of {i} words" for i in range(NUM_ROWS)],
        },
    )
    assert (features["tags"].feature_type, features["tags"].separator) == (FeatureConfig.TagFeature, "|")
    assert not features["tags"].kv_separator
    assert features["interests"].feature_type == FeatureConfig.TagFeature
    assert (features["interests"].separator, features["interests"].kv_separator) == (",", ":")
    assert (features["vector"].feature_type, features["vector"].raw_input_dim) == (FeatureConfig.RawFeature, 4)
    assert (features["listed"].feature_type, features["listed"].separator) == (FeatureConfig.TagFeature, "|")
    # Words of a text are no tags.
    assert "# No feature: title: has a different value in every row" in text
    assert "40 distinct in a sample" in why(text, "tags")


def test_what_would_tell_the_answer_or_is_no_feature(tmp_path):
    random = np.random.default_rng(0)
    item = np.arange(NUM_ROWS) % 200
    click = (random.random(NUM_ROWS) < 0.2).astype(int)
    features, text, config = infer(
        tmp_path,
        {
            "click": click,
            "is_like": click * (random.random(NUM_ROWS) < 0.3),
            "dwell": click * random.exponential(5, NUM_ROWS),
            "buy": pa.array([None if i % 9 == 0 else i % 2 for i in range(NUM_ROWS)]),
            "is_new": item % 2,
            "time": 1_700_000_000 + np.arange(NUM_ROWS),
            "created_at": ["2026-01-02 03:04:05"] * (NUM_ROWS // 2) + ["2026-02-02 03:04:05"] * (NUM_ROWS // 2),
            "play_time": random.exponential(3, NUM_ROWS),
            "empty": pa.nulls(NUM_ROWS, pa.string()),
        },
    )
    assert [tower.label_name for tower in config.model_config.e2e_mm_dbmtl.task_towers] == ["click", "is_like"]
    assert "Labels were guessed from names and values: click, is_like." in text
    assert set(features) == {"item_id", "is_new", "play_time", "img_path", "group_size"}
    for name, reason in {
        "dwell": "predicts the label 'click' too well (AUC 1.000): perhaps known only after the impression",
        "buy": "looks like a label and is missing in 667 rows",
        "time": "is a time: later rows have values that do not occur in training",
        "created_at": "is a time: later rows have values that do not occur in training",
        "empty": "has no values",
    }.items():
        assert f"# No feature: {name}: {reason}" in re.sub(r"\n#  +", " ", text)


def test_labels_that_are_told(tmp_path):
    random = np.random.default_rng(0)
    play = random.exponential(3, NUM_ROWS)
    columns = {"is_like": random.integers(0, 2, NUM_ROWS), "play_time": play}
    _, text, config = infer(tmp_path, columns, label_fields="play_time,click")
    towers = config.model_config.e2e_mm_dbmtl.task_towers
    # The class first, so that the number can build upon it.
    assert [tower.label_name for tower in towers] == ["click", "play_time"]
    assert list(towers[1].relation_tower_names) == ["click"]
    assert towers[1].weight == pytest.approx(0.25 / play.var(), rel=0.3)
    assert "is_like: looks like a label that is not in --label_fields" in text


def test_a_log_without_labels(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", [("i", "p.jpg", "u", 3, 1.5)] * 5)
    run(tmp_path, pipeline_config_template=tmp_path / "x.config", expect=1)
    assert "--label_fields: no column looks like a label of 0 and 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_have_an_end():
    assert feature_plans.table_rows(10) == (100, "hashed into 100 rows")
    assert feature_plans.table_rows(12_345)[0] == 25_000
    rows, note = feature_plans.table_rows(10**9)
    assert rows == 50_000_000
    assert "a larger table may be worthwhile" in note


def _group_pictures(tmp_path, kind):
    """Group a log with pictures, one of which is missing; the flags of `train`."""
    table = make_log(tmp_path, num_rows=600, num_items=40)
    names = sorted(set(table["img_path"].to_pylist()))
    make_pictures(tmp_path, names, np.random.default_rng(0))
    values = table["img_path"].to_pylist()
    without = pa.array([None if path == names[0] else path for path in values])
    pq.write_table(table.set_column(1, "img_path", without), tmp_path / "log.parquet")
    flags = {"label_fields": "click,play_time", "user_field": "user", "split_by": "time:time", "format": kind}
    flags |= {"image_root": tmp_path, "pipeline_config_template": tmp_path / "x.config", "rtp_separator": ";"}
    run(tmp_path, log="log.parquet", max_group_size=4, **flags)
    return ["--pipeline_config", str(tmp_path / "x.config")]


@pytest.mark.slow
def test_training_takes_the_config_as_it_is(tmp_path, monkeypatch):
    """Two commands from a log to a model; nothing is set but what the log is. More epochs are trained at rates of their
    own."""
    use_small_backbone(monkeypatch)
    flags = _group_pictures(tmp_path, "parquet")
    assert main(["train", *flags]) == 0
    result = json.loads((tmp_path / "out_model/eval_result.json").read_text())
    assert {"auc_click", "gauc_click", "root_mean_squared_error_play_time"} <= set(result)
    stats = json.loads((tmp_path / "out/eval/stats.json").read_text())
    assert result["num_samples"] == stats["rows"] == 60
    num_epochs = load_pipeline(str(tmp_path / "x.config")).config.train_config.num_epochs
    assert _steps_and_rates(tmp_path)[0] == _steps_of(tmp_path, num_epochs)

    assert main(["train", *flags, f"--set=train_config.num_epochs={num_epochs + 1}"]) == 0
    steps, rates = _steps_and_rates(tmp_path)
    assert steps == _steps_of(tmp_path, num_epochs + 1)
    assert min(rates) > 0
    evaluated = [line["step"] for line in _log(tmp_path) if line["kind"] == "eval"]
    assert evaluated[-2:] == [_steps_of(tmp_path, num_epochs), steps]


@pytest.mark.parametrize("kind", ["tfrecord", "rtp"])
def test_the_config_reads_every_format(tmp_path, capsys, kind):
    assert main(["check", *_group_pictures(tmp_path, kind)]) == 0
    assert "bad records: none" in capsys.readouterr().out


def _steps_of(folder, num_epochs):
    """Steps that so many epochs have."""
    groups = json.loads((folder / "out/train/stats.json").read_text())["groups"]
    return -(-groups * num_epochs // load_pipeline(str(folder / "x.config")).config.data_config.batch_size)


def _log(folder):
    return [json.loads(line) for line in (folder / "out_model/metrics.jsonl").read_text().splitlines()]


def _steps_and_rates(folder):
    """The last step, and the learning rates of the lines of training."""
    lines = [line for line in _log(folder) if line["kind"] == "train"]
    return lines[-1]["step"], [line["learning_rate"] for line in lines]


WORDS = ["red", "warm", "shoe", "for", "children", "of", "wool", "blue", "light", "coat"]


def texts_of(words, num_words, separator=" "):
    """A text for each of 200 items, of which no two are the same, in every row of the item."""
    random = np.random.default_rng(2)
    texts = [separator.join([*random.choice(words, num_words), f"{words[0]}{i}"]) for i in range(200)]
    return [texts[i] for i in np.arange(NUM_ROWS) % 200]


def test_texts_of_items(tmp_path):
    """Titles in several scripts and long descriptions are; codes, kinds, and texts of rows instead of items are not."""
    columns = {
        "title": texts_of(WORDS, 4),
        "name_ja": texts_of(["赤い", "暖かい", "靴", "子供用", "ウール"], 4, ""),
        "story": texts_of(WORDS, 400),
        "sku": [f"sku-{i}-a" for i in np.arange(NUM_ROWS) % 200],
        "kind": [["warm shoe for children of wool", "light blue coat"][i % 2] for i in np.arange(NUM_ROWS) % 200],
        "query": [f"red warm shoe for children {i}" for i in range(NUM_ROWS)],
        "nothing": pa.array([None] * NUM_ROWS, pa.string()),
    }
    *_, config = infer(tmp_path, columns)
    (feature,) = [f for f in config.feature_config.features if f.feature_type == FeatureConfig.TextFeature]
    assert feature.input_names == ["title", "name_ja", "story"]
    assert config.model_config.e2e_mm_dbmtl.HasField("text_model")
    for kind in ("out", "log.parquet"):
        assert main(["init", "--input", f"{tmp_path}/{kind}", "--output", f"{tmp_path}/init_{kind}"]) == 0
        features = load_pipeline(f"{tmp_path}/init_{kind}").config.feature_config.features
        assert [f.input_names for f in features if f.feature_type == FeatureConfig.TextFeature] == [feature.input_names]
