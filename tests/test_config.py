"""What a pipeline file becomes: the schema, labels and towers of the reference config, and of others."""

from graphlib import CycleError
from pathlib import Path

import pytest
from feature_helpers import id_feature, raw_feature
from google.protobuf import text_format
from reference import FEATURES, LABELS, reference_config
from reference_data import write_reference_data

from easyrec_mm.config.network import activation_name, relation_order
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.features.feature import Table
from easyrec_mm.features.id_feature import IdFeature
from easyrec_mm.features.raw_feature import RawFeature
from easyrec_mm.features.vector_feature import STORE_SCHEMES
from easyrec_mm.protos.model_pb2 import BayesTaskTower
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Image, RowLayout, Schema, Task
from easyrec_mm.store import SCHEMES

ROOT = Path(__file__).parents[1]
UNUSED_LABELS = ("like", "comment", "share", "follow")


# --- What the reference config becomes


def test_the_reference_config_loads_unchanged(load):
    pipeline = load()
    assert text_format.Parse(reference_config(), EasyRecConfig()) == pipeline.config
    assert pipeline.notes == tuple(
        f"data_config.label_fields[{i}]: label '{name}' is read and checked; no tower uses it"
        for i, name in enumerate(UNUSED_LABELS, start=2)
    )


def test_the_schema_of_the_reference_config(load):
    schema = load().schema
    assert schema.layout == RowLayout(
        label_columns=(3, 4, 5, 6, 7, 8),
        features_column=9,
        image_column=11,
        size_column=12,
        sample_fields=FEATURES,
        column_separator="|",
        sample_separator="\x01",
        value_separator="\x02",
    )
    assert schema.labels == LABELS
    assert schema.sample_weight is None
    assert schema.image == Image("img_path", 224, 224, 3, "BILINEAR", True, 50_000_000, background=(255, 255, 255))
    assert schema.uses_image
    assert schema.group_size_field == "group_size"
    assert schema.tasks == (
        Task("is_valid_play", "is_valid_play", "binary", 1),
        Task("play_time", "play_time", "value", 1),
    )
    assert [task.output_names for task in schema.tasks] == [
        ("logits_is_valid_play", "probs_is_valid_play"),
        ("y_play_time",),
    ]
    rows = {
        "latitude": 6, "longitude": 6, "city": 1000, "province": 100, "os": 10, "os_version": 1000, "day_h": 24,
        "week_day": 7, "is_new_userid": 2, "level": 200, "is_member": 2, "familyid": 10000, "gender": 3,
        "constellation": 50, "user_auth_type": 10, "visitor_num": 5,
    }  # fmt: skip
    assert schema.tables == tuple(Table(name, n, 16, ("truncated_normal", (0.0, 0.25))) for name, n in rows.items())
    assert tuple(feature.name for feature in schema.features) == FEATURES
    assert {f.name: f.width for f in schema.features} == {name: 16 if name in rows else 1 for name in FEATURES}
    features = {feature.name: feature for feature in schema.features}
    assert features["latitude"] == raw_feature(
        "latitude", ("latitude",), 16, "latitude", boundaries=(22.0, 26.0, 30.0, 34.0, 38.0)
    )
    assert features["day_h"] == id_feature("day_h", ("day_h",), 16, "day_h", "identity", 24)
    assert features["city"] == id_feature("city", ("city",), 16, "city", "hash", 1000)
    assert features["gender"] == id_feature("gender", ("gender",), 16, "gender", "vocabulary", 3, ("M", "F"))
    assert features["fans_num"] == raw_feature("fans_num", ("fans_num",), 1, max_value=10000.0)
    assert [(f.name, f.dtype, f.default) for f in schema.fields if f.name not in UNUSED_LABELS] == [
        ("is_valid_play", "int64", "0"),
        ("play_time", "float32", "0"),
        ("latitude", "float32", "0"),
        ("longitude", "float32", "0"),
        *((name, "string", "") for name in ("city", "province", "os", "os_version")),
        *((name, "int64", "0") for name in ("day_h", "week_day", "is_new_userid", "level", "is_member")),
        ("familyid", "string", ""),
        ("gender", "string", "unknown"),
        ("constellation", "string", ""),
        ("user_auth_type", "string", ""),
        ("fans_num", "int64", "0"),
        ("follow_num", "int64", "0"),
        ("visitor_num", "float32", "0"),
        ("billboard_num", "float32", "0"),
        ("img_path", "string", ""),
        ("group_size", "int64", "0"),
    ]


def test_towers_without_label_name_take_label_fields_in_order(load):
    names = [(f'      label_name: "{name}"\n', "") for name in ("is_valid_play", "play_time")]
    assert load(*names).schema == load().schema
    swapped = load(
        *names, overrides=["data_config.label_fields[0]=play_time", "data_config.label_fields[1]=is_valid_play"]
    )
    assert [task.label for task in swapped.schema.tasks] == ["play_time", "is_valid_play"]


def test_without_label_fields_the_labels_are_those_of_the_towers_in_the_order_of_input_fields(load):
    overrides = [
        "data_config.label_fields=[]",
        "data_config.selected_cols=4,3,9,11,12",
        "model_config.e2e_mm_dbmtl.task_towers[1].task_space_indicator_label=is_valid_play",
        "model_config.e2e_mm_dbmtl.task_towers[0].label_name=like",
    ]
    with pytest.raises(ConfigError, match=r"3 label column\(s\) \(is_valid_play, play_time, like\)"):
        load(overrides=overrides)
    pipeline = load(overrides=[*overrides[:1], "data_config.selected_cols=4,3,9,11,12"])
    assert pipeline.schema.labels == ("is_valid_play", "play_time")
    assert pipeline.schema.layout.label_columns == (4, 3)
    assert pipeline.notes == ()


def test_an_indicator_label_and_a_sample_weight_count_as_used_labels(load):
    pipeline = load(
        overrides=[
            "model_config.e2e_mm_dbmtl.task_towers[1].task_space_indicator_label=like",
            "data_config.sample_weight=comment",
        ]
    )
    assert [note.split("'")[1] for note in pipeline.notes] == ["share", "follow"]
    assert pipeline.schema.sample_weight == "comment"


def test_feature_configs_is_the_same_as_feature_config_features(load):
    config = load().config
    config.feature_configs.extend(config.feature_config.features)
    config.ClearField("feature_config")
    assert load(text=text_format.MessageToString(config)).schema == load().schema


def test_a_model_without_pictures_loads(load):
    group = '  feature_groups {\n    group_name: "img"\n    feature_names: "img_path"\n  }\n'
    highway = '    highway_dnn {\n      input: "img"\n      emb_size: 16\n    }\n'
    assert not load((group, ""), (highway, "")).schema.uses_image
    overrides = [
        "feature_config.features[19]=input_names: 'city' feature_name: 'again' hash_bucket_size: 9 embedding_dim: 2",
        "export_config=",
        "data_config.selected_cols=3,4,5,6,7,8,9,12",
    ]
    schema = load((group, ""), (highway, ""), overrides=overrides).schema
    assert not schema.uses_image
    assert not schema.image.field
    assert (schema.layout.features_column, schema.layout.image_column, schema.layout.size_column) == (9, -1, 12)


def test_img_dnn_may_stand_without_a_projection(load):
    highway = '    highway_dnn {\n      input: "img"\n      emb_size: 16\n    }\n'
    plain = "    img_model { num_classes: 0 }\n    img_dnn { hidden_units: [8, 4] }\n"
    assert load((highway, plain)).schema.uses_image


def test_feature_groups_of_any_name(load):
    names = ("cover", "number", "users", "items", "by_heart")
    groups = """
  feature_groups { group_name: "items" feature_names: ["os", "level"] }
  feature_groups {
    group_name: "by_heart" wide_deep: WIDE wide_regularization: 0.25 feature_names: ["city", "fans_num"]
  }
  feature_groups { group_name: "users" wide_deep: WIDE_AND_DEEP feature_names: "gender" }
  feature_groups { group_name: "cover" feature_names: "img_path" }
  feature_groups { group_name: "number" feature_names: "group_size" }
"""
    text = load().config
    del text.model_config.feature_groups[:]
    text.model_config.e2e_mm_dbmtl.highway_dnn.input = "cover"
    text = text_format.MessageToString(text).replace("model_config {", f"model_config {{{groups}", 1)
    schema = load(text=text).schema
    assert schema.uses_image
    assert all(name in text for name in names)
    joined = [feature.name for feature in schema.features if feature.is_joined]
    assert joined == ["os", "level", "gender"]
    wide = [feature for feature in schema.features if feature.is_wide]
    # A number for each of the towers; numbers are multiplied by theirs.
    assert [(f.name, type(f), f.table, f.width) for f in wide] == [
        ("city_wide", IdFeature, "city_wide", 2), ("fans_num_wide", RawFeature, "fans_num_wide", 2),
        ("gender_wide", IdFeature, "gender_wide", 2),
    ]  # fmt: skip
    assert schema.width == 16 + 16 + 16
    assert schema.wide_width == 6
    tables = {table.name: table for table in schema.tables}
    assert tables["city_wide"].initializer == ("constant", (0.0,))
    assert {name: table.rows for name, table in tables.items() if name.endswith("wide")} == {
        "city_wide": schema.features[3].num_rows, "fans_num_wide": 1, "gender_wide": 3,
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.config")), ids=lambda path: path.name)
def test_every_config_that_is_shipped_loads(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_pipeline(str(path)).schema.tasks


def test_stores_of_vectors_are_those_that_there_are():
    assert set(STORE_SCHEMES) == set(SCHEMES)


@pytest.mark.parametrize(
    ("loss", "num_class", "activation", "outputs"),
    [
        ("CLASSIFICATION", 1, "binary", ("logits_t", "probs_t")),
        ("CLASSIFICATION", 4, "multiclass", ("logits_t", "probs_t", "y_t")),
        ("BINARY_FOCAL_LOSS", 1, "binary", ("logits_t", "probs_t")),
        ("L2_LOSS", 1, "value", ("y_t",)),
        ("SIGMOID_L2_LOSS", 1, "sigmoid_value", ("y_t",)),
    ],
)
@pytest.mark.parametrize("spelling", ["loss_type: {}", "losses {{ loss_type: {} }}"])
def test_activation_and_output_names_of_a_tower(load, spelling, loss, num_class, activation, outputs):
    tower = f"tower_name: 't' label_name: 'like' num_class: {num_class} {spelling.format(loss)}"
    (task,) = load(overrides=[f"model_config.e2e_mm_dbmtl.task_towers=[{{ {tower} }}]"]).schema.tasks
    assert task == Task("t", "like", activation, num_class)
    assert task.output_names == outputs
    assert task.score_name == ("probs_t" if activation in ("binary", "multiclass") else "y_t")


def test_the_generated_data_has_the_form_that_the_reference_config_reads(load, tmp_path):
    data = write_reference_data(tmp_path, 20, seed=3, num_files=2, num_pictures=7)
    layout = load().schema.layout
    lines = [line for file in data.files for line in file.read_text().splitlines()]
    assert len(lines) == 20
    for line in lines:
        columns = line.split(layout.column_separator)
        assert len(columns) == 13
        assert Path(columns[layout.image_column]) in data.pictures
        size = int(columns[layout.size_column])
        assert all(len(columns[i].split(layout.sample_separator)) == size for i in layout.label_columns)
        samples = columns[layout.features_column].split(layout.sample_separator)
        assert len(samples) == size
        assert {len(sample.split(layout.value_separator)) for sample in samples} == {len(FEATURES)}
    (tmp_path / "again").mkdir()
    again = write_reference_data(tmp_path / "again", 20, seed=3, num_files=2, num_pictures=7)
    assert [path.read_bytes() for path in again.pictures] == [path.read_bytes() for path in data.pictures]


# --- Small parts


def test_did_you_mean_gives_the_nearest_or_all():
    assert did_you_mean("colour", ["color", "size"]) == "did you mean 'color'?"
    assert did_you_mean("weight", ["size", "color", "color"]) == "choose one of color, size"
    assert did_you_mean("weight", []) == "there is none"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("tf.nn.relu", "relu"),
        ("nn.leaky_relu", "leaky_relu"),
        ("tf.math.sigmoid", "sigmoid"),
        ("tf.keras.activations.gelu", "gelu"),
        ("Relu", "relu"),
        ("", "linear"),
        ("relu.nn.tf", "relu.nn.tf"),
    ],
)
def test_activations_may_be_written_as_in_tensorflow(written, name):
    assert activation_name(written) == name


def test_relation_order_puts_each_tower_behind_those_it_sees():
    def towers(**relations):
        return [BayesTaskTower(tower_name=name, relation_tower_names=seen) for name, seen in relations.items()]

    assert relation_order(towers(a="bc", b="c", c="")) == [2, 1, 0]
    assert relation_order(towers(a="", b="a", c="ab")) == [0, 1, 2]
    with pytest.raises(CycleError):
        relation_order(towers(a="b", b="a"))


def test_schema_finds_fields_by_name(load):
    schema: Schema = load().schema
    assert schema.field("gender").default == "unknown"
