"""A million candidates and more while model and store are exchanged 20 times: failures, mixed answers, memory.

Two models of different image towers take turns, each as a new export folder and with its vectors as the current
generation. Every answer is compared, byte by byte, with what the model and the generation that it names say to that
request. Memory is the resident set of all processes of the server.

    python tools/bench/soak.py [--reloads 20] [--candidates 1000000] [--workers 2]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import serve
import workload

NUM_VECTORS = 100_000
NUM_CANDIDATES = 200


def main() -> None:
    """Make two models and a store, serve, exchange, compare."""
    flags = workload.parser(__doc__)
    flags.add_argument("--reloads", type=int, default=20)
    flags.add_argument("--candidates", type=int, default=1_000_000)
    flags.add_argument("--workers", type=int, default=2)
    options = flags.parse_args()
    from easyrec_mm.store import open_store

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = open_store(f"lmdb://{folder}/store", writable=True)
        for name, seed in (("a", 0), ("b", 1)):
            making = multiprocessing.get_context("spawn").Process(target=serve.make_model, args=(folder / name, seed))
            making.start()
            making.join()
            serve.fill_store(store, folder / name / "rec", NUM_VECTORS)
        generations = {"a": store.meta().generations[1], "b": store.meta().generations[2]}
        bodies = [
            json.dumps(serve.request(folder / "a", NUM_CANDIDATES, True, seed, NUM_VECTORS)).encode()
            for seed in range(20)
        ]
        (folder / "rec").mkdir()
        shutil.copytree(folder / "a" / "rec", folder / "rec" / "1")
        store.complete(generations["a"])
        command = [sys.executable, "-m", "easyrec_mm", "serve", "--rec_model_dir", str(folder / "rec"), "--store"]
        command += [f"lmdb://{folder}/store", "--http_port", str(serve.PORT), "--grpc_port", "0"]
        command += ["--workers", str(options.workers), "--reload_every_s", "0.2"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            serve.wait_until_ready()
            time.sleep(2)
            asking = Asking(bodies)
            memory = []
            for turn in range(options.reloads):
                name = "ba"[turn % 2]
                shutil.copytree(folder / name / "rec", folder / "rec" / "part")
                (folder / "rec" / "part").rename(folder / "rec" / str(turn + 2))
                store.complete(generations[name])
                expected = generations[name].number
                while expected not in asking.newest:
                    time.sleep(0.05)
                asking.newest.clear()
                time.sleep(1)
                memory.append(resident_bytes(server.pid) / 2**20)
            while asking.num_answers * NUM_CANDIDATES < options.candidates:
                time.sleep(0.1)
            asking.end()
        finally:
            server.terminate()
            server.wait()
    workload.report(
        "soak",
        {
            "reloads": options.reloads,
            "candidates": asking.num_answers * NUM_CANDIDATES,
            "failed": asking.num_failed,
            "versions seen": len({version for _, version in asking.answers}),
            "mixed answers": sum(len(predictions) - 1 for predictions in asking.answers.values()),
            "memory after 4 reloads, MiB": memory[3],
            "memory after the last, MiB": memory[-1],
        },
    )


class Asking:
    """Sends requests in threads and keeps what was answered to each, by version."""

    def __init__(self, bodies: list[bytes], num_threads: int = 4) -> None:
        self.num_answers = self.num_failed = 0
        # (request, version) -> distinct predictions, of which there should be one.
        self.answers: dict[tuple[int, str], set[int]] = {}
        self.newest: set[int] = set()
        self._bodies, self._stopped = bodies, False
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop."""
        self._stopped = True
        for thread in self._threads:
            thread.join()

    def _ask(self, turn: int) -> None:
        connection = socket.create_connection(("127.0.0.1", serve.PORT), timeout=30)
        while not self._stopped:
            turn += 1
            row = turn % len(self._bodies)
            try:
                answer = serve.post(connection, self._bodies[row])
            except (RuntimeError, OSError):
                self.num_failed += 1
                connection = socket.create_connection(("127.0.0.1", serve.PORT), timeout=30)
                continue
            predictions, _, version = answer.rpartition(b'"model":')
            model: dict[str, Any] = json.loads(version[:-1])
            self.answers.setdefault((row, f"{model['image_tower']} {model['generation']}"), set()).add(
                hash(predictions)
            )
            self.newest.add(model["generation"])
            self.num_answers += 1


def resident_bytes(process: int) -> int:
    """Of a process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(int(child)) for child in children)


if __name__ == "__main__":
    main()
