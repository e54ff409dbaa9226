"""Samples a second of several workers of one core each, against one worker of one core; and more workers than cores.

Real trainings (`easyrec-mm train`, and `scripts/local_cluster` for several workers): 18 features, tables of a million
rows, ResNet-18 at 64 x 64. Each worker has the same batch, so that N workers train N times as many samples a step. The
numbers of workers take turns; a speed is that of the last half of the steps of a training.

    python tools/bench/workers.py [--workers 1 2 4] [--turns 3] [--set train_config.sync_batch_norm=true ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

GROUP_SIZE = 16
SETTINGS = (
    "data_config.shuffle=false", "train_config.log_step_count_steps=1", "train_config.save_checkpoints_steps=1000000",
)  # fmt: skip


class Speed(NamedTuple):
    """What a training reached in the second half of its steps, all workers together."""

    step_s: float
    last_line: dict[str, Any]


def main() -> None:
    """Train by turns and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    flags.add_argument("--turns", type=int, default=3)
    flags.add_argument("--steps", type=int, default=40)
    flags.add_argument("--rows", type=int, default=1_000_000)
    flags.add_argument("--batch_size", type=int, default=16)
    flags.add_argument("--pictures", type=int, default=0, help="distinct pictures, skewed; 0: each group has its own")
    flags.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    options = flags.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_groups = options.batch_size * max(options.workers) * 4
        data = workload.write_data(folder / "data", num_groups, GROUP_SIZE, 64, num_pictures=options.pictures)
        text = workload.config_text(
            data, str(folder / "m"), options.batch_size, 64, hash_bucket_size=options.rows, num_steps=options.steps
        )
        speeds: dict[int, list[Speed]] = {num: [] for num in options.workers}
        for turn in range(options.turns):
            for num in options.workers:
                speeds[num].append(train(folder, text, num, cores[:num], options.set, f"{turn}_{num}"))
                print(num, "workers:", round(speeds[num][-1].step_s, 4), "s a step", flush=True)
    figures: dict[str, Any] = {"rows": options.rows, "groups a worker": options.batch_size}
    one = options.workers[0]
    for num, measured in speeds.items():
        samples = num * options.batch_size * GROUP_SIZE
        figures[f"{num} workers, samples/s"] = samples / workload.median([speed.step_s for speed in measured])
        # Of one turn, because a machine that others use is not equally fast in all turns.
        ratios = [num / one * a.step_s / b.step_s for a, b in zip(speeds[one], measured, strict=True)]
        figures[f"{num} workers, times those of {one}"] = workload.median(ratios)
        figures |= {
            f"{num} workers, {name}": value for name, value in measured[-1].last_line.items() if "bytes" in name
        }
    workload.report("workers", figures)


def train(folder: Path, config: str, num: int, cores: list[int], settings: list[str], name: str) -> Speed:
    """Train with that many workers on those cores, at most one core each."""
    path = folder / "bench.config"
    path.write_text(config, encoding="utf-8")
    flags = ["train", "--pipeline_config", str(path), "--model_dir", str(folder / name)]
    flags += [f"--set={setting}" for setting in [*SETTINGS, *settings]]
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), sys.executable]
    if num == 1:
        command += ["-m", "easyrec_mm", *flags]
    else:
        command += [str(workload.ROOT / "scripts/local_cluster"), "--workers", str(num), "--", *flags]
    done = subprocess.run(command, cwd=workload.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    with (folder / name / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [line for line in map(json.loads, file) if line["kind"] == "train"]
    middle, last = lines[len(lines) // 2], lines[-1]
    return Speed((last["time"] - middle["time"]) / (last["step"] - middle["step"]), last)


if __name__ == "__main__":
    main()
