"""Groups from format to format and back: nothing is lost, and what cannot be converted is told."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from group_helpers import bad_rows, contents, make_log, make_pictures, run, write_csv
from grouped_helpers import (
    DEFAULTS,
    FIELDS,
    KINDS,
    from_table,
    groups,
    numbered,
    plain_parquet,
    plain_rtp,
    plain_tfrecord,
    to_table,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.grouping.shards import FORMATS

PLAIN = {"parquet": plain_parquet, "tfrecord": plain_tfrecord, "rtp": plain_rtp}
TYPES = {"int64": "INT64", "float32": "FLOAT", "float64": "DOUBLE", "bool": "BOOL", "string": "STRING"}
INPUTS = {"parquet": "GroupParquetInput", "tfrecord": "GroupTFRecordInput", "rtp": "GroupRTPInput"}
PAIRS = [(first, second) for first in FORMATS for second in FORMATS]


def config(folder, kind, path, **changes):
    """A config that reads the fields of the helpers' groups."""
    fields, features, names = "", "", []
    for name, of in KINDS.items():
        default = f' default_val: "{DEFAULTS[name]}"' if name in DEFAULTS else ""
        fields += f'input_fields {{ input_name: "{name}" input_type: {TYPES[of]}{default} }}\n'
        if name in (*FIELDS.labels, "img"):
            continue
        number = "feature_type: RawFeature" if of in ("float32", "float64") else "feature_type: IdFeature"
        number += "" if "Raw" in number else " hash_bucket_size: 100 embedding_dim: 4"
        per_group = " per_group: true" if name in FIELDS.per_group else ""
        features += f'features {{ input_names: "{name}" {number}{per_group} }}\n'
        names.append(f'"{name}"')
    layout = 'rtp_separator: "|" group_sample_separator: "\\001" separator: "\\002" selected_cols: "0,1,2,3,4"'
    text = f"""
train_input_path: "{path}"
model_dir: "{folder}/model"
data_config {{
  input_type: {INPUTS[kind]}
  batch_size: 8
  label_fields: "click" label_fields: "seconds"
  {layout if kind == "rtp" else ""}
  {fields}
  input_fields {{ input_name: "group_size" input_type: INT64 }}
}}
feature_config {{
  {features}
  features {{ input_names: "img" feature_type: ImgFeature img_shape {{ width: 8 height: 8 }} }}
  features {{ input_names: "group_size" feature_type: SampleNumFeature }}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "img" feature_names: "img" }}
  feature_groups {{ group_name: "sample_num" feature_names: "group_size" }}
  feature_groups {{ group_name: "all" feature_names: [{", ".join(names)}] }}
  e2e_mm_dbmtl {{
    img_model {{ model_name: "ResNet" num_classes: 4 no_image_vector: true }}
    bottom_dnn {{ hidden_units: 8 }}
    task_towers {{ tower_name: "a" label_name: "click" loss_type: L2_LOSS dnn {{ hidden_units: 4 }} }}
    task_towers {{ tower_name: "b" label_name: "seconds" loss_type: L2_LOSS dnn {{ hidden_units: 4 }} }}
  }}
}}
train_config {{ num_epochs: 1 optimizer_config {{ adam_optimizer {{ learning_rate {{
  constant_learning_rate {{ learning_rate: 0.001 }} }} }} }} }}
"""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / f"{kind}.config"
    file.write_text(text)
    return file


def convert(folder, pipeline, kind, output, *flags, expect=0):
    """Convert the files of a config; the folder, and the config for it."""
    template = folder / f"{output}.config"
    arguments = ["--pipeline_config", pipeline, "--output", folder / output, "--format", kind, *flags]
    arguments += ["--pipeline_config_template", template]
    assert main(["convert", *map(str, arguments)]) == expect
    return folder / output, template


def file_of(output, kind):
    (path,) = output.glob(f"**/part-*.{FORMATS[kind].ending}")
    return path


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(groups(), st.sampled_from(PAIRS))
def test_there_and_back_are_the_same_bytes(originals, pair):
    first, second = pair
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "a", to_table(originals), first)
        pipeline = config(folder, first, folder / "a")
        there, template = convert(folder, pipeline, second, "there")
        assert PLAIN[second](file_of(there, second)) == originals
        back, _ = convert(folder, template, first, "back")
        assert file_of(back, first).read_bytes() == (folder / "a").read_bytes()
        stats = json.loads((there / "train/stats.json").read_text())
        num_samples = sum(len(group["click"]) for group in originals)
        assert (stats["groups_in"], stats["groups_out"], stats["groups_refused"]) == (len(originals), len(originals), 0)
        assert (stats["rows"], (there / "train/_SUCCESS").exists()) == (num_samples, True)


DOUBLES = st.none() | st.floats(-9e18, 9e18).filter(lambda x: not 0 < abs(x) < 1e-99)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(DOUBLES, min_size=1, max_size=3), min_size=1, max_size=4), st.permutations(list(FORMATS)))
def test_numbers_of_64_bits_go_through_all_formats(values, order):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = to_table([{**dict.fromkeys(KINDS), "img": "", "click": [0] * len(v), "seconds": [0.5] * len(v),
                           "user": ["u"] * len(v), "age": [1] * len(v), "vip": [True] * len(v), "weight": v}
                          for v in values])  # fmt: skip
        write(folder / "a", table, "parquet")
        pipeline = config(folder, "parquet", folder / "a")
        for number, kind in enumerate([*order, "parquet"]):
            output, pipeline = convert(folder, pipeline, kind, f"step{number}")
        assert file_of(output, "parquet").read_bytes() == (folder / "a").read_bytes()


@pytest.mark.parametrize("pair", PAIRS)
def test_training_reads_the_same_batches(tmp_path, pair):
    """Also what a missing value becomes: the default of its field."""
    first, second = pair
    make_pictures(tmp_path, [f"{i}.jpg" for i in range(20)], np.random.default_rng(0))
    table = numbered(20)
    table.columns["age"] = pa.array([None if i % 3 else i for i in range(60)], pa.int64())
    table.columns["weight"] = pa.array([None if i % 4 == 0 else i / 3 for i in range(60)])
    table.columns["user"] = pa.array([None if i % 5 == 0 else f"ü{i}" for i in range(60)])
    table.columns["price"] = pa.array([None if i % 2 else i / 3 for i in range(20)], pa.float32())
    write(tmp_path / "a", table, first)
    pipeline = config(tmp_path, first, tmp_path / "a", **{"batch_size: 8": f'batch_size: 8 image_root: "{tmp_path}"'})
    _, template = convert(tmp_path, pipeline, second, "there")
    require_equal_batches(pipeline, template)


def require_equal_batches(pipeline, template):
    """Compare what training reads by two configs."""
    batches = []
    for path in (pipeline, template):
        loaded = load_pipeline(str(path))
        files = loaded.config.train_input_path
        source = Input(loaded.config.data_config, loaded.schema, files, "train_input_path", BadRecords(None, 0))
        batches.append([tf.nest.flatten(item.batch, expand_composites=True) for item in source.batches(1, 0)])
    assert len(batches[0]) == len(batches[1]) == 3
    for tensors, other_tensors in zip(*batches, strict=True):
        for a, b in zip(tensors, other_tensors, strict=True):
            np.testing.assert_array_equal(np.array(a), np.array(b))


@pytest.mark.parametrize("kind", ["tfrecord", "rtp"])
def test_lists_and_vectors_of_samples_become_the_text_that_their_features_read(tmp_path, kind):
    write(tmp_path / "plain", numbered(20), "parquet")
    table = pq.read_table(tmp_path / "plain")
    tags = pa.array([[[f"t{i}", f"u{j}"][: j + 1] for j in range(3)] for i in range(20)])
    vectors = pa.array([[[i + 0.5, j - 1.5] for j in range(3)] for i in range(20)])
    for name, column in (("user", tags), ("weight", vectors), ("img", pa.array([""] * 20))):
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "a")
    changes = {
        'input_names: "user" feature_type: IdFeature': 'input_names: "user" feature_type: TagFeature separator: ";"',
        'input_name: "weight" input_type: DOUBLE default_val: "0.5"': 'input_name: "weight" input_type: STRING',
        'input_names: "weight" feature_type: RawFeature': 'input_names: "weight" feature_type: RawFeature '
        'raw_input_dim: 2 separator: ","',
    }
    pipeline = config(tmp_path, "parquet", tmp_path / "a", **changes)
    output, template = convert(tmp_path, pipeline, kind, "out")
    require_equal_batches(pipeline, template)
    if kind == "rtp":
        samples = file_of(output, kind).read_text().splitlines()[3].split("|")[2].split("\x01")
        assert [sample.split("\x02")[0] for sample in samples] == ["t3", "t3;u1", "t3;u2"]


def test_files_sides_and_pictures_go_along(tmp_path):
    """What group wrote, with train and eval, several shards and their pictures; and the config that it inferred."""
    table = make_log(tmp_path, num_rows=900, num_items=30)
    make_pictures(tmp_path, sorted(set(table["img_path"].to_pylist())), np.random.default_rng(0))
    flags = {
        "log": "log.parquet",
        "num_shards": 3,
        "split_by": "user",
        "user_field": "user",
        "label_fields": "click,play_time",
    }
    flags |= {"eval_share": 0.4, "image_root": tmp_path, "pipeline_config_template": tmp_path / "g.config"}
    grouped = run(tmp_path, "--embed_images", output="grouped", **flags)
    there, template = convert(tmp_path, tmp_path / "g.config", "tfrecord", "there")
    back, last = convert(tmp_path, template, "parquet", "back")
    before, after = contents(grouped), contents(back)
    of_data = [name for name in before if name.endswith((".parquet", ".tar"))]
    num_files = len(list(grouped.glob("*/*.parquet")))
    assert len(of_data) == 2 * num_files  # each with its pictures
    assert {name: before[name] for name in of_data} == {n: after[n] for n in after if n.endswith((".parquet", ".tar"))}
    assert len(list(there.glob("train/*.tfrecord"))) == 3
    assert len(list(there.glob("*/*.tfrecord"))) == num_files > 3
    configs = [load_pipeline(str(path)).config for path in (tmp_path / "g.config", last)]
    assert configs[1].eval_input_path == f"{back}/eval/part-*.parquet"
    for pipeline_config in configs:
        pipeline_config.ClearField("train_input_path")
        pipeline_config.ClearField("eval_input_path")
    assert configs[0] == configs[1]


def test_processes_beside_each_other_change_nothing(tmp_path, monkeypatch):
    from easyrec_mm.grouping import convert as module

    (tmp_path / "in").mkdir()
    for number in range(3):
        write(tmp_path / f"in/{number}.parquet", numbered(30 + number), "parquet")
    pipeline = config(tmp_path, "parquet", tmp_path / "in")
    serial, _ = convert(tmp_path, pipeline, "rtp", "one", "--num_workers", "1")
    monkeypatch.setattr(module, "MANY_BYTES", 0)
    parallel, _ = convert(tmp_path, pipeline, "rtp", "two", "--num_workers", "2")
    assert contents(serial) == contents(parallel)
    assert len(contents(serial)) == 6


# --- What cannot be converted


def test_groups_that_a_format_has_no_place_for(tmp_path, capsys):
    table = numbered(4)
    for name, place, value in (("user", 4, "a|b"), ("age", 7, 10**18), ("cate", 3, "a\nb")):
        values = table.columns[name].to_pylist()
        values[place] = value
        table.columns[name] = pa.array(values)
    write(tmp_path / "a", table, "parquet")
    pipeline = config(tmp_path, "parquet", tmp_path / "a")
    assert convert(tmp_path, pipeline, "tfrecord", "all")[0].exists()
    capsys.readouterr()
    convert(tmp_path, pipeline, "rtp", "out", expect=1)
    message = capsys.readouterr().err
    assert "3 of 4 groups cannot be used, more than --max_bad_share (0.01). The first:" in message
    assert f"{tmp_path}/a:2: column 'user': sample 1: 'a|b' contains a line break or a separator" in message
    assert not (tmp_path / "out").exists()
    assert len(bad_rows(tmp_path / "out.bad_rows.jsonl")) == 3
    output, _ = convert(tmp_path, pipeline, "rtp", "out", "--max_bad_share", "1")
    refusals = bad_rows(output / "train/bad_rows.jsonl")
    assert [(refusal["row"], refusal["where"], refusal["problem"].split(";")[0]) for refusal in refusals] == [
        (2, "column 'user'", "sample 1: 'a|b' contains a line break or a separator"),
        (3, "column 'age'", "sample 1: 1000000000000000000 has more than 18 digits, which lines of text may not"),
        (4, "column 'cate'", "'a\\nb' contains a line break or a separator"),
    ]  # fmt: skip
    assert from_table(numbered(4))[:1] == plain_rtp(file_of(output, "rtp"))


def test_a_label_that_is_missing(tmp_path):
    table = numbered(3)
    table.columns["click"] = pa.array([1, 0, 1, 1, None, 0, 1, 1, 1])
    write(tmp_path / "a", table, "parquet")
    pipeline = config(tmp_path, "parquet", tmp_path / "a")
    output, _ = convert(tmp_path, pipeline, "tfrecord", "out", "--max_bad_share", "0.5")
    (refusal,) = bad_rows(output / "train/bad_rows.jsonl")
    assert (refusal["row"], refusal["where"]) == (2, "column 'click'")
    assert refusal["problem"] == "sample 1: the label is missing, and its field has no default_val"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_breaks_off(tmp_path, capsys, kind):
    write(tmp_path / "a", numbered(50), kind)
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: len(content) // 2])
    convert(tmp_path, config(tmp_path, kind, tmp_path / "a"), "parquet", "out", expect=1)
    message = capsys.readouterr().err
    # A line of text that is cut is a bad group; of the other formats, the file is.
    expected = {"parquet": "cannot be read as Parquet", "tfrecord": "is truncated", "rtp": "1 of "}[kind]
    assert expected in message
    assert f"{tmp_path}/a" in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_flat_rows_and_no_files(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", [])
    pipeline = config(tmp_path, "parquet", tmp_path / "none", GroupParquetInput="CSVInput")
    convert(tmp_path, pipeline, "rtp", "out", expect=1)
    assert "data_config.input_type: CSVInput holds no groups; easyrec-mm group makes them" in capsys.readouterr().err
    pipeline = config(tmp_path, "parquet", tmp_path / "none")
    convert(tmp_path, pipeline, "rtp", "out", expect=1)
    assert "none' matches no file" in capsys.readouterr().err


def test_columns_that_no_field_names_are_left(tmp_path):
    write(tmp_path / "a", numbered(2), "parquet")
    table = pq.read_table(tmp_path / "a").append_column("more", pa.array([1, 2]))
    pq.write_table(table, tmp_path / "b")
    output, _ = convert(tmp_path, config(tmp_path, "parquet", tmp_path / "b"), "parquet", "out")
    assert file_of(output, "parquet").read_bytes() == (tmp_path / "a").read_bytes()


WITHOUT_PICTURES = """
train_input_path: "{folder}/a.parquet"
model_dir: "{folder}/m"
data_config {{
  input_type: GroupParquetInput
  batch_size: 4
  label_fields: "click"
  input_fields {{ input_name: "click" input_type: INT64 }}
  input_fields {{ input_name: "user" input_type: STRING }}
}}
feature_config {{
  features {{ input_names: "user" feature_type: IdFeature hash_bucket_size: 10 embedding_dim: 4 }}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "all" feature_names: "user" }}
  e2e_mm_dbmtl {{
    bottom_dnn {{ hidden_units: 4 }}
    task_towers {{ tower_name: "click" label_name: "click" dnn {{ hidden_units: 4 }} }}
    l2_regularization: 0
  }}
}}
train_config {{
  num_epochs: 1
  optimizer_config {{ adam_optimizer {{ learning_rate {{ constant_learning_rate {{ learning_rate: 0.01 }} }} }} }}
}}
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_groups_without_pictures(tmp_path, capsys, kind):
    """A config without an ImgFeature: its groups go through every format, and stats shows them."""
    pq.write_table(pa.table({"click": [[1], [0, 1]], "user": [["a"], ["b", "c"]]}), tmp_path / "a.parquet")
    (tmp_path / "x.config").write_text(WITHOUT_PICTURES.format(folder=tmp_path), encoding="utf-8")
    _, there = convert(tmp_path, tmp_path / "x.config", kind, "there")
    output, _ = convert(tmp_path, there, "parquet", "back")
    back = pq.read_table(file_of(output, "parquet"))
    assert {name: back[name].to_pylist() for name in ("click", "user")} == {
        "click": [[1], [0, 1]],
        "user": [["a"], ["b", "c"]],
    }
    capsys.readouterr()
    assert main(["stats", "--pipeline_config", str(there), "--output", str(tmp_path / "stats.html")]) == 0
    assert "2 groups, 3 samples; 0 groups refused" in capsys.readouterr().out
