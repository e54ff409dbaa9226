"""`easyrec-mm serve`."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack

from easyrec_mm.cli import flags as f
from easyrec_mm.errors import UserError

HELP = "answer requests over REST and gRPC"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add(
        "--rec_model_dir",
        metavar="R",
        required=True,
        help="folder of the exported rec model, or of several exports with numbers as names: the largest is used",
    )
    f.add_store_flag(parser)
    image_model = "folder of the image model, for --missing_vector compute"
    add("--img_model_dir", metavar="I", dest="image_model_dir", default="", help=image_model)
    f.add_image_root_flag(parser)
    add("--http_port", metavar="P", type=f.positive, default=8080, help="port of REST (default 8080)")
    add("--grpc_port", metavar="P", type=f.not_negative, default=8081, help="port of gRPC (default 8081); 0: none")
    add("--workers", metavar="N", type=f.positive, default=1, help="processes that answer REST requests (default 1)")
    threads = "threads per process (default: its share of the cores)"
    add("--num_threads", metavar="N", type=f.not_negative, default=0, help=threads)
    add("--key_field", metavar="F", default="", help="field with the picture's key (default: the image field)")
    add(
        "--missing_vector",
        choices=["mean", "compute", "error", "no_image"],
        help="if the store has no vector: mean: use the mean of the store's vectors; compute: compute the vector; "
        "error: refuse the request; no_image: use the vector learnt for missing pictures (default if there is one, "
        "otherwise mean)",
    )
    add(
        "--vector_store",
        metavar="FEATURE=URI",
        action="append",
        default=[],
        help="store of a feature's vectors, in place of the config's vector_store; may be repeated",
    )
    add("--runtime", choices=["onnx", "tensorflow"], default="onnx", help="what runs the rec model (default onnx)")
    reload = "seconds between checks for a new release; 0: never (default 5)"
    add("--reload_every_s", metavar="S", type=f.seconds, default=5.0, help=reload)
    add("--max_request_bytes", metavar="N", type=f.positive, default=8 << 20, help="bytes per request (default 8 MiB)")
    add("--max_instances", metavar="N", type=f.positive, default=10_000, help="instances per request (default 10000)")
    connections = "connections per process; further ones are answered with 503 (default 1000)"
    add("--max_connections", metavar="N", type=f.positive, default=1000, help=connections)


def run(flags: f.Flags) -> int:
    """Serve until a signal."""
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        if flags.workers > 1:
            # Folder in which the processes share their metrics; prometheus_client reads it when it is imported.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="easyrec_mm_metrics_"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        from easyrec_mm.files.work_folder import work_folder
        from easyrec_mm.serving.release import ServiceOptions
        from easyrec_mm.serving.server import ServerOptions, serve

        num_threads = flags.num_threads or max(1, cores // flags.workers)
        stores = _vector_stores(flags.vector_store)
        service = f.options_of(
            ServiceOptions, flags, num_threads=num_threads, vector_stores=stores, copies=work_folder()
        )
        serve(f.options_of(ServerOptions, flags, service=service))
    return 0


def _vector_stores(assignments: list[str]) -> dict[str, str]:
    """Parse the values of --vector_store to feature -> store."""
    stores: dict[str, str] = {}
    for text in assignments:
        name, equals, uri = text.partition("=")
        if not (name and equals and uri):
            raise UserError(f"--vector_store {text}: give a feature and its store, as in title=lmdb://titles")
        if name in stores:
            raise UserError(f"--vector_store {text}: '{name}' has a store already; give it once")
        stores[name] = uri
    return stores
