"""The server under load: latency, throughput, and what of them is the model; the reference config, 1M stored vectors.

The load generator runs in a process of its own and keeps connections open. Saturation: as many requests as 32
connections get answered. Latency: requests are sent at half that rate at times that are fixed beforehand, and counted
from then on. "Bare" is one ONNX Runtime session with as many threads as cores, on arrays that are prepared.

    python tools/bench/serve.py [--folder F] [--runtime onnx] [--workers 2] [--seconds 15]
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
import reference
import workload

NUM_VECTORS = 1_000_000
NUM_BODIES = 50
CONNECTIONS = 32
PORT = 18080
# What a request has once; the rest belongs to the candidate.
SHARED = ("latitude", "longitude", "city", "province", "os", "os_version", "day_h", "week_day", "is_new_userid")


def main() -> None:
    """Make a model and a store unless the folder has them, then measure."""
    flags = workload.parser(__doc__)
    flags.add_argument("--folder", type=Path, help="to keep model and store in; made if need be")
    flags.add_argument("--runtime", choices=["onnx", "tensorflow"], default="onnx")
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--seconds", type=float, default=15.0)
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "done").exists():
            # In a process of its own, which takes TensorFlow and its memory with it.
            making = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder,))
            making.start()
            making.join()
            if making.exitcode:
                raise SystemExit(making.exitcode)
        figures: dict[str, Any] = {"runtime": options.runtime, "workers": options.workers}
        figures |= measure_parts(folder)
        for name, number, is_shared in (("one", 1, False), ("200", 200, False), ("200_shared", 200, True)):
            bodies = [request(folder, number, is_shared, seed) for seed in range(NUM_BODIES)]
            figures |= measure_server(folder, options, name, number, bodies)
        bare = figures["bare_candidates_per_s"]
        for name in ("200", "200_shared"):
            figures[f"share_of_bare_{name}"] = figures[f"candidates_per_s_{name}"] / bare
    workload.report("serve", figures)


def prepare(folder: Path) -> None:
    """Train the reference config for a step, export it, and write a store of vectors."""
    from easyrec_mm.cli import main as run
    from easyrec_mm.manifest import read_header
    from easyrec_mm.store import Record, open_store

    folder.mkdir(parents=True, exist_ok=True)
    data = reference.write_reference_data(folder, 64)
    paths = {"train_input_path": data.input_path, "eval_input_path": "", "model_dir": str(folder / "model")}
    text = reference.reference_config(("num_steps: 2000", "num_steps: 1"), image_size=32, **paths)
    config = reference.write_config(folder, text)
    exports = [f"--{flag}_model_export_dir={folder / flag}" for flag in ("img", "rec", "total")]
    for command in (["train", "--pipeline_config", config], ["export", "--pipeline_config_path", config, *exports]):
        if run(command):
            raise RuntimeError(f"{command} failed")
    manifest = read_header(str(folder / "rec"), "rec")
    store = open_store(f"lmdb://{folder}/store", writable=True)
    generation = store.begin(manifest.image_tower_fingerprint, manifest.image_width, "float32")
    random = np.random.default_rng(0)
    for start in range(0, NUM_VECTORS, 10_000):
        vectors = random.normal(size=(10_000, manifest.image_width)).astype(np.float32)
        store.put_many(generation, [Record(key(start + i), vector, bytes(16), 0) for i, vector in enumerate(vectors)])
    store.complete(generation)
    (folder / "done").touch()


def key(number: int) -> str:
    """Key of the store's i-th picture."""
    return f"pictures/2026/{number:07d}.jpg"


def request(folder: Path, number: int, is_shared: bool, seed: int) -> dict[str, Any]:
    """A request for that many candidates, each with its 19 features and a picture."""
    from easyrec_mm.manifest import read_header

    schema = read_header(str(folder / "rec"), "rec").schema
    random = np.random.default_rng(seed)
    kinds = {"string": str, "int64": int, "float32": float, "bool": int}
    instances = []
    for _ in range(number):
        _, texts = reference._sample(0.5, random)
        fields = [schema.field(name) for name in reference.FEATURES]
        values = {f.name: kinds[f.dtype](text or f.default) for f, text in zip(fields, texts, strict=True)}
        instances.append({**values, "img_path": key(int(random.integers(NUM_VECTORS)))})
    if not is_shared:
        return {"instances": instances}
    shared = {name: instances[0][name] for name in SHARED}
    own = [{name: value for name, value in i.items() if name not in SHARED} for i in instances]
    return {"instances": own, "shared": shared}


def measure_parts(folder: Path) -> dict[str, float]:
    """What the look-up of 200 vectors takes, and how many candidates a bare session manages."""
    import onnxruntime

    from easyrec_mm.manifest import IMAGE_VECTOR, REC_ONNX
    from easyrec_mm.serving.service import Service, ServiceOptions
    from easyrec_mm.store import open_store

    store = open_store(f"lmdb://{folder}/store")
    random = np.random.default_rng(1)
    for _ in store.scan(store.meta().generations[1]):
        pass  # what is measured is not the disk
    keys = [[key(int(i)) for i in random.integers(NUM_VECTORS, size=200)] for _ in range(501)]
    look_ups = iter(keys)
    look_up_ms = workload.median(workload.seconds(lambda: store.get_many(next(look_ups)), 500)) * 1e3
    service = Service(ServiceOptions(str(folder / "rec")), store)
    release = service.release
    candidates = release.reader.read(request(folder, 200, False, 0))
    session = onnxruntime.InferenceSession(str(folder / "rec" / REC_ONNX), providers=["CPUExecutionProvider"])
    inputs = release.predictor._transform(candidates.fields, 200)  # type: ignore[attr-defined]
    inputs[IMAGE_VECTOR] = store.get_many(candidates.keys).vectors
    taken = {value.name for value in session.get_inputs()}
    inputs = {name: value for name, value in inputs.items() if name in taken}
    bare_s = workload.median(workload.seconds(lambda: session.run(None, inputs), 1000))
    store.close()
    return {"get_many_200_ms": look_up_ms, "bare_200_ms": bare_s * 1e3, "bare_candidates_per_s": 200 / bare_s}


def measure_server(
    folder: Path, options: Any, name: str, number: int, bodies: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Start a server, load it, and end it."""
    command = [sys.executable, "-m", "easyrec_mm", "serve", "--rec_model_dir", str(folder / "rec"), "--store"]
    command += [f"lmdb://{folder}/store", "--http_port", str(PORT), "--grpc_port", "0", "--runtime", options.runtime]
    server = subprocess.Popen([*command, "--workers", str(options.workers)], stderr=subprocess.DEVNULL)
    try:
        encoded = [json.dumps(body).encode() for body in bodies]
        wait_until_ready()
        load(encoded, 3.0, 0.0)  # warms it up
        saturation = load(encoded, options.seconds, 0.0)
        per_s = len(saturation) / options.seconds
        latencies = load(encoded, options.seconds, per_s / 2)
    finally:
        server.terminate()
        server.wait()
    return {
        f"requests_per_s_{name}": per_s,
        f"candidates_per_s_{name}": per_s * number,
        f"p50_ms_{name}": float(np.percentile(latencies, 50)) * 1e3,
        f"p99_ms_{name}": float(np.percentile(latencies, 99)) * 1e3,
    }


def wait_until_ready() -> None:
    """Return when the server answers."""
    for _ in range(300):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
            connection.request("GET", "/v1/models/rec")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server did not start")


def load(bodies: list[bytes], seconds: float, per_s: float) -> list[float]:
    """Seconds that each answer took; per_s 0 means as many requests as are answered."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=generate_load, args=(bodies, seconds, per_s, queue))
    process.start()
    latencies: list[float] = queue.get()
    process.join()
    return latencies


def generate_load(bodies: list[bytes], seconds: float, per_s: float, queue: Any) -> None:
    """The load generator's process."""
    latencies: list[float] = []
    start = time.perf_counter() + 0.2
    turn = iter(range(1 << 60))
    lock = threading.Lock()

    def ask() -> None:
        connection = socket.create_connection(("127.0.0.1", PORT), timeout=30)
        while True:
            with lock:
                i = next(turn)
            due = start + i / per_s if per_s else max(time.perf_counter(), start)
            if due > start + seconds:
                return
            time.sleep(max(0.0, due - time.perf_counter()))
            post(connection, bodies[i % len(bodies)])
            latencies.append(time.perf_counter() - due)

    threads = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.put(latencies)


def post(connection: socket.socket, body: bytes) -> bytes:
    """The answer to a request. On a bare socket: http.client would take a share of the cores that is not small."""
    head = b"POST /v1/models/rec:predict HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n" % len(body)
    connection.sendall(head + body)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, answer = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(received.decode())
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(answer) < length:
        answer += connection.recv(1 << 16)
    return answer


if __name__ == "__main__":
    main()
