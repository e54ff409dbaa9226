"""Whether `worth` is right: its verdict on click logs of which it is known whether pictures pay.

A log is a folder with clicks.parquet (item_id, img_path, user_id, time, labels and features). `group --split_by item`
infers the config, and `worth` tests it within the given minutes.

    python tools/bench/verdicts.py shop-0 shop-1 [--budget_minutes 15] [--seeds 3] [--arms none,shuffled]
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import workload
from ladder import CLI, group


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("logs", type=Path, nargs="+")
    flags.add_argument("--budget_minutes", type=float, default=15)
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--arms", default="none,shuffled")
    flags.add_argument("--label_fields", default="click,basket")
    options = flags.parse_args()
    for log in options.logs:
        with tempfile.TemporaryDirectory() as folder:
            config = group(log, Path(folder) / "own", options.label_fields)
            arguments = ["--seeds", options.seeds, "--arms", options.arms, "--budget_minutes", options.budget_minutes]
            start = time.perf_counter()
            workload.run(*CLI, "worth", "--pipeline_config", config, "--output", f"{folder}/worth", *arguments)
            minutes = (time.perf_counter() - start) / 60
            result = json.loads(Path(f"{folder}/worth/worth.json").read_text(encoding="utf-8"))
        verdict = result["verdict"]
        print(result["conclusion"])
        workload.report(
            f"verdict {log.name}",
            {
                "verdict": verdict["verdict"],
                "metric": verdict["metric"],
                "gain": verdict["gain"],
                "interval": verdict["interval"],
                "steps": result["num_steps"],
                "minutes": round(minutes, 1),
            },
        )


if __name__ == "__main__":
    main()
