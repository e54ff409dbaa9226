"""Settings of the command line change what they name, and nothing else."""

import pytest
from google.protobuf import text_format
from reference import reference_config

from easyrec_mm.config.overrides import apply_override
from easyrec_mm.errors import ConfigError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


def overridden(*overrides):
    config = text_format.Parse(reference_config(), EasyRecConfig())
    for override in overrides:
        apply_override(config, override)
    return config


TOWERS = "model_config.e2e_mm_dbmtl.task_towers"
BOTTOM = "model_config.e2e_mm_dbmtl.bottom_dnn"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train_config.num_steps=7", lambda c: c.train_config.num_steps, 7),
        (" train_config.num_steps = 7 ", lambda c: c.train_config.num_steps, 7),
        ("train_config.sync_replicas=false", lambda c: c.train_config.sync_replicas, False),
        (
            "model_config.embedding_regularization=1e-3",
            lambda c: round(c.model_config.embedding_regularization, 9),
            1e-3,
        ),
        ("train_config.precision=BFLOAT16", lambda c: c.train_config.precision, 2),
        ("model_dir=runs/a b=c \"d\" 'e'", lambda c: c.model_dir, "runs/a b=c \"d\" 'e'"),
        ("model_dir=C:\\new", lambda c: c.model_dir, "C:\\new"),
        ("model_dir=größe", lambda c: c.model_dir, "größe"),
        ("model_dir=", lambda c: c.model_dir, ""),
        ("model_dir='quoted'", lambda c: c.model_dir, "quoted"),
        ('data_config.separator="\\003"', lambda c: c.data_config.separator, "\x03"),
        ("data_config.label_fields=like", lambda c: list(c.data_config.label_fields), ["like"]),
        ('data_config.label_fields=["a", "b"]', lambda c: list(c.data_config.label_fields), ["a", "b"]),
        ("data_config.label_fields=[]", lambda c: list(c.data_config.label_fields), []),
        (
            "data_config.label_fields[1]=a",
            lambda c: list(c.data_config.label_fields)[:3],
            ["is_valid_play", "a", "like"],
        ),
        ("data_config.label_fields[-1]=a", lambda c: list(c.data_config.label_fields)[4:], ["share", "a"]),
        (f"{BOTTOM}.hidden_units=[8, 4]", lambda c: list(c.model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units), [8, 4]),
        (f"{BOTTOM}.hidden_units[1]=4", lambda c: list(c.model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units), [1024, 4]),
        (f"{BOTTOM}=hidden_units: 8", lambda c: str(c.model_config.e2e_mm_dbmtl.bottom_dnn), "hidden_units: 8\n"),
        (f"{BOTTOM}={{hidden_units: 8}}", lambda c: str(c.model_config.e2e_mm_dbmtl.bottom_dnn), "hidden_units: 8\n"),
        ("export_config=", lambda c: (c.HasField("export_config"), str(c.export_config)), (True, "")),
        (f"{TOWERS}[1].weight=0.5", lambda c: [t.weight for t in c.model_config.e2e_mm_dbmtl.task_towers], [1.0, 0.5]),
        (
            f"{TOWERS}[-1]=tower_name: 'a'",
            lambda c: str(c.model_config.e2e_mm_dbmtl.task_towers[1]),
            'tower_name: "a"\n',
        ),
        (
            f"{TOWERS}=[{{tower_name: 'a'}}, {{tower_name: 'b'}}]",
            lambda c: len(c.model_config.e2e_mm_dbmtl.task_towers),
            2,
        ),
        (f"{TOWERS}=tower_name: 'a'", lambda c: len(c.model_config.e2e_mm_dbmtl.task_towers), 1),
        ("data_config.image_root=/a", lambda c: c.data_config.image_root, "/a"),
    ],
)
def test_an_override_changes_one_setting(override, read, value):
    config = overridden(override)
    assert read(config) == value
    assert config != overridden()


def test_an_override_changes_nothing_else():
    expected = overridden()
    expected.train_config.num_steps = 7
    assert overridden("train_config.num_steps=7") == expected


def test_an_override_may_switch_to_another_member_of_a_oneof():
    rate = "learning_rate.constant_learning_rate.learning_rate"
    config = overridden(f"train_config.optimizer_config.sgd_optimizer.{rate}=0.5")
    (optimizer,) = config.train_config.optimizer_config
    assert optimizer.WhichOneof("optimizer") == "sgd_optimizer"
    assert optimizer.sgd_optimizer.learning_rate.constant_learning_rate.learning_rate == 0.5
    config = overridden(f"train_config.optimizer_config[0].adam_optimizer.{rate}=0.5")
    (optimizer,) = config.train_config.optimizer_config
    assert optimizer.adam_optimizer.learning_rate.WhichOneof("learning_rate") == "constant_learning_rate"


def test_overrides_apply_in_their_order():
    assert overridden("train_config.num_steps=7", "train_config.num_steps=8").train_config.num_steps == 8


def test_overrides_are_checked_like_the_file(load, problem_lines):
    assert load(overrides=["data_config.batch_size=8"]).config.data_config.batch_size == 8
    (line,) = problem_lines(overrides=["data_config.batch_size=0"])
    assert line == "data_config.batch_size: 0 is out of range; give 1 or more"
    assert problem_lines(overrides=["model_config.e2e_mm_dbmtl.highway_dnn="]) == [
        "model_config.e2e_mm_dbmtl.highway_dnn.input: is required and missing",
        "model_config.e2e_mm_dbmtl.highway_dnn.emb_size: is required and missing",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_config.num_steps", "write it as path.to.field=value"),
        ("=3", "'' is not a valid field name"),
        ("train_config..num_steps=3", "'' is not a valid field name"),
        ("train-config.num_steps=3", "'train-config' is not a valid field name"),
        ("train_config.num_stps=3", "TrainConfig has no field 'num_stps'; did you mean 'num_steps'?"),
        ("trainconfig.num_steps=3", "EasyRecConfig has no field 'trainconfig'; did you mean 'train_config'?"),
        ("train_config.num_steps.x=3", "num_steps is a value and has no fields"),
        (
            "train_config.num_steps=abc",
            "'abc' is not a valid value for num_steps: 'num_steps: abc': Couldn't parse integer: abc",
        ),
        ("train_config.num_steps=", "'' is not a valid value for num_steps: "),
        (
            "train_config.num_steps=3 num_epochs: 2",
            "'3 num_epochs: 2' is not a valid value for num_steps: it sets other fields",
        ),
        ("train_config.sync_replicas=yes", "'yes' is not a valid value for sync_replicas: "),
        ("train_config.precision=FLOAT", "'FLOAT' is not a valid value for precision: Precision has no value"),
        (
            "train_config.train_distribute=PSStrategy",
            "'PSStrategy' is not a valid value for train_distribute: PSStrategy is not supported; "
            "train_config.shard_tables_from_rows divides tables among workers",
        ),
        ("train_config={ optimiser_config {} }", "'{ optimiser_config {} }' is not a valid value for train_config: "),
        ("model_dir='a", '"\'a" is not a valid value for model_dir: '),
        ("data_config[0].batch_size=3", "data_config has no elements; write it without [0]"),
        ("data_config.batch_size[0]=3", "batch_size has no element 0"),
        ("data_config.label_fields[6]=a", "label_fields has 6 elements and no element 6"),
        ("data_config.label_fields[-7]=a", "label_fields has 6 elements and no element -7"),
        (f"{BOTTOM}.hidden_units[0]=[8, 4]", "hidden_units has no element 0"),
        (f"{TOWERS}.weight=3", "task_towers has 2 elements; choose one, as in task_towers[0]"),
        (f"{TOWERS}[2].weight=3", "task_towers has 2 elements and no element 2"),
        ("eval_config=auc {}", "'auc {}' is not a valid value for eval_config: "),
    ],
)
def test_a_wrong_override_names_itself_and_what_is_wrong(override, message):
    with pytest.raises(ConfigError) as caught:
        overridden(override)
    assert str(caught.value).startswith(f"--set {override}: {message}")
