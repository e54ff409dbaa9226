"""The same random groups in the files of every input type, and what inputs make of them."""

import csv
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from data_helpers import group_line, schema
from feature_helpers import id_feature, raw_feature, tag_feature

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.protos.data_pb2 import DatasetConfig

LABELS = {"click": "int64", "seconds": "float32"}
VALUES = {
    "user": "string",
    "age": "int64",
    "weight": "float32",
    "vip": "bool",
    "tags": "string",
    "scores": "string",
    "cate": "string",
}
DEFAULTS = {"user": "nobody", "age": "-1", "weight": "0.5"}
FEATURES = [
    id_feature("user", ("user",), 4, "user", "hash", 1000),
    raw_feature("age", ("age",), 1),
    raw_feature("weight", ("weight",), 1),
    id_feature("vip", ("vip",), 4, "vip", "identity", 2),
    tag_feature("tags", ("tags", "scores"), 4, "tags", "hash", 100, separator="|", combiner="sum"),
    id_feature("cate", ("cate",), 4, "cate", "hash", 50),
]
SCHEMA = replace(
    schema(LABELS, VALUES, FEATURES, DEFAULTS, [("click", "binary", 1), ("seconds", "value", 1)], uses_image=False),
    group_fields=("cate",),
)
GROUPED = ("GroupRTPInput", "GroupParquetInput", "GroupTFRecordInput")
FLAT = ("CSVInput", "ParquetInput")
TYPES = {"int64": pa.int64(), "bool": pa.bool_(), "float32": pa.float32(), "string": pa.string()}


def random_groups(count, seed=0, missing=0.2):
    """Groups as dicts: picture, and field -> one value a sample; None is missing."""
    random = np.random.default_rng(seed)

    def value(name, row):
        if name not in LABELS and name != "cate" and random.random() < missing:
            return None
        return {
            "click": lambda: int(random.integers(2)),
            "seconds": lambda: float(np.float32(random.normal())),
            "user": lambda: f"u{row}.{random.integers(9)} é",
            "age": lambda: int(random.integers(-9, 99)),
            "weight": lambda: float(np.float32(random.normal())),
            "vip": lambda: bool(random.integers(2)),
        }[name]()

    groups = []
    for row in range(count):
        size = int(random.integers(1, 5))
        group = {name: [value(name, row) for _ in range(size)] for name in (*LABELS, "user", "age", "weight", "vip")}
        tags = [int(random.integers(0, 4)) for _ in range(size)]
        group["tags"] = ["|".join(f"t{i}" for i in range(n)) for n in tags]
        group["scores"] = ["|".join(f"{i}.5" for i in range(n)) for n in tags]
        group["cate"] = [f"c{row % 3}"] * size
        group["img_path"] = f"p{row % 7}.jpg"
        groups.append(group)
    return groups


def text(value):
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_rtp(path, groups):
    lines = []
    for group in groups:
        labels = [[text(v) for v in group[name]] for name in LABELS]
        samples = [[text(v) for v in values] for values in zip(*(group[name] for name in VALUES), strict=True)]
        lines.append(group_line(labels, samples, group["img_path"]))
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def grouped_table(groups):
    columns = {
        name: pa.array([g[name] for g in groups], pa.list_(TYPES[kind])) for name, kind in (LABELS | VALUES).items()
    }
    columns["img_path"] = pa.array([group["img_path"] for group in groups])
    columns["group_size"] = pa.array([len(group["click"]) for group in groups])
    return pa.table(columns)


def write_grouped_parquet(path, groups):
    pq.write_table(grouped_table(groups), path, row_group_size=5)


def feature_of(values, kind):
    if kind == "string":
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[v if isinstance(v, bytes) else v.encode() for v in values])
        )
    if kind == "float32":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(v) for v in values]))


def example(group):
    """A group as tf.train.Example; a missing value is written as the field's default."""
    features = {}
    for name, kind in (LABELS | VALUES).items():
        default = SCHEMA.field(name).default_value
        features[name] = feature_of([default if v is None else v for v in group[name]], kind)
    features["cate"] = feature_of(group["cate"][:1], "string")
    features["img_path"] = feature_of([group["img_path"]], "string")
    features["group_size"] = feature_of([len(group["click"])], "int64")
    return tf.train.Example(features=tf.train.Features(feature=features))


def write_records(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())


def write_tfrecord(path, groups):
    write_records(path, [example(group) for group in groups])


def flat_rows(groups):
    names = [*LABELS, *VALUES]
    return [
        {**{name: group[name][i] for name in names}, "img_path": group["img_path"]}
        for group in groups
        for i in range(len(group["click"]))
    ]


def write_csv(path, groups):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_MINIMAL)
        writer.writerow([*LABELS, *VALUES, "img_path", "not read"])
        for row in flat_rows(groups):
            writer.writerow([*map(text, row.values()), 'a "quoted", one'])


def write_parquet(path, groups):
    rows = flat_rows(groups)
    kinds = {**LABELS, **VALUES, "img_path": "string"}
    pq.write_table(pa.table({n: pa.array([row[n] for row in rows], TYPES[k]) for n, k in kinds.items()}), path)


WRITERS = {
    "GroupRTPInput": write_rtp,
    "GroupParquetInput": write_grouped_parquet,
    "GroupTFRecordInput": write_tfrecord,
    "CSVInput": write_csv,
    "ParquetInput": write_parquet,
}


def input_of(
    kind,
    path,
    training=False,
    records=None,
    schema=SCHEMA,
    kept_fields=("user", "img_path"),
    worker=(0, 1),
    exchange=None,
    task=None,
    **settings,
):
    data = DatasetConfig(
        **{
            "input_type": DatasetConfig.InputType.Value(kind),
            "num_parallel_calls": 2,
            "with_header": kind == "CSVInput",
            "batch_size": 4,
            **settings,
        }
    )
    if kind not in GROUPED:
        schema = replace(schema, group_size_field="")
    records = records or BadRecords(None, 1.0)
    return Input(
        data, schema, str(path), "train_input_path", records, training, None, kept_fields, worker=worker,
        exchange=exchange, task=task,
    )  # fmt: skip


def values_of(batches):
    """All samples: field -> values, in order."""
    parts = {}
    for batch in batches:
        for name, value in {**batch.batch.features, **batch.batch.labels, **batch.kept_fields}.items():
            parts.setdefault(name, []).extend(value.to_list() if hasattr(value, "to_list") else value.numpy().tolist())
    return parts


def users(batches):
    return [user.decode("utf-8", "replace") for batch in batches for user in batch.kept_fields["user"].numpy()]


def expected_values(groups):
    """What the samples are, in plain Python."""
    rows = flat_rows(groups)

    def of(name):
        default = SCHEMA.field(name).default_value
        return [default if row[name] is None else row[name] for row in rows]

    hashed = lambda texts, n: [int(tf.strings.to_hash_bucket_fast(t, n)) for t in texts]  # noqa: E731
    return {
        "user": [user.encode() for user in of("user")],
        "age": [[float(age)] for age in of("age")],
        "weight": [[weight] for weight in of("weight")],
        "vip": [int(vip) for vip in of("vip")],
        "tags:weight": [[float(w) for w in scores.split("|") if w] for scores in of("scores")],
        "tags": [hashed([t for t in tags.split("|") if t], 100) for tags in of("tags")],
        "cate": hashed(of("cate"), 50),
        "click": [float(click) for click in of("click")],
        "seconds": of("seconds"),
        "img_path": [row["img_path"].encode() for row in rows],
    }


def change(groups, row, **changes):
    return [{**group, **changes} if i == row else group for i, group in enumerate(groups)]


def refused(kind, path, **settings):
    """(row, where, problem) of the bad groups, and the users that are left."""
    records = BadRecords(None, 1.0)
    left = users(input_of(kind, path, records=records, **settings).batches())
    return [(bad.row, bad.where, bad.problem) for bad in records.shown["group"]], left


def whole(group):
    """A good group of three samples."""
    return {
        "click": [0, 1, 0],
        "seconds": [0.5, 1.5, 2.5],
        "user": ["a", "b", "c"],
        "age": [1, 2, 3],
        "weight": [1.0, 2.0, 3.0],
        "vip": [True, False, True],
        "tags": ["", "", ""],
        "scores": ["", "", ""],
        "cate": ["c", "c", "c"],
        "img_path": group["img_path"],
    }


def users_of(groups):
    return [user.decode() for user in expected_values(groups)["user"]]
