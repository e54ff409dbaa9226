"""Memory of a training input over epochs, for every input format, with pictures: it should not grow.

Resident memory after each epoch of Input.batches, shuffled, in a process of its own for each format. The first epoch
fills buffers and pools; the figure is the largest after the second epoch by the smallest.

    python tools/bench/input_memory.py [--groups 4000] [--epochs 10] [--inputs GroupRTPInput ...]
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import parsing
import workload

IMAGE_SIZE = 64


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--groups", type=int, default=4000)
    flags.add_argument("--epochs", type=int, default=10)
    flags.add_argument("--inputs", nargs="+", default=list(parsing.FILES), choices=list(parsing.FILES))
    options = flags.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parsing.write_files(folder, options.groups, IMAGE_SIZE)
        for kind in options.inputs:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                after = pool.apply(memory_after_epochs, (folder, kind, options.epochs))
            figures[f"{kind}, MiB after epochs"] = " ".join(f"{size:.0f}" for size in after)
            figures[f"{kind}, largest by smallest"] = max(after[1:]) / min(after[1:])
    workload.report("input_memory", figures)


def memory_after_epochs(folder: Path, kind: str, num_epochs: int) -> list[float]:
    """Resident MiB after each epoch, when the next one has begun."""
    inputs = parsing.open_input(folder, kind, IMAGE_SIZE)
    after: list[float] = []
    for batch in inputs.batches(num_epochs + 1):
        if batch.epoch > len(after):
            after.append(resident_mib())
        if len(after) == num_epochs:
            break
    return after


def resident_mib() -> float:
    """Memory of this process that is not swapped out."""
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


if __name__ == "__main__":
    main()
