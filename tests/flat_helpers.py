"""A small flat log without pictures, and a config for it, whose parts tests change."""

from __future__ import annotations

import random

CONFIG = """
train_input_path: "train.csv"
eval_input_path: "eval.csv"
model_dir: "m"
data_config {
  input_type: CSVInput with_header: true batch_size: 50 label_fields: "click"
  input_fields { input_name: "click" input_type: INT32 }
  input_fields { input_name: "price" input_type: FLOAT }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "tags" input_type: STRING }
}
feature_config {
  features { input_names: "price" feature_type: RawFeature }
  features { input_names: "tags" feature_type: TagFeature hash_bucket_size: 10 embedding_dim: 2 }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "all" feature_names: ["price", "tags"] }
  e2e_mm_dbmtl {
    bottom_dnn { hidden_units: 4 use_bn: false }
    task_towers { tower_name: "click" label_name: "click" metrics_set { auc {} } }
  }
}
train_config {
  optimizer_config { adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.01 } } } }
  num_epochs: 1 log_step_count_steps: 1
}
"""


def make_log(folder, config=CONFIG, header="click,price,user,tags", num_rows=100):
    """Write train.csv, eval.csv and x.config into a folder; return the flags that name the config."""
    draw = random.Random(1)
    rows = [f"{draw.random() < 0.4:d},{draw.random():.3f},u{draw.randrange(9)},a|b" for _ in range(num_rows)]
    for name in ("train.csv", "eval.csv"):
        (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    (folder / "x.config").write_text(config, encoding="utf-8")
    return ["--pipeline_config", "x.config"]
