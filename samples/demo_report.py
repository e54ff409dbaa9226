"""Print what the demo reached and where its results lie: demo_report.py DEMO_FOLDER."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from easyrec_mm.evaluation.metrics import metric_value
from easyrec_mm.evaluation.rank_metrics import AUC


def main() -> None:
    """Print the table."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: demo_report.py DEMO_FOLDER, made by scripts/demo")
    folder = Path(sys.argv[1])
    with (folder / "data/truth_test.csv").open(encoding="utf-8") as file:
        truth = list(csv.DictReader(file))
    predictions = pq.read_table(folder / "predictions.parquet")
    clicks = np.array([float(row["click"]) for row in truth], np.float32)
    print("click AUC on the test data, whose items no training data has:")
    for name, scores in {
        "best possible without pictures": [float(row["p_no_image"]) for row in truth],
        "this model": predictions["probs_click"].to_numpy(),
        "true probabilities (best possible)": [float(row["p_true"]) for row in truth],
    }.items():
        print(f"  {name:<36} {metric_value(AUC(), clicks, np.asarray(scores, np.float32)):.4f}")
    print("\nmetrics (demo/model/eval_result.json):")
    for name, value in json.loads((folder / "model/eval_result.json").read_text(encoding="utf-8")).items():
        if isinstance(value, float | int):  # not what lies beside the metrics, such as intervals
            print(f"  {name:<36} {value:.4f}" if isinstance(value, float) else f"  {name:<36} {value}")
    print("\nwhere things lie:")
    for path, content in {
        "data": "lines in train/, eval/, test/ and pictures in images/",
        "model": "checkpoints, pipeline.config, metrics.jsonl, TensorBoard summaries",
        "predictions.parquet": f"{predictions.num_rows} rows: {', '.join(predictions.column_names)}",
    }.items():
        print(f"  {folder / path}: {content}")


if __name__ == "__main__":
    main()
