"""A training step with a 16M-row embedding table against one with 1k rows, for every optimizer; and its memory.

The model has no pictures; its 12 id features share one table. The ids of the data lie below 1000, so that both touch
the same rows. Times: the two take turns in one process. Memory: each trains some steps and saves a checkpoint in a
process of its own; the difference of their peak resident sets, over the bytes of the large table and its slots.

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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

if TYPE_CHECKING:
    from easyrec_mm.data.batch import InputBatch
    from easyrec_mm.training.trainer import Trainer

SMALL_ROWS = 1000
GROUPS, GROUP_SIZE = 16, 16
RATE = "learning_rate { constant_learning_rate { learning_rate: 0.001 } }"


def main() -> None:
    """Run the measurements of every optimizer in processes of their own and report."""
    from easyrec_mm.protos.optimizer_pb2 import Optimizer

    names = [field.name for field in Optimizer.DESCRIPTOR.oneofs_by_name["optimizer"].fields]
    flags = workload.parser(__doc__)
    flags.add_argument("--rows", type=int, default=16_000_000)
    flags.add_argument("--optimizers", nargs="+", default=[*names, "adam_optimizer+average"])
    flags.add_argument("--turns", type=int, default=15)
    options = flags.parse_args()
    figures: dict[str, object] = {"rows": options.rows, "dim": workload.EMBEDDING_DIM}
    for name in options.optimizers:
        small_ms, large_ms, ratio = in_process("times", name, options.rows, options.turns)
        small_bytes, _ = in_process("memory", name, SMALL_ROWS)
        large_bytes, held = in_process("memory", name, options.rows)
        result = {
            "small_ms": small_ms,
            "large_ms": large_ms,
            "time_ratio": ratio,
            "table_and_slots_gib": held / 2**30,
            "memory_ratio": (large_bytes - small_bytes) / held,
        }
        print(name, {key: round(value, 3) for key, value in result.items()}, flush=True)
        figures |= {f"{name}_{key}": value for key, value in result.items()}
    workload.report("vocabulary", figures)


def in_process(function: str, *arguments: object) -> list[float]:
    """Call a function of this file in a new process."""
    code = f"import json, vocabulary; print(json.dumps(vocabulary.{function}(*{arguments!r})))"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    result: list[float] = json.loads(output.stdout.strip().splitlines()[-1])
    return result


def times(name: str, rows: int, turns: int) -> list[float]:
    """Median milliseconds of a step with the small and with the large table, and the median of their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [training(Path(folder), name, size) for size in (SMALL_ROWS, rows)]
        measured: list[list[float]] = [[], []]
        for turn in range(turns + 2):
            for (trainer, batches), seconds in zip(pairs, measured, strict=True):
                start = time.perf_counter()
                trainer.run_step(next(batches))
                if turn > 1:  # the first two are the warm-up
                    seconds.append(time.perf_counter() - start)
        small, large = measured
        ratio = workload.median([b / a for a, b in zip(small, large, strict=True)])
        return [1e3 * workload.median(small), 1e3 * workload.median(large), ratio]


def memory(name: str, rows: int) -> list[float]:
    """Peak resident set in bytes of building, training and saving; and the bytes of the table and what goes with it."""
    from easyrec_mm.runs.checkpoint import Checkpoints

    with tempfile.TemporaryDirectory() as folder:
        trainer, batches = training(Path(folder), name, rows)
        for _ in range(3):
            trainer.run_step(next(batches))
        state: dict[str, Any] = trainer.state.variables()
        Checkpoints(f"{folder}/checkpoint").save(1, state)
        held = sum(v.dtype.size * v.shape.num_elements() for v in state.values() if v.shape[:1] == [rows])
        return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, held]


def training(folder: Path, name: str, rows: int) -> tuple[Trainer, Iterator[InputBatch]]:
    """A trainer with a table of that many rows, and its batches."""
    from easyrec_mm.training.trainer import Trainer

    kind, _, average = name.partition("+")
    optimizer = f"{kind} {{ {RATE} }}" + (" use_moving_average: true" if average else "")
    data = workload.write_data(folder / f"data{rows}", GROUPS * 8, GROUP_SIZE, 0, num_ids=SMALL_ROWS)
    text = workload.config_text(data, str(folder / f"m{rows}"), GROUPS, 0, optimizer)
    text = text.replace("hash_bucket_size: 100000", f'num_buckets: {rows} embedding_name: "shared"')
    trainer = Trainer(workload.pipeline(folder, text))
    return trainer, trainer.batches(num_epochs=0)


if __name__ == "__main__":
    main()
