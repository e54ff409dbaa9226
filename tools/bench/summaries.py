"""Processor time of what TensorBoard gets: of an evaluation with and without pictures and projector, and of weights.

Two evaluators of the same model take turns on the same pictures; the summaries of a step are written beside them.

    python tools/bench/summaries.py [--model_name ResNet-18] [--image_size 64] [--groups 4000] [--turns 5]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import workload

GROUP_SIZE, BATCH_SIZE = 16, 64


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--model_name", default="ResNet-18")
    flags.add_argument("--image_size", type=int, default=64)
    flags.add_argument("--groups", type=int, default=4000, help="pictures of an evaluation")
    flags.add_argument("--turns", type=int, default=5)
    options = flags.parse_args()
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.evaluation.evaluator import Evaluator
    from easyrec_mm.evaluation.shown_items import ShownItems
    from easyrec_mm.evaluation.tensorboard import show_evaluation
    from easyrec_mm.runs.progress import MetricsLog
    from easyrec_mm.training.step_summaries import learning_rates, weight_histograms
    from easyrec_mm.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = workload.write_data(folder / "data", options.groups, GROUP_SIZE, options.image_size)
        text = workload.config_text(
            data, str(folder / "model"), BATCH_SIZE, options.image_size, num_steps=2,
            img_model=f'model_name: "{options.model_name}"',
        )  # fmt: skip
        pipeline = workload.pipeline(folder, text)
        config = pipeline.config
        trainer = Trainer(pipeline)
        trainer.train()
        log = MetricsLog(folder / "metrics.jsonl", folder / "shown")
        collectors = {"evaluation": None, "evaluation that is shown": ShownItems(config, pipeline.schema)}
        evaluators = {
            kind: Evaluator(
                trainer.model, config, config.train_input_path, "train_input_path", BadRecords(None, 1.0), shown=shown
            )
            for kind, shown in collectors.items()
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in (*evaluators, "learning rates", "weights")}
        for turn in range(options.turns + 1):
            for kind, shown in collectors.items():
                start = time.process_time()
                evaluators[kind].run()
                if shown is not None:
                    show_evaluation(shown, config.train_config, log, folder / "shown", turn)
                seconds[kind].append(time.process_time() - start)
            start = time.process_time()
            log.write_summaries("learning_rate", turn, learning_rates(trainer.steps))
            seconds["learning rates"].append(time.process_time() - start)
            start = time.process_time()
            log.write_shown(turn, weight_histograms(trainer.model, trainer.steps))
            seconds["weights"].append(time.process_time() - start)
    figures: dict[str, object] = {"model": options.model_name, "image_size": options.image_size}
    # The first turn is the warm-up.
    figures |= {f"{kind}, s of processor time": workload.median(values[1:]) for kind, values in seconds.items()}
    workload.report("summaries", figures)


if __name__ == "__main__":
    main()
