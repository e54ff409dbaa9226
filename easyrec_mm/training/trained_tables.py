"""What the rows of the tables in a checkpoint stand for, so that a later vocabulary finds the rows of its values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format

from easyrec_mm.config.changes import config_of
from easyrec_mm.config.schema import derive_schema
from easyrec_mm.errors import ConfigError, DamagedCheckpointError, Problems
from easyrec_mm.features.categories import Categories
from easyrec_mm.features.table_rows import TableCategories
from easyrec_mm.network.model import table_categories
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint_reader import read_text_value
from easyrec_mm.runs.model_dir import PIPELINE_CONFIG
from easyrec_mm.runs.trained_config import read_record

_NAME = "progress/tables"


def tables_state(tables: Mapping[str, TableCategories]) -> dict[str, tf.Tensor]:
    """Return the part of a checkpoint that contains the categories of its tables, each vocabulary once."""
    places: dict[Categories, int] = {}
    indices = {
        table: {feature: places.setdefault(categories, len(places)) for feature, categories in features.items()}
        for table, features in tables.items()
    }
    text = json.dumps({"tables": indices, "categories": [asdict(categories) for categories in places]})
    return {_NAME: tf.constant(text)}


def read_tables(path: str, names: Iterable[str]) -> dict[str, dict[str, Categories]]:
    """Return the categories of the tables in a checkpoint, by variable and feature; {} if they are unknown.

    A checkpoint of an earlier version does not contain them; they are then those of the config that it was trained
    with, if the vocabularies of that can still be read.

    Args:
      path: the checkpoint.
      names: the variables that are tables.
    """
    text = read_text_value(path, _NAME)
    if text is None:
        return _tables_of_config(path, names)
    try:
        state = json.loads(text)
        choices = [Categories(**{**c, "vocabulary": tuple(c["vocabulary"])}) for c in state["categories"]]
        return {table: {f: choices[i] for f, i in features.items()} for table, features in state["tables"].items()}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedCheckpointError(f"{path}: {_NAME} cannot be read: {error}") from error


def _tables_of_config(path: str, names: Iterable[str]) -> dict[str, dict[str, Categories]]:
    record = read_record(path)
    try:
        written = text_format.Parse(
            (Path(path).parent / PIPELINE_CONFIG).read_text("utf-8"), EasyRecConfig(), allow_unknown_field=True
        )
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        written = EasyRecConfig()
    config = written if record is None else config_of(record, written)
    if config is None:
        return {}
    try:
        return table_categories(derive_schema(config, Problems(path)), names)
    except (ConfigError, text_format.ParseError):
        return {}
