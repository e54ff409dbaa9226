"""What is told of the settings that a checkpoint was not trained with, and where it is refused."""

import pytest
from google.protobuf import text_format
from training_helpers import Training, optimizer

from easyrec_mm.cli.main import main
from easyrec_mm.config.changes import changes_since, record_of
from easyrec_mm.errors import CheckpointError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")
BASE = """
train_input_path: "a.csv" model_dir: "m"
data_config {
  input_type: CSVInput separator: ","
  input_fields { input_name: "click" input_type: INT32 } input_fields { input_name: "age" input_type: FLOAT }
  input_fields { input_name: "city" }
}
feature_config {
  features { input_names: "city" vocab_list: ["a", "b", "c"] embedding_dim: 4 }
  features { input_names: "age" feature_type: RawFeature boundaries: [18, 65] embedding_dim: 4 }
}
model_config {
  model_class: "E2E_MM_DBMTL" feature_groups { group_name: "all" feature_names: ["city", "age"] }
  e2e_mm_dbmtl {
    bottom_dnn { hidden_units: [8] activation: "relu" dropout_ratio: [0.1] }
    task_towers { tower_name: "click" label_name: "click" }
  }
}
train_config { optimizer_config { adam_optimizer { learning_rate { constant_learning_rate {} } } } num_steps: 10 }
"""
CITY, AGE = "feature_config.features[city]", "feature_config.features[age]"
MODEL = "model_config.e2e_mm_dbmtl"

# Text of the config -> its replacement, what is told, and whether the weights mean something else then.
CHANGES = [
    ('["a", "b", "c"]', '["b", "a", "c"]', f"{CITY}.vocab_list: was [a, b, c], is [b, a, c]", True),
    ("[18, 65]", "[18, 60]", f"{AGE}.boundaries: was [18, 65], is [18, 60]", True),
    ("[18, 65] embedding", "[18, 65] min_val: 1 max_val: 9 embedding", f"{AGE}.min_val: was not set, is 1", True),
    (
        '["city", "age"]',
        '["age", "city"]',
        "model_config.feature_groups[all].feature_names: was [city, age], is [age, city]",
        True,
    ),
    ('"relu"', '"tanh"', f"{MODEL}.bottom_dnn.activation: was relu, is tanh", True),
    ('label_name: "click"', 'label_name: "buy"', f"{MODEL}.task_towers[click].label_name: was click, is buy", True),
    ("input_type: FLOAT", "input_type: INT64", "data_config.input_fields[age].input_type: was FLOAT, is INT64", True),
    ("adam_opt", "rms_prop_opt", "train_config.optimizer_config[0].optimizer: was adam_optimizer, is rms_prop_", True),
    ("adam_optimizer {", "adamw_optimizer { weight_decay: 0.1", "adamw_optimizer.weight_decay: was not set, is", False),
    ("[0.1]", "[0.5]", f"{MODEL}.bottom_dnn.dropout_ratio: was [0.1], is [0.5]", False),
    ("num_steps: 10", "num_steps: 20", "train_config.num_steps: was 10, is 20", False),
    ('"a.csv"', '"b.csv"', "train_input_path: was a.csv, is b.csv", False),
    (
        'input_fields { input_name: "city" }',
        'input_fields { input_name: "city" } input_fields { input_name: "new" input_type: INT64 }',
        "data_config.input_fields[new]: was not set, is given",
        False,
    ),
    ('separator: ","', 'separator: "\\t"', "data_config.separator: was not set, is", False),
]


def config(text):
    return text_format.Parse(text, EasyRecConfig())


@pytest.mark.parametrize(("old", "new", "told", "changes_weights"), CHANGES)
def test_every_change_is_told(old, new, told, changes_weights):
    assert old in BASE
    changes = changes_since(record_of(config(BASE)), config(BASE.replace(old, new)))
    assert any(told in str(change) for change in changes), changes
    assert any(change.changes_weights for change in changes) == changes_weights


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("feature_config {\n  features", "feature_configs"),
        ('activation: "relu"', 'activation: "relu" use_bn: true'),  # the default
        ("optimizer_config { adam_optimizer", "num_epochs: 0 optimizer_config { adam_optimizer"),
    ],
)
def test_another_spelling_is_no_change(old, new):
    text = BASE.replace(old, new)
    if "feature_configs" in new:
        text = text.replace("  features {", "feature_configs {").replace("}\n}\nmodel", "}\nmodel")
    assert text != BASE
    assert changes_since(record_of(config(BASE)), config(text)) == []


def test_a_vocabulary_file_is_compared_by_its_values(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, text in zip(paths, ("x\ny\n", "\ufeffx\r\ny", "y\nx\n"), strict=True):
        path.write_text(text, encoding="utf-8", newline="")
    same, equal, other = (
        config(BASE.replace('vocab_list: ["a", "b", "c"]', f'vocab_file: "{path}"')) for path in paths
    )
    assert changes_since(record_of(same), equal) == []
    (change,) = changes_since(record_of(same), other)
    assert str(change).startswith(f"{CITY}.vocab_file: was values with the checksum ")
    assert change.changes_weights


def test_long_values_are_cut_around_the_first_difference():
    values = [f'"v{i}"' for i in range(1000)]
    old = config(BASE.replace('"a", "b", "c"', ", ".join(values)))
    values[500] = '"other"'
    (change,) = changes_since(record_of(old), config(BASE.replace('"a", "b", "c"', ", ".join(values))))
    assert "is ..." in str(change)
    assert "other" in str(change)
    assert len(str(change)) < 250


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, backbone_of_three_stages):
    folder = tmp_path_factory.mktemp("trained")
    Training(data, folder, train="num_steps: 1").run()
    return folder


def test_a_training_goes_on_only_where_the_weights_mean_the_same(trained, data, capsys):
    with pytest.raises(CheckpointError) as error:
        Training(data, trained, train="num_steps: 2", changes={"num_buckets: 2": 'vocab_list: ["1"]'}).run()
    text = "feature_config.features[cat].vocab_list: was not set, is [1]"
    assert str(error.value).startswith(f"model_dir '{trained}/m' holds the training of another model. ")
    assert text in str(error.value)
    assert str(error.value).endswith("another model_dir or fine_tune_checkpoint.")
    capsys.readouterr()
    Training(data, trained, train="num_steps: 2", optimizers=optimizer("adam", 0.5)).run()
    rate = "train_config.optimizer_config[0].adam_optimizer.learning_rate.constant_learning_rate.learning_rate"
    assert (
        "settings that differ from those of the checkpoint:\n"
        f"  {rate}: was 0.01, is 0.5\n"
        "  train_config.num_steps: was 1, is 2\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_other_commands_refuse_a_checkpoint_whose_weights_mean_something_else(trained, data, command, capsys, tmp_path):
    arguments = {
        "eval": ["--eval_input_path", f"{data}/one.txt"],
        "predict": ["--predict_input_path", f"{data}/one.txt", "--output", f"{tmp_path}/p.csv"],
        "export": [f"--{kind}_model_export_dir={tmp_path}/{kind}" for kind in ("img", "rec", "total")],
    }[command]
    flag = "--pipeline_config_path" if command == "export" else "--pipeline_config"
    changed = ["--set", "feature_config.features[0].hash_bucket_size=12", "--set"]
    order = 'model_config.feature_groups[1].feature_names=["item", "user", "price"]'
    assert main([command, flag, f"{trained}/test.config", *changed, order, *arguments]) == 1
    error = capsys.readouterr().err
    assert "was trained with other settings, with which its weights mean something else" in error
    assert "feature_names: was [user, item, price], is [item, user, price]" in error


def test_a_checkpoint_of_an_earlier_version_with_a_cross_is_refused(data, tmp_path):
    combo = '"price" feature_type: RawFeature }\n  features { feature_name: "x" input_names: ["user", "item"] '
    combo += "feature_type: ComboFeature hash_bucket_size: 9 embedding_dim: 3 }"
    changes = {'"price" feature_type: RawFeature }': combo, '"item", "price"]': '"item", "price", "x"]'}
    training = Training(data, tmp_path, train="num_steps: 1", changes=changes)
    Checkpoints(str(training.model_dir)).save(1, training.trainer.state.variables())
    with pytest.raises(CheckpointError, match="the ComboFeature 'x' had other rows of its table"):
        Training(data, tmp_path, train="num_steps: 1", changes=changes).run()
