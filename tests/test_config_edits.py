"""EasyRec's --edit_config_json: the paths, selectors and values of its train_eval, and plain errors."""

import json

import pytest
from google.protobuf import text_format
from reference import reference_config

from easyrec_mm.config.overrides import apply_override, parse_edits
from easyrec_mm.errors import ConfigError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

TOWERS = "model_config.e2e_mm_dbmtl.task_towers"
FEATURES = "feature_config.features"


def edited(edits):
    config = text_format.Parse(reference_config(), EasyRecConfig())
    for override in parse_edits(edits if isinstance(edits, str) else json.dumps(edits)):
        assert apply_override(config, override) == []
    return config


def dims(config):
    return {f.input_names[0]: f.embedding_dim for f in config.feature_config.features if f.embedding_dim}


BEFORE = dims(edited({}))


def weights(config):
    return [tower.weight for tower in config.model_config.e2e_mm_dbmtl.task_towers]


@pytest.mark.parametrize(
    ("edits", "read", "value"),
    [
        ({"model_dir": "experiments/"}, lambda c: c.model_dir, "experiments/"),
        ({"train_config.num_steps": 7}, lambda c: c.train_config.num_steps, 7),
        ({"train_config.num_steps": "7"}, lambda c: c.train_config.num_steps, 7),
        ({"train_config": {"num_steps": 7, "log_step_count_steps": 3}}, lambda c: c.train_config.num_steps, 7),
        ({"data_config.shuffle": False}, lambda c: c.data_config.shuffle, False),
        ({"data_config.shuffle": "False"}, lambda c: c.data_config.shuffle, False),
        ({"data_config.label_fields": ["a", "b"]}, lambda c: list(c.data_config.label_fields), ["a", "b"]),
        ({f"{FEATURES}[0].boundaries": [4, 6.5]}, lambda c: list(c.feature_config.features[0].boundaries), [4, 6.5]),
        ({f"{FEATURES}[-1].feature_name": "last"}, lambda c: c.feature_config.features[-1].feature_name, "last"),
        ({f"{TOWERS}[:].weight": 3}, weights, [3, 3]),
        ({f"{TOWERS}[1:].weight": 3}, weights, [1, 3]),
        ({f"{TOWERS}[0:1].weight": 3}, weights, [3, 1]),
        ({f"{TOWERS}[tower_name=play_time].weight": 0.5}, weights, [1, 0.5]),
        ({f"{TOWERS}[weight>=1].weight": 2}, weights, [2, 2]),
        ({f"{TOWERS}[loss_type=L2_LOSS].weight": 2}, weights, [1, 2]),
        ({f"{TOWERS}[dnn.hidden_units[0]=256].weight": 2}, weights, [2, 2]),
        ({f"{FEATURES}[input_names[0]=city].embedding_dim": 9}, dims, BEFORE | {"city": 9}),
        ({f"{FEATURES}[input_names=city].embedding_dim": 9}, dims, BEFORE | {"city": 9}),
        ({f"{FEATURES}[embedding_dim>0].embedding_dim": 5}, dims, dict.fromkeys(BEFORE, 5)),
        ({f"{FEATURES}[input_names[0] = city].embedding_dim": 9}, dims, BEFORE | {"city": 9}),
        ({"train_config.num_steps;model_dir": "7; m"}, lambda c: (c.train_config.num_steps, c.model_dir), (7, "m")),
        ({"data_config.rtp_separator": ";"}, lambda c: c.data_config.rtp_separator, ";"),
        (
            {"model_config.e2e_mm_dbmtl.highway_dnn": "{ input: 'img' emb_size: 8 }"},
            lambda c: c.model_config.e2e_mm_dbmtl.highway_dnn.emb_size,
            8,
        ),
        ({f"{TOWERS}[0].dnn": "hidden_units: 8"}, lambda c: list(weightless(c).dnn.hidden_units), [8]),
        ({f"{TOWERS}[0].loss_type": "L2_LOSS"}, lambda c: weightless(c).loss_type, 1),
    ],
)  # fmt: skip
def test_an_edit_means_what_it_means_in_easyrec(edits, read, value):
    assert read(edited(edits)) == value


def weightless(config):
    return config.model_config.e2e_mm_dbmtl.task_towers[0]


def test_set_takes_the_same_paths():
    config = edited({})
    apply_override(config, f"{FEATURES}[input_names=city].embedding_dim=9")
    assert dims(config) == BEFORE | {"city": 9}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ("{a", "--edit_config_json: is not JSON ("),
        ("[1]", "--edit_config_json: is not an object; write it as"),
        ({"train_config.num_stps": 1}, "--edit_config_json: train_config.num_stps: TrainConfig has no field"),
        ({"train_config": {"num_stps": 1}}, "--edit_config_json: train_config.num_stps: TrainConfig has no field"),
        ({"train_config.num_steps": None}, "--edit_config_json: train_config.num_steps: null is not a value"),
        ({"train_config.num_steps": 1.5}, "'1.5' is not a valid value for num_steps"),
        ({"a;b": "1"}, "--edit_config_json: a;b: 2 paths and 1 values"),
        ({f"{TOWERS}[tower_name=clik].weight": 1}, "none of the 2 elements of task_towers is [tower_name=clik]"),
        ({f"{TOWERS}[2:].weight": 1}, "none of the 2 elements of task_towers is [2:]"),
        ({f"{TOWERS}[weight=a].weight": 1}, "[weight=a]: 'a' is not a valid value for weight"),
        ({f"{TOWERS}[wight=1].weight": 1}, "BayesTaskTower has no field 'wight'"),
        ({f"{TOWERS}[dnn=1].weight": 1}, "dnn is not a value; name one of its fields"),
        ({f"{TOWERS}[first].weight": 1}, "[first] is neither an index, a range nor a condition"),
        ({"data_config.label_fields[a=b]": 1}, "[a=b] is neither an index, a range nor a condition"),
    ],
)  # fmt: skip
def test_a_wrong_edit_is_refused_with_its_path(edits, message):
    with pytest.raises(ConfigError) as caught:
        edited(edits)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--edit_config_json: ")
