"""A hundred thousand tiny steps: memory, open files and threads must not grow.

A real training of a small model without pictures, with checkpoints, evaluations and summaries. Its process is looked
at every second; the first tenth of the steps is the warm-up.

    python tools/bench/long_run.py [--steps 100000]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

SETTINGS = [
    "train_config.log_step_count_steps=100", "train_config.save_summary_steps=100",
    "train_config.save_checkpoints_steps=2000", "eval_config.eval_interval_secs=0", "data_config.num_epochs=0",
]  # fmt: skip


class Look(NamedTuple):
    """What a process holds at a step."""

    step: int
    memory_mib: float
    num_files: int
    num_threads: int


def main() -> None:
    """Train, look, report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--steps", type=int, default=100_000)
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = workload.write_data(folder / "data", 64, 2, 0, num_ids=1000)
        text = workload.config_text(data, str(folder / "m"), 4, 0, hash_bucket_size=1000, num_steps=options.steps)
        text = text.replace("[1024, 512]", "[8, 8]").replace("[256, 128, 64, 32]", "8")
        path = folder / "bench.config"
        path.write_text(text + f'\neval_input_path: "{data}"\n', encoding="utf-8")
        command = [sys.executable, "-m", "easyrec_mm", "train", "--pipeline_config", str(path)]
        command += [f"--set={setting}" for setting in SETTINGS]
        start = time.monotonic()
        with (folder / "output").open("w") as output:
            training = subprocess.Popen(command, cwd=workload.ROOT, stdout=output, stderr=subprocess.STDOUT)
            looks = []
            while training.poll() is None:
                looks += look(training.pid, folder / "m/metrics.jsonl")
                time.sleep(1)
        if training.returncode:
            raise SystemExit((folder / "output").read_text())
    steady = [seen for seen in looks if seen.step >= options.steps // 10]
    parts = [steady[: len(steady) // 4], steady[-(len(steady) // 4) :]]
    figures: dict[str, float] = {"steps": options.steps, "seconds": time.monotonic() - start}
    for name in ("memory_mib", "num_files", "num_threads"):
        first, last = (workload.median([getattr(seen, name) for seen in part]) for part in parts)
        figures |= {f"{name}, first quarter": first, f"{name}, last quarter": last, f"{name}, ratio": last / first}
    workload.report("long_run", figures)


def look(process: int, metrics: Path) -> list[Look]:
    """What the process holds; nothing before its first report, or after its end."""
    try:
        step = json.loads(metrics.read_text().splitlines()[-1])["step"]
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        num_files = len(os.listdir(f"/proc/{process}/fd"))
        return [Look(step, int(status["VmRSS"].split()[0]) / 1024, num_files, int(status["Threads"]))]
    except (OSError, ValueError, IndexError, KeyError):
        return []


if __name__ == "__main__":
    main()
