"""Evaluation in float32, as `eval` and `predict` compute, against the precision that training takes on this machine.

Both evaluate the same checkpoint on the same pictures, in turns.

    python tools/bench/eval_precision.py [--model_name ResNet-18] [--image_size 224] [--groups 400] [--turns 5]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import workload

GROUP_SIZE, BATCH_SIZE = 16, 32


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--model_name", default="ResNet-18")
    flags.add_argument("--image_size", type=int, default=224)
    flags.add_argument("--groups", type=int, default=400, help="pictures of an evaluation")
    flags.add_argument("--turns", type=int, default=5)
    options = flags.parse_args()
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.evaluation.evaluator import Evaluator, load_model
    from easyrec_mm.network.precision import FLOAT32, dtype_policy
    from easyrec_mm.protos.train_pb2 import Precision
    from easyrec_mm.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = workload.write_data(folder / "data", options.groups, GROUP_SIZE, options.image_size)
        text = workload.config_text(
            data, str(folder / "model"), BATCH_SIZE, options.image_size, num_steps=1,
            img_model=f'model_name: "{options.model_name}"',
        )  # fmt: skip
        pipeline = workload.pipeline(folder, text)
        checkpoint = Trainer(pipeline).train().checkpoint
        dtypes = {"float32": FLOAT32, "training": dtype_policy(Precision.AUTO)}
        evaluators = {
            kind: Evaluator(
                load_model(pipeline.config, pipeline.schema, str(checkpoint), dtype)[0],
                pipeline.config, pipeline.config.train_input_path, "train_input_path", BadRecords(None, 1.0),
            )
            for kind, dtype in dtypes.items()
        }  # fmt: skip
        rates: dict[str, list[float]] = {kind: [] for kind in dtypes}
        for turn in range(options.turns + 1):
            for kind, evaluator in evaluators.items():
                start = time.perf_counter()
                evaluator.run()
                if turn:  # the first is the warm-up
                    rates[kind].append(options.groups / (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(rates["float32"], rates["training"], strict=True)]
    figures: dict[str, object] = {"model": options.model_name, "image_size": options.image_size}
    figures |= {f"{kind}, images/s": workload.median(values) for kind, values in rates.items()}
    workload.report(
        "eval_precision", {**figures, "training computes in": dtypes["training"], "ratio": workload.median(ratios)}
    )


if __name__ == "__main__":
    main()
