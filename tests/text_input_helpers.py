"""Groups of users as lines of text, the input that reads them, and records of what is bad."""

import gzip
import json

from data_helpers import group_line, schema
from feature_helpers import raw_feature

from easyrec_mm.data.bad_records import BadRecord, BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.protos.data_pb2 import DatasetConfig

VALUES = {"user": "string", "age": "int64", "weight": "float32"}
FEATURES = [raw_feature("age", ("age",), 1)]


def small_schema(uses_image=False, sample_weight=None):
    return schema(
        {"click": "int64", "seconds": "float32"},
        VALUES,
        FEATURES,
        tasks=[("click", "binary", 1), ("seconds", "value", 1)],
        uses_image=uses_image,
        sample_weight=sample_weight,
    )


def line(users, picture="", clicks=None, size=None):
    """A group of these users, whose ages, weights and seconds are their numbers within the group."""
    count = len(users)
    clicks = clicks or [str(i % 2) for i in range(count)]
    return group_line(
        [clicks, [f"{i}.5" for i in range(count)]], [[u, str(i), f"{i}.25"] for i, u in enumerate(users)], picture, size
    )


def write(path, lines, compress=False):
    content = b"".join(text + b"\n" for text in lines)
    path.write_bytes(gzip.compress(content) if compress else content)
    return path


def input_of(path, records=None, schema=None, training=False, labels=None, kept_fields=("user",), **settings):
    data = DatasetConfig(**{"input_type": DatasetConfig.GroupRTPInput, "num_parallel_calls": 2, **settings})
    records = records or BadRecords(None, 1.0)
    return Input(data, schema or small_schema(), str(path), "train_input_path", records, training, labels, kept_fields)


def users(batches):
    """Of each batch, the users in the order of its samples."""
    return [[user.decode() for user in batch.kept_fields["user"].numpy()] for batch in batches]


def flat(batches):
    return [user for batch in batches for user in batch]


def colours(batch):
    """Of each picture of the batch its colour."""
    pixels = batch.pixels.numpy()
    assert pixels.shape[1:] == (4, 5, 3)
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return pixels[:, 0, 0, 0].tolist()


def read_records(path):
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def record(row, kind="group", problem="is bad"):
    return BadRecord(kind, "part-0", row, "column 'click'", problem)
