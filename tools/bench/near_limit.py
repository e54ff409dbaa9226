"""Training from files against the bare image tower's own step.

Both train ResNet-18 with fused batch norm on the same number of 224 x 224 pictures a step, in the same precision. The
bare tower has its pictures in memory as float tensors and the same optimizer, and nothing else. Training from files
reads lines, checks, hashes, reads and decodes JPEGs, embeds 18 features, and runs the shared bottom and two towers. The
two take turns, so that the machine's moods hit both; the ratio is taken turn by turn.

    python tools/bench/near_limit.py [--precision FLOAT32] [--optimizers sgd] [--groups 16] [--steps 6] [--turns 7]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import workload

if TYPE_CHECKING:
    from easyrec_mm.protos.optimizer_pb2 import Optimizer

GROUP_SIZE = 16
OPTIMIZERS = {"sgd": workload.SGD, "adam": workload.ADAM}


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--precision", nargs="+", default=["FLOAT32", "BFLOAT16"], choices=["FLOAT32", "BFLOAT16"])
    flags.add_argument("--groups", type=int, default=16)
    flags.add_argument("--image_size", type=int, default=224)
    flags.add_argument("--steps", type=int, default=6)
    flags.add_argument("--turns", type=int, default=7)
    flags.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    options = flags.parse_args()
    figures: dict[str, object] = {"groups": options.groups, "samples_per_group": GROUP_SIZE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_groups = options.groups * 16
        data = workload.write_data(folder / "data", num_groups, GROUP_SIZE, options.image_size)
        for precision in options.precision:
            for optimizer in options.optimizers:
                figures |= measure(folder, data, precision, optimizer, options)
    workload.report("near_limit", figures)


def measure(folder: Path, data: str, precision: str, optimizer: str, options: argparse.Namespace) -> dict[str, float]:
    """Images a second of both, and the median of their ratio."""
    groups, size, steps = options.groups, options.image_size, options.steps
    name = f"{precision.lower()}_{optimizer}"
    text = workload.config_text(data, str(folder / name), groups, size, OPTIMIZERS[optimizer], precision=precision)
    from easyrec_mm.training.trainer import Trainer

    pipeline = workload.pipeline(folder, text)
    trainer = Trainer(pipeline)
    batches = trainer.batches(num_epochs=0)
    bare_step = bare_tower(precision, pipeline.config.train_config.optimizer_config[0], groups, size)

    def train() -> None:
        for _ in range(steps):
            trainer.run_step(next(batches))

    def bare() -> None:
        for _ in range(steps):
            bare_step()

    train()
    bare()
    ours: list[float] = []
    bares: list[float] = []
    for _ in range(options.turns):
        for run, times in ((bare, bares), (train, ours)):
            start = time.perf_counter()
            run()
            times.append(groups * steps / (time.perf_counter() - start))
    return {
        f"{name}_bare_images_per_second": workload.median(bares),
        f"{name}_training_images_per_second": workload.median(ours),
        f"{name}_training_samples_per_second": workload.median(ours) * GROUP_SIZE,
        f"{name}_ratio": workload.median([a / b for a, b in zip(ours, bares, strict=True)]),
    }


def bare_tower(
    precision: str, optimizer_config: Optimizer, num_pictures: int, size: int
) -> tf.types.experimental.PolymorphicFunction:
    """One step of the backbone alone: forward, mean as the loss, backward, update by the fused kernels."""
    from easyrec_mm.network.layers.backbones import BACKBONES
    from easyrec_mm.network.layers.fast_layers import with_fast_layers
    from easyrec_mm.training.optimizers import build_optimizer

    dtype = "mixed_bfloat16" if precision == "BFLOAT16" else "float32"
    backbone = with_fast_layers(BACKBONES["ResNet-18"].build((size, size, 3)), dtype)
    pixels = tf.random.normal([num_pictures, size, size, 3])
    variables = [v.value for v in backbone.trainable_variables]
    optimizer = build_optimizer(optimizer_config)
    optimizer.build(backbone.trainable_variables)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = backbone(tf.cast(pixels, backbone.compute_dtype), training=True)
            loss = tf.reduce_mean(tf.cast(outputs, tf.float32))
        optimizer.apply(tape.gradient(loss, variables), backbone.trainable_variables)
        return loss

    return step


if __name__ == "__main__":
    main()
