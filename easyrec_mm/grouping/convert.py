"""The command `convert`: grouped samples of one format -> the same samples in another format.

Each file becomes one file. Groups, samples and values do not change, so that converting back restores them; only empty
texts become missing ones, which mean the same everywhere. Groups that are invalid, or that the new format cannot
represent, are left out, counted and listed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow.compute as pc
from google.protobuf import text_format

from easyrec_mm.config.pipeline import Pipeline, load_pipeline
from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.features.field import KINDS, Kind
from easyrec_mm.files import is_remote, join
from easyrec_mm.files.data_names import PICTURES_ENDING
from easyrec_mm.files.opening import exists, opened_at, size_of
from easyrec_mm.formats.checks import BadGroup, GroupProblems
from easyrec_mm.formats.columns import MAX_WHOLE
from easyrec_mm.formats.grouped_table import GroupFields, Groups, GroupsPiece
from easyrec_mm.formats.parquet import read_parquet
from easyrec_mm.formats.rtp import find_forbidden, read_rtp, selected_columns, written_layout
from easyrec_mm.formats.tfrecord import read_tfrecord
from easyrec_mm.formats.typed_groups import TypedGroups
from easyrec_mm.grouping.bad_rows import BAD_ROWS, BadRow, BadRows
from easyrec_mm.grouping.find_files import find_inputs, is_grouped
from easyrec_mm.grouping.group_stats import write_stats
from easyrec_mm.grouping.options import GROUP_SIZE
from easyrec_mm.grouping.output_folder import new_folder, written
from easyrec_mm.grouping.pipeline_template import INPUT_TYPES
from easyrec_mm.grouping.shards import FORMATS
from easyrec_mm.grouping.sides import SIDES
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

# Bytes of input from which on it is worth starting several processes.
MANY_BYTES = 64 << 20


@dataclass(frozen=True)
class ConvertOptions:
    """The flags of the command; cli/convert.py explains them."""

    input: str
    output: str
    format: str
    max_bad_share: float = 0.01
    num_workers: int = 1
    pipeline_config_template: str = ""
    rtp_separator: str = "|"
    overwrite: bool = False


_READERS = {"parquet": read_parquet, "tfrecord": read_tfrecord, "rtp": read_rtp}


@dataclass(frozen=True)
class SourceFormat:
    """How files are read: the format, the fields, and the same fields as training reads them."""

    format: str
    fields: GroupFields
    groups: TypedGroups

    def read(self, path: str) -> Iterator[GroupsPiece]:
        """Read the groups of a file.

        Raises:
          DataError: if the file cannot be read.
        """
        return _READERS[self.format](path, self.fields, self.groups)


class _Task(NamedTuple):
    """A file to convert."""

    source: SourceFormat
    path: str
    output: str
    format: str


class _Done(NamedTuple):
    """The result of converting a file."""

    num_groups: int
    num_samples: int
    refused: list[BadGroup]
    num_written: tuple[int, int]  # groups and samples, counted in the written file


def source_format(pipeline: Pipeline, rtp_separator: str = "|") -> SourceFormat:
    """Return how the files of a config are read.

    Args:
      pipeline: the config.
      rtp_separator: separator of the columns in written text lines.

    Raises:
      ConfigError: if the files contain no groups, or another field has the name of the group size.
    """
    data, schema = pipeline.config.data_config, pipeline.schema
    formats = {DatasetConfig.InputType.Value(name): key for key, name in INPUT_TYPES.items()}
    formats[DatasetConfig.OdpsGroupRTPInput] = "rtp"  # a row of a table is read as a line
    if data.input_type not in formats:
        name = DatasetConfig.InputType.Name(data.input_type)
        raise ConfigError(
            f"{pipeline.path}: data_config.input_type: {name} holds no groups; easyrec-mm group makes them of flat logs"
        )
    types = {field.input_name: DatasetConfig.FieldType.Name(field.input_type) for field in data.input_fields}
    size = schema.group_size_field or GROUP_SIZE
    kinds: dict[str, Kind] = {name: KINDS[kind] for name, kind in types.items() if name != schema.group_size_field}
    if size in kinds:
        raise ConfigError(
            f"{pipeline.path}: field '{size}' is not the group size; give the feature of it, or rename it"
        )
    fields = GroupFields(
        kinds=kinds,
        labels=schema.labels,
        image=schema.image.field,
        size=size,
        per_group=frozenset({schema.image.field, *schema.group_fields} - {"", *schema.labels}),
        defaults={field.name: field.default_value for field in schema.fields},
        column_separator=rtp_separator,
    )
    feature_fields = tuple(name for name in kinds if name not in schema.labels and name != schema.image.field)
    groups = TypedGroups(schema, schema.labels, feature_fields, is_exact=True)
    return SourceFormat(formats[data.input_type], fields, groups)


def convert(pipeline: Pipeline, options: ConvertOptions, work: str) -> str:
    """Run the command; return the text for the user.

    Args:
      pipeline: the config of the files that are converted.
      options: the flags of the command.
      work: the folder of work_place for the output.

    Raises:
      DataError: if a file cannot be read, or too many groups cannot be used.
    """
    if pipeline.config.data_config.input_type == DatasetConfig.OdpsGroupRTPInput:
        raise ConfigError(f"{pipeline.path}: data_config.input_type: a table of MaxCompute has no files to convert")
    source = source_format(pipeline, options.rtp_separator)
    paths = {"": options.input}
    if not options.input:
        config = pipeline.config
        paths = dict(zip(SIDES, (config.train_input_path, config.eval_input_path), strict=True))
        paths = {side: path for side, path in paths.items() if path}
        if not paths:
            raise UserError(f"--input: give the files to convert; {pipeline.path} has no train_input_path")
    lines = []
    with new_folder(options.output, options.overwrite, work) as folder:
        for side, path in paths.items():
            target = join(folder, side) if side else folder
            if not is_remote(target):
                os.makedirs(target, exist_ok=True)
            shown = join(options.output, side) if side else options.output
            found = find_inputs(path, is_grouped)
            lines += _convert_files(found.files, source, target, options, shown)
            lines += [f"note: {note}" for note in found.notes()]
    if options.pipeline_config_template:
        _write_config(pipeline, options, [side for side in SIDES if side in paths])
        lines.append(f"next: easyrec-mm train --pipeline_config {options.pipeline_config_template}")
    return "\n".join(lines)


def _convert_files(
    files: list[str],
    source: SourceFormat,
    folder: str,
    options: ConvertOptions,
    shown_folder: str,
) -> list[str]:
    """Convert files into a folder; return lines for the user."""
    ending = FORMATS[options.format].ending
    names = [f"part-{i:05d}" for i in range(len(files))]
    tasks = [
        _Task(source, file, join(folder, f"{name}.{ending}"), options.format)
        for file, name in zip(files, names, strict=True)
    ]
    if options.num_workers > 1 and len(files) > 1 and sum(map(size_of, files)) > MANY_BYTES:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.num_workers, mp_context=context) as pool:
            done = list(pool.map(_convert_file, tasks))
    else:
        done = [_convert_file(task) for task in tasks]
    refused = [
        BadRow("group", file, *group) for file, result in zip(files, done, strict=True) for group in result.refused
    ]
    num_groups = sum(result.num_groups for result in done)
    bad = BadRows(shown_folder, options.max_bad_share, options.output)
    bad.add(len(refused), num_groups + len(refused), "groups", refused)
    for task, result in zip(tasks, done, strict=True):
        if result.num_written != (result.num_groups, result.num_samples):
            raise UserError(
                f"{task.path}: {result.num_groups} groups became {result.num_written[0]}, "
                "because of a bug in this program; no output is kept"
            )
    bad.write(join(folder, BAD_ROWS))
    values: dict[str, Any] = {
        "groups_in": num_groups + len(refused),
        "groups_refused": len(refused),
        "groups_out": num_groups,
        "rows": sum(result.num_samples for result in done),
        "files": [
            {"file": f"{name}.{ending}", "from": file, "groups": result.num_groups, "rows": result.num_samples}
            for name, file, result in zip(names, files, done, strict=True)
        ],
    }
    write_stats(folder, values)
    lines = [f"{shown_folder}: {num_groups:,} groups of {values['rows']:,} rows in {len(files)} file(s)"]
    return lines + bad.lines()


def _convert_file(task: _Task) -> _Done:
    fields = task.source.fields
    arguments = {"keep_doubles": True} if task.format == "tfrecord" else {}
    num_groups = num_samples = 0
    refused: list[BadGroup] = []
    with written(task.output) as path:
        writer = FORMATS[task.format].writer(path, fields, **arguments)
        for piece in task.source.read(task.path):
            problems = _unwritable(piece.groups, task)
            refused += piece.refused + problems.at_rows(piece.rows)
            groups = piece.groups.select(~problems.is_bad, fields)
            writer.write(groups)
            num_groups += len(groups.size)
            num_samples += int(groups.size.sum())
        writer.close()
        num_written = FORMATS[task.format].count(path, fields)
    pictures = os.path.splitext(task.path)[0] + PICTURES_ENDING
    if exists(pictures):
        with written(os.path.splitext(task.output)[0] + PICTURES_ENDING) as path:
            shutil.copyfile(opened_at(pictures), path)
    return _Done(num_groups, num_samples, refused, num_written)


def _unwritable(groups: Groups, task: _Task) -> GroupProblems:
    """Return the groups that the new format cannot represent."""
    fields = task.source.fields
    if task.format == "rtp":
        problems = find_forbidden(groups, fields)
        for name in (name for name, kind in fields.kinds.items() if kind == "int64"):
            column = groups.columns[name]
            is_long = pc.or_(pc.greater_equal(column, MAX_WHOLE), pc.less_equal(column, -MAX_WHOLE))
            refuse = problems.refuse if name in fields.per_group else problems.refuse_samples
            refuse(
                pc.fill_null(is_long, False).to_numpy(zero_copy_only=False),
                f"column '{name}'",
                lambda i, c=column: f"{c[i]} has more than 18 digits, which lines of text may not; make it a STRING",  # type: ignore[misc]
            )
        return problems
    return GroupProblems(groups.size)


def _write_config(pipeline: Pipeline, options: ConvertOptions, sides: list[str]) -> None:
    """Write the same config for the new files, and load it as training will."""
    config = EasyRecConfig()
    config.CopyFrom(pipeline.config)
    data = config.data_config
    data.input_type = DatasetConfig.InputType.Value(INPUT_TYPES[options.format])
    for setting in ("rtp_separator", "group_sample_separator", "separator", "selected_cols"):
        data.ClearField(setting)
    schema = pipeline.schema
    if options.format == "rtp":
        layout = written_layout(len(schema.labels), options.rtp_separator, bool(schema.image.field))
        data.selected_cols = selected_columns(layout)
        data.rtp_separator, data.group_sample_separator = layout.column_separator, layout.sample_separator
        data.separator = layout.value_separator
        if not schema.group_size_field:
            data.input_fields.add(input_name=GROUP_SIZE, input_type=DatasetConfig.INT64)
            features = config.feature_config.features or config.feature_configs
            features.add(input_names=[GROUP_SIZE], feature_type=FeatureConfig.SampleNumFeature)
    pattern = f"part-*.{FORMATS[options.format].ending}"
    config.ClearField("eval_input_path")
    config.train_input_path = join(join(options.output, "train") if sides else options.output, pattern)
    if "eval" in sides:
        config.eval_input_path = join(join(options.output, "eval"), pattern)
    if sides and "train" not in sides:
        config.ClearField("train_input_path")
    path = options.pipeline_config_template
    with written(path) as here, open(here, "w", encoding="utf-8") as file:
        file.write(text_format.MessageToString(config, as_utf8=True))
    load_pipeline(path)
