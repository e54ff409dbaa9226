"""Training steps of this checkout against those of another one: time by turns, and whether the weights stay equal.

Times are those of the processors, of all threads; those of a clock depend on what else a machine does. Both train on
the same data, each in a process of its own; while one runs a turn of steps, the other waits. The second checkout needs
its generated protos. The model without pictures has the workload's 256 samples per step, the model with pictures 16
pictures of 112 x 112.

    python tools/bench/checkouts.py --other ../easyrec_mm_before [--turns 30] [--cases rec image]
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

# Case -> size of the pictures, and steps of a turn.
CASES = {"rec": (0, 40), "image": (112, 2)}
GROUPS, GROUP_SIZE = 16, 16


def main() -> None:
    """Measure each case and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--other", metavar="CHECKOUT", type=Path, required=True)
    flags.add_argument("--turns", type=int, default=30)
    flags.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = flags.parse_args()
    figures: dict[str, Any] = {}
    for case in options.cases:
        size, num_steps = CASES[case]
        with tempfile.TemporaryDirectory() as folder:
            data = workload.write_data(Path(folder) / "data", GROUPS * 8, GROUP_SIZE, size, num_ids=10_000)
            runs = [Run(path, folder, data, size) for path in (options.other.resolve(), workload.ROOT)]
            times: list[list[float]] = [[], []]
            for turn in range(options.turns + 2):
                order = (0, 1) if turn % 2 else (1, 0)
                for i in order:
                    seconds = runs[i].ask(num_steps)
                    if turn > 1:  # the first two are the warm-up
                        times[i].append(seconds / num_steps)
            weights = [run.ask(0) for run in runs]
        other, this = times
        figures[f"{case}_other_cpu_ms"], figures[f"{case}_this_cpu_ms"] = (1e3 * workload.median(t) for t in times)
        figures[f"{case}_ratio"] = workload.median([b / a for a, b in zip(other, this, strict=True)])
        figures[f"{case}_ratio_of_least"] = min(this) / min(other)
        figures[f"{case}_weights_equal"] = weights[0] == weights[1]
    workload.report("checkouts", figures)


class Run:
    """A training of a checkout in a process of its own, which waits until it is asked."""

    def __init__(self, checkout: Path, folder: str, data: str, size: int) -> None:
        places = f"{checkout}:{checkout / 'tools/bench'}"
        own = Path(folder) / str(abs(hash(checkout)))
        own.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, __file__, "answer", str(own), data, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": places, "PYTHONSAFEPATH": "1"},
        )

    def ask(self, num_steps: int) -> Any:
        """Return the seconds of that many steps; for 0 the checksum of the weights, after which the process ends."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the process has no pipes")
        print(num_steps, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline().rpartition("answer ")[2])


def answer(folder: str, data: str, size: str) -> None:
    """Train as standard input asks."""
    from easyrec_mm.training.trainer import Trainer

    text = workload.config_text(data, f"{folder}/m", GROUPS, int(size), precision="FLOAT32")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    trainer = Trainer(workload.pipeline(Path(folder), text))
    batches = trainer.batches(num_epochs=0)
    for line in sys.stdin:
        if line.strip() == "0":
            break
        start = time.process_time()
        for _ in range(int(line)):
            trainer.run_step(next(batches))
        print("answer", json.dumps(time.process_time() - start))
    weights = trainer.model.weights()
    checksum = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)))
    print("answer", json.dumps(checksum.hexdigest()))
    batches.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:
        answer(*sys.argv[2:])
    else:
        main()
