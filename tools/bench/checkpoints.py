"""Checkpoints of a training with a large table: how long they hold steps up, and how large increments are.

The model has no pictures; its 12 id features share one table. The ids of the data are a hundredth of its rows, which
is the share of rows that change between two checkpoints.

How much a step is held up while a checkpoint is written beside it: windows of steps with a checkpoint under way,
which is abandoned at the end of the window, and windows without one, by turns, each pair in the order opposite to the
one before. Ratios are those of the means of a pair, so that what else the machine does in the meantime disturbs both;
the median of all pairs is given, with the quartiles. Beside the time that passes stand the processor time of the thread
of the training, which copies slices, and that of all threads, among them the one that writes.

Then, `--turns` times: a checkpoint that is written at once, an increment, and one that is completed while steps go on.
The memory is what the resident set grows by meanwhile, over the bytes of the table and its slots.

    python tools/bench/checkpoints.py [--rows 3000000] [--groups 64] [--pairs 12] [--steps 48] [--turns 1]
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

if TYPE_CHECKING:
    from easyrec_mm.data.batch import InputBatch
    from easyrec_mm.training.trainer import Trainer

GROUP_SIZE = 16
WARM_UP_STEPS = 10
RATE = "learning_rate { constant_learning_rate { learning_rate: 0.001 } }"


class Times(NamedTuple):
    """What steps take, in seconds: the time that passes, processor time of this thread, and that of all threads."""

    passed: float
    main: float
    all_threads: float


def main() -> None:
    """Measure and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--rows", type=int, default=3_000_000)
    flags.add_argument("--groups", type=int, default=64, help="groups of a batch")
    flags.add_argument("--pairs", type=int, default=12, help="pairs of windows with and without a writing under way")
    flags.add_argument("--steps", type=int, default=48, help="steps of a window, enough for some slices")
    flags.add_argument("--turns", type=int, default=1)
    flags.add_argument("--folder", help="where the checkpoints are written; by default a temporary folder")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.rows, options.groups)
        held_up = bench.held_up(options.pairs, options.steps)
        turns = [bench.turn() for _ in range(options.turns)]
    medians = {name: workload.median([turn[name] for turn in turns]) for name in (turns[0] if turns else ())}
    workload.report("checkpoints", {"rows": options.rows, "gib": bench.num_bytes / 2**30, **held_up, **medians})


class Bench:
    """A training in a folder."""

    def __init__(self, folder: Path, rows: int, groups: int) -> None:
        self.trainer, self.batches = training(folder, rows, groups)
        self.saver = self.trainer._saver
        self.rows = self.trainer.steps.changed_rows
        self.saver.begin(self.rows, None)
        self.num_bytes = sum(table.num_rows * table.row_bytes for table in self.rows.streamed)
        if not self.num_bytes:
            raise SystemExit("a table this small is written at once; give more --rows")
        self.most_bytes = 0
        for _ in range(WARM_UP_STEPS):
            self.step()

    def step(self) -> Times:
        """Train a step, without waiting for its batch."""
        item = next(self.batches)
        before = time.perf_counter(), time.thread_time(), time.process_time()
        self.trainer.run_step(item)
        after = time.perf_counter(), time.thread_time(), time.process_time()
        return Times(*(end - start for start, end in zip(before, after, strict=True)))

    def steps(self, goes_on: Callable[[int], bool]) -> list[Times]:
        """Train while it goes on; return what each step takes."""
        times: list[Times] = []
        while goes_on(len(times)):
            times.append(self.step())
            self.most_bytes = max(self.most_bytes, resident_bytes())
        return times

    def save(self, at_once: bool) -> float:
        """Save; return the seconds until the next step may begin."""
        step = int(self.trainer.steps.number)
        values = self.trainer.state.values([])
        started_s = time.perf_counter()
        self.saver.save(step, values, None, at_once)
        return time.perf_counter() - started_s

    def window(self, num_steps: int, is_writing: bool) -> tuple[Times, float]:
        """Return the means of the steps of a window, and the seconds before the first one."""
        if not is_writing:
            return means_of(self.steps(lambda done: done < num_steps)), 0.0
        self.saver._base = None  # a full checkpoint
        start_s = self.save(at_once=False)
        times = self.steps(lambda done: done < num_steps)
        snapshot = self.saver._snapshot
        if snapshot is None:
            raise SystemExit("a checkpoint was completed within a window; give more --rows")
        self.saver._abandon()
        self.rows.record_no_more()
        return means_of(times), start_s

    def held_up(self, num_pairs: int, num_steps: int) -> dict[str, float]:
        """Compare steps with and without a writing under way."""
        pairs: list[dict[bool, Times]] = []
        starts_s = []
        self.window(num_steps, is_writing=True)  # warm-up
        for number in range(num_pairs):
            pair = {}
            for is_writing in (number % 2 == 0, number % 2 == 1):
                pair[is_writing], start_s = self.window(num_steps, is_writing)
                starts_s += [start_s] if is_writing else []
            pairs.append(pair)
        figures = {"pairs": float(num_pairs), "start_ms": 1e3 * workload.median(starts_s)}
        for name in Times._fields:
            for is_writing, state in ((False, "without"), (True, "writing")):
                median = workload.median([getattr(pair[is_writing], name) for pair in pairs])
                figures[f"step_{name}_{state}_ms"] = 1e3 * median
            ratios = [getattr(pair[True], name) / getattr(pair[False], name) for pair in pairs]
            low, median, high = statistics.quantiles(ratios, n=4)
            figures |= {f"{name}_ratio": median, f"{name}_ratio_from": low, f"{name}_ratio_to": high}
        show(figures)
        return figures

    def turn(self) -> dict[str, float]:
        """Write a checkpoint of each kind."""
        self.saver._base = None  # the next checkpoint is full
        at_once_s = self.save(at_once=True)
        full_bytes = self.newest_bytes()
        self.steps(lambda done: done < 10)
        increment_s = self.save(at_once=True)
        increment_bytes = self.newest_bytes()
        self.saver._base = None
        self.step()
        before = resident_bytes()
        started_s = time.perf_counter()
        self.save(at_once=False)
        self.most_bytes = 0
        meanwhile = self.steps(lambda _: self.saver.is_writing)
        figures = {
            "at_once_s": at_once_s,
            "meanwhile_s": time.perf_counter() - started_s,
            "steps_meanwhile": float(len(meanwhile)),
            "longest_step_ms": 1e3 * max(times.passed for times in meanwhile),
            "memory_ratio": (self.most_bytes - before) / self.num_bytes,
            "increment_s": increment_s,
            "full_over_increment_bytes": full_bytes / increment_bytes,
        }
        show(figures)
        return figures

    def newest_bytes(self) -> int:
        """Return the size of the newest checkpoint."""
        newest = Path(str(self.saver.checkpoints.latest()))
        return sum(file.stat().st_size for file in newest.parent.glob(f"{newest.name}.*"))


def means_of(times: list[Times]) -> Times:
    """Return the mean of each kind of time: not every step copies a slice, so that a median would leave this out."""
    return Times(*(statistics.fmean(column) for column in zip(*times, strict=True)))


def show(figures: dict[str, float]) -> None:
    """Print figures as soon as they are known."""
    print({name: round(value, 3) for name, value in figures.items()}, flush=True)


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
