"""The command line: `easyrec-mm train | eval | predict | check`. Imports TensorFlow only when a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from easyrec_mm import __version__
from easyrec_mm.errors import UserError

if TYPE_CHECKING:
    from easyrec_mm.config import Pipeline
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.model import MultimodalModel

SIGNAL_EXIT_BASE = 128
_STORE_HELP = "store of image vectors: lmdb://path, redis://host:port/db, postgresql://user@host/db"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 for a user's mistake, 2 for wrong flags, 128 + n after signal n."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return SIGNAL_EXIT_BASE + 2


def _train(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    _require(pipeline.config.train_input_path, pipeline, "train_input_path", "the training data")
    from easyrec_mm.trainer import Trainer

    result = Trainer(pipeline).train()
    print(f"step {result.step}; checkpoint {result.checkpoint}", flush=True)
    if result.signal is None:
        return 0
    print(f"stopped; go on with: easyrec-mm train --pipeline_config {options.pipeline_config}", flush=True)
    return SIGNAL_EXIT_BASE + int(result.signal)


def _eval(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    path = options.eval_input_path or pipeline.config.eval_input_path
    _require(path, pipeline, "eval_input_path", "the evaluation data")
    from easyrec_mm.evaluator import evaluate, table, write_result
    from easyrec_mm.trainer import EVAL_RESULT

    config = pipeline.config
    model, bad_records, trained = _trained(pipeline, options.checkpoint_path)
    results = evaluate(model, config, path, "eval_input_path", bad_records)
    result_path = os.path.join(config.model_dir, EVAL_RESULT)
    write_result(result_path, results)
    print(table(results))
    print(f"{trained} on {path}; written to {result_path}")
    if bad_records.summary():
        print(bad_records.summary())
    return 0


def _predict(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    reserved = tuple(name.strip() for name in options.reserved_columns.split(",") if name.strip())
    from easyrec_mm.errors import ConfigError, did_you_mean

    known = [field.name for field in pipeline.schema.fields]
    for name in reserved:
        if name not in known:
            raise ConfigError(f"--reserved_columns: no input field '{name}'; {did_you_mean(name, known)}")
    if not options.output.endswith((".parquet", ".csv")):
        raise UserError(f"--output {options.output}: write to a file that ends in .parquet or .csv")
    from easyrec_mm.evaluator import predict

    model, bad_records, trained = _trained(pipeline, options.checkpoint_path)
    num_rows = predict(model, pipeline.config, options.predict_input_path, options.output, reserved, bad_records)
    print(f"{num_rows} rows by {trained} in {options.output}")
    if bad_records.summary():
        print(bad_records.summary())
    return 0


def _export(options: argparse.Namespace) -> int:
    if not (options.model_dir or options.pipeline_config):
        raise UserError("--model_dir: give the folder of the training, or its config with --pipeline_config_path")
    options.pipeline_config = options.pipeline_config or os.path.join(options.model_dir, "pipeline.config")
    if options.model_dir:
        options.set.append(f"model_dir={options.model_dir}")
    pipeline = _load(options)
    from easyrec_mm.export import ExportFolders, choose_checkpoint, export

    path = options.eval_input_path or pipeline.config.eval_input_path or pipeline.config.train_input_path
    _require(path, pipeline, "eval_input_path", "the data on which the models are compared")
    checkpoint = choose_checkpoint(pipeline, options.checkpoint_path)
    folders = ExportFolders(options.img_model_export_dir, options.rec_model_export_dir, options.total_model_export_dir)
    assets = tuple(name.strip() for name in options.asset_files.split(",") if name.strip())
    parity = export(pipeline, checkpoint, folders, path, assets, options.parity_groups)
    print(f"{checkpoint}: image model in {folders.image}, rec model in {folders.rec}, total model in {folders.total}")
    print(f"compared on {parity['num_samples']} samples with {parity['num_pictures']} pictures; largest differences:")
    for ways, differences in parity["max_abs_difference"].items():
        print(f"  {ways}: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    return 0


def _embed(options: argparse.Namespace) -> int:
    from easyrec_mm.items import read_items
    from easyrec_mm.store import open_store

    _import_tensorflow()
    from easyrec_mm.embed import ImageModel, embed

    model = ImageModel(options.img_model_dir, options.runtime)
    schema = model.manifest.schema
    items = read_items(options.input, schema, options.image_root, options.key_column, options.path_column)
    store = open_store(options.store, writable=True)
    try:
        result = embed(
            model,
            items,
            store,
            options.bad_pictures,
            options.refresh,
            options.dtype,
            options.image_root,
            options.batch_size,
        )
    finally:
        store.close()
    print(
        f"{result.embedded} pictures embedded by {model.runtime}, {result.unchanged} were there, {result.bad} bad"
        f"{f' (absent; listed in {options.bad_pictures})' if result.bad else ''}; "
        f"generation {result.generation} of {store.uri} is current"
    )
    return 0


def _store(options: argparse.Namespace) -> int:
    from easyrec_mm.store import open_store

    store = open_store(options.store, writable=options.action != "stat")
    try:
        if options.action == "prune":
            removed = store.prune()
            print(f"removed generations: {', '.join(map(str, removed)) or 'none'}")
        elif options.action == "rollback":
            print(f"generation {store.rollback().number} is current")
        else:
            from easyrec_mm.store.stat import stat

            print(stat(store, options.keys))
    finally:
        store.close()
    return 0


def _trained(pipeline: Pipeline, checkpoint_path: str | None) -> tuple[MultimodalModel, BadRecords, str]:
    """The model of a checkpoint, the newest in model_dir if none is named; where bad records go; and its name."""
    from easyrec_mm.checkpoint import resolve_checkpoint
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.evaluator import load_model
    from easyrec_mm.trainer import BAD_RECORDS

    config = pipeline.config
    checkpoint = resolve_checkpoint(checkpoint_path or config.model_dir, "--checkpoint_path")
    model, step = load_model(config, pipeline.schema, checkpoint)
    bad_records = BadRecords(os.path.join(config.model_dir, BAD_RECORDS), config.data_config.max_bad_record_share)
    return model, bad_records, f"{checkpoint} (step {step})"


def _check(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    from easyrec_mm.check import check

    print(check(pipeline, options.num_groups))
    return 0


def _load(options: argparse.Namespace) -> Pipeline:
    """Check the config, then load TensorFlow."""
    from easyrec_mm.config import load_pipeline

    pipeline = load_pipeline(options.pipeline_config, options.set, options.ignore_unsupported)
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    _import_tensorflow()
    return pipeline


def _import_tensorflow() -> None:
    """Import TensorFlow without the notices that its libraries write to the terminal, unless it fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _require(path: str, pipeline: Pipeline, setting: str, what: str) -> None:
    if not path:
        raise UserError(f"{pipeline.path}: {setting}: is missing; give the files of {what}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="easyrec-mm", description="Train click models on item pictures, end to end, from one config file."
    )
    parser.add_argument("--version", action="version", version=f"easyrec-mm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    _command(commands, "train", _train, "train; goes on from the last checkpoint in model_dir")
    evaluation = _command(commands, "eval", _eval, "evaluate a checkpoint")
    _checkpoint_flag(evaluation)
    evaluation.add_argument("--eval_input_path", metavar="P", help="files instead of the config's eval_input_path")
    prediction = _command(commands, "predict", _predict, "write the model's outputs for every sample of some files")
    _checkpoint_flag(prediction)
    prediction.add_argument("--predict_input_path", metavar="P", required=True, help="files to predict")
    prediction.add_argument("--output", metavar="F", required=True, help="file to write, .parquet or .csv")
    prediction.add_argument(
        "--reserved_columns", metavar="A,B", default="", help="input fields to copy into the output"
    )
    cut = _command(
        commands, "export", _export, "cut a trained model into image, rec and total model", config_flag=False
    )
    cut.add_argument("--model_dir", metavar="D", help="folder of the training, instead of the config's model_dir")
    cut.add_argument(
        "--pipeline_config_path",
        "--pipeline_config",
        dest="pipeline_config",
        metavar="C",
        help="pipeline config file; pipeline.config in the model_dir by default",
    )
    _checkpoint_flag(cut)
    for name, model in (("rec", "rec"), ("total", "total"), ("img", "image")):
        cut.add_argument(f"--{name}_model_export_dir", metavar="F", required=True, help=f"folder of the {model} model")
    cut.add_argument("--asset_files", metavar="A,B", default="", help="files to add to the assets of the models")
    cut.add_argument("--eval_input_path", metavar="P", help="files of samples on which the models are compared")
    cut.add_argument("--parity_groups", metavar="N", type=int, default=100, help="groups to compare (default 100)")
    _embed_flags(_simple_command(commands, "embed", _embed, "embed the pictures of all items into a store"))
    stores = _simple_command(commands, "store", _store, "look after a store of image vectors")
    stores.add_argument(
        "action",
        choices=["stat", "prune", "rollback"],
        help="stat: what it holds; prune: remove old generations; rollback: make the one before current again",
    )
    stores.add_argument("--store", metavar="URI", required=True, help=_STORE_HELP)
    stores.add_argument("--keys", metavar="F", help="stat: file with a key a line, to tell how many of them it has")
    check = _command(commands, "check", _check, "check the config and show what it makes of the data")
    check.add_argument("--num_groups", metavar="N", type=int, default=1000, help="groups to read (default 1000)")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    config_flag: bool = True,
) -> argparse.ArgumentParser:
    command = _simple_command(commands, name, run, text)
    if config_flag:
        command.add_argument(
            "--pipeline_config", "--pipeline_config_path", metavar="C", required=True, help="pipeline config file"
        )
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="change a setting of the config, such as train_config.num_steps=100; may be repeated",
    )
    command.add_argument(
        "--ignore_unsupported",
        action="store_true",
        help="skip fields of EasyRec's language that are not supported, listing each",
    )
    return command


def _simple_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(command=run)
    return command


def _embed_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--img_model_dir", metavar="I", required=True, help="folder of the exported image model")
    add(
        "--input",
        metavar="P",
        required=True,
        help="pictures: a .txt with a path a line, .csv or .parquet, grouped samples, or the pictures themselves; "
        "globs and lists with commas",
    )
    add("--store", metavar="URI", required=True, help=_STORE_HELP)
    add("--image_root", metavar="R", default="", help="folder that relative paths start from")
    add("--key_column", metavar="C", default="", help="column of the keys (default: the image field)")
    add("--path_column", metavar="C", default="", help="column of the paths (default: that of the keys)")
    add(
        "--refresh",
        choices=["new", "changed", "all"],
        default="new",
        help="new: what the store lacks (default); changed: also pictures whose content is another; all",
    )
    add("--dtype", choices=["float32", "float16"], default="float32", help="number format of the stored vectors")
    add("--bad_pictures", metavar="F", default="bad_pictures.jsonl", help="file to list bad pictures in")
    add("--batch_size", metavar="N", type=int, default=64, help="pictures at a time (default 64)")
    add("--runtime", choices=["auto", "onnx", "tensorflow"], default="auto", help="default: the faster")


def _checkpoint_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint_path",
        metavar="K",
        help="checkpoint, or folder of checkpoints; the newest in model_dir by default",
    )


if __name__ == "__main__":
    sys.exit(main())
