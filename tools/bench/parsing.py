"""Samples a second that each input reads, checks, transforms and cuts into batches, without pictures.

16 groups of 16 samples a batch, 12 text ids and 6 numbers; flat inputs: 256 rows. "parsed": shuffled, checked, typed;
"in batches": also hashed and cut into batches; "handed over": as Input.batches gives these to the training loop, in
Python. Turn by turn with bare TensorFlow: lines split twice and hashed, and tf.io.parse_example, a batch at a time,
without shuffling and without a check.

    python tools/bench/parsing.py [--groups 40000] [--turns 5] [--inputs GroupRTPInput ...]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import tensorflow as tf
import workload

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input

GROUPS, SAMPLES = 16, 16
IDS = [f"id_{i}" for i in range(workload.NUM_ID_FEATURES)]
RAWS = [f"raw_{i}" for i in range(workload.NUM_RAW_FEATURES)]
FILES = {
    "GroupRTPInput": "data.txt",
    "GroupParquetInput": "groups.parquet",
    "GroupTFRecordInput": "data.tfrecord",
    "ParquetInput": "rows.parquet",
    "CSVInput": "rows.csv",
}
BARE_SPLIT, BARE_EXAMPLE = "bare split and hash", "bare parse_example"
THREADS = 2


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--groups", type=int, default=40_000)
    flags.add_argument("--turns", type=int, default=5)
    flags.add_argument("--inputs", nargs="+", default=list(FILES), choices=list(FILES))
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, options.groups)
        runs: dict[str, Callable[[], Iterable[Any]]] = {
            BARE_SPLIT: lambda: counted(bare_split(folder)),
            BARE_EXAMPLE: lambda: counted(bare_example(folder)),
        }
        for kind in options.inputs:
            inputs = open_input(folder, kind)
            runs[f"{kind}, parsed"] = partial(lambda inputs: counted(parsed(inputs), 1), inputs)
            runs[f"{kind}, in batches"] = partial(lambda inputs: counted(inputs.dataset(1, 0)), inputs)
            runs[f"{kind}, handed over"] = partial(inputs.batches, 1)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(options.turns + 1):
            for name, run in runs.items():
                duration = seconds_of(run())
                if turn:  # the first warms up
                    seconds[name].append(duration)
    num_samples = options.groups * SAMPLES
    rates = {name: num_samples / workload.median(times) for name, times in seconds.items()}
    workload.report("parsing", {f"{name}, samples/s": rate for name, rate in rates.items()})


def seconds_of(elements: Iterable[Any]) -> float:
    """Seconds to go through all of them, by those behind the first: before it, functions are traced."""
    start, number = 0.0, 0
    for _ in elements:
        start = start or time.perf_counter()
        number += 1
    return (time.perf_counter() - start) * number / (number - 1)


def parsed(inputs: Input) -> tf.data.Dataset:
    """What Input.dataset begins with."""
    source = inputs.source
    records = source.records(1, 0, -(-source.chunk_size // inputs.batch_size) * inputs.batch_size)
    return records.map(source.parse, num_parallel_calls=THREADS, deterministic=True)


def counted(batches: tf.data.Dataset, at_once: int = 64) -> tf.data.Dataset:
    """A number for every so many batches, so that handing over costs nothing; it depends on every tensor of them."""
    options = tf.data.Options()
    options.autotune.enabled = False

    def count(*batch: Any) -> tf.Tensor:
        return tf.add_n([tf.size(tensor) for tensor in tf.nest.flatten(batch, expand_composites=True)])

    return batches.map(count).batch(at_once).with_options(options)


def bare_split(folder: Path) -> tf.data.Dataset:
    """Values of a sample split, and hashed or read as numbers."""

    def parse(lines: tf.Tensor) -> list[tf.Tensor]:
        columns = tf.strings.split(lines, "|").to_tensor()
        samples = tf.strings.split(columns[:, 2], "\x01").flat_values
        values = tf.reshape(tf.strings.split(samples, "\x02").flat_values, [-1, len(IDS) + len(RAWS)])
        ids = [tf.strings.to_hash_bucket_fast(values[:, i], 100_000) for i in range(len(IDS))]
        return [*ids, *(tf.strings.to_number(values[:, len(IDS) + i]) for i in range(len(RAWS)))]

    lines = tf.data.TextLineDataset(str(folder / FILES["GroupRTPInput"]))
    return lines.batch(GROUPS).map(parse, num_parallel_calls=THREADS)


def bare_example(folder: Path) -> tf.data.Dataset:
    """Ragged features of a batch of Examples, not hashed."""
    dtypes = dict.fromkeys(IDS, tf.string) | dict.fromkeys([*RAWS, "play_time"], tf.float32) | {"click": tf.int64}
    features = {name: tf.io.RaggedFeature(dtype) for name, dtype in dtypes.items()}
    records = tf.data.TFRecordDataset(str(folder / FILES["GroupTFRecordInput"]))
    return records.batch(GROUPS).map(lambda r: tf.io.parse_example(r, features), num_parallel_calls=THREADS)


def open_input(folder: Path, kind: str, image_size: int = 0) -> Input:
    """The workload's input of that type, for training."""
    is_flat = kind in ("ParquetInput", "CSVInput")
    text = workload.config_text(
        str(folder / FILES[kind]), str(folder / "m"), GROUPS * SAMPLES if is_flat else GROUPS, image_size
    )
    if kind != "GroupRTPInput":
        header = "with_header: true" if kind == "CSVInput" else ""
        layout = 'rtp_separator: "|" separator: "\\002" selected_cols: "0,1,2,3,4"'
        text = text.replace(layout, header).replace("input_type: GroupRTPInput", f"input_type: {kind}")
    pipeline = workload.pipeline(folder, text)
    data = pipeline.config.data_config
    return Input(
        data, pipeline.schema, str(folder / FILES[kind]), "train_input_path", BadRecords(None, 0.0), training=True
    )


def write_files(folder: Path, num_groups: int, image_size: int = 0) -> None:
    """The workload's groups in every format."""
    path = workload.write_data(folder, num_groups, SAMPLES, image_size)
    values: dict[str, list[Any]] = {name: [] for name in ("click", "play_time", *IDS, *RAWS, "img_path", "group_size")}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        click, play_time, samples, picture, size = line.split("|")
        values["click"].append([int(text) for text in click.split("\x01")])
        values["play_time"].append([float(text) for text in play_time.split("\x01")])
        columns = zip(*(sample.split("\x02") for sample in samples.split("\x01")), strict=True)
        for name, texts in zip((*IDS, *RAWS), columns, strict=True):
            values[name].append(list(texts) if name in IDS else [float(text) for text in texts])
        values["img_path"].append(picture)
        values["group_size"].append(int(size))
    numbers = pa.list_(pa.float32())
    table = pa.table({n: pa.array(v, numbers if n in (*RAWS, "play_time") else None) for n, v in values.items()})
    pq.write_table(table, folder / FILES["GroupParquetInput"], row_group_size=4096)
    pictures = [picture for picture in values["img_path"] for _ in range(SAMPLES)]
    rows = {name: table[name].combine_chunks().flatten() for name in ("click", "play_time", *IDS, *RAWS)}
    flat = pa.table({**rows, "img_path": pictures, "group_size": [1] * len(pictures)})
    pq.write_table(flat, folder / FILES["ParquetInput"])
    pa.csv.write_csv(flat, folder / FILES["CSVInput"])
    with tf.io.TFRecordWriter(str(folder / FILES["GroupTFRecordInput"])) as writer:
        for i in range(num_groups):
            features = {name: _feature(column[i]) for name, column in values.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def _feature(values: Any) -> tf.train.Feature:
    values = values if isinstance(values, list) else [values]
    if isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode() for text in values]))


if __name__ == "__main__":
    main()
