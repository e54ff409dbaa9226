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
    _add_picture_flags(parser)
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
    f.add_vector_store_flag(parser)
    add("--runtime", choices=["onnx", "tensorflow"], default="onnx", help="what runs the rec model (default onnx)")
    reload = "seconds between checks for a new release; 0: never (default 5)"
    add("--reload_every_s", metavar="S", type=f.seconds, default=5.0, help=reload)
    _add_address_flags(parser)
    _add_limit_flags(parser)


def _add_picture_flags(parser: f.Parser) -> None:
    add = parser.add_argument
    f.add_image_root_flag(parser)
    hosts = (
        "for --missing_vector compute, places from which pictures may be read besides --image_root, separated by "
        "commas, such as https://images.example.com,s3://bucket"
    )
    add("--image_hosts", metavar="H,...", type=f.names, default=(), help=hosts)
    timeout = "seconds that a request waits for computed vectors (default 2)"
    add("--picture_timeout_s", metavar="S", type=f.seconds, default=2.0, help=timeout)


def _add_address_flags(parser: f.Parser) -> None:
    add = parser.add_argument
    host = "address to listen at (default 127.0.0.1: this machine only); 0.0.0.0 or ::: all addresses"
    add("--host", metavar="A", default="127.0.0.1", help=host)
    add("--http_port", metavar="P", type=f.positive, default=8080, help="port of REST (default 8080)")
    add("--grpc_port", metavar="P", type=f.not_negative, default=8081, help="port of gRPC (default 8081); 0: none")
    tls = "PEM file of the certificate and its chain, to serve REST and gRPC with TLS; taken anew when it changes"
    add("--tls_cert", metavar="F", default="", help=tls)
    add("--tls_key", metavar="F", default="", help="PEM file of the certificate's private key")
    token = "file of tokens, one per line; clients must send one of them (authorization: Bearer TOKEN)"
    add("--token_file", metavar="F", default="", help=token)


def _add_limit_flags(parser: f.Parser) -> None:
    add = parser.add_argument
    add("--max_request_bytes", metavar="N", type=f.positive, default=8 << 20, help="bytes per request (default 8 MiB)")
    add("--max_instances", metavar="N", type=f.positive, default=10_000, help="instances per request (default 10000)")
    lists = "values in the lists of a request, one that candidates share counted for each (default 2000000)"
    add("--max_list_values", metavar="N", type=f.positive, default=2_000_000, help=lists)
    connections = "requests per process at a time; further ones are answered with 503 (default 1000)"
    add("--max_connections", metavar="N", type=f.positive, default=1000, help=connections)
    request_s = "seconds that a client may take for the head of a request, and for its body (default 30)"
    add("--request_s", metavar="S", type=f.positive_seconds, default=30.0, help=request_s)
    idle_s = "seconds after which a connection without a request is closed (default 75)"
    add("--idle_s", metavar="S", type=f.positive_seconds, default=75.0, help=idle_s)
    drain_s = "seconds that the requests under way get to end after SIGTERM or SIGINT (default 25)"
    add("--drain_s", metavar="S", type=f.seconds, default=25.0, help=drain_s)
    add("--access_log", action="store_true", help="log each request")


def run(flags: f.Flags) -> int:
    """Serve until a signal."""
    if bool(flags.tls_cert) != bool(flags.tls_key):
        given, missing = ("--tls_cert", "--tls_key") if flags.tls_cert else ("--tls_key", "--tls_cert")
        raise UserError(f"{given}: has no effect without {missing}; give both, or neither")
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
        stores = f.vector_stores_of(flags)
        service = f.options_of(
            ServiceOptions, flags, num_threads=num_threads, vector_stores=stores, copies=work_folder()
        )
        ended = serve(f.options_of(ServerOptions, flags, service=service))
    if not ended.is_idle:
        os._exit(ended.status)  # the end of Python would wait for threads that may never end
    return ended.status
