"""A config that was loaded: what can be trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.frames import Data, dtypes_of, fields_of, input_settings, is_frame, kept_in, naming, path_of
from easyrec_mm.api.options import path_text
from easyrec_mm.console import warn
from easyrec_mm.errors import ConfigError, DataError, UserError
from easyrec_mm.ranges import POSITIVE

if TYPE_CHECKING:
    import pyarrow as pa

    from easyrec_mm.api.run import Run
    from easyrec_mm.config.pipeline import Pipeline as CheckedPipeline
    from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


@dataclass(frozen=True)
class Pipeline:
    """A checked config, as `load` returns it.

    path                the pipeline file
    settings            changes of it: path of a setting -> value
    ignore_unsupported  whether settings of EasyRec that are not supported are skipped
    checked             the config with these changes, and what follows from it
    """

    path: str
    settings: Mapping[str, Any]
    ignore_unsupported: bool
    checked: CheckedPipeline = field(repr=False, compare=False)

    @property
    def config(self) -> EasyRecConfig:
        """The config as a message of protos/pipeline.proto; change it by `with_settings`."""
        return self.checked.config

    @property
    def model_dir(self) -> str:
        """The folder of the training."""
        return self.config.model_dir

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the config that are not errors."""
        return self.checked.notes

    def with_settings(self, settings: Mapping[str, Any]) -> Pipeline:
        """Return the pipeline with further changes, such as {"train_config.num_steps": 100}.

        Raises:
          ConfigError: if a setting does not exist, or the config is invalid with them.
        """
        return _load(self.path, {**self.settings, **_mapping(settings)}, self.ignore_unsupported)

    def check(self, num_groups: int = 1000) -> str:
        """Read some groups as a training would; return the report that `easyrec-mm check` prints.

        Raises:
          UserError: if the data cannot be used; the message begins with the report.
        """
        from easyrec_mm.tensorflow_import import import_tensorflow

        import_tensorflow()
        from easyrec_mm.stats.check import check

        result = check(self.checked, POSITIVE.checked(num_groups, "check: num_groups"))
        if result.problem:
            raise UserError(f"{result.report}\n{result.problem}")
        return result.report

    def train(self, train_data: Data | None = None, eval_data: Data | None = None) -> Run:
        """Train until the end, as `easyrec-mm train` does; continue from the last checkpoint in model_dir.

        An interrupt saves a checkpoint, and another call continues from there.

        Args:
          train_data: files or globs, or a DataFrame, in place of the config's train_input_path. A DataFrame
            has one row per sample, or one per group with lists as in GroupParquetInput, and is kept in model_dir.
          eval_data: the same for eval_input_path. If one of both is a DataFrame, the other one has to be one, too, or
            to consist of Parquet files with rows of the same kind.

        Raises:
          UserError: if the config, the data or the checkpoints do not let it train.
          KeyboardInterrupt: after the checkpoint was saved.
        """
        from easyrec_mm.api.run import Run
        from easyrec_mm.api.training import train

        tables: dict[str, pa.Table] = {}
        settings: dict[str, str] = {}
        names: dict[str, str] = {}
        for argument, data in (("train_data", train_data), ("eval_data", eval_data)):
            if is_frame(data):
                tables[argument] = fields_of(data, argument, dtypes_of(self.checked.schema))
            elif data is not None:
                settings[_setting(argument)] = path_of(data, argument)
        settings |= self._reading(tables, settings)
        for argument, table in tables.items():
            path = settings[_setting(argument)] = kept_in(self.model_dir, table, argument)
            names[path] = f"the DataFrame {argument}"
        pipeline = self.with_settings(settings) if settings else self
        with naming(names):
            ended = train(pipeline.checked, pipeline._arguments(), tells_notes=False)
        _raise_for(ended.status, ended.step is not None)
        return Run(pipeline)

    def trained(self, checkpoint_path: str | os.PathLike[str] = "") -> Run:
        """Return the training in model_dir, as it is.

        Args:
          checkpoint_path: a checkpoint, or a folder of checkpoints; by default the newest in model_dir, or the best
            where the config's exporter_type is best.

        Raises:
          UserError: if the checkpoint does not exist.
        """
        from easyrec_mm.api.loading import find_checkpoint
        from easyrec_mm.api.run import Run

        checkpoint = path_text(checkpoint_path, "checkpoint_path")
        find_checkpoint(self.checked, checkpoint)
        return Run(self, checkpoint)

    def _reading(self, tables: Mapping[str, pa.Table], files: Mapping[str, str]) -> dict[str, str]:
        """Return the settings with which a training reads tables; `files` are those given in place of the config's.

        Raises:
          DataError: if the data of the training and of the evaluation cannot be read in the same way.
        """
        from easyrec_mm.protos.data_pb2 import DatasetConfig

        both = [input_settings(self.checked, table) for table in tables.values()]
        if not both:
            return {}
        reading = both[0]
        if reading != both[-1]:
            raise DataError("train_data, eval_data: one has a row per sample, one a row per group; give equal kinds")
        name = DatasetConfig.InputType.Name(self.config.data_config.input_type)
        for argument in ("train_data", "eval_data"):
            path = getattr(self.config, _setting(argument))
            is_of_config = argument not in tables and _setting(argument) not in files
            if path and is_of_config and name != reading["data_config.input_type"]:
                raise DataError(
                    f"{argument}: the config's {_setting(argument)} is {name}, and the DataFrame is read as "
                    f"{reading['data_config.input_type']}; give a DataFrame for {argument}, too"
                )
        return reading

    def _arguments(self) -> list[str]:
        """Return the arguments of the command that trains this."""
        from easyrec_mm.config.overrides import json_value

        edits = ["--edit_config_json", json.dumps(dict(self.settings), default=json_value)] if self.settings else []
        skipping = ["--ignore_unsupported"] if self.ignore_unsupported else []
        return ["train", "--pipeline_config", self.path, *edits, *skipping]


def load(
    path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None, *, ignore_unsupported: bool = False
) -> Pipeline:
    """Load and check a pipeline file, and print remarks on it. TensorFlow is not imported.

    Args:
      path: the pipeline file.
      settings: changes of it: path of a setting -> value, such as {"train_config.num_steps": 100}.
      ignore_unsupported: skip settings of EasyRec that are not supported, with a note for each.

    Raises:
      ConfigError: naming every mistake.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path: is a {type(path).__name__}; give the path of a pipeline file")
    pipeline = _load(os.fspath(path), {} if settings is None else settings, ignore_unsupported)
    for note in pipeline.notes:
        warn(f"note: {note}")
    return pipeline


def _load(path: str, settings: Mapping[str, Any], ignore_unsupported: bool) -> Pipeline:
    from easyrec_mm.config.overrides import edits_of
    from easyrec_mm.config.pipeline import load_pipeline

    settings = dict(_mapping(settings))
    if wrong := [name for name in settings if not isinstance(name, str)]:
        raise ConfigError(f"settings: {wrong[0]!r} is not a path; write it as 'train_config.num_steps'")
    checked = load_pipeline(path, edits_of(settings, "settings"), ignore_unsupported)
    return Pipeline(path, settings, ignore_unsupported, checked)


def _mapping(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(settings, Mapping):
        kind = type(settings).__name__
        raise ConfigError(f"settings: is a {kind}; give a dict such as {{'train_config.num_steps': 100}}")
    return settings


def _setting(argument: str) -> str:
    """Return the setting in whose place an argument of `train` is."""
    return argument.replace("data", "input_path")


def _raise_for(status: int, is_own: bool) -> None:
    """Raise what has ended a training with a status other than 0; `is_own` says whether this process trained."""
    import signal

    from easyrec_mm.exit_status import after_signal

    if not status:
        return
    if status == after_signal(signal.SIGINT):
        raise KeyboardInterrupt
    if is_own or status in (after_signal(signal.SIGTERM), after_signal(signal.SIGHUP)):
        raise SystemExit(status)
    raise UserError(f"train: a process of the training ended with status {status}; its messages are above")
