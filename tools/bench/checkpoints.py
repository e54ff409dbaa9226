"""Checkpoints of a training with a table of some gigabytes: how long they hold steps up, and how large increments are.

The model has no pictures; its 12 id features share one table. The ids of the data are a hundredth of its rows, which
is the share of rows that change between two checkpoints. By turns: steps without a checkpoint, a checkpoint that is
written at once, one that is written while steps go on, and an increment. The memory is what the resident set grows by
while the checkpoint is written, over the bytes of the table and its slots. Besides the times, which other programs on
the machine disturb, the processor time of all threads is compared.

    python tools/bench/checkpoints.py [--rows 11000000] [--groups 128] [--turns 3]
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

if TYPE_CHECKING:
    from easyrec_mm.data.batch import InputBatch
    from easyrec_mm.runs.snapshot import Changed
    from easyrec_mm.training.trainer import Trainer

GROUP_SIZE = 16
STEPS_OF_A_TURN = 40
RATE = "learning_rate { constant_learning_rate { learning_rate: 0.001 } }"


def main() -> None:
    """Measure by turns and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--rows", type=int, default=11_000_000)
    flags.add_argument("--groups", type=int, default=128, help="groups of a batch")
    flags.add_argument("--turns", type=int, default=3)
    flags.add_argument("--folder", help="where the checkpoints are written; by default a temporary folder")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.rows, options.groups)
        turns = [bench.turn() for _ in range(options.turns)]
    medians = {name: workload.median([turn[name] for turn in turns]) for name in turns[0]}
    workload.report("checkpoints", {"rows": options.rows, "gib": bench.num_bytes / 2**30, **medians})


class Bench:
    """A training in a folder."""

    def __init__(self, folder: Path, rows: int, groups: int) -> None:
        self.trainer, self.batches = training(folder, rows, groups)
        self.folder = folder / "m"
        self.saver = self.trainer._saver
        self.saver.begin(self.trainer.steps.changed_rows, None)
        tables = self.trainer.steps.changed_rows.streamed
        self.num_bytes = sum(table.num_rows * table.row_bytes for table in tables)
        self.most_bytes, self.after_steps_s = 0, 0.0
        after_step = self.saver.after_step

        def timed(changed: Changed) -> None:
            started_s = time.perf_counter()
            after_step(changed)
            self.after_steps_s += time.perf_counter() - started_s

        self.saver.after_step = timed  # type: ignore[method-assign]
        for _ in range(5):  # warm-up
            self.step()

    def step(self) -> float:
        """Train a step; return its seconds."""
        started_s = time.perf_counter()
        item = next(self.batches)
        waited_s = time.perf_counter() - started_s
        self.trainer.run_step(item)
        return time.perf_counter() - started_s - waited_s

    def steps(self, goes_on: Callable[[int], bool]) -> tuple[list[float], float]:
        """Train while it goes on; return the seconds of each step, and the processor time of a step."""
        times: list[float] = []
        started_s = time.process_time()
        while goes_on(len(times)):
            times.append(self.step())
            self.most_bytes = max(self.most_bytes, resident_bytes())
        return times, (time.process_time() - started_s) / len(times)

    def save(self, at_once: bool) -> float:
        """Save; return the seconds until the next step may begin."""
        step = int(self.trainer.steps.number)
        values = self.trainer.state.values([])
        started_s = time.perf_counter()
        self.saver.save(step, values, None, at_once)
        return time.perf_counter() - started_s

    def turn(self) -> dict[str, float]:
        """Measure each once."""
        self.saver._base = None  # the next checkpoint is full
        at_once_s = self.save(at_once=True)
        full_bytes = self.newest_bytes()
        plain, plain_cpu_s = self.steps(lambda done: done < STEPS_OF_A_TURN)
        increment_s = self.save(at_once=True)
        increment_bytes = self.newest_bytes()
        self.saver._base = None
        self.step()
        before = resident_bytes()
        start_s = self.save(at_once=False)
        self.most_bytes, self.after_steps_s = 0, 0.0
        meanwhile, cpu_s = self.steps(lambda _: self.saver._snapshot is not None)
        after_steps_s, most = self.after_steps_s, self.most_bytes
        more, more_cpu_s = self.steps(lambda done: done < STEPS_OF_A_TURN)
        plain_s, mean_s = workload.median(plain + more), statistics.mean(plain + more)
        plain_cpu_s = (plain_cpu_s + more_cpu_s) / 2
        figures = {
            "step_ms": 1e3 * plain_s,
            "step_while_writing_ms": 1e3 * workload.median(meanwhile),
            "step_ratio": workload.median(meanwhile) / plain_s,
            "start_ms": 1e3 * start_s,
            "steps_while_writing": len(meanwhile),
            "between_steps_share": after_steps_s / sum(meanwhile),
            "processor_ratio": cpu_s / plain_cpu_s,
            "hold_up_s": start_s + sum(meanwhile) - mean_s * len(meanwhile),
            "mean_ratio": (start_s + sum(meanwhile)) / (mean_s * len(meanwhile)),
            "longest_ms": 1e3 * max(meanwhile),
            "longest_without_ms": 1e3 * max(plain + more),
            "at_once_s": at_once_s,
            "memory_ratio": (most - before) / self.num_bytes,
            "increment_s": increment_s,
            "full_over_increment_bytes": full_bytes / increment_bytes,
        }
        print({name: round(value, 3) for name, value in figures.items()}, flush=True)
        return figures

    def newest_bytes(self) -> int:
        """Return the size of the newest checkpoint."""
        newest = Path(str(self.saver.checkpoints.latest()))
        return sum(file.stat().st_size for file in newest.parent.glob(f"{newest.name}.*"))


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def training(folder: Path, rows: int, groups: int) -> tuple[Trainer, Iterator[InputBatch]]:
    """Return a trainer with a table of that many rows, and its batches."""
    from easyrec_mm.training.trainer import Trainer

    data = workload.write_data(folder / "data", groups * 8, GROUP_SIZE, 0, num_ids=rows // 100)
    text = workload.config_text(data, str(folder / "m"), groups, 0, f"adam_optimizer {{ {RATE} }}")
    text = text.replace("hash_bucket_size: 100000", f'num_buckets: {rows} embedding_name: "shared"')
    text = text.replace("train_config {", "train_config { increments_per_full_checkpoint: 1000 keep_checkpoint_max: 1")
    trainer = Trainer(workload.pipeline(folder, text))
    return trainer, trainer.batches(num_epochs=0)


if __name__ == "__main__":
    main()
