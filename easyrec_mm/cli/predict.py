"""`easyrec-mm predict`."""

from __future__ import annotations

from contextlib import closing

from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import load_config, load_trained
from easyrec_mm.errors import ConfigError, UserError, did_you_mean
from easyrec_mm.files.folders import shown

HELP = "write the model's outputs for every sample of some files"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    f.add_checkpoint_flag(parser)
    f.add_precision_flag(parser)
    add = parser.add_argument
    add("--predict_input_path", metavar="P", required=True, help="files to predict")
    add("--output", metavar="F", required=True, help="file to write, .parquet or .csv")
    add("--reserved_columns", metavar="A,B", type=f.names, default=(), help="input fields to copy into the output")
    formulas = "in .csv, put ' before texts that begin with = + - @, which spreadsheets would compute"
    add("--quote_formulas", action="store_true", help=formulas)


def run(flags: f.Flags) -> int:
    """Predict every sample."""
    pipeline = load_config(flags)
    field_names = [field.name for field in pipeline.schema.fields]
    for name in flags.reserved_columns:
        if name not in field_names:
            raise ConfigError(f"--reserved_columns: no input field '{name}'; {did_you_mean(name, field_names)}")
    if not flags.output.endswith((".parquet", ".csv")):
        raise UserError(f"--output {flags.output}: write to a file that ends in .parquet or .csv")
    if flags.quote_formulas and not flags.output.endswith(".csv"):
        raise UserError(f"--quote_formulas: has no effect on {flags.output}; write a .csv, or remove the flag")
    from easyrec_mm.evaluation.evaluator import predict
    from easyrec_mm.runs.model_dir import PREDICT_BAD_RECORDS

    trained = load_trained(pipeline, flags, PREDICT_BAD_RECORDS)
    with trained.folder.logs_put(), closing(trained.vectors):
        num_rows = predict(
            trained.model,
            pipeline.config,
            flags.predict_input_path,
            flags.output,
            flags.reserved_columns,
            trained.bad_records,
            trained.vectors,
            flags.quote_formulas,
        )
    print(f"{num_rows} rows by {trained.name} in {flags.output}")
    if trained.bad_records.summary():
        print(shown(trained.bad_records.summary()))
    return 0
