"""Loads a pipeline file as a checked config and its Schema. Never imports TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf import text_format

from easyrec_mm import __version__
from easyrec_mm.config.changes import leave_out_secrets
from easyrec_mm.config.evaluation import check_evaluation
from easyrec_mm.config.export import check_export
from easyrec_mm.config.network import check_network
from easyrec_mm.config.overrides import Override, apply_override
from easyrec_mm.config.pretraining import check_pretraining, complete_pretraining, is_pretraining
from easyrec_mm.config.rules import check_rules
from easyrec_mm.config.schema import derive_schema
from easyrec_mm.config.text import parse_config, read_text
from easyrec_mm.config.training import check_training
from easyrec_mm.errors import ConfigError, Problems
from easyrec_mm.files import put_text
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema


@dataclass(frozen=True)
class Pipeline:
    """A checked config and its Schema; `notes` are remarks for the user, such as skipped fields and unused labels."""

    path: str
    config: EasyRecConfig
    schema: Schema
    notes: tuple[str, ...]


def load_pipeline(
    path: str, overrides: Sequence[str | Override] | None = None, ignore_unsupported: bool = False
) -> Pipeline:
    """Read and check a pipeline file.

    Args:
      path: the pipeline file.
      overrides: changes as on the command line, such as "train_config.num_steps=100", in their order.
      ignore_unsupported: skip fields of EasyRec's language that are not supported, noting each, instead of failing.

    Raises:
      ConfigError: naming every problem of the first stage that finds any.
    """
    config, notes = parse_config(read_text(path), path, ignore_unsupported)
    for override in overrides or []:
        notes += apply_override(config, override, ignore_unsupported)
    _require_fields(config, path)
    schema, remarks = check_config(config, path)
    return Pipeline(path, config, schema, (*notes, *remarks))


def changed_pipeline(pipeline: Pipeline, overrides: Sequence[Override]) -> Pipeline:
    """Return a checked pipeline with further changes; the given one stays as it is.

    Raises:
      ConfigError: naming every problem of the first stage that finds any.
    """
    config = EasyRecConfig()
    config.CopyFrom(pipeline.config)
    for override in overrides:
        apply_override(config, override)
    _require_fields(config, pipeline.path)
    schema, remarks = check_config(config, pipeline.path)
    return Pipeline(pipeline.path, config, schema, tuple(remarks))


def check_config(config: EasyRecConfig, path: str) -> tuple[Schema, list[str]]:
    """Return the Schema of a config, and remarks that are not errors; `path` is the config's file, for messages.

    Raises:
      ConfigError: naming every problem of the first stage that finds any.
    """
    rules = Problems(path)
    check_rules(config, rules)
    problems = Problems(path, earlier=rules)
    if is_pretraining(config):
        complete_pretraining(config, problems)
    schema = derive_schema(config, problems)
    if is_pretraining(config):
        check_pretraining(config, schema, problems)
    check_network(config, schema, problems)
    check_training(config, schema, problems)
    check_export(config, schema, problems)
    check_evaluation(config, schema, problems)
    problems.raise_if_any()
    rules.raise_if_any()
    return schema, problems.notes


def config_text(config: EasyRecConfig) -> str:
    """Return a config as text that `load_pipeline` reads; the passwords of its URIs are left out."""
    written = EasyRecConfig()
    written.CopyFrom(config)
    leave_out_secrets(written)
    return str(text_format.MessageToString(written, as_utf8=True))


def write_config(config: EasyRecConfig, path: str) -> None:
    """Write a config as `config_text` to a file, with the version that writes it."""
    put_text(path, f"# Written by easyrec-mm {__version__}.\n{config_text(config)}")


def _require_fields(config: EasyRecConfig, path: str) -> None:
    """Check that no required field is missing, which text_format.Parse does not check."""
    missing: list[str] = []
    if not config.IsInitialized(missing):
        raise ConfigError("\n".join(f"{path}: {place}: is required and missing" for place in missing))
