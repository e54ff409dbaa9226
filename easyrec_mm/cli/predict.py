"""`easyrec-mm predict`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from easyrec_mm.api.options import require_spark
from easyrec_mm.api.predicting import Output, in_common, predict, require_fields
from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import chosen_by, load_config
from easyrec_mm.console import tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.files import plain
from easyrec_mm.files.folders import shown
from easyrec_mm.tasks import Task

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline

HELP = "write the model's outputs for every sample of some files"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    f.add_checkpoint_flag(parser)
    f.add_precision_flag(parser)
    add = parser.add_argument
    add("--predict_input_path", metavar="P", required=True, help="files to predict")
    output = "file to write, .parquet or .csv; or folder, with / at the end, for a part of each task"
    add("--output", metavar="F", required=True, help=output)
    add("--format", choices=["parquet", "csv"], help="format of the parts in a folder (default parquet)")
    f.add_task_flags(parser, "the samples: each writes the part of its own to the folder --output")
    f.add_engine_flags(parser)
    rec = (
        "with --engine spark: the exported rec model, or a folder of exports with numbers as names, of which the newest"
    )
    add("--rec_model_dir", metavar="R", help=rec)
    add("--img_model_dir", metavar="I", default="", help="with --engine spark: folder of the exported image model")
    add("--reserved_columns", metavar="A,B", type=f.names, default=(), help="input fields to copy into the output")
    formulas = "in .csv, put ' before texts that begin with = + - @, which spreadsheets would compute"
    add("--quote_formulas", action="store_true", help=formulas)


def run(flags: f.Flags) -> int:
    """Predict every sample."""
    pipeline = load_config(flags)
    require_fields(flags.reserved_columns, pipeline.schema)
    # With Spark, the number of tasks is given without an index.
    task = None if flags.engine == "spark" else f.task_of(flags)
    ending = _ending(flags)
    if flags.quote_formulas and ending != ".csv":
        raise UserError(f"--quote_formulas: has no effect on {ending}; write .csv, or remove the flag")
    if flags.engine == "spark":
        return _run_on_spark(pipeline, flags, ending)
    if flags.rec_model_dir or flags.img_model_dir:
        raise UserError("--rec_model_dir, --img_model_dir: have no effect without --engine spark; remove them")
    return _run_here(pipeline, flags, _output(flags, ending, task))


def _run_here(pipeline: Pipeline, flags: f.Flags, output: Output) -> int:
    """Predict the samples of this task by a checkpoint."""
    prediction = predict(pipeline, flags.predict_input_path, output, chosen_by(flags))
    num_rows, name, path = prediction.num_rows, prediction.name, prediction.path
    tell_result(f"{num_rows} rows by {name} in {path}", rows=num_rows, checkpoint=name, output=path)
    if prediction.bad_records:
        print(shown(prediction.bad_records))
    return 0


def _output(flags: f.Flags, ending: str, task: Task | None) -> Output:
    """Return what is written, and where."""
    return Output(flags.output, ending, not _is_file(flags.output), flags.reserved_columns, flags.quote_formulas, task)


def _run_on_spark(pipeline: Pipeline, flags: f.Flags, ending: str) -> int:
    """Predict all samples by exported models, on the workers of Spark."""
    _check_spark_flags(flags, pipeline.schema.uses_image)
    require_spark()
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.evaluation.exported import read_headers
    from easyrec_mm.evaluation.on_spark import SparkPrediction, predict_on_spark
    from easyrec_mm.evaluation.predict import prediction_input
    from easyrec_mm.runs.model_dir import PREDICT_BAD_RECORDS, ModelDir
    from easyrec_mm.spark import spark_session

    config, schema, path = pipeline.config, pipeline.schema, flags.predict_input_path
    rec_folder, image_folder = _exports(flags)
    rec = read_headers(rec_folder, image_folder, schema)
    model_dir = ModelDir(config.model_dir)
    bad_records = BadRecords(str(model_dir.local / PREDICT_BAD_RECORDS), config.data_config.max_bad_record_share)
    inputs = prediction_input(config, schema, path, flags.reserved_columns, BadRecords(None, 1.0))
    name = f"{os.path.basename(rec.checkpoint)} (step {rec.step})"
    with model_dir.logs_put(), spark_session(flags.spark_master, "predict") as session:
        context = session.sparkContext
        prediction = SparkPrediction(
            config=config.SerializeToString(),
            schema=schema,
            path=path,
            rec_model_dir=rec_folder,
            img_model_dir=image_folder,
            output=flags.output,
            ending=ending,
            reserved_columns=flags.reserved_columns,
            quote_formulas=flags.quote_formulas,
            in_common=in_common(_output(flags, ending, None), f"{name}, exported", flags.precision, inputs),
            num_tasks=flags.task_num or context.defaultParallelism,
            num_threads=int(context.getConf().get("spark.task.cpus") or 1),
        )
        num_rows = predict_on_spark(session, prediction, bad_records)
    text = f"{num_rows} rows by {name} in {prediction.num_tasks} parts in {flags.output}"
    tell_result(text, rows=num_rows, checkpoint=name, output=flags.output)
    if bad_records.summary():
        print(shown(bad_records.summary()))
    return 0


def _exports(flags: f.Flags) -> tuple[str, str]:
    """Return the folders of the rec model and of its image model; of exports with numbers as names, of the newest."""
    from easyrec_mm.manifest import read_header
    from easyrec_mm.serving.release import exports_of, image_model_of

    rec_folder = exports_of(flags.rec_model_dir)[0]
    if not flags.img_model_dir:
        return rec_folder, ""
    return rec_folder, image_model_of(read_header(rec_folder, "rec").image_tower_fingerprint, flags.img_model_dir)


def _check_spark_flags(flags: f.Flags, uses_image: bool) -> None:
    """Check that the flags name exported models and a folder, and nothing that belongs to a checkpoint.

    Raises:
      UserError: if they do not.
    """
    if _is_file(flags.output):
        raise UserError(f"--output {flags.output}: is one file; Spark writes parts: give a folder, with / at the end")
    unused = {"--task_index": flags.task_index, "--checkpoint_path": flags.checkpoint_path}
    unused["--precision"] = None if flags.precision == "FLOAT32" else flags.precision
    for name, value in unused.items():
        if value is not None:
            raise UserError(f"{name}: has no effect with --engine spark, which runs exported models; remove the flag")
    if not flags.rec_model_dir or (uses_image and not flags.img_model_dir):
        folders = "--rec_model_dir and --img_model_dir" if uses_image else "--rec_model_dir"
        raise UserError(f"--engine spark: runs exported models; give the folders that export has written: {folders}")


def _ending(flags: f.Flags) -> str:
    """Return the ending of the file or of the parts.

    Raises:
      UserError: if the output is neither a file nor a folder, or several tasks would write one file.
    """
    output, ending = flags.output, Path(flags.output).suffix
    if _is_file(output):
        if (flags.task_num or 1) > 1:
            raise UserError(
                f"--output {output}: is one file, and {flags.task_num} tasks write; give a folder, such as "
                f"{output.removesuffix(ending)}/"
            )
        if flags.format:
            raise UserError(f"--format: has no effect on {output}, whose ending says the format; remove the flag")
        return ending
    if not (output.endswith("/") or os.path.isdir(plain(output)) or flags.task_num or flags.engine == "spark"):
        raise UserError(
            f"--output {output}: write to a file that ends in .parquet or .csv, or to a folder, with / at the end"
        )
    return f".{flags.format or 'parquet'}"


def _is_file(output: str) -> bool:
    """Return whether the output is one file, and no folder of parts."""
    return output.endswith((".parquet", ".csv")) and not os.path.isdir(plain(output))
