"""Backbones in float32 and in bfloat16: images a second of a training step, what takes its time, and AUC on demo data.

A step is forward, backward and update of the backbone with SGD on pictures in memory. The share of each kind of
operation is its time on the processor by TensorFlow's profiler, over three steps; AUC is that of configs/demo.config
with the backbone in place of its own, from random weights and as a trained model goes on.

    python tools/bench/backbones.py [--backbones ResNet-18 ...] [--batch_size 16] [--image_size 224] [--auc]
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import workload
from google.protobuf import text_format

BACKBONES = ("ResNet-18", "ResNet-50", "MobileNetV3-Large", "EfficientNetV2-B0", "ViT-Small")
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
# Kinds of operations by how TensorFlow's names begin.
KINDS = {
    "convolutions": ("Conv2D", "FusedConv2D"),
    "depthwise convolutions": ("DepthwiseConv2d",),
    "batch norm": ("FusedBatchNorm",),
    "matrix products": ("MatMul", "FusedMatMul", "BatchMatMul", "Einsum"),
    "activations": ("Relu", "Sigmoid", "Erf", "Tanh", "Softmax", "Exp", "Softplus"),
    "casts": ("Cast",),
    "elementwise": (
        "Mul",
        "Add",
        "Sub",
        "Neg",
        "RealDiv",
        "Select",
        "Square",
        "Rsqrt",
        "Minimum",
        "Maximum",
        "Greater",
    ),
    "reductions": ("Sum", "Mean", "BiasAdd", "SquaredDifference"),
}
SMALLEST_SHARE = 0.01
# "name of the node:kind of operation".
_OPERATION = re.compile(r"[^:]*[^:]:(?:_MklNative|_Mkl|_Fused)?(\w+)")


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    flags.add_argument("--batch_size", type=int, default=16)
    flags.add_argument("--image_size", type=int, default=224)
    flags.add_argument("--turns", type=int, default=7)
    flags.add_argument("--auc", action="store_true", help="train the demo with each, too")
    flags.add_argument("--no_speed", action="store_true", help="the AUC alone")
    options = flags.parse_args()
    figures: dict[str, object] = {}
    for name in options.backbones:
        if not options.no_speed:
            figures |= measure(name, options.batch_size, options.image_size, options.turns)
        if options.auc:
            figures |= auc(name)
    workload.report("backbones", figures)


def measure(name: str, batch_size: int, image_size: int, turns: int) -> dict[str, object]:
    """Images a second of both precisions, turn by turn, and the kinds of operations that take longest."""
    steps = {precision: training_step(name, policy, batch_size, image_size) for precision, policy in PRECISIONS.items()}
    times: dict[str, list[float]] = {precision: [] for precision in steps}
    for step in steps.values():
        step()
    for _ in range(turns):
        for precision, step in steps.items():
            times[precision] += workload.seconds(step, 1)
    figures: dict[str, object] = {
        f"{name} {precision}, images/s": batch_size / workload.median(seconds) for precision, seconds in times.items()
    }
    ratios = [a / b for a, b in zip(times["float32"], times["bfloat16"], strict=True)]
    figures[f"{name}, bfloat16 / float32"] = workload.median(ratios)
    for precision, step in steps.items():
        figures[f"{name} {precision}, shares"] = operation_shares(step)
    return figures


def training_step(
    name: str, policy: str, batch_size: int, image_size: int
) -> tf.types.experimental.PolymorphicFunction:
    """One step of the backbone alone."""
    from easyrec_mm.network.layers.backbones import named_backbone
    from easyrec_mm.protos.optimizer_pb2 import Optimizer
    from easyrec_mm.training.optimizers import build_optimizer

    model = named_backbone(name, (image_size, image_size, 3), policy).model
    config = Optimizer()
    config.sgd_optimizer.learning_rate.constant_learning_rate.learning_rate = 0.001
    optimizer = build_optimizer(config)
    optimizer.build(model.trainable_variables)
    variables = [v.value for v in model.trainable_variables]
    pixels = tf.random.normal([batch_size, image_size, image_size, 3])

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = model(tf.cast(pixels, model.layers[1].compute_dtype), training=True)
            loss = tf.reduce_mean(tf.square(tf.cast(outputs, tf.float32)))
        optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)
        return loss

    return step


def operation_shares(step: tf.types.experimental.PolymorphicFunction) -> str:
    """The kinds of operations that take longest, with their shares of the time of all."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(3):
            step()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(Path(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0]).read_bytes())
    totals: Counter[str] = Counter()
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                match = _OPERATION.fullmatch(name)
                if match:
                    totals[kind_of(match.group(1))] += event.duration_ps
    all_time = sum(totals.values()) or 1
    shares = {kind: time / all_time for kind, time in totals.most_common()}
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= SMALLEST_SHARE)


def kind_of(operation: str) -> str:
    """The name in KINDS, or that of the operation."""
    return next((kind for kind, names in KINDS.items() if operation.startswith(names)), operation)


def auc(name: str) -> dict[str, object]:
    """Test AUC on demo data in both precisions: from random weights, and as both go on from one trained model.

    From random weights rounding leads to another training, as another seed does, and AUCs differ by a hundredth.
    """
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        workload.make_demo_data(folder / "data", 0)
        config = folder / "bench.config"
        config.write_text(text_format.MessageToString(workload.plain_demo()), encoding="utf-8")
        begun = f"train_config.fine_tune_checkpoint={folder}/FLOAT32"
        for kind, settings in (("", []), (", 3 epochs more", [*workload.CONTINUATION, begun])):
            for precision in ("FLOAT32", "BFLOAT16"):
                model = folder / f"{precision}{kind.replace(', ', '_').replace(' ', '_')}"
                figures[f"{name} {precision.lower()}{kind}, AUC"] = workload.demo_auc(
                    folder / "data",
                    model,
                    [
                        *settings,
                        f"model_config.e2e_mm_dbmtl.img_model.model_name={name}",
                        f"train_config.precision={precision}",
                    ],
                    config,
                )
    return figures


if __name__ == "__main__":
    main()
