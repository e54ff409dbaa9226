"""Predictions on Spark: each of its tasks reads a part of the files, and writes the outputs of exported models.

The tasks are those of `--task_index` and `--task_num`: Spark only starts them, again if they fail, and collects what
they report. ONNX Runtime computes, so that no worker needs the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import tensorflow as tf
from pyspark.sql import SparkSession

from easyrec_mm.data.bad_records import BadRecord, BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.evaluation.exported import ExportedNetwork
from easyrec_mm.evaluation.parts import PartsFolder
from easyrec_mm.evaluation.predict import prediction_input, type_of, write_predictions
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema
from easyrec_mm.spark import run_tasks
from easyrec_mm.tasks import Task


class TaskReport(NamedTuple):
    """The number of rows that a task wrote, of groups and pictures that it read, and the bad ones among them."""

    num_rows: int
    num_groups: int
    num_pictures: int
    records: list[BadRecord]


@dataclass(frozen=True)
class SparkPrediction:
    """What a worker needs to predict its part; it can be pickled.

    config            the pipeline config, serialized
    schema            the config's schema
    path              the files to predict
    rec_model_dir     folder of the exported rec model
    img_model_dir     folder of the exported image model; "" for a model without pictures
    output            folder of the parts
    ending            ".parquet" or ".csv"
    reserved_columns  input fields to copy into the output
    quote_formulas    see predict
    in_common         see PartsFolder
    num_tasks         number of tasks
    num_threads       number of threads of a task
    """

    config: bytes = field(repr=False)
    schema: Schema
    path: str
    rec_model_dir: str
    img_model_dir: str
    output: str
    ending: str
    reserved_columns: tuple[str, ...]
    quote_formulas: bool
    in_common: dict[str, Any]
    num_tasks: int
    num_threads: int

    def folder(self, index: int = 0) -> PartsFolder:
        """Return the folder of the parts, for one of the tasks."""
        return PartsFolder(self.output, Task(index, self.num_tasks), self.ending, self.in_common)

    def __call__(self, index: int) -> TaskReport:
        """Write a part; this runs on a worker."""
        network = ExportedNetwork(self.rec_model_dir, self.img_model_dir, self.num_threads)
        fields = tuple(dict.fromkeys((*self.reserved_columns, *network.fields)))
        config = EasyRecConfig.FromString(self.config)
        vectors = network.stored_vectors(self.schema)
        try:
            records = CollectedRecords()
            task = Task(index, self.num_tasks)
            inputs = prediction_input(config, self.schema, self.path, fields, records, vectors, task)
            specs = inputs.kept_specs()
            kept = [(name, type_of(specs[name])) for name in self.reserved_columns]
            columns = pa.schema([*kept, *network.columns()])
            with self.folder(index).written_part() as part:
                is_csv = self.ending == ".csv"
                batches = _outputs(network, inputs)
                num_rows = write_predictions(batches, columns, part, is_csv, self.quote_formulas)
        finally:
            vectors.close()
        return TaskReport(num_rows, records.counts["groups"], records.counts["pictures"], records.collected)


class CollectedRecords(BadRecords):
    """Bad records of a task, which are judged and written where the records of all tasks are known."""

    def __init__(self) -> None:
        super().__init__(None, 1.0)
        self.collected: list[BadRecord] = []

    def add(self, num_groups: int, num_pictures: int, records: list[BadRecord]) -> None:
        """See BadRecords.add; collects the records."""
        super().add(num_groups, num_pictures, [])
        self.collected += records


def _outputs(network: ExportedNetwork, inputs: Input) -> Iterator[tuple[dict[str, tf.Tensor], dict[str, Any]]]:
    for item in inputs.batches():
        if item.batch.num_samples:
            yield item.kept_fields, network(item.batch, item.kept_fields)


def predict_on_spark(session: SparkSession, prediction: SparkPrediction, bad_records: BadRecords) -> int:
    """Write the parts of all tasks; return the number of rows.

    Args:
      session: the session.
      prediction: what to predict.
      bad_records: counts and lists the bad records of all tasks.

    Raises:
      DataError: if the files cannot be read or hold too many bad records; then no part is left.
    """
    folder = prediction.folder()
    stored = [feature.store_uri for feature in prediction.schema.in_stores()]
    reports = run_tasks(session, prediction, range(prediction.num_tasks), stored)
    try:
        for report in reports:
            bad_records.add(report.num_groups, report.num_pictures, report.records)
        bad_records.check_all()
    except BaseException:
        folder.discard()
        raise
    folder.finish()
    return sum(report.num_rows for report in reports)
