"""A vocabulary holds values of its field, however they are written."""

import numpy as np
import pytest
from config_helpers import FEATURE, FIELD, assert_only_problem
from feature_helpers import id_feature

from easyrec_mm.cli.main import main
from easyrec_mm.features.numpy_transform import NumpyTransform
from easyrec_mm.schema import Field


def changes(input_type, vocabulary):
    field, feature = FIELD["gender"], FEATURE["gender"]
    return f"{field}.input_type={input_type}", f"{field}.default_val=", f"{feature}.vocab_list={vocabulary}"


def of_gender(load, input_type, vocabulary, *more):
    """The vocabulary of the reference config's `gender`, as a field of that type."""
    schema = load(overrides=[*changes(input_type, vocabulary), *more]).schema
    return next(feature for feature in schema.features if feature.name == "gender").categories.vocabulary


def test_values_and_not_texts_are_compared(load):
    assert of_gender(load, "STRING", '["007", "true"]') == ("007", "true")
    assert of_gender(load, "INT64", '["007", "-3", "9007199254740993"]') == ("7", "-3", "9007199254740993")
    assert of_gender(load, "BOOL", '["true", "FALSE"]') == ("1", "0")
    precision = f"{FEATURE['gender']}.precision=1"
    assert of_gender(load, "FLOAT", '["0.50", "2", "1e2"]', precision) == ("0.5", "2.0", "100.0")


@pytest.mark.parametrize(
    ("input_type", "vocabulary", "says"),
    [
        ("INT64", '["7", "M"]', "holds 'M', which no value of 'gender' (int64) is"),
        ("BOOL", '["yes"]', "holds 'yes', which no value of 'gender' (bool) is"),
        ("INT64", '["7", "007"]', "holds '7' twice"),
    ],
)
def test_what_no_value_is_or_is_written_in_two_ways(problems, input_type, vocabulary, says):
    assert_only_problem(problems(changes(input_type, vocabulary)), f"{FEATURE['gender']}.vocab_list", says)


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_word(load, tmp_path):
    (tmp_path / "words.txt").write_bytes("M\r\nF\r\n".encode("utf-8-sig"))
    overrides = [f"{FEATURE['gender']}.vocab_list=[]", f"{FEATURE['gender']}.vocab_file={tmp_path}/words.txt"]
    schema = load(overrides=overrides).schema
    assert next(f for f in schema.features if f.name == "gender").categories.vocabulary == ("M", "F")


def test_rows_of_values(load):
    feature = id_feature("vip", ("vip",), 4, "vip", "vocabulary", 3, ("1", "0"))
    rows = NumpyTransform([feature])({"vip": np.array([True, False, True])}, 3)["vip"]
    assert rows.tolist() == [0, 1, 0]
    assert Field("vip", "bool", "", False).value("TRUE") is True


CONFIG = """
train_input_path: "{folder}/a.csv"  model_dir: "{folder}/m"
data_config {{
  input_type: CSVInput  batch_size: 16  label_fields: "click"  with_header: true
  input_fields {{ input_name: "click" input_type: INT32 }}
  input_fields {{ input_name: "vip" input_type: BOOL }}
  input_fields {{ input_name: "zip" input_type: INT64 }}
}}
feature_config {{
  features {{ input_names: "vip" feature_type: IdFeature {vip} embedding_dim: 4 }}
  features {{ input_names: "zip" feature_type: IdFeature vocab_list: {zip} embedding_dim: 4 }}
}}
train_config {{
  optimizer_config {{ adam_optimizer {{ learning_rate {{ constant_learning_rate {{ learning_rate: 0.05 }} }} }} }}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "all" feature_names: "vip" feature_names: "zip" }}
  e2e_mm_dbmtl {{
    bottom_dnn {{ hidden_units: [8] use_bn: false }}
    task_towers {{ tower_name: "click" label_name: "click" metrics_set {{ auc {{}} }} }}
  }}
}}
"""


@pytest.mark.parametrize("vip", ['vocab_list: ["true", "false"]', "num_buckets: 2"])
@pytest.mark.parametrize(("zips", "unknown"), [('["007", "12"]', "0.0%"), ('["7"]', "50.0%"), ('["1"]', "100.0%")])
def test_check_counts_what_is_unknown(tmp_path, capsys, vip, zips, unknown):
    lines = [
        "click,vip,zip",
        *(f"{i % 2},{'true' if i % 2 else 'False'},{'007' if i % 4 < 2 else '012'}" for i in range(64)),
    ]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "x.config").write_text(CONFIG.format(folder=tmp_path, vip=vip, zip=zips))
    assert main(["check", "--pipeline_config", f"{tmp_path}/x.config"]) == 0
    shares = {line.split()[0]: line.split()[6] for line in capsys.readouterr().out.splitlines() if "IdFeature" in line}
    assert shares == {"vip": "0.0%", "zip": unknown}
