"""Checks `train_config`, and the settings of data_config that concern training. Never imports TensorFlow."""

from __future__ import annotations

import re

from easyrec_mm.config.learning_rates import check_ends, check_learning_rate
from easyrec_mm.errors import Problems
from easyrec_mm.protos.optimizer_pb2 import Optimizer
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.train_pb2 import EmbeddingParallelStrategy, NoStrategy, TrainConfig
from easyrec_mm.schema import Schema


def check_training(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    """Add every problem of train_config and of the settings of the training data."""
    train, data = config.train_config, config.data_config
    if not config.model_dir:
        problems.add("model_dir", "is empty; name a folder for checkpoints and metrics")
    if data.shuffle and data.shuffle_buffer_size < 1:
        problems.add(
            "data_config.shuffle_buffer_size",
            f"{data.shuffle_buffer_size} is not a valid size; give 1 or more, or set shuffle: false",
        )
    if train.num_epochs and data.num_epochs and train.num_epochs != data.num_epochs:
        problems.add(
            "train_config.num_epochs",
            f"{train.num_epochs}, but data_config.num_epochs is {data.num_epochs}; remove one of them",
        )
    _check_optimizers(train, schema, problems)
    if not (train.num_steps or train.num_epochs or data.num_epochs):
        check_ends(train, problems)
    for i, pattern in enumerate(train.freeze_gradient):
        _check_pattern(pattern, f"train_config.freeze_gradient[{i}]", problems)
    if not train.sync_replicas:
        problems.note("train_config.sync_replicas", "false has no effect here, because workers always train in step")
    if train.num_gpus_per_worker > 1 and train.train_distribute == NoStrategy:
        problems.note(
            "train_config.num_gpus_per_worker",
            f"{train.num_gpus_per_worker} has no effect here with NoStrategy; MirroredStrategy trains on several GPUs",
        )
    if train.train_distribute == NoStrategy:
        for name in ("shard_tables_from_rows", "share_pictures"):
            if getattr(train, name):
                problems.note(f"train_config.{name}", "has no effect with train_distribute: NoStrategy, one process")


def divided_tables(train: TrainConfig, schema: Schema, num_workers: int | None) -> set[str]:
    """Return the names of the tables that are divided among so many workers; None is an unknown number of them."""
    if num_workers is None and train.train_distribute == NoStrategy:
        return set()
    is_set = train.HasField("shard_tables_from_rows")
    least = train.shard_tables_from_rows if is_set else int(train.train_distribute == EmbeddingParallelStrategy)
    if not least or num_workers == 1:
        return set()
    return {table.name for table in schema.tables if table.rows >= least}


def _check_optimizers(train: TrainConfig, schema: Schema, problems: Problems) -> None:
    place = "train_config.optimizer_config"
    if not train.optimizer_config:
        problems.add(place, "is missing; choose an optimizer and its learning rate")
    by_part = [i for i, optimizer in enumerate(train.optimizer_config) if not optimizer.variables]
    if len(by_part) > 3:
        problems.add(
            place,
            f"has {len(by_part)} entries without `variables`; give 1 (all), 2 (embeddings, rest) or 3 (embeddings, "
            "dense, image tower)",
        )
    if len(by_part) > 1 and not schema.tables:
        problems.add(f"{place}[{by_part[0]}]", "is for embedding tables and the model has none; remove it")
    if len(by_part) > 2 and not schema.uses_image:
        problems.add(f"{place}[{by_part[2]}]", "is for the image tower and the model has none; remove it")
    for i, optimizer in enumerate(train.optimizer_config):
        _check_optimizer(optimizer, f"{place}[{i}]", problems)
    if len({(o.use_moving_average, o.moving_average_decay) for o in train.optimizer_config}) > 1:
        problems.add(
            place,
            "use_moving_average or moving_average_decay differs between optimizers; make them equal, because the "
            "average covers the whole model",
        )


def _check_optimizer(optimizer: Optimizer, place: str, problems: Problems) -> None:
    kind = optimizer.WhichOneof("optimizer")
    if kind is None:
        problems.add(place, "names no optimizer; choose adam_optimizer, adagrad_optimizer, ...")
        return
    check_learning_rate(getattr(optimizer, kind).learning_rate, f"{place}.{kind}.learning_rate", problems)
    for i, pattern in enumerate(optimizer.variables):
        _check_pattern(pattern, f"{place}.variables[{i}]", problems)
    if optimizer.use_moving_average and not 0 < optimizer.moving_average_decay < 1:
        problems.add(f"{place}.moving_average_decay", f"{optimizer.moving_average_decay:g} is not between 0 and 1")


def _check_pattern(pattern: str, place: str, problems: Problems) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        problems.add(place, f"'{pattern}' is not a valid regular expression: {error}")
