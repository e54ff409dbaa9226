"""What the pictures are worth: test AUC on demo data, between what is possible without pictures and with the truth.

The generator knows the true click probability of every sample, and the best guess without the picture. For each seed
new data is made, the demo's config is trained on it by the public commands, and the share of the way from the
image-free ceiling to the oracle is printed.

    python tools/bench/quality.py [--seeds 0 1 2] [--set FIELD=VALUE ...]
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import workload

from easyrec_mm.evaluation.metrics import metric_value
from easyrec_mm.evaluation.rank_metrics import AUC


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--config", default=str(workload.DEMO_CONFIG))
    flags.add_argument("--set", action="append", default=[], help="further settings for the training")
    options = flags.parse_args()
    figures: dict[str, object] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            figures |= {
                f"seed_{seed}_{k}": v for k, v in measure(Path(folder), seed, options.config, options.set).items()
            }
    figures["smallest_share"] = min(float(str(figures[f"seed_{seed}_share"])) for seed in options.seeds)
    workload.report("quality", figures)


def measure(folder: Path, seed: int, config: str, settings: list[str]) -> dict[str, float]:
    """AUCs of one seed."""
    data = folder / "data"
    workload.make_demo_data(data, seed)
    aucs = demo_aucs(data, folder, config, settings)
    way = aucs["oracle"] - aucs["image_free_ceiling"]
    return {**aucs, "share": (aucs["model"] - aucs["image_free_ceiling"]) / way}


def demo_aucs(data: Path, folder: Path, config: str, settings: list[str]) -> dict[str, float]:
    """AUCs on the test data of a model that is trained in a folder, and of what is known without and with pictures."""
    output = folder / "predictions.parquet"
    changed = {
        "train_input_path": f"{data}/train/*",
        "eval_input_path": f"{data}/eval/*",
        "model_dir": f"{folder}/model",
        "data_config.image_root": str(data),
    }
    flags = [f"--set={name}={value}" for name, value in changed.items()] + [f"--set={value}" for value in settings]
    command = [sys.executable, "-m", "easyrec_mm"]
    workload.run(*command, "train", "--pipeline_config", config, *flags)
    predict = ["predict", "--predict_input_path", f"{data}/test/*", "--output", str(output)]
    workload.run(*command, *predict, "--pipeline_config", config, *flags)
    with (data / "truth_test.csv").open(encoding="utf-8") as file:
        truth = list(csv.DictReader(file))
    click = np.array([float(row["click"]) for row in truth])
    scores = {
        "image_free_ceiling": np.array([float(row["p_no_image"]) for row in truth]),
        "model": pq.read_table(output)["probs_click"].to_numpy(),
        "oracle": np.array([float(row["p_true"]) for row in truth]),
    }
    return {name: metric_value(AUC(), click, score) for name, score in scores.items()}


if __name__ == "__main__":
    main()
