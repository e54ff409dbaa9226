"""What the neighbours of the demo's items have in common, by each similarity that `easyrec-mm search` offers.

Needs demo/data and demo/vectors, as scripts/demo makes them. For every picture, the five nearest others:
the share of them with its category and with its style, which decide together with its appeal what users click (mMP@5),
and how much their appeal differs from its own, divided by the difference of two items at random. The last figure is the
mean cosine of all pairs.

    python tools/bench/similarities.py [--demo demo]
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import workload
from numpy.typing import NDArray

sys.path.insert(0, str(workload.ROOT / "samples"))
from make_demo_data import DemoOptions, simulate

from easyrec_mm.store import open_store
from easyrec_mm.store.generations import require_generation
from easyrec_mm.store.search import Index, evaluate, read_index
from easyrec_mm.store.similarity import SIMILARITIES, mean_cosine

NUM_NEIGHBOURS = 5


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--demo", type=Path, default=workload.ROOT / "demo")
    options = flags.parse_args()
    category, style, appeal = truth()
    figures: dict[str, dict[str, float]] = {}
    with closing(open_store(f"lmdb://{options.demo}/vectors")) as store, tempfile.TemporaryDirectory() as folder:
        generation = require_generation(store.meta(), None, store.uri)
        for name in SIMILARITIES:
            index = read_index(store, generation, "exact", name)
            figures[name] = {
                "category": labelled(index, category, folder),
                "style": labelled(index, style, folder),
                "appeal": nearness(index, appeal),
                "mean cosine": round(mean_cosine(iter([index.vectors])), 4),
            }
    workload.report(f"similarities of {len(index.keys)} vectors", figures)


def truth() -> tuple[dict[str, int], dict[str, int], dict[str, float]]:
    """Category, style and appeal of each item, by the key of its picture."""
    category: dict[str, int] = {}
    style: dict[str, int] = {}
    appeal: dict[str, float] = {}
    for name, split in simulate(DemoOptions())[1].items():
        keys = [f"images/{name}/{item}.jpg" for item in split.item_ids]
        category |= dict(zip(keys, split.category.tolist(), strict=True))
        style |= dict(zip(keys, split.style.tolist(), strict=True))
        appeal |= dict(zip(keys, split.appeal.tolist(), strict=True))
    return category, style, appeal


def labelled(index: Index, labels: dict[str, int], folder: str) -> float:
    """mMP@5 of labels."""
    path = Path(folder) / "labels.csv"
    path.write_text("key,label\n" + "".join(f"{key},{label}\n" for key, label in labels.items()))
    return round(float(evaluate(index, str(path), NUM_NEIGHBOURS).mmp), 3)


def nearness(index: Index, values: dict[str, float]) -> float:
    """Mean difference of a value between neighbours, divided by that between items at random."""
    own: NDArray[np.float64] = np.array([values[key] for key in index.keys])
    rows, _ = index.search(index.vectors, NUM_NEIGHBOURS + 1)
    others = np.stack([row[row != i][:NUM_NEIGHBOURS] for i, row in enumerate(rows)])
    at_random = np.abs(own - np.random.default_rng(0).permutation(own)).mean()
    return round(float(np.abs(own[others] - own[:, None]).mean() / at_random), 3)


if __name__ == "__main__":
    main()
