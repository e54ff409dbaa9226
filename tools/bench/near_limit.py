"""Training from files against the bare image tower's own step.

Both train ResNet-18 with fused batch norm on the same number of 224 x 224 pictures a step, in the same precision. The
bare tower has its pictures in memory as float tensors and plain gradient descent, and nothing else. Training from files
reads lines, checks, hashes, reads and decodes JPEGs, embeds 18 features, runs the shared bottom and two towers, and
updates with Adam. The two take turns, so that the machine's moods hit both; the ratio is taken turn by turn.

    python tools/bench/near_limit.py [--precision FLOAT32] [--groups 16] [--steps 6] [--turns 7]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import workload

GROUP_SIZE = 16


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--precision", nargs="+", default=["FLOAT32", "BFLOAT16"], choices=["FLOAT32", "BFLOAT16"])
    flags.add_argument("--groups", type=int, default=16)
    flags.add_argument("--image_size", type=int, default=224)
    flags.add_argument("--steps", type=int, default=6)
    flags.add_argument("--turns", type=int, default=7)
    flags.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    options = flags.parse_args()
    figures: dict[str, object] = {"groups": options.groups, "samples_per_group": GROUP_SIZE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_groups = options.groups * 16
        data = workload.write_data(folder / "data", num_groups, GROUP_SIZE, options.image_size)
        for precision in options.precision:
            figures |= measure(folder, data, precision, options)
    workload.report("near_limit", figures)


def measure(folder: Path, data: str, precision: str, options: object) -> dict[str, float]:
    """Images a second of both, and the median of their ratio."""
    groups, size, steps, turns = options.groups, options.image_size, options.steps, options.turns  # type: ignore[attr-defined]
    optimizer = workload.ADAM if options.optimizer == "adam" else workload.SGD  # type: ignore[attr-defined]
    text = workload.config_text(data, str(folder / f"m_{precision}"), groups, size, optimizer, precision=precision)
    from easyrec_mm.trainer import Trainer

    trainer = Trainer(workload.pipeline(folder, text))
    batches = trainer._input.batches(num_epochs=0)
    bare_step = bare_tower(precision, groups, size)

    def train() -> None:
        for _ in range(steps):
            trainer._run_step(next(batches))

    def bare() -> None:
        for _ in range(steps):
            bare_step()

    train()
    bare()
    ours, bares = [], []
    for _ in range(turns):
        for run, times in ((bare, bares), (train, ours)):
            start = time.perf_counter()
            run()
            times.append(groups * steps / (time.perf_counter() - start))
    name = precision.lower()
    return {
        f"{name}_bare_images_per_second": workload.median(bares),
        f"{name}_training_images_per_second": workload.median(ours),
        f"{name}_training_samples_per_second": workload.median(ours) * GROUP_SIZE,
        f"{name}_ratio": workload.median([a / b for a, b in zip(ours, bares, strict=True)]),
    }


def bare_tower(precision: str, num_pictures: int, size: int) -> tf.types.experimental.PolymorphicFunction:
    """One step of the backbone alone: forward, mean as the loss, backward, gradient descent."""
    from easyrec_mm.layers.batch_norm import with_fused_batch_norm
    from easyrec_mm.layers.image_tower import BACKBONES

    dtype = "mixed_bfloat16" if precision == "BFLOAT16" else "float32"
    backbone = with_fused_batch_norm(BACKBONES["ResNet"].build(3), dtype)
    pixels = tf.random.normal([num_pictures, size, size, 3])
    variables = [v.value for v in backbone.trainable_variables]

    @tf.function(autograph=False)
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = backbone(tf.cast(pixels, backbone.compute_dtype), training=True)
            loss = tf.reduce_mean(tf.cast(outputs, tf.float32))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=1e-3, delta=gradient)
        return loss

    return step


if __name__ == "__main__":
    main()
