"""The server under load: latency, throughput, and what of them is the model; the reference config, 1M stored vectors.

The load generator runs in a process of its own and keeps 32 connections open. Saturation: the requests that it gets
answered in turns of a few seconds, between turns of a bare ONNX Runtime session with as many threads as cores, which
gets arrays that are prepared of as many requests; shares are of neighbouring turns. Latency: requests are sent at half
of the saturation, at times that are fixed beforehand, and counted from then on.

    python tools/bench/serve.py [--folder F] [--runtime onnx] [--workers 2] [--seconds 5] [--turns 5]
"""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
import reference
import reference_data
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
    flags.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    flags.add_argument("--turns", type=int, default=5)
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
        bare = BareSession(folder)
        figures["get_many_200_ms"] = bare.look_up_ms
        with server(folder, options):
            for name, number, is_shared in (("one", 1, False), ("200", 200, False), ("200_shared", 200, True)):
                bodies = [json.dumps(request(folder, number, is_shared, seed)).encode() for seed in range(NUM_BODIES)]
                figures |= measure(bare, options, name, number, bodies)
    workload.report("serve", figures)


def prepare(folder: Path) -> None:
    """Make the model and the store."""
    from easyrec_mm.store import open_store

    make_model(folder)
    store = open_store(f"lmdb://{folder}/store", writable=True)
    fill_store(store, folder / "rec", NUM_VECTORS)
    (folder / "done").touch()


def make_model(folder: Path, seed: int = 0) -> None:
    """Train the reference config for a step and export it into img, rec and total."""
    from easyrec_mm.cli.main import main as run

    folder.mkdir(parents=True, exist_ok=True)
    data = reference_data.write_reference_data(folder, 64)
    paths = {"train_input_path": data.input_path, "eval_input_path": "", "model_dir": str(folder / "model")}
    text = reference.reference_config(("num_steps: 2000", "num_steps: 1"), image_size=32, **paths)
    config = reference.write_config(folder, text)
    exports = [f"--{flag}_model_export_dir={folder / flag}" for flag in ("img", "rec", "total")]
    train = ["train", "--pipeline_config", config, "--set", f"data_config.seed={seed}"]
    for command in (train, ["export", "--pipeline_config_path", config, *exports]):
        if run(command):
            raise RuntimeError(f"{command} failed")


def fill_store(store: Any, rec: Path, number: int) -> None:
    """Write random vectors for a rec model's image tower and make them current."""
    from easyrec_mm.manifest import read_header
    from easyrec_mm.store import Record

    manifest = read_header(str(rec), "rec")
    generation = store.begin(manifest.image_tower_fingerprint, manifest.image_width, "float32")
    random = np.random.default_rng(0)
    for start in range(0, number, 10_000):
        vectors = random.normal(size=(10_000, manifest.image_width)).astype(np.float32)
        store.put_many(generation, [Record(key(start + i), vector, bytes(16), 0) for i, vector in enumerate(vectors)])
    store.complete(generation)


def key(number: int) -> str:
    """Key of the store's i-th picture."""
    return f"pictures/2026/{number:07d}.jpg"


def request(folder: Path, number: int, is_shared: bool, seed: int, num_vectors: int = NUM_VECTORS) -> dict[str, Any]:
    """A request for that many candidates, each with its 19 features and a picture."""
    from easyrec_mm.manifest import read_header

    schema = read_header(str(folder / "rec"), "rec").schema
    random = np.random.default_rng(seed)
    kinds = {"string": str, "int64": int, "float32": float, "bool": int}
    instances = []
    for _ in range(number):
        _, texts = reference_data.random_sample(0.5, random)
        fields = [schema.field(name) for name in reference.FEATURES]
        values = {f.name: kinds[f.dtype](text or f.default) for f, text in zip(fields, texts, strict=True)}
        instances.append({**values, "img_path": key(int(random.integers(num_vectors)))})
    if not is_shared:
        return {"instances": instances}
    shared = {name: instances[0][name] for name in SHARED}
    own = [{name: value for name, value in i.items() if name not in SHARED} for i in instances]
    return {"instances": own, "shared": shared}


class BareSession:
    """The rec model in ONNX Runtime with nothing around it; and how long 200 look-ups take (ms)."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        from easyrec_mm.manifest import IMAGE_VECTOR, REC_ONNX
        from easyrec_mm.serving.release import ServiceOptions
        from easyrec_mm.serving.service import Service
        from easyrec_mm.store import open_store

        store = open_store(f"lmdb://{folder}/store")
        for _ in store.scan(store.meta().generations[1]):
            pass  # what is measured is not the disk
        random = np.random.default_rng(1)
        keys = iter([[key(int(i)) for i in random.integers(NUM_VECTORS, size=200)] for _ in range(1001)])
        self.look_up_ms = workload.median(workload.seconds(lambda: store.get_many(next(keys)), 1000)) * 1e3
        release = Service(ServiceOptions(str(folder / "rec")), store).release
        self._session = onnxruntime.InferenceSession(str(folder / "rec" / REC_ONNX), providers=["CPUExecutionProvider"])
        taken = {value.name for value in self._session.get_inputs()}
        self._inputs = []
        for seed in range(NUM_BODIES):
            candidates = release.reader.read(request(folder, 200, False, seed))
            inputs = release.predictor._transform(candidates.fields, 200)  # type: ignore[attr-defined]
            inputs[IMAGE_VECTOR] = store.get_many(candidates.keys).vectors
            self._inputs.append({name: value for name, value in inputs.items() if name in taken})
        store.close()

    def candidates_per_s(self) -> float:
        """Of a turn of half a second or so."""
        inputs = itertools.cycle(self._inputs)
        return 200 / workload.median(workload.seconds(lambda: self._session.run(None, next(inputs)), 400))


def measure(bare: BareSession, options: Any, name: str, number: int, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Figures of requests for that many candidates."""
    load(bodies, 3.0, 0.0)  # warms the server up
    per_s, shares, p50_ms, p99_ms = [], [], [], []
    for _ in range(options.turns):
        before = bare.candidates_per_s()
        per_s.append(len(load(bodies, options.seconds, 0.0)) / options.seconds)
        shares.append(per_s[-1] * number / ((before + bare.candidates_per_s()) / 2))
        latencies = load(bodies, options.seconds, per_s[-1] / 2)
        p50_ms.append(float(np.percentile(latencies, 50)) * 1e3)
        p99_ms.append(float(np.percentile(latencies, 99)) * 1e3)
    figures: dict[str, Any] = {
        f"requests_per_s_{name}": workload.median(per_s),
        f"p50_ms_{name}": workload.median(p50_ms),
        f"p99_ms_{name}": workload.median(p99_ms),
    }
    if number > 1:
        figures[f"candidates_per_s_{name}"] = workload.median(per_s) * number
        figures[f"share_of_bare_{name}"] = workload.median(shares)
        figures[f"shares_of_bare_{name}"] = [round(share, 3) for share in shares]
    return figures


@contextmanager
def server(folder: Path, options: Any) -> Iterator[None]:
    """A server that has started, ended afterwards."""
    command = [sys.executable, "-m", "easyrec_mm", "serve", "--rec_model_dir", str(folder / "rec"), "--store"]
    command += [f"lmdb://{folder}/store", "--http_port", str(PORT), "--grpc_port", "0", "--runtime", options.runtime]
    process = subprocess.Popen([*command, "--workers", str(options.workers)], stderr=subprocess.DEVNULL)
    try:
        wait_until_ready()
        yield
    finally:
        process.terminate()
        process.wait()


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


def load(bodies: Sequence[bytes], seconds: float, per_s: float) -> list[float]:
    """Seconds that each answer took; per_s 0 means as many requests as are answered."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=generate_load, args=(bodies, seconds, per_s, queue))
    process.start()
    latencies: list[float] = queue.get()
    process.join()
    return latencies


def generate_load(bodies: Sequence[bytes], seconds: float, per_s: float, queue: Any) -> None:
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
