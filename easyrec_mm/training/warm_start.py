"""The start of a training from another model's checkpoint."""

from __future__ import annotations

import tensorflow as tf

from easyrec_mm import files
from easyrec_mm.errors import ConfigError
from easyrec_mm.evaluation.evaluator import STEP_NAME
from easyrec_mm.features.table_rows import TableCategories, UnlikeRowsError, rows_before
from easyrec_mm.files import StorageError
from easyrec_mm.network.model import MultimodalModel, table_categories
from easyrec_mm.protos.train_pb2 import TrainConfig, WarmStart
from easyrec_mm.runs.checkpoint_reader import CheckpointReader
from easyrec_mm.runs.model_dir import find_checkpoint
from easyrec_mm.runs.moving_average import MovingAverage
from easyrec_mm.runs.warm_start import TableMatch, warm_start
from easyrec_mm.training.trained_tables import read_tables


def start_from_checkpoint(model: MultimodalModel, config: TrainConfig, average: MovingAverage | None = None) -> str:
    """Restore matching variables from fine_tune_checkpoint; return a report of what was and what was not restored.

    Tables are matched row by row: by the texts of vocabularies, and by numbers. The moving average goes on from that of
    the checkpoint. Optimizers start anew with the steps and the learning rate: what they have kept belongs to a later
    step.

    Raises:
      CheckpointError: if no variable of the checkpoint matches.
      ConfigError: if the map of names cannot be read.
    """
    path = find_checkpoint(config.fine_tune_checkpoint, "train_config.fine_tune_checkpoint")
    left_out = set()
    if config.warm_start == WarmStart.ALL_BUT_ID_EMBEDDINGS:
        left_out = {f"embedding/{feature.table}" for feature in model.schema.features if feature.categories}
    names = _read_name_map(config.fine_tune_ckpt_var_map)
    now = table_categories(model.schema, model.tables())
    before = read_tables(path, [names.get(name, name) for name in now])
    matches = {name: _match(before.get(names.get(name, name)), categories) for name, categories in now.items()}
    started = warm_start(path, model.weights(), names, left_out, matches)
    report: str = started.report
    if average is not None:
        average.start_from_variables()
        reader = CheckpointReader(path)
        if STEP_NAME in reader.shapes:
            step = tf.Variable(0, dtype=tf.int64, trainable=False)
            reader.read_into(STEP_NAME, step)
            number = average.go_on_from(reader, int(step), started.restored)
            report += f"\n  moving averages that go on: {number} of {len(average)}; the others start at the weights"
    return report


def _match(before: TableCategories | None, now: TableCategories) -> TableMatch:
    """Return which rows of a table correspond to those of the checkpoint."""
    if before is None:
        is_by_position = any(categories.encoding == "vocabulary" for categories in now.values())
        note = "by position, because the vocabulary of the checkpoint is unknown" if is_by_position else ""
        return TableMatch(note=note)
    try:
        return TableMatch(rows_before(before, now))
    except UnlikeRowsError as error:
        return TableMatch(problem=str(error))


def _read_name_map(path: str) -> dict[str, str]:
    """Read lines "variable<tab>name in the checkpoint" into a dict."""
    if not path:
        return {}
    try:
        lines = files.read(path).decode("utf-8-sig").splitlines()
    except (OSError, StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"train_config.fine_tune_ckpt_var_map: '{path}' cannot be read: {error}") from error
    names = {}
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) == 2:
            names[parts[0].strip()] = parts[1].strip()
        elif line.strip():
            raise ConfigError(
                f"{path}:{number}: '{line}' is invalid; write a variable, a tab, and its name in the checkpoint"
            )
    return names
