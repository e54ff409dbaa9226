"""Own code where a library could be used: what each way costs, turn by turn, in processor seconds.

"distinct": the sketch of distinct values of 2^20 texts, by ColumnStats and by an HLL sketch of datasketches of the same
size. "frequent": the most frequent of 2^20 skewed texts, by stats' counters and by datasketches. "objects": reading
pictures of 11 KB from S3 on loopback, by the storage of this project, by obstore's own adapter for fsspec, and by
obstore's asyncio interface.

    .venv/bin/python -m pip install datasketches
    .venv/bin/python tools/bench/libraries.py [--turns 9]
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import workload

NUM_VALUES, PORTION = 1 << 20, 1 << 16
NUM_OBJECTS, THREADS = 2048, 72


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--turns", type=int, default=9)
    options = flags.parse_args()
    random = np.random.default_rng(0)
    distinct = portions([f"user_{i}" for i in random.integers(0, 1 << 40, NUM_VALUES)])
    skewed = portions([f"item_{i}" for i in random.zipf(1.2, NUM_VALUES) % 1_000_003])
    figures = turns("distinct", {"own": lambda: own_distinct(distinct), "library": lambda: hll(distinct)}, options)
    figures |= turns("frequent", {"own": lambda: own_frequent(skewed), "library": lambda: items(skewed)}, options)
    with tempfile.TemporaryDirectory() as name:
        workload.write_data(Path(name), NUM_OBJECTS, 1, 224)
        command = [sys.executable, str(Path(__file__).with_name("pictures.py")), "--serve", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            try:
                figures |= turns("objects", objects(endpoint), options)
            finally:
                server.kill()
    workload.report("libraries", figures)


def turns(name: str, ways: dict[str, Callable[[], object]], options: Any) -> dict[str, object]:
    """Processor milliseconds of each way, and the median of its ratios to the first."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(options.turns + 1):
        for way, run in ways.items():
            begun = time.process_time()
            run()
            if turn:  # the first warms up
                seconds[way].append(time.process_time() - begun)
    own, *other_ways = ways
    figures: dict[str, object] = {f"{name}, {way}, ms": 1000 * workload.median(seconds[way]) for way in ways}
    for way in other_ways:
        ratios = [other / mine for other, mine in zip(seconds[way], seconds[own], strict=True)]
        figures[f"{name}, {way} / {own}"] = workload.median(ratios)
    return figures


def portions(values: list[str]) -> list[pa.Array]:
    """The values in portions, as files are read."""
    return [pa.array(values[start : start + PORTION]) for start in range(0, len(values), PORTION)]


def own_distinct(values: list[pa.Array]) -> int:
    """Distinct values by ColumnStats, which computes everything else about the column as well."""
    from easyrec_mm.grouping.column_stats import ColumnStats

    stats = ColumnStats("string")
    for portion in values:
        stats.add(portion)
    return stats.num_distinct


def hll(values: list[pa.Array]) -> float:
    """Distinct values by datasketches."""
    from datasketches import hll_sketch

    sketch = hll_sketch(14)
    for portion in values:
        for value in portion.to_pylist():
            sketch.update(value)
    return float(sketch.get_estimate())


def own_frequent(values: list[pa.Array]) -> object:
    """Frequent values by the counters of stats."""
    from easyrec_mm.stats.fields import TopValues

    counters = TopValues()
    for portion in values:
        counters.add(portion)
    return counters.most_common(20)


def items(values: list[pa.Array]) -> object:
    """Frequent values by datasketches."""
    from datasketches import frequent_items_error_type, frequent_strings_sketch

    sketch = frequent_strings_sketch(16)
    for portion in values:
        for value in portion.to_pylist():
            sketch.update(value)
    return sketch.get_frequent_items(frequent_items_error_type.NO_FALSE_NEGATIVES)[:20]


def objects(endpoint: str) -> dict[str, Callable[[], object]]:
    """Each way to read all objects."""
    import obstore
    from obstore.fsspec import FsspecStore

    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    os.environ |= {**settings, "AWS_REGION": "us-east-1"}
    from easyrec_mm.files import place_of

    paths = [f"s3://pictures/{i}.jpg" for i in range(NUM_OBJECTS)]
    place = place_of(paths[0])
    config: Any = {"endpoint": endpoint, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
    adapter = FsspecStore("s3", config=config, client_options={"allow_http": True})
    store = obstore.store.S3Store("pictures", config=config, client_options={"allow_http": True})

    def in_threads(read: Callable[[str], object]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for content in pool.map(read, paths):
                assert content

    def by_asyncio() -> None:
        async def run() -> None:
            limit = asyncio.Semaphore(THREADS)

            async def read(path: str) -> None:
                async with limit:
                    result = await obstore.get_async(store, path.rpartition("/")[2])
                    assert len(await result.bytes_async())

            await asyncio.gather(*map(read, paths))

        asyncio.run(run())

    return {
        "own": lambda: in_threads(place.read),
        "fsspec adapter": lambda: in_threads(adapter.cat_file),
        "asyncio": by_asyncio,
    }


if __name__ == "__main__":
    main()
