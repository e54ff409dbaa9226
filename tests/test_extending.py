"""The examples of docs/extending.md, applied to a copy of the package, are all that the new things need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("easyrec_mm", "protos", "tools", "requirements", "tests", "samples", "configs")

CONFIG = """
train_input_path: "data.csv"
eval_input_path: "data.csv"
model_dir: "m"
data_config {
  input_type: CSVInput with_header: true batch_size: 8 label_fields: "seconds"
  input_fields { input_name: "seconds" input_type: FLOAT }
  input_fields { input_name: "words" input_type: STRING }
}
feature_config { features { input_names: "words" feature_type: CountFeature separator: " " } }
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "all" feature_names: "words" }
  e2e_mm_dbmtl {
    task_towers {
      tower_name: "seconds" label_name: "seconds" loss_type: HUBER_LOSS metrics_set { mean_error {} }
      dnn { hidden_units: [4] use_bn: false }
    }
  }
}
train_config {
  optimizer_config { adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.01 } } } }
  num_epochs: 1 log_step_count_steps: 1
}
"""
COMMANDS = """
import sys
from easyrec_mm.cli.main import main
for command in (["train"], ["check"], ["predict", "--predict_input_path", "data.csv", "--output", "p.parquet",
                                       "--precision", "AUTO", "--reserved_columns", "seconds"]):
    assert main([command[0], "--pipeline_config", "x.config", *command[1:]]) == 0
# The tests that hold tables, protos and docs/config.md together.
import pytest
names = "each_metric or each_loss or types_of_features or is_current"
sys.exit(pytest.main(["tests/test_rules.py", "-k", names]))
"""


def apply_change(repository: Path, name: str, lines: list[str]) -> None:
    """Apply a change without line numbers: what it does not add stands in the file once, as it is there."""
    path = repository / name
    old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    new = "".join(f"{line[1:]}\n" for line in lines)
    if old:
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name}: {old}"
        new = text.replace(old, new)
    else:
        assert not path.exists()
    path.write_text(new, encoding="utf-8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of what is needed, with the changes of the page."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*_pb2.py*"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "docs").mkdir()
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for change in re.findall(r"```diff\n--- (\S+)\n(.*?)\n```", page, re.DOTALL):
        apply_change(folder, change[0], change[1].split("\n"))
    for command in (["setup.py", "--quiet", "generate_proto"], ["tools/gen_config_docs.py"]):
        subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_they_train_and_nothing_else_has_to_know_them(repository):
    texts = [" ".join(["word"] * (i % 5)) for i in range(24)]
    rows = "".join(f"{len(text) / 7:.3f},{text}\n" for text in texts)
    (repository / "data.csv").write_text(f"seconds,words\n{rows}", encoding="utf-8")
    (repository / "x.config").write_text(CONFIG, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", COMMANDS], cwd=repository, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b4 passed", done.stdout)
    assert re.search(r"words +CountFeature +1 ", done.stdout)
    predicted = pq.read_table(repository / "p.parquet").to_pydict()
    errors = np.array(predicted["y_seconds"]) - np.array(pc.read_csv(repository / "data.csv")["seconds"])
    results = json.loads((repository / "m/eval_result.json").read_text())
    assert results["mean_error_seconds"] == pytest.approx(errors.mean(), abs=1e-5)
    # A number of words has one prediction.
    by_count = dict(zip(map(len, texts), predicted["y_seconds"], strict=True))
    assert len(set(by_count.values())) == 5
    np.testing.assert_allclose([by_count[len(text)] for text in texts], predicted["y_seconds"], rtol=1e-5)
