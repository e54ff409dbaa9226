"""A model of the time of a training step, fitted on measured trainings and checked on others.

    seconds = fixed + per_picture P + per_sample S + per_id S F + (exchange + per_byte B, with several workers)

for a worker's P pictures, S samples and F id features a step, and the B bytes that it sends (`sent_bytes_*`). The
number of rows of the tables has no term: a step touches the rows of its batch alone. Each worker is a real process of
`easyrec-mm train` on one core; all trainings take turns. Relative errors are fitted, so that short steps count as long
ones.

    python tools/bench/cost_model.py [--turns 3]
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import workers
import workload

IMAGE_SIZE = 64
STEPS = 24
NAMES = ("fixed", "per_picture", "per_sample", "per_id", "exchange", "per_byte")


class Work(NamedTuple):
    """What a worker trains in a step, and how many workers there are."""

    pictures: int
    samples_per_picture: int
    id_features: int
    rows: int
    workers: int = 1

    @property
    def samples(self) -> int:
        """Samples of a worker in a step."""
        return self.pictures * self.samples_per_picture


FITTED = (
    Work(8, 4, 12, 10_000), Work(32, 4, 12, 10_000), Work(8, 32, 12, 10_000), Work(24, 32, 12, 1_000_000),
    Work(8, 32, 2, 10_000), Work(24, 32, 2, 1_000_000), Work(32, 4, 2, 10_000),
    Work(8, 4, 12, 10_000, 2), Work(24, 16, 2, 1_000_000, 2), Work(8, 32, 12, 10_000, 2), Work(32, 4, 2, 10_000, 2),
)  # fmt: skip
CHECKED = (
    Work(16, 16, 12, 1_000_000), Work(24, 8, 6, 10_000), Work(12, 24, 2, 1_000_000), Work(16, 16, 12, 10_000),
    Work(16, 16, 12, 1_000_000, 2), Work(24, 24, 6, 10_000, 2),
)  # fmt: skip


def main() -> None:
    """Measure, fit, check and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--turns", type=int, default=3)
    options = flags.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    seconds: dict[Work, list[float]] = {work: [] for work in (*FITTED, *CHECKED)}
    num_bytes: dict[Work, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for turn in range(options.turns):
            for i, work in enumerate(seconds):
                text = config(folder, work)
                speed = workers.train(folder, text, work.workers, cores[: work.workers], [], f"{turn}_{i}")
                seconds[work].append(speed.step_s)
                sent = (speed.last_line[f"sent_bytes_{kind}"] for kind in ("dense", "sparse"))
                num_bytes[work] = sum(sent) / work.workers
                print(work, round(speed.step_s, 4), "s a step", flush=True)
    measured = {work: workload.median(values) for work, values in seconds.items()}
    costs = fit({work: measured[work] for work in FITTED}, num_bytes)
    figures: dict[str, float] = dict(zip(NAMES, costs.tolist(), strict=True))
    for kind, works in (("fitted", FITTED), ("checked", CHECKED)):
        errors = {work: terms(work, num_bytes[work]) @ costs / measured[work] - 1 for work in works}
        for work, error in errors.items():
            print(f"{kind} {work}: {measured[work]:.4f} s measured, {error:+.1%} in the model")
        figures[f"largest error, {kind}"] = max(map(abs, errors.values()))
    workload.report("cost_model", figures)


def config(folder: Path, work: Work) -> str:
    """Write the data of some steps, unless they exist, and return the config."""
    data = folder / f"data_{work.samples_per_picture}"
    if not data.exists():
        workload.write_data(data, 128, work.samples_per_picture, IMAGE_SIZE)
    text = workload.config_text(
        str(data / "data.txt"),
        str(folder / "m"),
        work.pictures,
        IMAGE_SIZE,
        hash_bucket_size=work.rows,
        num_steps=STEPS,
    )
    for i in range(work.id_features, workload.NUM_ID_FEATURES):
        text = text.replace(f'feature_names: "id_{i}"\n', "")
    return text


def terms(work: Work, num_bytes: float) -> np.ndarray:
    """What each cost is multiplied by."""
    return np.array([1, work.pictures, work.samples, work.samples * work.id_features, work.workers > 1, num_bytes])


def fit(measured: dict[Work, float], num_bytes: dict[Work, float]) -> np.ndarray:
    """Return the costs with the least squares of relative errors; none is negative."""
    matrix = np.stack([terms(work, num_bytes[work]) / seconds for work, seconds in measured.items()])
    used = list(range(len(NAMES)))
    while True:
        solved = np.linalg.lstsq(matrix[:, used], np.ones(len(measured)), rcond=None)[0]
        if (solved >= 0).all():
            costs = np.zeros(len(NAMES))
            costs[used] = solved
            return costs
        # The most negative one is left out.
        used.pop(int(np.argmin(solved)))


if __name__ == "__main__":
    main()
