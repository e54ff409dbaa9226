"""Evaluation: runs a model over whole files, and computes metrics of its outputs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import pyarrow as pa
import tensorflow as tf

from easyrec_mm.config.pretraining import is_pretraining
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import Batch, InputBatch
from easyrec_mm.data.input import Input
from easyrec_mm.data.item_counts import count_items
from easyrec_mm.data.same_data import require_same_data
from easyrec_mm.data.until_stopped import UntilStopped
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.evaluation.plan import EvalPlan, ItemCounts
from easyrec_mm.evaluation.pretraining import HeldOut
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.shown_items import ShownItems
from easyrec_mm.evaluation.summary import EvalResults, Summary, results_of, summarize
from easyrec_mm.network.item_tower import build_model
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint_reader import restore
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.moving_average import MovingAverage
from easyrec_mm.runs.progress import Progress, rates_of
from easyrec_mm.runs.trained_config import require_same_weights
from easyrec_mm.schema import Schema
from easyrec_mm.store.feature_vectors import VectorStores

# Seconds between progress lines.
_SHOW_EVERY_S = 10.0
STEP_NAME = "progress/step"
# Prefix of the names under which a checkpoint holds the origin_number of each feature's vectors.
VECTORS = "vectors/"


def load_model(
    config: EasyRecConfig, schema: Schema, checkpoint: str, dtype: str = FLOAT32, replicas: Replicas | None = None
) -> tuple[MultimodalModel, int]:
    """Return the model with a checkpoint's weights (their moving average, if the config uses it), and its step.

    The model computes in `dtype`, a Keras dtype policy; by default as exported models do, whatever the precision of the
    training. Each of several `replicas` may hold a part of its tables.

    Raises:
      CheckpointError: if the checkpoint does not fit the config, or is damaged.
    """
    model = build_model(config, schema, dtype, replicas)
    return model, load_weights(model, config, checkpoint)


def load_weights(model: MultimodalModel, config: EasyRecConfig, checkpoint: str) -> int:
    """Load a checkpoint's weights into a model, as `load_model` does; return the checkpoint's step."""
    named = model.named_variables()
    step = tf.Variable(0, dtype=tf.int64)
    variables = {name: v.value for name, v in named.items()} | {STEP_NAME: step}
    average = moving_average(config, model)
    if average is not None:
        variables |= average.named_variables()
    restore(checkpoint, variables)
    require_same_weights(checkpoint, config)
    if average is not None:
        average.assign_to_variables(step)
    return int(step)


def moving_average(config: EasyRecConfig, model: MultimodalModel) -> MovingAverage | None:
    """Return the moving average of the trainable variables if the config uses one, else None."""
    optimizers = config.train_config.optimizer_config
    if not optimizers or not optimizers[0].use_moving_average:
        return None
    named = {name: v for name, v in model.named_variables().items() if name in model.all_trainable()}
    return MovingAverage(named, list(model.tables()), optimizers[0].moving_average_decay)


def vectors_of(schema: Schema, checkpoint: str | None) -> VectorStores:
    """Open the stores of the features' vectors: the current vectors, or those that the checkpoint was trained with.

    Raises:
      CheckpointError: if the checkpoint belongs to a model without one of these features.
      StoreError: if a store does not have the vectors.
    """
    features = schema.in_stores()
    if checkpoint is None:
        return VectorStores(features)
    trained = {feature.name: tf.Variable(0, dtype=tf.int64) for feature in features}
    restore(checkpoint, {f"{VECTORS}{name}": variable for name, variable in trained.items()})
    return VectorStores(features, {name: int(variable) for name, variable in trained.items()})


class EvaluationStoppedError(Exception):
    """An evaluation was stopped before its end."""


class Evaluator:
    """Evaluates a model repeatedly on the same files; the input is built again only when the files change.

    Args:
      model: the model to evaluate.
      config: how to read the files, and which metrics to compute.
      path: the files.
      setting: name of the setting of `path`, for messages.
      bad_records: counts the records that cannot be read, anew in each evaluation.
      vectors: result of `vectors_of`; by default the current vectors.
      confidence: whether to compute intervals as well, as eval_config.bootstrap says.
      shown: collects what TensorBoard shows of the evaluated items, if that is wanted.
    """

    def __init__(
        self,
        model: MultimodalModel,
        config: EasyRecConfig,
        path: str,
        setting: str,
        bad_records: BadRecords,
        vectors: VectorStores | None = None,
        confidence: bool = False,
        shown: ShownItems | None = None,
    ) -> None:
        self._model, self._config, self._shown = model, config, shown
        self._path, self._setting = path, setting
        self._bad_records, self._vectors = bad_records, vectors
        self._confidence = confidence
        self._input: Input | None = None

    def run(self, is_stopped: Callable[[], bool] = lambda: False) -> EvalResults:
        """Compute the metrics of the model in its current state, over all files and over the slices of the config, and
        the number of samples as "num_samples"; those of the item tower of a pre-training are in pretraining.py.

        Args:
          is_stopped: is asked before each batch whether to stop.

        Raises:
          DataError: if the files cannot be read, hold too many bad records, or are others on another worker.
          EvaluationStoppedError: if it was stopped, on any worker.
        """
        if is_pretraining(self._config):
            return self._of_item_tower(is_stopped)
        plan, replicas = eval_plan(self._config, self._model.schema, self._confidence), self._model.replicas
        # All workers look again if one of them sees a change, which the others may see later.
        if self._input is None or replicas.agree(not self._input.is_up_to_date())[0]:
            self._input = evaluation_input(
                self._model, self._config, plan, self._path, self._setting, self._bad_records, self._vectors,
                self._shown.fields if self._shown is not None else (),
            )  # fmt: skip
            require_same_data(self._input, replicas)
        self._bad_records.start_over()
        if self._shown is not None:
            self._shown.begin()
        summary = summary_of(self._model, self._config, plan, self._input, is_stopped, self._shown)
        if self._shown is not None:
            self._shown.finish(self._model)
        return results_of(summary, plan.weights.num_replicates, plan.bootstrap.level, plan.clusters)

    def _of_item_tower(self, is_stopped: Callable[[], bool]) -> EvalResults:
        """Evaluate the item tower of a pre-training; each of several workers evaluates all items."""
        fields = self._shown.fields if self._shown is not None else ()
        if self._input is None or not self._input.is_up_to_date():
            self._input = Input(
                self._config.data_config, self._model.schema, self._path, self._setting, self._bad_records,
                kept_fields=fields, vectors=self._vectors,
            )  # fmt: skip
        self._bad_records.start_over()
        if self._shown is not None:
            self._shown.begin()
        held_out = HeldOut(self._config)
        with UntilStopped(prediction_batches(self._model, self._input), is_stopped) as items:
            for item, outputs in outputs_of(self._model, items, self._input.spec(), "evaluate"):
                if self._model.replicas.agree(is_stopped())[0]:
                    raise EvaluationStoppedError
                held_out.add(item.batch, outputs)
                if self._shown is not None:
                    self._shown.add(item, outputs)
        if self._model.replicas.agree(is_stopped())[0]:
            raise EvaluationStoppedError
        if self._shown is not None:
            self._shown.finish(self._model)
        return held_out.results()


def evaluation_input(
    model: MultimodalModel,
    config: EasyRecConfig,
    plan: EvalPlan,
    path: str,
    setting: str,
    bad_records: BadRecords,
    vectors: VectorStores | None = None,
    further_fields: tuple[str, ...] = (),
) -> Input:
    """Return the input of an evaluation by `plan`; the other arguments are those of Evaluator.

    Batches have `further_fields` in addition to those that the plan needs.

    Raises:
      DataError: if the files cannot be read.
    """
    data = config.data_config
    worker = model.replicas.number, model.replicas.num
    fields = tuple(dict.fromkeys((*plan.fields, *further_fields)))
    return Input(data, model.schema, path, setting, bad_records, kept_fields=fields, vectors=vectors, worker=worker)


def summary_of(
    model: MultimodalModel,
    config: EasyRecConfig,
    plan: EvalPlan,
    inputs: Input,
    is_stopped: Callable[[], bool] = lambda: False,
    shown: ShownItems | None = None,
) -> Summary:
    """Evaluate a model by a plan; return the summary with its replicates, as `compare` takes it.

    The batches of this worker are added to `shown` as well.

    Raises:
      DataError: if the files cannot be read or hold too many bad records.
      EvaluationStoppedError: if `is_stopped`, which is asked before each batch, says so on any worker.
    """
    with Rows(memory_of(config)) as rows:
        for columns in _columns_of_all(model, inputs, plan, is_stopped, shown):
            rows.append(columns)
            if is_enough(config, len(rows)):
                break
        return summarize(rows, plan.entries, list(plan.slicers.values()), plan.weights)


def _columns_of_all(
    model: MultimodalModel,
    inputs: Input,
    plan: EvalPlan,
    is_stopped: Callable[[], bool],
    shown: ShownItems | None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns that an evaluation keeps, in the order of the samples; all workers yield those of all."""
    replicas = model.replicas
    with UntilStopped(prediction_batches(model, inputs), is_stopped) as items:
        agreed = _agreed(items, plan, replicas, is_stopped)
        for item, outputs in outputs_of(model, agreed, inputs.spec(), "evaluate", with_empty=replicas.num > 1):
            has_samples = item.batch.num_samples > 0
            own = plan_columns(plan, item.batch, item.kept_fields, outputs) if has_samples else {}
            if shown is not None and has_samples:
                shown.add(item, outputs)
            if replicas.num == 1:
                yield own
                continue
            for content in replicas.contents(_packed(own) if own else b""):
                if content:
                    yield _unpacked(content)


def _agreed(
    items: Iterable[InputBatch], plan: EvalPlan, replicas: Replicas, is_stopped: Callable[[], bool]
) -> Iterator[InputBatch]:
    """Yield the batches of this worker, each when all workers have theirs; let `plan` skip the groups of the others.

    Raises:
      EvaluationStoppedError: if `is_stopped` says so on any worker.
    """

    def meet(own_groups: int) -> list[int]:
        is_own = [number == replicas.number for number in range(replicas.num)]
        stopped, *num_groups = replicas.agree(is_stopped(), *(own_groups * is_one for is_one in is_own))
        if stopped:
            raise EvaluationStoppedError
        return [int(number) for number in num_groups]

    for item in items:
        num_groups = meet(plan.num_groups(as_arrays(item.kept_fields)) if item.batch.num_samples else 0)
        plan.skip_groups(sum(num_groups[: replicas.number]))
        yield item
        plan.skip_groups(sum(num_groups[replicas.number + 1 :]))
    meet(0)  # another worker, or this one, may have waited for its last batch in vain


def _packed(columns: dict[str, np.ndarray]) -> bytes:
    table = pa.table(columns)
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    table = pa.ipc.open_stream(content).read_all()
    return {name: table[name].to_numpy() for name in table.column_names}


def eval_plan(config: EasyRecConfig, schema: Schema, confidence: bool, tasks: set[str] | None = None) -> EvalPlan:
    """Return the config's evaluation plan; it counts the items of the training data if a slice needs the counts."""

    def counts(field: str) -> ItemCounts:
        folder = ModelDir(config.model_dir).local
        path = config.train_input_path
        return count_items(config.data_config, schema, path, "train_input_path", field, folder)

    return EvalPlan(config, schema, confidence, counts, tasks)


def memory_of(config: EasyRecConfig) -> int:
    """Return the number of bytes that the rows of an evaluation may take."""
    return int(config.eval_config.max_memory_mib) << 20


def is_enough(config: EasyRecConfig, num_samples: int) -> bool:
    """Return whether `num_samples` reaches the limit eval_config.num_examples (0: no limit)."""
    limit = config.eval_config.num_examples
    return 0 < limit <= num_samples


def plan_columns(
    plan: EvalPlan, batch: Batch, kept_fields: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]
) -> dict[str, np.ndarray]:
    """Return the columns that an evaluation keeps of a batch."""
    has_picture = np.ones(batch.num_samples, bool)
    if plan.uses_image:
        has_picture = batch.images.has_picture.numpy()[batch.sample_image.numpy()]
    return plan.columns(as_arrays(batch.labels), as_arrays(outputs), as_arrays(kept_fields), has_picture)


def as_arrays(tensors: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Convert tensors to NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def batch_outputs(
    model: MultimodalModel, inputs: Input, name: str
) -> Iterator[tuple[Batch, dict[str, tf.Tensor], dict[str, tf.Tensor]]]:
    """Yield (batch, kept fields, outputs) of every batch of an input with samples."""
    for item, outputs in outputs_of(model, prediction_batches(model, inputs), inputs.spec(), name):
        yield item.batch, item.kept_fields, outputs


def prediction_batches(model: MultimodalModel, inputs: Input) -> Generator[InputBatch, None, None]:
    """Return the batches of an input, with the pictures and texts that the model's banks do not have."""
    banks = model.predictions.banks()
    return inputs.batches(banks_of=lambda _: banks)


def outputs_of(
    model: MultimodalModel, items: Iterable[InputBatch], spec: Batch, name: str, with_empty: bool = False
) -> Iterator[tuple[InputBatch, dict[str, tf.Tensor]]]:
    """Yield every one of `prediction_batches` with samples, and its outputs; show the progress.

    Args:
      model: the model.
      items: the batches.
      spec: their shapes and dtypes.
      name: what is shown.
      with_empty: whether to yield batches without samples, too; these may have no outputs.
    """
    banks = model.predictions.banks()
    step = model.predictions.function(spec)
    progress = Progress(name, None, unit="batch")
    shown = time.monotonic()
    try:
        for item in items:
            contents = item.batch.of_banks()
            for kind, bank in banks.items():
                bank.before_step(contents[kind].bank_row, contents[kind].encoded, 0)
            if item.batch.num_samples or model.rec.feature_embedding.is_divided:
                yield item, step(item.batch)
            elif with_empty:
                yield item, {}
            progress.add(item.batch.num_samples, item.batch.num_images, item.batch.num_encoded, 0.0)
            if time.monotonic() - shown > _SHOW_EVERY_S:
                progress.show({}, rates_of(progress.take()))
                shown = time.monotonic()
    finally:
        progress.close()
