"""Packs the rows of a click log into grouped samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from easyrec_mm.api.frames import Data, as_file, is_frame, naming, path_of, table_of
from easyrec_mm.api.options import names_of, options_from, path_text, require_spark
from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote, join
from easyrec_mm.ranges import Gib, NotNegative
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.grouping.options import GroupOptions


@dataclass(frozen=True)
class Engine:
    """The engine that groups the rows.

    name          "local": this machine, "spark": a Spark cluster
    spark_master  the cluster, such as local[4]; "": as Spark is configured
    memory_gib    memory limit of the local engine
    num_workers   its threads; 0: one per core
    """

    name: Literal["local", "spark"] = "local"
    spark_master: str = ""
    memory_gib: Gib = 4.0
    num_workers: NotNegative = 0


@dataclass(frozen=True)
class Groups:
    """Grouped samples, as `group` returns them.

    output           their folder
    pipeline_config  the config for training that was inferred
    train_data       the groups that train
    eval_data        those that evaluate; "" if split_by set none apart
    report           what `easyrec-mm group` prints
    """

    output: str
    pipeline_config: str
    train_data: str
    eval_data: str
    report: str

    def __str__(self) -> str:
        """Return the report."""
        return self.report


def group(
    data: Data,
    output: str | os.PathLike[str],
    *,
    group_by: str,
    image_field: str,
    label_fields: str | Sequence[str] = (),
    split_by: str = "",
    pipeline_config: str | os.PathLike[str] = "",
    engine: Engine = Engine(),
    **options: Any,
) -> Groups:
    """Group a click log, one row per impression, and infer a config for training, as `easyrec-mm group` does.

    Args:
      data: .csv and .parquet files, folders or globs, or a DataFrame.
      output: the folder to create.
      group_by: column of the item.
      image_field: column of the path of its picture.
      label_fields: label columns; by default they are guessed.
      split_by: "item", "user", "time:<column>" or "time:<column>:<time>": which rows to keep for evaluation.
      pipeline_config: the config to write; by default beside `output`, with the ending .config.
      engine: what groups the rows.
      **options: further flags of the command, such as user_field, time_field, image_root, image_size, preset,
        max_group_size, eval_share or overwrite; columns may also be a list, types a dict, image_size a pair.

    Raises:
      UserError: if a column or a file cannot be used, or an option does not exist.
    """
    if not isinstance(engine, Engine):
        raise UserError(f"group: engine: is {engine!r}; give an er.Engine, such as er.Engine('spark')")
    engine = options_from(Engine, vars(engine), "group: engine")
    folder = path_text(output, "group: output")
    config = path_text(pipeline_config, "group: pipeline_config") or f"{folder.rstrip('/')}.config"
    values = {
        "output": folder, "group_by": group_by, "image_field": image_field, "label_fields": label_fields,
        "split_by": split_by, "pipeline_config_template": config, **options,
    }  # fmt: skip
    if is_frame(data):
        table = table_of(data, "data", [str(column) for column in data.columns])
        with as_file(table, "the DataFrame data") as path:
            report = run(_options(path, values), engine)
    else:
        with naming({"--input": "data"}):
            report = run(_options(path_of(data, "data"), values), engine)
    files = f"part-*.{_ending(values.get('format', 'parquet'))}"
    train, evaluation = (join(folder, side) if split_by else folder for side in ("train", "eval"))
    return Groups(folder, config, join(train, files), join(evaluation, files) if split_by else "", report)


def run(options: GroupOptions, engine: Engine) -> str:
    """Group a log on an engine; return the report.

    Raises:
      UserError: if the log, the output or the engine cannot be used.
    """
    from easyrec_mm.grouping.group import group as group_log
    from easyrec_mm.grouping.output_folder import check_output
    from easyrec_mm.grouping.pictures import PicturePacker
    from easyrec_mm.grouping.work_place import work_place

    packer = None
    if options.embed_images:
        # Processes on other machines may have other current folders.
        root = options.image_root if is_remote(options.image_root) else os.path.abspath(options.image_root)
        packer = PicturePacker(root, _resizer(options.image_size))
    check_output(options.output, options.overwrite)
    with work_place(options.output) as work, _engine(engine, work) as running:
        return group_log(options, running, packer, work)


def _options(path: str, values: Mapping[str, Any]) -> GroupOptions:
    """Return the options of the command for arguments as `group` takes them."""
    from easyrec_mm.grouping.options import GroupOptions, parse_columns, parse_image_size, parse_split_by, parse_types

    # Besides the texts that the flags take: a list of columns, a dict of types, and a pair of numbers.
    columns, only_columns = parse_columns(",".join(names_of(values.get("columns") or "", "group: columns")))
    types, image_size, split_by = (values.get(name) or "" for name in ("types", "image_size", "split_by"))
    if isinstance(types, Mapping):
        types = ",".join(f"{name}={kind}" for name, kind in types.items())
    if isinstance(image_size, list | tuple):
        image_size = "x".join(map(str, image_size))
    for name, value, kind in (
        ("types", types, "a dict of columns and types"),
        ("image_size", image_size, "width and height, as in (224, 224)"),
        ("split_by", split_by, "a text"),
    ):
        if not isinstance(value, str):
            raise UserError(f"group: {name}: is {value!r}; give {kind}")
    parsed = {
        "input": path,
        "columns": columns,
        "only_columns": only_columns,
        "types": parse_types(types),
        "split_by": parse_split_by(split_by),
        "image_size": parse_image_size(image_size),
    }
    return options_from(GroupOptions, {**values, **parsed}, "group")


def _ending(kind: str) -> str:
    from easyrec_mm.grouping.shards import FORMATS

    return FORMATS[kind].ending


def _engine(engine: Engine, work: str) -> AbstractContextManager[Any]:
    """Return the chosen engine; the local one keeps rows in the folder `work`."""
    if engine.name == "spark":
        require_spark()
        from easyrec_mm.grouping.spark_engine import spark_engine

        return spark_engine(engine.spark_master)
    from easyrec_mm.grouping.local_engine import LocalEngine

    rows = os.path.join(work, "rows")
    os.mkdir(rows)
    num_workers = engine.num_workers or len(os.sched_getaffinity(0))
    return nullcontext(LocalEngine(rows, int(engine.memory_gib * 2**30), num_workers))


def _resizer(size: tuple[int, int] | None) -> Any:
    if size is None:
        return None
    import_tensorflow()
    from easyrec_mm.data.resized_pictures import Resizer

    return Resizer(*size)
