"""`easyrec-mm extract`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from easyrec_mm.api.extraction import run as run_extract
from easyrec_mm.api.extraction import settings_from
from easyrec_mm.api.options import require_spark
from easyrec_mm.cli import flags as f
from easyrec_mm.errors import UserError
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.extraction.extract import Extracted
    from easyrec_mm.extraction.plan import Extraction

HELP = "encode pictures or texts by any encoder, into stores and files"
# Flags that a config has as settings.
_SETTINGS = ("preset", "saved_model", "onnx", "preprocessing", "layers", "input", "image_root", "key_column",
             "path_column", "text_column", "store", "output", "dtype", "batch_size")  # fmt: skip


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("--config", metavar="C", default="", help="YAML with these settings of one or several extractions")
    add("--preset", metavar="P", default="", help="encoder: preset of keras-hub, by name or folder")
    add("--saved_model", metavar="D", default="", help="encoder: folder of a SavedModel")
    add("--onnx", metavar="F", default="", help="encoder: ONNX file")
    add("--preprocessing", metavar="Y", default="", help="YAML that says how its inputs are made; see docs/extract.md")
    add("--layers", metavar="L,...", type=f.names, default=(), help="layers (default: the encoder's output)")
    add(
        "--input",
        metavar="P",
        default="",
        help="pictures or sounds, or a .txt, .csv, .parquet or grouped samples with paths or texts; globs and lists "
        "with commas",
    )
    f.add_image_root_flag(parser)
    add("--key_column", metavar="C", default="", help="column of the keys")
    add("--path_column", metavar="C", default="", help="column of the paths (default: the column of the keys)")
    add("--text_column", metavar="C,...", type=f.names, default=(), help="columns of the texts, joined by a space")
    add(
        "--store",
        metavar="URI",
        default="",
        help="store of the vectors: lmdb://path, redis://host:port/db, postgresql://user@host/db; {name} and {layer} "
        "stand for the encoder and the layer",
    )
    add("--output", metavar="F", default="", help="or file to write, .parquet or .npy; also with {name} and {layer}")
    add("--dtype", choices=["float32", "float16"], default="float32", help="number format of the vectors")
    add("--batch_size", metavar="N", type=f.not_negative, default=0, help="items per batch (default: by their size)")
    add(
        "--refresh",
        choices=["new", "changed", "all"],
        default="new",
        help="new: items that the output lacks (default); changed: also items whose content has changed; all: all",
    )
    add("--bad_items", metavar="F", default="bad_items.jsonl", help="file that lists invalid items, if any")
    add(
        "--max_bad_share",
        metavar="S",
        type=f.share,
        default=0.1,
        help="share of the items that may be without valid content; with more, nothing is finished (default 0.1)",
    )
    f.add_engine_flags(parser)
    f.add_task_flags(parser, "the items of --input, which is the same for all")


def run(flags: f.Flags) -> int:
    """Extract and report."""
    plan = _plan(flags)
    task, bad_items = f.task_of(flags) if flags.engine == "local" else None, flags.bad_items
    if task is not None:
        bad_items = task.file_name(*os.path.splitext(bad_items))
    options = {"refresh": flags.refresh, "max_bad_share": flags.max_bad_share, "task": task, "bad_items": bad_items}
    if flags.engine == "spark":
        results = _run_on_spark(flags, plan)
    else:
        results = run_extract(plan, options, print)
    for result in results:
        _print(result, bad_items)
    return 0


def _plan(flags: f.Flags) -> list[Extraction]:
    from easyrec_mm.extraction.plan import Extraction, checked, read_plan, with_layers

    if flags.config:
        given = [name for name in _SETTINGS if getattr(flags, name) not in ("", (), 0, "float32")]
        if given:
            raise UserError(f"--{given[0]}: has no effect with --config; write it into {flags.config}")
        return read_plan(flags.config)
    settings = settings_from(flags.preprocessing)
    extraction = f.options_of(Extraction, flags, name="", preprocessing=settings)
    return [checked(with_layers(extraction, flags.layers))]


def _run_on_spark(flags: f.Flags, plan: list[Extraction]) -> list[Extracted]:
    """Extract on the workers of Spark."""
    if flags.task_index is not None:
        raise UserError("--task_index: has no effect with --engine spark, which starts all tasks; remove the flag")
    require_spark()
    import_tensorflow()
    from easyrec_mm.extraction.extract import ExtractOptions
    from easyrec_mm.extraction.on_spark import extract_on_spark
    from easyrec_mm.spark import spark_session

    options = f.options_of(ExtractOptions, flags, task=None)
    with spark_session(flags.spark_master, "extract") as session:
        return extract_on_spark(session, plan, options, flags.task_num or 0, print)


def _print(extracted: Extracted, bad_items: str) -> None:
    result, place = extracted.result, extracted.place
    unit = {"image": "pictures", "text": "texts", "audio": "sounds"}[extracted.kind]
    if not result.generation:
        state = f"{place} was complete"
    elif "://" in place and not place.endswith((".parquet", ".npy")):
        state = f.state_of(f"generation {result.generation} of {place}", result.waits_for)
    else:
        state = f"{place} written"
    print(
        f"{result.embedded} {unit} encoded by '{extracted.layer}' ({extracted.width} numbers), {result.unchanged} "
        f"already there, {result.bad} bad{f' (absent; listed in {bad_items})' if result.bad else ''}; {state}; "
        f"{result.per_s:.4g} {unit}/s"
    )
