"""How long a search takes once model and vectors are loaded: by key, by picture, with a filter, ranked.

The vectors are random, under random keys, in a store of their own of the image model's tower; the picture is any.

    python tools/bench/search.py --img_model_dir export/img --picture new.jpg [--num 10000] [--text "red shirt"]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pandas as pd
import workload

import easyrec_mm as er
from easyrec_mm.manifest import read_header
from easyrec_mm.store import Record, open_store

_REPEATS = 50


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--img_model_dir", required=True)
    flags.add_argument("--picture", required=True)
    flags.add_argument("--text")
    flags.add_argument("--num", type=int, default=10_000)
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = fill(f"lmdb://{folder}/store", options.img_model_dir, options.num)
        items = pd.DataFrame(
            {"key": keys, "price": np.arange(len(keys)), "category": ["shoes", "bags"] * (len(keys) // 2)}
        )
        with er.Index(f"lmdb://{folder}/store", image_model=options.img_model_dir, metadata=items) as index:
            condition = f"category == 'shoes' and price < {len(keys) // 2}"
            searches: dict[str, Callable[[], object]] = {
                "by key": lambda: index.search(key=keys[0]),
                "by picture": lambda: index.search(picture=options.picture),
                "by picture, with a filter": lambda: index.search(picture=options.picture, filter=condition),
            }
            if options.text:
                searches["by text"] = lambda: index.search(text=options.text)
            figures = {f"{name}, ms": round(1000 * seconds_of(search), 2) for name, search in searches.items()}
    workload.report(f"search of {options.num} vectors", figures)


def fill(store: str, img_model_dir: str, number: int) -> list[str]:
    """Write random vectors to a store as if the image model had computed them; their keys."""
    manifest = read_header(img_model_dir, "image")
    vectors = np.random.default_rng(0).normal(size=(number, manifest.image_width)).astype(np.float32)
    keys = [f"k{i:08}" for i in range(number)]
    with closing(open_store(store, writable=True)) as opened:
        generation = opened.begin(manifest.image_tower_fingerprint, manifest.image_width, "float32")
        records = [Record(key, vector, bytes(16), 0) for key, vector in zip(keys, vectors, strict=True)]
        opened.put_many(generation, records)
        opened.complete(generation)
    return keys


def seconds_of(search: Callable[[], object]) -> float:
    """Median of several searches after the first."""
    search()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        search()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    main()
