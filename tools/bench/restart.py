"""How long a training that is started again waits for its first batch, by the place at which it goes on.

At the start of the data, after 39 epochs, and in the middle of the fortieth, by turns; without pictures. The time in
which the graph of the input is made is a part of it, the start of the process is not.

    python tools/bench/restart.py [--groups 20000] [--inputs GroupRTPInput GroupParquetInput] [--turns 3]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import parsing
import workload

EPOCHS = 39


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--groups", type=int, default=20_000)
    flags.add_argument("--inputs", nargs="+", default=["GroupRTPInput", "GroupParquetInput"])
    flags.add_argument("--turns", type=int, default=3)
    options = flags.parse_args()
    places = {
        "at the start": (0, 0),
        f"after {EPOCHS} epochs": (EPOCHS, 0),
        f"in the middle of epoch {EPOCHS + 1}": (EPOCHS, options.groups // 2),
    }
    times: dict[str, list[float]] = {f"{kind}, {place}, s": [] for kind in options.inputs for place in places}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parsing.write_files(folder, options.groups, 0)
        for turn in range(options.turns + 1):
            for kind in options.inputs:
                for place, (epoch, num_skipped) in places.items():
                    seconds = until_first_batch(folder, kind, epoch, num_skipped)
                    if turn:  # the first warms up
                        times[f"{kind}, {place}, s"].append(seconds)
    workload.report("restart", {name: workload.median(seconds) for name, seconds in times.items()})


def until_first_batch(folder: Path, kind: str, epoch: int, num_skipped: int) -> float:
    """Return the seconds until the first batch of a place."""
    started_s = time.perf_counter()
    inputs = parsing.open_input(folder, kind, 0)
    next(inputs.batches(0, num_skipped, first_epoch=epoch))
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
