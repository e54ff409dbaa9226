"""How long a training takes to start, by the number of its features and of its task towers.

Each config is trained by the command in a process of its own: seconds from the start of the command to the end of the
tenth step, processor seconds and the largest resident memory until then, milliseconds of each later step, and the nodes
of the graphs of a step, which another process counts. Of ten features, four are ids in text, one is an id by
num_buckets, two are numbers, one is a bucketed number with a table, one is a list of tags, and one is a cross of two
fields. Tables have 1000 rows of 16 numbers, towers a layer of 32 units.

    python tools/bench/wide.py [--features 20 125 250 500] [--towers 100 300] [--turns 1]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import workload

NUM_STEPS = 10
# Later steps are timed from the first of these to the second.
TIMED_STEPS = 20, 60
_NUM_GROUPS, _GROUP_SIZE = 400, 8
_ROWS = 1000
_TABLE = f"hash_bucket_size: {_ROWS} embedding_dim: 16"
# Of ten features: type of the field, and settings of the feature.
_KINDS = [
    *[("STRING", f"feature_type: IdFeature {_TABLE}")] * 4,
    ("INT64", f"feature_type: IdFeature num_buckets: {_ROWS} embedding_dim: 16"),
    *[("FLOAT", "feature_type: RawFeature min_val: -3 max_val: 3")] * 2,
    ("FLOAT", "feature_type: RawFeature boundaries: [-1, -0.5, 0, 0.5, 1] embedding_dim: 16"),
    ("STRING", f'feature_type: TagFeature separator: "," {_TABLE}'),
    ("STRING", f"feature_type: ComboFeature {_TABLE}"),
]
# Counts the nodes of the graphs of a step, functions included.
_COUNT = """
import sys
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.training.trainer import Trainer
graphs = [graph.as_graph_def() for graph in Trainer(load_pipeline(sys.argv[1])).steps.graphs(0)]
functions = [function for graph in graphs for function in graph.library.function]
print(sum(len(graph.node) for graph in graphs) + sum(len(function.node_def) for function in functions))
"""


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--features", type=int, nargs="*", default=[20, 125, 250, 500])
    flags.add_argument("--towers", type=int, nargs="*", default=[100, 300])
    flags.add_argument("--turns", type=int, default=1)
    options = flags.parse_args()
    figures: dict[str, Any] = {}
    configs = [(count, 1) for count in options.features] + [(20, count) for count in options.towers]
    with tempfile.TemporaryDirectory() as name:
        for num_features, num_towers in configs:
            folder = Path(name) / f"{num_features}_{num_towers}"
            config = write(folder, num_features, num_towers)
            runs = [measure(config) for _ in range(options.turns)]
            place = f"{num_features} features, {num_towers} towers: "
            figures |= {place + key: workload.median([run[key] for run in runs]) for key in runs[0]}
            figures[place + "nodes"] = count_nodes(config)
            print({key: value for key, value in figures.items() if key.startswith(place)}, flush=True)
    workload.report("wide", figures)


def write(folder: Path, num_features: int, num_towers: int) -> Path:
    """Write data and a config of that many features and towers to a folder; return the path of the config."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    kinds = [_KINDS[i % len(_KINDS)] for i in range(num_features)]
    lines = []
    for _ in range(_NUM_GROUPS):
        samples = ["\x02".join(_value(random, *kind) for kind in kinds) for _ in range(_GROUP_SIZE)]
        labels = "\x01".join(str(label) for label in random.integers(0, 2, _GROUP_SIZE))
        lines.append("|".join([labels, "\x01".join(samples), "", str(_GROUP_SIZE)]))
    data = folder / "data.txt"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = folder / "wide.config"
    config.write_text(_config(kinds, num_towers, data, folder / "model"), encoding="utf-8")
    return config


def _value(random: np.random.Generator, field_type: str, settings: str) -> str:
    if field_type == "FLOAT":
        return f"{random.normal():.3f}"
    num_values = 3 if "TagFeature" in settings else 1
    return ",".join(str(value) for value in random.integers(0, _ROWS, num_values))


def _config(kinds: list[tuple[str, str]], num_towers: int, data: Path, model_dir: Path) -> str:
    fields = "\n".join(f'input_fields {{ input_name: "f{i}" input_type: {kind} }}' for i, (kind, _) in enumerate(kinds))
    features = []
    for i, (_, settings) in enumerate(kinds):
        inputs = f'["f{i}", "f{i - 1}"]' if "ComboFeature" in settings else f'"f{i}"'
        features.append(f'features {{ feature_name: "x{i}" input_names: {inputs} {settings} }}')
    names = ", ".join(f'"x{i}"' for i in range(len(kinds)))
    towers = "\n".join(
        f'task_towers {{ tower_name: "t{i}" label_name: "click" dnn {{ hidden_units: 32 use_bn: false }} }}'
        for i in range(num_towers)
    )
    return f"""
train_input_path: "{data}"
model_dir: "{model_dir}"
data_config {{
  input_type: GroupRTPInput batch_size: 32 rtp_separator: "|" separator: "\\002" selected_cols: "0,1,2,3"
  label_fields: ["click"]
  input_fields {{ input_name: "click" input_type: INT32 }}
  {fields}
  input_fields {{ input_name: "img_path" input_type: STRING }}
  input_fields {{ input_name: "group_size" input_type: INT32 }}
}}
feature_config {{
  {chr(10).join(features)}
  features {{ input_names: "img_path" feature_type: ImgFeature img_shape {{ width: 1 height: 1 }} }}
  features {{ input_names: "group_size" feature_type: SampleNumFeature }}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "all" feature_names: [{names}] }}
  embedding_regularization: 1e-5
  e2e_mm_dbmtl {{ bottom_dnn {{ hidden_units: 64 use_bn: false }} {towers} }}
}}
train_config {{
  optimizer_config {{ {workload.ADAM} }} num_steps: {NUM_STEPS * 100} log_step_count_steps: {NUM_STEPS}
}}
"""


def measure(config: Path) -> dict[str, float]:
    """Train; return seconds, processor seconds and memory until the tenth step, and the time of a later one."""
    metrics = config.parent / "model/metrics.jsonl"
    metrics.unlink(missing_ok=True)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-m", "easyrec_mm", "train", "--pipeline_config", str(config)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=workload.ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        _wait_for(metrics, NUM_STEPS, process)
        seconds = time.perf_counter() - start
        usage = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        first, last = TIMED_STEPS
        times = _wait_for(metrics, last, process)
    finally:
        process.kill()
        process.wait()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "seconds to the tenth step": seconds,
        "user seconds": int(usage[11]) / ticks,
        "system seconds": int(usage[12]) / ticks,
        "peak GiB": peak / 2**20,
        "ms a step": 1e3 * (times[last] - times[first]) / (last - first),
    }


def _wait_for(metrics: Path, step: int, process: subprocess.Popen[bytes]) -> dict[int, float]:
    """Wait until a step is reported; return the time of each report by its step."""
    while True:
        text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
        lines = [json.loads(line) for line in text.split("\n")[:-1] if line]
        times = {line["step"]: line["time"] for line in lines if line["kind"] == "train"}
        if step in times:
            return times
        if process.poll() is not None:
            raise SystemExit(f"{metrics}: the training has ended before step {step}")
        time.sleep(0.05)


def count_nodes(config: Path) -> int:
    """Return the number of nodes of the graph of a step."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-c", _COUNT, str(config)]
    run = subprocess.run(command, cwd=workload.ROOT, env=environment, check=True, capture_output=True, text=True)
    return int(run.stdout.split()[-1])


if __name__ == "__main__":
    main()
