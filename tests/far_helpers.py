"""Trainings in which one number makes a step useless: its square overflows in the batch norm of the features."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from training_helpers import Training, optimizer

from easyrec_mm.config.pipeline import load_pipeline

FAR = "9e18"
# The price and its square are features; groups are read in the order of the file.
CHANGES = {
    'features { input_names: "price" feature_type: RawFeature }': """features { input_names: "price"
        feature_type: RawFeature } features { feature_name: "square" input_names: "price" feature_type: ExprFeature
        expression: "price * price" }""",
    '["user", "item", "price"]': '["user", "item", "price", "square"]',
    "batch_size: 4": "batch_size: 4 shuffle: false",
}
# Groups are numbered from 1; these are those of the second batch.
SECOND_BATCH = range(5, 9)


def write_far(data: Path, name: str, far: dict[int, int], left_out: range = range(0)) -> None:
    """Write one.txt with a far price in some samples, row -> number of the sample, from 0; without some rows."""
    lines = (data / "one.txt").read_text().splitlines()
    for row, sample in far.items():
        clicks, kinds, samples, *rest = lines[row - 1].split("|")
        texts = samples.split("\x01")
        texts[sample] = "\x02".join([*texts[sample].split("\x02")[:-1], FAR])
        lines[row - 1] = "|".join([clicks, kinds, "\x01".join(texts), *rest])
    lines = [line for row, line in enumerate(lines, 1) if row not in left_out]
    (data / name).write_text("\n".join(lines) + "\n")


def far_training(data: Path, folder: Path, train: str, file: str = "far.txt", **settings) -> Training:
    changes = {**CHANGES, **settings.pop("changes", {})}
    return Training(data, folder, train=train, file=file, changes=changes, **settings)


# --- Flat logs and TFRecords without pictures

NUM_ROWS, FAR_ROW = 40, 27


def table() -> dict[str, list]:
    """Columns of a log of 40 samples; the price of the 27th is far."""
    prices = [round(0.1 * (i % 7), 1) for i in range(NUM_ROWS)]
    prices[FAR_ROW - 1] = float(FAR)
    return {
        "click": [i % 2 for i in range(NUM_ROWS)],
        "user": [f"u{i % 5}" for i in range(NUM_ROWS)],
        "price": prices,
    }


def write_log(folder: Path, kind: str) -> None:
    """Write the log as two files of 20 rows, of an input type."""
    for part in range(2):
        columns = {name: values[20 * part : 20 * part + 20] for name, values in table().items()}
        path = folder / f"part-{part}"
        if kind == "ParquetInput":
            pq.write_table(pa.table(columns), path)
        elif kind == "CSVInput":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
        else:
            with tf.io.TFRecordWriter(str(path)) as writer:
                for click, user, price in zip(*columns.values(), strict=True):
                    features = {
                        "click": tf.train.Feature(int64_list=tf.train.Int64List(value=[click])),
                        "user": tf.train.Feature(bytes_list=tf.train.BytesList(value=[user.encode()])),
                        "price": tf.train.Feature(float_list=tf.train.FloatList(value=[price])),
                        "size": tf.train.Feature(int64_list=tf.train.Int64List(value=[1])),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())


def log_training(folder: Path, kind: str, train: str) -> Path:
    """Write the log and a config of a training on it, shuffled; return the path of the config."""
    write_log(folder, kind)
    size = 'input_fields { input_name: "size" input_type: INT32 }' if kind == "GroupTFRecordInput" else ""
    of_size = 'features { input_names: "size" feature_type: SampleNumFeature }' if size else ""
    path = folder / "log.config"
    path.write_text(f"""
train_input_path: "{folder}/part-*"
model_dir: "{folder}/m"
data_config {{
  input_type: {kind} batch_size: 8 {"with_header: true" if kind == "CSVInput" else ""} label_fields: "click"
  input_fields {{ input_name: "click" input_type: INT32 }}
  input_fields {{ input_name: "user" input_type: STRING }}
  input_fields {{ input_name: "price" input_type: FLOAT }}
  {size}
}}
feature_config {{
  features {{ input_names: "user" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 3 }}
  features {{ feature_name: "square" input_names: "price" feature_type: ExprFeature expression: "price * price" }}
  {of_size}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "all" feature_names: ["user", "square"] }}
  e2e_mm_dbmtl {{ task_towers {{ tower_name: "click" label_name: "click" dnn {{ hidden_units: [4] }} }} }}
}}
train_config {{ {optimizer()} precision: FLOAT32 {train} }}
""")
    load_pipeline(str(path))
    return path
