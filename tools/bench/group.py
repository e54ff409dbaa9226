"""Grouping a click log of 20 columns with the local engine: rows a second, and the most memory that it takes.

The log has users, items with a skewed popularity, categories, prices, texts and numbers; a log of each format is made
once. Each run is a process of its own, so that its peak is its own.

    python tools/bench/group.py [--rows 10000000] [--memory_gib 4] [--input parquet csv] [--format parquet]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import workload

CHUNK = 500_000


def main() -> None:
    """Measure each input, and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--rows", type=int, default=10_000_000)
    flags.add_argument("--memory_gib", type=float, default=4.0)
    flags.add_argument("--input", nargs="+", choices=["parquet", "csv"], default=["parquet", "csv"])
    flags.add_argument("--format", nargs="+", choices=["parquet", "tfrecord", "rtp"], default=["parquet"])
    flags.add_argument("--folder", help="where to make the data, and to keep it; default: a temporary folder")
    options = flags.parse_args()
    figures: dict[str, Any] = {"rows": options.rows, "memory_gib": options.memory_gib}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        log_folder = Path(options.folder or temporary)
        for kind in options.input:
            log = log_folder / f"log_{options.rows}.{kind}"
            if not log.exists():
                write_log(log, options.rows)
            for output_format in options.format:
                seconds, busy, peak = group(log, Path(temporary) / "grouped", output_format, options.memory_gib)
                name = f"{kind}_to_{output_format}"
                figures[f"{name}_rows_per_s"] = round(options.rows / seconds)
                figures[f"{name}_rows_per_processor_s"] = round(options.rows / busy)
                figures[f"{name}_peak_gib"] = round(peak, 2)
    workload.report("group", figures)


def group(log: Path, output: Path, output_format: str, memory_gib: float) -> tuple[float, float, float]:
    """Seconds, seconds of processors and peak resident set, GiB, of the command."""
    command = [sys.executable, "-m", "easyrec_mm", "group", "--input", str(log), "--group_by", "item_id"]
    command += ["--image_field", "img_path", "--user_field", "user_id", "--output", str(output), "--overwrite"]
    command += ["--format", output_format, "--memory_gib", str(memory_gib), "--allow_missing_pictures"]
    command += ["--pipeline_config_template", str(output) + ".config"]
    start = time.perf_counter()
    child = os.spawnve(os.P_NOWAIT, sys.executable, command, {**os.environ, "PYTHONPATH": str(workload.ROOT)})
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"{command} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def write_log(path: Path, num_rows: int) -> None:
    """Write a log, a chunk at a time."""
    random = np.random.default_rng(0)
    num_items, num_users = max(num_rows // 20, 10), max(num_rows // 10, 10)
    items = {
        "category": random.integers(0, 50, num_items),
        "brand": random.integers(0, 3000, num_items),
        "price": np.round(random.lognormal(3, 1, num_items), 2),
        "age_days": random.integers(0, 1000, num_items),
    }
    writer: Any = None
    for start in range(0, num_rows, CHUNK):
        table = _rows(random, min(CHUNK, num_rows - start), num_items, num_users, items)
        if writer is None:
            writer = (pq.ParquetWriter if path.suffix == ".parquet" else pa_csv.CSVWriter)(str(path), table.schema)
        writer.write_table(table)
    writer.close()


def _rows(random: np.random.Generator, size: int, num_items: int, num_users: int, items: dict[str, Any]) -> pa.Table:
    item = (num_items * random.random(size) ** 2).astype(np.int64)
    user = random.integers(0, num_users, size)
    click = (random.random(size) < 0.05).astype(np.int64)
    columns: dict[str, Any] = {
        "user_id": _texts("u", user),
        "item_id": _texts("item_", item),
        "img_path": _texts("images/", item, ".jpg"),
        "click": click,
        "is_buy": click * (random.random(size) < 0.1),
        "time": 1_700_000_000 + np.sort(random.integers(0, 86_400, size)),
        "category": _texts("cat_", items["category"][item]),
        "brand": items["brand"][item],
        "price": items["price"][item],
        "age_days": items["age_days"][item],
        "city": _texts("city_", user % 300),
        "gender": pa.array(np.array(["f", "m", None], object)[user % 3]),
        "age": user % 8,
        "hour": random.integers(0, 24, size),
        "position": random.integers(0, 50, size),
        "query": _texts("query_", random.integers(0, 200_000, size)),
        "device": _texts("device_", random.integers(0, 500, size)),
        "score": random.normal(size=size).astype(np.float32),
        "history_ctr": np.round(random.beta(1, 20, size), 4),
        "num_views": random.zipf(1.5, size) % 10_000,
    }
    return pa.table(columns)


def _texts(prefix: str, numbers: np.ndarray, suffix: str = "") -> pa.Array:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), suffix, "")


if __name__ == "__main__":
    main()
