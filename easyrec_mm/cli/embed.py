"""`easyrec-mm embed`."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

from easyrec_mm.api.embedding import Pictures
from easyrec_mm.api.embedding import run as run_embed
from easyrec_mm.api.options import require_spark
from easyrec_mm.cli import flags as f
from easyrec_mm.console import tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.embedding.writing import EmbedResult

HELP = "embed the pictures of all items into a store"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("--img_model_dir", metavar="I", required=True, help="folder of the exported image model")
    add(
        "--input",
        metavar="P",
        required=True,
        help="pictures: a .txt with a path per line, .csv or .parquet, grouped samples, or the pictures themselves; "
        "globs and lists with commas",
    )
    f.add_store_flag(parser)
    f.add_image_root_flag(parser)
    f.add_vector_store_flag(parser)
    add("--key_column", metavar="C", default="", help="column of the keys (default: the image field)")
    add("--path_column", metavar="C", default="", help="column of the paths (default: the column of the keys)")
    add(
        "--refresh",
        choices=["new", "changed", "all"],
        default="new",
        help="new: pictures that the store lacks (default); changed: also pictures whose content has changed; "
        "all: every picture",
    )
    add("--dtype", choices=["float32", "float16"], default="float32", help="number format of the stored vectors")
    add(
        "--bad_pictures",
        metavar="F",
        default="bad_pictures.jsonl",
        help="file that lists invalid pictures and groups, if any",
    )
    add(
        "--max_bad_share",
        metavar="S",
        type=f.share,
        default=0.1,
        help="share of the items that may be without a valid picture; with more, the vectors do not become current "
        "(default 0.1)",
    )
    f.add_engine_flags(parser)
    f.add_task_flags(parser, "the pictures of --input, which is the same for all")
    add("--batch_size", metavar="N", type=f.not_negative, default=0, help="pictures per batch (default: by their size)")
    add(
        "--runtime",
        choices=["auto", "onnx", "tensorflow"],
        default="auto",
        help="default: the faster one",
    )


def run(flags: f.Flags) -> int:
    """Embed the pictures and report."""
    if flags.engine == "spark":
        return _run_on_spark(flags)
    task, bad_pictures = f.task_of(flags), flags.bad_pictures
    if task is not None:
        bad_pictures = task.file_name(*os.path.splitext(bad_pictures))
    names = ("refresh", "dtype", "batch_size", "max_bad_share")
    options = {name: getattr(flags, name) for name in names} | {"task": task, "bad_pictures": bad_pictures}
    pictures = f.options_of(Pictures, flags, name="", vector_stores=f.vector_stores_of(flags))
    result, runtime = run_embed(pictures, flags.store, options, print)
    _print(result, runtime, bad_pictures, flags.store)
    return 0


def _run_on_spark(flags: f.Flags) -> int:
    """Embed the pictures on the workers of Spark, and report."""
    if flags.task_index is not None:
        raise UserError("--task_index: has no effect with --engine spark, which starts all tasks; remove the flag")
    require_spark()
    from easyrec_mm.manifest import IMAGE_ONNX, read_header
    from easyrec_mm.store import open_store

    manifest = read_header(flags.img_model_dir, "image")
    runtime = flags.runtime
    if runtime == "auto":
        runtime = "onnx" if IMAGE_ONNX in manifest.files else "tensorflow"
    import_tensorflow()
    from easyrec_mm.embedding.embed import EmbedOptions
    from easyrec_mm.embedding.items import read_items
    from easyrec_mm.embedding.on_spark import SparkEmbedding, embed_on_spark
    from easyrec_mm.spark import spark_session

    schema = manifest.schema
    items, refused = read_items(flags.input, schema, flags.image_root, flags.key_column, flags.path_column)
    if refused:
        print(f"{len(refused)} records are left out (listed in {flags.bad_pictures}). The first: {refused[0]}")
    options = f.options_of(EmbedOptions, flags, task=None)
    with (
        closing(open_store(flags.store, writable=True)) as store,
        spark_session(flags.spark_master, "embed") as session,
    ):
        context = session.sparkContext
        num_threads = int(context.getConf().get("spark.task.cpus") or 1)
        embedding = SparkEmbedding(
            flags.img_model_dir, runtime, flags.store, options, num_threads, f.vector_stores_of(flags)
        )
        num_tasks = flags.task_num or context.defaultParallelism
        result = embed_on_spark(session, embedding, manifest, items, store, refused, num_tasks)
    _print(result, runtime, flags.bad_pictures, store.uri)
    return 0


def _print(result: EmbedResult, runtime: str, bad_pictures: str, store: str) -> None:
    # The faster runtime is chosen with the first pictures, and there may be none.
    by = "" if runtime == "auto" else f" by {runtime}"
    tell_result(
        f"{result.embedded} pictures embedded{by}, {result.unchanged} already in the store, "
        f"{result.bad} bad{f' (absent; listed in {bad_pictures})' if result.bad else ''}; "
        f"{f.state_of(f'generation {result.generation} of {store}', result.waits_for)}; "
        f"{result.per_s:.4g} images/s",
        **asdict(result),
        runtime=runtime,
        store=store,
    )
