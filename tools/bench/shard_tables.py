"""Bytes that a worker sends in a step, its memory and its time: tables on all workers, and tables divided among them.

For each number of rows, `workers` processes on this machine train a model with one table and Adam, with the same
batches of users drawn evenly. Bytes are those that TCP has sent (tcpi_bytes_acked of all connections of a process), the
mean of the steps after the first ones. Memory is the peak resident set of a worker, less that of a training with a
table of 10 rows; beside it stand the bytes of the table and of the two slots of Adam.

    python tools/bench/shard_tables.py [--workers 2] [--rows 10000 1000000 10000000] [--batch_size 1024] [--dim 16]
"""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import workload

MIB = 1 << 20
FIRST_STEPS = 5
# Place of tcpi_bytes_acked in Linux's struct tcp_info.
BYTES_ACKED = 120
CONFIG = """
train_input_path: "train.csv"
model_dir: "m"
data_config {{
  input_type: CSVInput with_header: true label_fields: "click" batch_size: {batch_size}
  input_fields {{ input_name: "click" input_type: INT32 }}
  input_fields {{ input_name: "user" input_type: STRING }}
}}
feature_config {{
  features {{ input_names: "user" feature_type: IdFeature hash_bucket_size: {rows} embedding_dim: {dim} }}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "all" feature_names: "user" }}
  e2e_mm_dbmtl {{
    bottom_dnn {{ hidden_units: [64, 32] use_bn: false }}
    task_towers {{ tower_name: "click" label_name: "click" }}
  }}
}}
train_config {{
  optimizer_config {{ {adam} }}
  num_epochs: 1 precision: FLOAT32 train_distribute: MultiWorkerMirroredStrategy shard_tables_from_rows: {divided}
}}
"""


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    flags.add_argument("--batch_size", type=int, default=1024, help="of each worker")
    flags.add_argument("--dim", type=int, default=16)
    flags.add_argument("--steps", type=int, default=40)
    flags.add_argument("--worker", help="TF_CONFIG's number: be one of the workers")
    options = flags.parse_args()
    if options.worker is not None:
        print(json.dumps(measure(options.steps)))
        return
    figures: dict[str, object] = {"workers": options.workers, "batch size": options.batch_size, "dim": options.dim}
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), options.workers * options.batch_size * (options.steps + 1))
        least = {divided: run(options, Path(folder), 10, divided)["mib"] for divided in (0, 1)}
        for rows in options.rows:
            figures[f"{rows:,} rows: table and slots, MiB"] = 3 * 4 * rows * options.dim / MIB
            for divided, name in ((0, "on all"), (1, "divided")):
                worker = run(options, Path(folder), rows, divided)
                figures |= {
                    f"{rows:,} rows, {name}: KiB sent a step": worker["bytes"] / 1024,
                    f"{rows:,} rows, {name}: MiB of a worker": worker["mib"] - least[divided],
                    f"{rows:,} rows, {name}: ms a step": 1000 * worker["seconds"],
                }
    workload.report("shard_tables", figures)


def write_log(folder: Path, num_rows: int) -> None:
    """Write samples of users drawn from a billion."""
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 2, num_rows), rng.integers(0, 10**9, num_rows), strict=True)
    text = "".join(f"{click},u{user}\n" for click, user in rows)
    (folder / "train.csv").write_text(f"click,user\n{text}", encoding="utf-8")


def run(options: object, folder: Path, rows: int, divided: int) -> dict[str, float]:
    """Return the largest figures of the workers."""
    settings = vars(options)
    text = CONFIG.format(
        rows=rows, divided=divided, batch_size=settings["batch_size"], dim=settings["dim"], adam=workload.ADAM
    )
    (folder / "x.config").write_text(text, encoding="utf-8")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(settings["workers"])]
    processes = []
    for number in range(settings["workers"]):
        task = {"type": "worker", "index": number}
        environment = {**os.environ, "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
        command = [sys.executable, __file__, "--worker", str(number), "--steps", str(settings["steps"])]
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a worker has failed: {outputs}")
    workers = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {name: max(worker[name] for worker in workers) for name in workers[0]}


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def measure(num_steps: int) -> dict[str, float]:
    """Train as one of the workers of TF_CONFIG; return bytes sent and seconds of a step, and the peak of memory."""
    from easyrec_mm.config.pipeline import load_pipeline
    from easyrec_mm.distribution.cluster import read_cluster
    from easyrec_mm.distribution.joining import join
    from easyrec_mm.training.trainer import Trainer

    cluster = read_cluster()
    if cluster is None:
        raise SystemExit("TF_CONFIG is not set")
    replicas = join(cluster)
    trainer = Trainer(load_pipeline("x.config"), None, replicas)
    seconds: list[float] = []
    first_bytes = 0
    for step, item in enumerate(trainer.batches(1)):
        if step == FIRST_STEPS:
            first_bytes = sent_bytes()
        started_s = time.perf_counter()
        losses = trainer.run_step(item)
        if losses is not None:
            losses["loss"].numpy()
        seconds.append(time.perf_counter() - started_s)
        if step + 1 == num_steps:
            break
    replicas.agree(0)  # so that no worker misses another one
    sent = (sent_bytes() - first_bytes) / (len(seconds) - FIRST_STEPS)
    return {
        "bytes": sent,
        "seconds": statistics.median(seconds[FIRST_STEPS:]),
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def sent_bytes() -> int:
    """Return what TCP has sent over all connections of this process, and the others have confirmed."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
        except OSError:
            continue  # not a socket
    return total


if __name__ == "__main__":
    main()
