"""What a picture bank saves: training from files with all pictures encoded, with a share of them, and with none.

The data is read once, so that every picture has a vector in the bank; then the steps of a second epoch are timed. All
take turns in one process. Reading and decoding of the pictures that are encoded is part of each.

    python tools/bench/less_compute.py [--image_size 224] [--groups 32] [--steps 4] [--turns 5]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

GROUP_SIZE = 16
NUM_BATCHES = 4
# A bank that never grows old here.
KINDS = {
    "end to end": "",
    "encode_ratio 0.5": "encode_ratio: 0.5 max_staleness_steps: 1000000",
    "encode_ratio 0.2": "encode_ratio: 0.2 max_staleness_steps: 1000000",
    "frozen": "trainable: NONE",
    "frozen but the head": "trainable: HEAD",
}


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--image_size", type=int, default=224)
    flags.add_argument("--groups", type=int, default=32, help="pictures a step")
    flags.add_argument("--steps", type=int, default=NUM_BATCHES, help="steps of a turn")
    flags.add_argument("--turns", type=int, default=5)
    flags.add_argument("--model_name", default="ResNet-18")
    options = flags.parse_args()
    from easyrec_mm.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = workload.write_data(folder / "data", options.groups * NUM_BATCHES, GROUP_SIZE, options.image_size)
        runs = {}
        for number, (kind, settings) in enumerate(KINDS.items()):
            text = workload.config_text(
                data, str(folder / f"model_{number}"), options.groups, options.image_size,
                img_model=f'model_name: "{options.model_name}" {settings}',
            )  # fmt: skip
            trainer = Trainer(workload.pipeline(folder, text))
            batches = trainer.batches(num_epochs=0)
            for _ in range(NUM_BATCHES + 1):
                trainer.run_step(next(batches))
            runs[kind] = (trainer, batches)
        rates: dict[str, list[float]] = {kind: [] for kind in runs}
        encoded: dict[str, list[int]] = {kind: [] for kind in runs}
        for turn in range(options.turns + 1):
            for kind, (trainer, batches) in runs.items():
                start = time.perf_counter()
                for _ in range(options.steps):
                    item = next(batches)
                    trainer.run_step(item)
                    encoded[kind].append(int(item.batch.pixels.shape[0]))
                if turn:  # the first is the warm-up
                    rates[kind].append(options.groups * options.steps / (time.perf_counter() - start))
        figures: dict[str, object] = {"image_size": options.image_size, "pictures_a_step": options.groups}
        for kind in KINDS:
            ratios = [a / b for a, b in zip(rates[kind], rates["end to end"], strict=True)]
            figures[f"{kind}, images/s"] = workload.median(rates[kind])
            figures[f"{kind}, samples/s"] = workload.median(rates[kind]) * GROUP_SIZE
            figures[f"{kind}, pictures encoded a step"] = sum(encoded[kind]) / len(encoded[kind])
            figures[f"{kind}, ratio"] = workload.median(ratios)
        workload.report("less_compute", figures)


if __name__ == "__main__":
    main()
