"""Pictures a second from files on disk and from S3 on loopback, against TensorFlow's bare decoding and resizing.

JPEGs of 224 x 224, two threads that decode. "bare": tf.io.read_file, decode_jpeg and resize to 224 x 224 in a tf.data
map from disk; "bare, not resized" leaves the resize out, which such files do not need. "disk", "S3": PictureLoader,
batch by batch and some batches ahead, as the input loads them for a training: with every check, and the reason of every
picture that cannot be had. "S3, cached": with image_cache_dir filled. The server answers GET from memory and does
nothing else, but on the same processors.

Turn by turn. Ratios are medians over the turns of seconds and of processor seconds, which others on the machine do not
lengthen but in which the server's are not, and of the fastest turns of each.

    python tools/bench/pictures.py [--pictures 512] [--turns 25] [--file_size 224]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import workload

BATCH, AHEAD, THREADS, SIZE = 64, 4, 2, 224
BUCKET = "s3://pictures"
BARE, WAYS = "bare", ("disk", "S3", "S3, cached")


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--pictures", type=int, default=512)
    flags.add_argument("--turns", type=int, default=25)
    flags.add_argument("--file_size", type=int, default=SIZE)
    flags.add_argument("--serve", help=argparse.SUPPRESS)
    options = flags.parse_args()
    if options.serve:
        serve(Path(options.serve))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload.write_data(folder / "data", options.pictures, 1, options.file_size)
        command = [sys.executable, __file__, "--serve", str(folder / "data")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "b",
                "AWS_REGION": "us-east-1",
            }
            try:
                workload.report("pictures", measure(folder, options))
            finally:
                server.kill()


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Pictures a second of each way, and their ratios to the bare one."""
    names = [f"{i}.jpg" for i in range(options.pictures)]
    data, cache = str(folder / "data"), str(folder / "cache")
    runs: dict[str, Callable[[], int]] = {
        BARE: bare([f"{data}/{name}" for name in names], SIZE),
        f"{BARE}, not resized": bare([f"{data}/{name}" for name in names], 0),
        **{
            name: loading(names, *place)
            for name, place in zip(WAYS, ((data,), (BUCKET,), (BUCKET, cache)), strict=True)
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.turns + 1):
        for name, run in runs.items():
            begun, begun_processor = time.perf_counter(), time.process_time()
            if run() != options.pictures:
                raise SystemExit(f"{name}: not all pictures were read")
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - begun)
                processor[name].append(time.process_time() - begun_processor)
    figures: dict[str, object] = {
        f"{name}, pictures/s": options.pictures / workload.median(times) for name, times in seconds.items()
    }
    for name, of in itertools.product(WAYS, (way for way in runs if way not in WAYS)):
        for suffix, times in (("", seconds), (", processor", processor)):
            ratios = [bare_time / time_taken for bare_time, time_taken in zip(times[of], times[name], strict=True)]
            figures[f"{name} / {of}{suffix}"] = workload.median(ratios)
        figures[f"{name} / {of}, fastest turns"] = min(seconds[of]) / min(seconds[name])
    return figures


def bare(paths: list[str], size: int) -> Callable[[], int]:
    """What TensorFlow does by itself; size 0 resizes nothing."""
    import tensorflow as tf

    def decode(path: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.image.resize(pixels, [size, size]), tf.uint8) if size else pixels

    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices(paths).map(decode, num_parallel_calls=THREADS)
    dataset = dataset.batch(BATCH).prefetch(AHEAD).with_options(options)
    return lambda: sum(len(batch) for batch in dataset)


def loading(names: list[str], root: str, cache_dir: str = "") -> Callable[[], int]:
    """What the input does."""
    from easyrec_mm.data.picture_reader import PictureReader, content_cache
    from easyrec_mm.data.pictures import PictureLoader, Pictures
    from easyrec_mm.schema import Image

    image = Image("img_path", SIZE, SIZE, 3, "BILINEAR", True, 50_000_000)
    loader = PictureLoader(image, PictureReader(root, content_cache(cache_dir, 1.0)))
    paths = [name.encode() for name in names]

    def run() -> int:
        pending: deque[Future[Pictures]] = deque()
        count = 0
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(paths), BATCH):
                batch = paths[start : start + BATCH]
                loader.begin(batch)
                pending.append(pool.submit(loader.load, batch))
                if len(pending) > AHEAD:
                    count += good(pending.popleft().result())
            return count + sum(good(future.result()) for future in pending)

    def good(loaded: Pictures) -> int:
        return len(loaded.pixels) - len(loaded.problems)

    return run


def serve(folder: Path) -> None:
    """Answer GET /bucket/name with a file of the folder; tells the port."""
    answers = {}
    for path in folder.glob("*.jpg"):
        content = path.read_bytes()
        head = (
            f'HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nETag: "{path.stem}"\r\n'
            "Last-Modified: Sun, 22 Nov 2026 00:00:00 GMT\r\nContent-Type: image/jpeg\r\n\r\n"
        )
        answers[path.name.encode()] = head.encode() + content
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    unchanged = b'HTTP/1.1 304 Not Modified\r\nETag: "%s"\r\nLast-Modified: Sun, 22 Nov 2026 00:00:00 GMT\r\n\r\n'

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.waiting = cast("asyncio.Transport", transport), b""

        def data_received(self, data: bytes) -> None:
            self.waiting += data
            while b"\r\n\r\n" in self.waiting:
                request, _, self.waiting = self.waiting.partition(b"\r\n\r\n")
                name = request.split(b" ", 2)[1].rpartition(b"/")[2]
                is_known = b"if-none-match" in request.lower()
                self.transport.write(unchanged % name[:-4] if is_known else answers.get(name, missing))

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    import uvloop

    uvloop.run(run())


if __name__ == "__main__":
    main()
