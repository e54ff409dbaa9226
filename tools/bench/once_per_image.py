"""One picture for 16 samples against one picture for each sample: samples a second of training, from files.

The same number of samples a step and the same network; only the number of pictures differs. The two take turns.

    python tools/bench/once_per_image.py [--image_size 224] [--samples 256] [--turns 5]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

GROUP_SIZE = 16


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--image_size", type=int, default=224)
    flags.add_argument("--samples", type=int, default=256, help="samples a step, a multiple of 16")
    flags.add_argument("--steps", type=int, default=1)
    flags.add_argument("--turns", type=int, default=5)
    options = flags.parse_args()
    from easyrec_mm.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        runs = {}
        for kind, per_image in (("grouped", GROUP_SIZE), ("one_each", 1)):
            folder = Path(name) / kind
            num_groups = options.samples // GROUP_SIZE
            data = workload.write_data(folder / "data", num_groups * 4, GROUP_SIZE, options.image_size, per_image)
            batch_size = options.samples // per_image
            text = workload.config_text(data, str(folder / "model"), batch_size, options.image_size)
            trainer = Trainer(workload.pipeline(folder, text))
            runs[kind] = (trainer, trainer.batches(num_epochs=0))

        rates: dict[str, list[float]] = {kind: [] for kind in runs}
        for turn in range(options.turns + 1):
            for kind, (trainer, batches) in runs.items():
                start = time.perf_counter()
                for _ in range(options.steps):
                    trainer.run_step(next(batches))
                if turn:  # the first is the warm-up
                    rates[kind].append(options.samples * options.steps / (time.perf_counter() - start))
        ratios = [a / b for a, b in zip(rates["grouped"], rates["one_each"], strict=True)]
        workload.report(
            "once_per_image",
            {
                "image_size": options.image_size,
                "samples_a_step": options.samples,
                "grouped_samples_per_second": workload.median(rates["grouped"]),
                "one_picture_each_samples_per_second": workload.median(rates["one_each"]),
                "ratio": workload.median(ratios),
            },
        )


if __name__ == "__main__":
    main()
