"""Peak memory of a training step of the image tower: plain, with rematerialize, with image_micro_batch, with both.

Each is a process of its own, which builds the network, runs one step on `pictures` random pictures and tells its peak
resident set above that of the same process before the step. A plain step that does not fit into memory is extrapolated
from two smaller ones, in which memory grows linearly with the number of pictures.

    python tools/bench/tower_memory.py [--model_name ResNet-50] [--pictures 512] [--image_size 224] [--micro_batch 32]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import workload

MIB = 1 << 20


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--model_name", default="ResNet-50")
    flags.add_argument("--image_size", type=int, default=224)
    flags.add_argument("--pictures", type=int, default=512)
    flags.add_argument("--micro_batch", type=int, default=32)
    flags.add_argument("--precision", default="FLOAT32")
    flags.add_argument(
        "--plain_pictures", type=int, nargs=2, default=[32, 64], help="of the steps that are extrapolated"
    )
    flags.add_argument("--one", help="settings of img_model: measure one process")
    options = flags.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options)))
        return
    small, large = (run(options, "", pictures) for pictures in options.plain_pictures)
    per_picture = (large["mib"] - small["mib"]) / (options.plain_pictures[1] - options.plain_pictures[0])
    plain = large["mib"] + per_picture * (options.pictures - options.plain_pictures[1])
    figures: dict[str, object] = {
        "model": options.model_name,
        "precision": options.precision,
        f"plain, {options.plain_pictures[0]} pictures, MiB": small["mib"],
        f"plain, {options.plain_pictures[1]} pictures, MiB": large["mib"],
        "plain, MiB (extrapolated)": plain,
        "plain, images/s": options.plain_pictures[1] / large["seconds"],
    }
    both_settings = f"rematerialize: true image_micro_batch: {options.micro_batch}"
    for name, settings in (("micro-batches", f"image_micro_batch: {options.micro_batch}"), ("both", both_settings)):
        usage = run(options, settings, options.pictures)
        figures |= {
            f"{name}, MiB": usage["mib"],
            f"{name}, share of plain": usage["mib"] / plain,
            f"{name}, images/s": options.pictures / usage["seconds"],
        }
    workload.report("tower_memory", figures)


def run(options: argparse.Namespace, settings: str, pictures: int) -> dict[str, float]:
    """Memory of one process, and the time of another, which is free to keep memory, as trainings are."""
    values = {**vars(options), "pictures": pictures, "one": settings}
    values.pop("plain_pictures")
    command = [sys.executable, __file__, *[f"--{name}={value}" for name, value in values.items()]]
    # Freed memory goes back to the system, so that the resident set is what is used.
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    usage: dict[str, float] = {}
    for name, changed in (("mib", environment), ("seconds", None)):
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=changed).stdout
        usage[name] = json.loads(output.splitlines()[-1])[name]
    print(f"{settings or 'plain'}, {pictures} pictures: {usage}", flush=True)
    return usage


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory above that before the step, and seconds of a second step."""
    import numpy as np

    from easyrec_mm.data.batch import InputBatch
    from easyrec_mm.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Groups without pictures tell the shapes; the step gets random pixels.
        data = workload.write_data(folder / "data", options.pictures, 1, 0)
        img_model = f'model_name: "{options.model_name}" {options.one}'
        text = workload.config_text(
            data, str(folder / "model"), options.pictures, options.image_size, workload.SGD,
            precision=options.precision, img_model=img_model,
        ).replace("batch_size:", "max_bad_record_share: 1 batch_size:", 1)  # fmt: skip
        trainer = Trainer(workload.pipeline(folder, text))
        item: InputBatch = next(trainer.batches(num_epochs=0))
        random = np.random.default_rng(0)
        shape = (options.pictures, options.image_size, options.image_size, 3)
        item = replace(item, batch=item.batch._replace(pixels=random.integers(0, 256, shape, np.uint8)))
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        trainer.steps.run(item)
        peak = _status("VmHWM")
        start = time.perf_counter()
        trainer.steps.run(item)
        return {"mib": (peak - before) / MIB, "seconds": time.perf_counter() - start}


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
