"""Every input type through the commands: the same data trains the same model and is predicted the same."""

import csv
import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from flow_helpers import ROOT, demo_flags, make_data, use_small_backbone

from easyrec_mm.cli import main

CONFIG = (ROOT / "configs/demo.config").read_text(encoding="utf-8")
KINDS = dict(re.findall(r'input_fields \{ input_name: "(\w+)" input_type: (\w+)', CONFIG))
TYPES = {"INT32": (pa.int64(), int), "FLOAT": (pa.float64(), float), "STRING": (pa.string(), str)}
LABELS = ("click", "play_time")
OF_SAMPLES = [name for name in KINDS if name not in (*LABELS, "img_path", "group_size")]


def read_groups(path):
    """Field -> values of each group of the demo's lines; a value that is missing is None."""
    groups = []
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    for line in content.decode().splitlines():
        columns = line.split("|")
        rows = [sample.split("\x02") for sample in columns[4].split("\x01")]
        texts = {name: list(values) for name, values in zip(OF_SAMPLES, zip(*rows, strict=True), strict=True)}
        texts |= {"click": columns[2].split("\x01"), "play_time": columns[3].split("\x01")}
        group = {name: [TYPES[KINDS[name]][1](v) if v else None for v in texts[name]] for name in texts}
        groups.append({**group, "img_path": columns[5], "group_size": int(columns[6])})
    return groups


def write_grouped(path, groups):
    columns = {
        name: pa.array([group[name] for group in groups], pa.list_(TYPES[kind][0]))
        for name, kind in KINDS.items()
        if name not in ("img_path", "group_size")
    }
    for name in ("img_path", "group_size"):
        columns[name] = pa.array([group[name] for group in groups])
    pq.write_table(pa.table(columns), path)


def write_tfrecord(path, groups):
    makers = {
        "INT32": lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values)),
        "FLOAT": lambda values: tf.train.Feature(float_list=tf.train.FloatList(value=values)),
        "STRING": lambda values: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values])),
    }
    empty = {"INT32": 0, "FLOAT": 0.0, "STRING": ""}
    with tf.io.TFRecordWriter(str(path)) as writer:
        for group in groups:
            features = {}
            for name, kind in KINDS.items():
                values = group[name] if isinstance(group[name], list) else [group[name]]
                features[name] = makers[kind]([empty[kind] if value is None else value for value in values])
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def rows_of(groups):
    names = [*LABELS, *OF_SAMPLES]
    return [
        {**{name: group[name][i] for name in names}, "img_path": group["img_path"]}
        for group in groups
        for i in range(group["group_size"])
    ]


def write_csv(path, groups):
    rows = rows_of(groups)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_flat(path, groups):
    rows = rows_of(groups)
    pq.write_table(pa.table({n: pa.array([row[n] for row in rows], TYPES[KINDS[n]][0]) for n in rows[0]}), path)


WRITERS = {
    "GroupParquetInput": write_grouped,
    "GroupTFRecordInput": write_tfrecord,
    "ParquetInput": write_flat,
    "CSVInput": write_csv,
}


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_small_backbone(monkeypatch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, data): a model trained on lines of text, `folder/text`, and the same data in every format."""
    folder = tmp_path_factory.mktemp("inputs")
    data = make_data(folder / "data")
    for kind, write in WRITERS.items():
        for split in ("train", "test"):
            (folder / kind / split).mkdir(parents=True)
            groups = [group for path in sorted((data / split).iterdir()) for group in read_groups(path)]
            write(folder / kind / split / "part-0", groups)
    assert main(["train", *demo_flags(data, folder / "text", data_config__shuffle="false")]) == 0
    return folder, data


def flags(trained, kind, model, **settings):
    """Flags of the demo config for data of another format."""
    folder, data = trained
    text = re.sub(r"  (rtp_separator|group_sample_separator|separator|selected_cols): .*\n", "", CONFIG)
    is_flat = kind in ("ParquetInput", "CSVInput")
    if is_flat:
        text = re.sub(r".*group_size.*\n", "", text)
    header = " with_header: true" if kind == "CSVInput" else ""
    path = folder / f"{kind}.config"
    path.write_text(text.replace("input_type: GroupRTPInput", f"input_type: {kind}{header}"), encoding="utf-8")
    given = demo_flags(data, folder / model, data_config__shuffle="false", **settings)
    given[1] = str(path)
    return [*given, f"--set=train_input_path={folder}/{kind}/train/*"]


def predictions(path):
    table = pq.read_table(path).to_pydict()
    return {name: np.array(values) for name, values in table.items()}


def predict(arguments, files, output):
    assert main(["predict", *arguments, "--predict_input_path", files, "--output", str(output)]) == 0
    return predictions(output)


@pytest.fixture(scope="module")
def expected(trained):
    folder, data = trained
    arguments = [*demo_flags(data, folder / "text"), "--reserved_columns", "user_id,img_path"]
    return predict(arguments, f"{data}/test/*", folder / "text.parquet")


@pytest.mark.parametrize("kind", ["GroupParquetInput", "GroupTFRecordInput"])
def test_groups_in_another_format_train_the_same_model(trained, expected, kind):
    folder, _ = trained
    assert main(["train", *flags(trained, kind, f"model {kind}")]) == 0
    arguments = [*flags(trained, kind, f"model {kind}"), "--reserved_columns", "user_id,img_path"]
    found = predict(arguments, f"{folder}/{kind}/test/*", folder / f"{kind}.parquet")
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("kind", ["ParquetInput", "CSVInput"])
def test_flat_rows_train_and_are_predicted_in_their_order(trained, expected, kind):
    folder, _ = trained
    size = {"data_config__batch_size": 32}
    assert main(["train", *flags(trained, kind, f"model {kind}", **size), "--set=data_config.shuffle=true"]) == 0
    # By the model that was trained on groups: other batches, the same samples.
    arguments = [*flags(trained, kind, "text", **size), "--reserved_columns", "user_id,img_path"]
    found = predict(arguments, f"{folder}/{kind}/test/*", folder / f"{kind}.parquet")
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("kind", WRITERS)
def test_evaluation_and_check(trained, kind, capsys):
    folder, data = trained
    assert main(["eval", *demo_flags(data, folder / "text"), "--eval_input_path", f"{data}/test/*"]) == 0
    wanted = json.loads((folder / "text/eval_result.json").read_text(encoding="utf-8"))
    files = f"{folder}/{kind}/test/*"
    assert main(["eval", *flags(trained, kind, "text"), "--eval_input_path", files]) == 0
    found = json.loads((folder / "text/eval_result.json").read_text(encoding="utf-8"))
    assert found == pytest.approx(wanted, abs=1e-5)
    capsys.readouterr()
    assert main(["check", *flags(trained, kind, "text")]) == 0
    report = capsys.readouterr().out
    assert "bad records: none" in report
    num_samples = sum(group["group_size"] for path in (data / "train").iterdir() for group in read_groups(path))
    num_groups = 48 if kind.startswith("Group") else min(num_samples, 1000)
    assert f"{num_groups} groups read" in report
