"""Evaluation and prediction: a model over the whole of some files."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from easyrec_mm.checkpoint import restore
from easyrec_mm.config_checks import METRICS_OF_ACTIVATION
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import Batch
from easyrec_mm.data.input import Input
from easyrec_mm.errors import UserError
from easyrec_mm.feature_vectors import VectorStores
from easyrec_mm.files import put, written_at
from easyrec_mm.metrics import METRICS, Metric
from easyrec_mm.model import MultimodalModel
from easyrec_mm.moving_average import MovingAverage
from easyrec_mm.precision import dtype_policy
from easyrec_mm.progress import Progress
from easyrec_mm.protos.eval_pb2 import EvalMetrics
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema, Task

# Seconds between progress lines.
_SHOW_EVERY_S = 10.0
STEP_NAME = "progress/step"
# What a checkpoint says of the vectors of a feature: origin_number.
VECTORS = "vectors/"


class TaskMetrics:
    """The metrics of every tower, each under "<metric>_<tower>"."""

    def __init__(self, config: EasyRecConfig, schema: Schema) -> None:
        self._entries: dict[str, tuple[Task, Metric, str | None]] = {}
        for tower, task in zip(config.model_config.e2e_mm_dbmtl.task_towers, schema.tasks, strict=True):
            for message in [*tower.metrics_set, *config.eval_config.metrics_set]:
                kind = message.WhichOneof("metric")
                if kind in METRICS_OF_ACTIVATION[task.activation]:
                    self._entries.setdefault(f"{kind}_{task.name}", (task, *_metric(kind, message)))

    @property
    def user_fields(self) -> tuple[str, ...]:
        """Input fields that hold a user for some metric."""
        return tuple(sorted({user for _, _, user in self._entries.values() if user}))

    def update(self, batch: Batch, outputs: dict[str, tf.Tensor], kept: dict[str, tf.Tensor]) -> None:
        """Add a batch: its labels against the outputs."""
        for task, metric, user_field in self._entries.values():
            users = _text(kept[user_field]).numpy() if user_field else None
            metric.update(batch.labels[task.label].numpy(), outputs[task.score_name].numpy(), users)

    def results(self) -> dict[str, float]:
        """Name -> value over everything added."""
        return {name: metric.result() for name, (_, metric, _) in self._entries.items()}


def _text(values: tf.Tensor) -> tf.Tensor:
    return values if values.dtype == tf.string else tf.strings.as_string(values)


def _metric(kind: str, message: EvalMetrics) -> tuple[Metric, str | None]:
    settings: dict[str, Any] = {}
    if kind == "gauc":
        settings = {"reduction": message.gauc.reduction}
    elif kind == "ece":
        settings = {"num_bins": message.ece.num_bins}
    return METRICS[kind](**settings), message.gauc.uid_field if kind == "gauc" else None


def load_model(
    config: EasyRecConfig, schema: Schema, checkpoint: str, dtype: str | None = None
) -> tuple[MultimodalModel, int]:
    """The model with the weights of a checkpoint (their moving average, if the config uses it), and its step.

    It computes in `dtype`, a Keras dtype policy, or in the precision that the config names.

    Raises:
      CheckpointError: if the checkpoint does not fit the config.
    """
    model = MultimodalModel(config, schema, dtype or dtype_policy(config.train_config.precision))
    return model, load_weights(model, config, checkpoint)


def load_weights(model: MultimodalModel, config: EasyRecConfig, checkpoint: str) -> int:
    """Give a model the weights of a checkpoint, as `load_model` does; the checkpoint's step."""
    named = model.named_variables()
    step = tf.Variable(0, dtype=tf.int64)
    variables = {name: v.value for name, v in named.items()} | {STEP_NAME: step}
    average = moving_average(config, model)
    if average is not None:
        variables |= average.named_variables()
    restore(checkpoint, variables)
    if average is not None:
        average.assign_to_variables(step)
    return int(step)


def moving_average(config: EasyRecConfig, model: MultimodalModel) -> MovingAverage | None:
    """The moving average that the config asks for, over the variables that are trained."""
    optimizers = config.train_config.optimizer_config
    if not optimizers or not optimizers[0].use_moving_average:
        return None
    named = {name: v for name, v in model.named_variables().items() if name in model.all_trainable()}
    return MovingAverage(named, list(model.tables()), optimizers[0].moving_average_decay)


def vectors_of(schema: Schema, checkpoint: str | None) -> VectorStores:
    """The stores of the vectors that features name by key: what is current, or what a checkpoint was trained with.

    Raises:
      CheckpointError: if the checkpoint is of a model without such a feature.
      StoreError: if a store does not have them.
    """
    features = schema.stored_features()
    if checkpoint is None:
        return VectorStores(features)
    trained = {feature.name: tf.Variable(0, dtype=tf.int64) for feature in features}
    restore(checkpoint, {f"{VECTORS}{name}": variable for name, variable in trained.items()})
    return VectorStores(features, {name: int(variable) for name, variable in trained.items()})


def evaluate(
    model: MultimodalModel,
    config: EasyRecConfig,
    path: str,
    setting: str,
    bad_records: BadRecords,
    vectors: VectorStores | None = None,
) -> dict[str, float]:
    """Metrics over some files, and the number of samples as "num_samples".

    Args:
      model: what is evaluated.
      config: how to read, and which metrics.
      path: the files.
      setting: the config path of `path`, for messages.
      bad_records: where what cannot be read is counted.
      vectors: of `vectors_of`; by default what is current.

    Raises:
      DataError: if the files cannot be read or hold too many bad records.
    """
    metrics = TaskMetrics(config, model.schema)
    data, kept = config.data_config, metrics.user_fields
    inputs = Input(data, model.schema, path, setting, bad_records, kept_fields=kept, vectors=vectors)
    limit = config.eval_config.num_examples
    num_samples = 0
    for batch, kept, outputs in _outputs(model, inputs, "evaluate"):
        metrics.update(batch, outputs, kept)
        num_samples += batch.num_samples
        if limit and num_samples >= limit:
            break
    return {**metrics.results(), "num_samples": num_samples}


def predict(
    model: MultimodalModel,
    config: EasyRecConfig,
    path: str,
    output: str,
    reserved_columns: tuple[str, ...],
    bad_records: BadRecords,
    vectors: VectorStores | None = None,
) -> int:
    """Write one row a sample, in input order: the reserved fields and every output; returns the number of rows.

    The file appears when it is complete.

    Raises:
      DataError: if the files cannot be read or hold too many bad records.
      UserError: if the output cannot be written.
    """
    inputs = Input(
        config.data_config,
        model.schema,
        path,
        "--predict_input_path",
        bad_records,
        labels=(),
        kept_fields=reserved_columns,
        vectors=vectors,
    )
    temporary = str(written_at(output))
    num_rows = 0
    writer: _CsvWriter | _ParquetWriter | None = None
    try:
        writer = _CsvWriter(temporary) if output.endswith(".csv") else _ParquetWriter(temporary)
        for _, kept, outputs in _outputs(model, inputs, "predict"):
            columns = {name: _column(tensor) for name, tensor in {**kept, **outputs}.items()}
            writer.write(columns)
            num_rows += len(next(iter(columns.values())))
        writer.close()
        put(Path(temporary), output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        if writer is not None:
            writer.close()
        Path(temporary).unlink(missing_ok=True)
    return num_rows


def write_result(path: str, results: dict[str, float]) -> None:
    """Write results as flat JSON; a value that is no number becomes null."""
    clean = {name: value if np.isfinite(value) else None for name, value in results.items()}
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(clean, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def table(results: dict[str, float]) -> str:
    """Results as lines of name and value."""
    width = max(len(name) for name in results)
    return "\n".join(
        f"{name:<{width}}  {value:d}" if isinstance(value, int) else f"{name:<{width}}  {value:.6f}"
        for name, value in results.items()
    )


def _outputs(
    model: MultimodalModel, inputs: Input, name: str
) -> Iterator[tuple[Batch, dict[str, tf.Tensor], dict[str, tf.Tensor]]]:
    """(batch, kept fields, outputs) of every batch that has samples."""
    step = model.prediction_function(inputs.spec())
    progress = Progress(name, None, unit="batch")
    shown = time.monotonic()
    try:
        for item in inputs.batches():
            if item.batch.num_samples:
                yield item.batch, item.kept, step(item.batch)
            progress.add(item.batch.num_samples, item.batch.num_images, 0.0)
            if time.monotonic() - shown > _SHOW_EVERY_S:
                progress.show({}, progress.rates())
                shown = time.monotonic()
    finally:
        progress.close()


def _column(tensor: tf.Tensor) -> np.ndarray | list[Any]:
    values = tensor.numpy()
    if values.dtype == object:
        return [value.decode("utf-8", "replace") for value in values]
    return values if values.ndim == 1 else [row.tolist() for row in values]


class _CsvWriter:
    def __init__(self, path: str) -> None:
        self._file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.writer(self._file)
        self._has_header = False

    def write(self, columns: dict[str, np.ndarray | list[Any]]) -> None:
        if not self._has_header:
            self._writer.writerow(columns)
            self._has_header = True
        self._writer.writerows(zip(*columns.values(), strict=True))

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, columns: dict[str, np.ndarray | list[Any]]) -> None:
        rows = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, rows.schema)
        self._writer.write_table(rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
