"""The demo's groups in every input format, and the demo config for each."""

import csv
import gzip
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from flow_helpers import ROOT

CONFIG = (ROOT / "configs/demo.config").read_text(encoding="utf-8")
KINDS = dict(re.findall(r'input_fields \{ input_name: "(\w+)" input_type: (\w+)', CONFIG))
TYPES = {"INT32": (pa.int64(), int), "FLOAT": (pa.float64(), float), "STRING": (pa.string(), str)}
LABELS = ("click", "play_time")
OF_SAMPLES = [name for name in KINDS if name not in (*LABELS, "img_path", "group_size")]


def lines_of(path):
    """Lines of a text file, gzip or not."""
    content = path.read_bytes()
    return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode().splitlines()


def read_groups(path):
    """Field -> values of each group of the demo's lines; a value that is missing is None."""
    groups = []
    for line in lines_of(path):
        columns = line.split("|")
        rows = [sample.split("\x02") for sample in columns[4].split("\x01")]
        texts = {name: list(values) for name, values in zip(OF_SAMPLES, zip(*rows, strict=True), strict=True)}
        texts |= {"click": columns[2].split("\x01"), "play_time": columns[3].split("\x01")}
        group = {name: [TYPES[KINDS[name]][1](v) if v else None for v in texts[name]] for name in texts}
        groups.append({**group, "img_path": columns[5], "group_size": int(columns[6])})
    return groups


def encoded(text):
    """A text as bytes; surrogates stand for bytes that are not UTF-8."""
    return None if text is None else text.encode("utf-8", "surrogateescape")


def texts_of(values):
    """An Arrow array of text, which may hold bytes that are not UTF-8, as files of other programs do."""
    return pa.array([encoded(value) for value in values], pa.binary()).view(pa.string())


def write_grouped(path, groups):
    columns = {}
    for name, kind in KINDS.items():
        if name in ("img_path", "group_size"):
            continue
        values = [value for group in groups for value in group[name]]
        array = texts_of(values) if kind == "STRING" else pa.array(values, TYPES[kind][0])
        limits = np.cumsum([0, *(len(group[name]) for group in groups)])
        columns[name] = pa.ListArray.from_arrays(limits, array)
    columns["img_path"] = texts_of([group["img_path"] for group in groups])
    columns["group_size"] = pa.array([group["group_size"] for group in groups])
    pq.write_table(pa.table(columns), path)


def write_tfrecord(path, groups):
    makers = {
        "INT32": lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values)),
        "FLOAT": lambda values: tf.train.Feature(float_list=tf.train.FloatList(value=values)),
        "STRING": lambda values: tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded(v) for v in values])),
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
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_flat(path, groups):
    rows = rows_of(groups)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = {n: texts_of(v) if KINDS[n] == "STRING" else pa.array(v, TYPES[KINDS[n]][0]) for n, v in columns.items()}
    pq.write_table(pa.table(table), path)


WRITERS = {
    "GroupParquetInput": write_grouped,
    "GroupTFRecordInput": write_tfrecord,
    "ParquetInput": write_flat,
    "CSVInput": write_csv,
}


def config_of(kind):
    """The demo config for data of that input_type."""
    text = re.sub(r"  (rtp_separator|group_sample_separator|separator|selected_cols): .*\n", "", CONFIG)
    if kind in ("ParquetInput", "CSVInput"):
        text = re.sub(r".*group_size.*\n", "", text)
    header = " with_header: true" if kind == "CSVInput" else ""
    return text.replace("input_type: GroupRTPInput", f"input_type: {kind}{header}")


def table_of(folder):
    """The demo's lines in a folder as a table of MaxCompute: the columns of a line that are read."""
    columns = zip(*(line.split("|")[2:7] for path in sorted(folder.iterdir()) for line in lines_of(path)), strict=True)
    table = dict(zip(("click", "play_time", "features", "img_path", "group_size"), map(list, columns), strict=True))
    return pa.table({**table, "group_size": pa.array([int(size) for size in table["group_size"]], pa.int64())})
