"""A training step with a 16M-row embedding table against one with 1k rows, for every optimizer; and its memory.

The model has no pictures; its 12 id features share one table. The ids of the data lie below 1000, so that both touch
the same rows. Each optimizer has a process of its own, in which the two take turns; memory is the growth of the peak
resident set from before the large model is built until after its steps and its checkpoint, over table and slots.

    python tools/bench/vocabulary.py [--rows 16000000] [--optimizers adam_optimizer ...]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

SMALL_ROWS = 1000
GROUPS, GROUP_SIZE = 16, 16
RATE = "learning_rate { constant_learning_rate { learning_rate: 0.001 } }"


def main() -> None:
    """Run one process an optimizer and report."""
    from easyrec_mm.protos.optimizer_pb2 import Optimizer

    names = [field.name for field in Optimizer.DESCRIPTOR.oneofs_by_name["optimizer"].fields]
    flags = workload.parser(__doc__)
    flags.add_argument("--rows", type=int, default=16_000_000)
    flags.add_argument("--optimizers", nargs="+", default=[*names, "adam_optimizer+average"])
    flags.add_argument("--turns", type=int, default=15)
    flags.add_argument("--one", help=argparse_suppress())
    options = flags.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.rows, options.turns)))
        return
    figures: dict[str, object] = {"rows": options.rows, "dim": workload.EMBEDDING_DIM}
    for name in options.optimizers:
        command = [sys.executable, __file__, "--one", name, "--rows", str(options.rows), "--turns", str(options.turns)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result = json.loads(output.strip().splitlines()[-1])
        figures |= {f"{name}_{key}": value for key, value in result.items()}
        print(name, result, flush=True)
    workload.report("vocabulary", figures)


def argparse_suppress() -> str:
    """Hides a flag from the help."""
    import argparse

    return argparse.SUPPRESS


def measure(name: str, rows: int, turns: int) -> dict[str, float]:
    """Step times of both, their ratio, and memory over table and slots."""
    from easyrec_mm.checkpoint import Checkpoints
    from easyrec_mm.trainer import Trainer

    kind, _, average = name.partition("+")
    optimizer = f"{kind} {{ {RATE} }}" + (" use_moving_average: true" if average else "")
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        data = workload.write_data(folder / "data", GROUPS * 8, GROUP_SIZE, 0, num_ids=SMALL_ROWS)
        trainers = {}
        before = peak_bytes()
        for size in (SMALL_ROWS, rows):
            if size == rows:
                for _ in range(3):
                    run_step(*trainers[SMALL_ROWS])
                before = peak_bytes()
            text = workload.config_text(data, str(folder / f"m{size}"), GROUPS, 0, optimizer)
            text = text.replace("hash_bucket_size: 100000", f'num_buckets: {size} embedding_name: "shared"')
            trainer = Trainer(workload.pipeline(folder, text))
            trainers[size] = (trainer, trainer._input.batches(num_epochs=0))
        times: dict[int, list[float]] = {SMALL_ROWS: [], rows: []}
        for turn in range(turns + 2):
            for size, pair in trainers.items():
                start = time.perf_counter()
                run_step(*pair)
                if turn > 1:
                    times[size].append(time.perf_counter() - start)
        state = trainers[rows][0]._state()
        Checkpoints(str(folder / "checkpoint")).save(1, state)
        held = sum(v.dtype.size * v.shape.num_elements() for v in state.values() if v.shape[:1] == [rows])
        ratios = [a / b for a, b in zip(times[rows], times[SMALL_ROWS], strict=True)]
        return {
            "small_ms": 1e3 * workload.median(times[SMALL_ROWS]),
            "large_ms": 1e3 * workload.median(times[rows]),
            "time_ratio": workload.median(ratios),
            "table_and_slots_gib": held / 2**30,
            "memory_ratio": (peak_bytes() - before) / held,
        }


def run_step(trainer: object, batches: object) -> None:
    """One step."""
    trainer._run_step(next(batches))  # type: ignore[attr-defined, call-overload]


def peak_bytes() -> int:
    """Peak resident set of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
