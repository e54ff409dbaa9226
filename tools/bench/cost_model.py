"""A model of the time of a training step, fitted on measured trainings and checked on others.

    seconds = fixed + (tower + per_picture P, with pictures) + per_sample S + per_id S F
              + (exchange + per_byte B, with several workers)

for a worker's P pictures, S samples and F id features a step, and the B bytes that it sends (`sent_bytes_*`); `tower`
is what a step of the image tower costs whatever its batch, such as the update of its weights. The number of rows of the
tables has no term, because a step touches the rows of its batch alone. Each worker is a real process of `easyrec-mm
train` on one core; all trainings take turns. No cost is negative, and relative errors are fitted, so that short steps
count as much as long ones.

    python tools/bench/cost_model.py [--turns 3]
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import scipy.optimize
import workers
import workload

IMAGE_SIZE = 64
STEPS, STEPS_WITHOUT_PICTURES = 24, 200  # the latter are short
NAMES = ("fixed", "tower", "per_picture", "per_sample", "per_id", "exchange", "per_byte")


class Work(NamedTuple):
    """What a worker trains in a step, and how many workers there are."""

    groups: int
    group_size: int
    id_features: int
    rows: int
    workers: int = 1
    has_pictures: bool = True

    @property
    def samples(self) -> int:
        """Samples of a worker in a step."""
        return self.groups * self.group_size


FITTED = (
    Work(8, 4, 12, 10_000), Work(64, 4, 12, 10_000), Work(8, 64, 12, 1_000_000), Work(8, 64, 2, 10_000),
    Work(32, 32, 12, 10_000), Work(32, 4, 12, 1_000_000, has_pictures=False),
    Work(64, 64, 2, 10_000, has_pictures=False),
    Work(8, 4, 12, 10_000, 2), Work(64, 4, 2, 1_000_000, 2), Work(8, 64, 12, 1_000_000, 2), Work(48, 32, 12, 10_000, 2),
    Work(32, 4, 12, 10_000, 2, has_pictures=False), Work(64, 64, 12, 1_000_000, 2, has_pictures=False),
)  # fmt: skip
CHECKED = (
    Work(16, 16, 12, 1_000_000), Work(48, 8, 6, 10_000), Work(96, 16, 12, 10_000),
    Work(48, 24, 6, 1_000_000, has_pictures=False),
    Work(16, 16, 12, 1_000_000, 2), Work(96, 16, 6, 10_000, 2), Work(48, 24, 6, 10_000, 2, has_pictures=False),
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
    image_size = IMAGE_SIZE if work.has_pictures else 0
    data = folder / f"data_{work.group_size}_{image_size}"
    if not data.exists():
        workload.write_data(data, 4 * max(work.groups for work in (*FITTED, *CHECKED)), work.group_size, image_size)
    text = workload.config_text(
        str(data / "data.txt"),
        str(folder / "m"),
        work.groups,
        image_size,
        hash_bucket_size=work.rows,
        num_steps=STEPS if work.has_pictures else STEPS_WITHOUT_PICTURES,
    )
    for i in range(work.id_features, workload.NUM_ID_FEATURES):
        text = text.replace(f'feature_names: "id_{i}"\n', "")
    return text


def terms(work: Work, num_bytes: float) -> np.ndarray:
    """Return what each cost is multiplied by."""
    pictures = work.groups * work.has_pictures
    return np.array(
        [
            1,
            work.has_pictures,
            pictures,
            work.samples,
            work.samples * work.id_features,
            work.workers > 1,
            num_bytes if work.workers > 1 else 0,
        ]
    )


def fit(measured: dict[Work, float], num_bytes: dict[Work, float]) -> np.ndarray:
    """Return the costs with the least squares of relative errors; none is negative."""
    matrix = np.stack([terms(work, num_bytes[work]) / seconds for work, seconds in measured.items()])
    scale = matrix.max(axis=0)  # bytes and steps differ by eight orders of magnitude
    costs, _ = scipy.optimize.nnls(matrix / scale, np.ones(len(measured)))
    return np.asarray(costs / scale)


if __name__ == "__main__":
    main()
