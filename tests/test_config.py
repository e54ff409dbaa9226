"""Tests of config.py: what a pipeline file becomes. Mistakes in what its settings mean are in test_config_errors.py."""

import json
import subprocess
import sys
from graphlib import CycleError
from pathlib import Path

import pytest
from feature_helpers import combo_feature, id_feature, id_sequence, raw_feature, raw_sequence, tag_feature
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import FEATURES, LABELS, reference_config, write_config
from reference_data import write_reference_data

from easyrec_mm.config import pipeline as pipeline_module
from easyrec_mm.config.network import activation_name, relation_order
from easyrec_mm.config.overrides import apply_override
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.config.text import parse_config
from easyrec_mm.errors import ConfigError, UserError, did_you_mean
from easyrec_mm.features.feature import StoredVectors, Table
from easyrec_mm.features.id_feature import IdFeature
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.raw_feature import RawFeature
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.features.vector_feature import STORE_SCHEMES, VectorFeature
from easyrec_mm.protos.model_pb2 import BayesTaskTower
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Attention, Image, RowLayout, Schema, Task
from easyrec_mm.store import SCHEMES

ROOT = Path(__file__).parents[1]
UNUSED_LABELS = ("like", "comment", "share", "follow")


@pytest.fixture
def load(tmp_path):
    """Load the reference config with edits of its text, or another text."""

    def run(*edits, text=None, overrides=None, ignore_unsupported=False):
        path = write_config(tmp_path, reference_config(*edits) if text is None else text)
        return load_pipeline(path, overrides, ignore_unsupported)

    return run


@pytest.fixture
def problems(load, tmp_path):
    """The lines of the ConfigError that loading ends in, without the path of the file."""

    def run(*edits, **options):
        with pytest.raises(ConfigError) as caught:
            load(*edits, **options)
        path = str(tmp_path / "pipeline.config")
        return [line.removeprefix(f"{path}:").strip() for line in str(caught.value).split("\n")]

    return run


def position(text, piece):
    """Line and column of the one place where a piece of text stands, as error messages give them."""
    before, _, after = text.partition(piece)
    assert after
    assert piece not in after
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


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
    assert schema.image == Image("img_path", 224, 224, 3, "BILINEAR", True, 50_000_000)
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


def test_kinds_of_features_and_tables(load, tmp_path):
    (tmp_path / "words.txt").write_bytes("a\r\nb\nö\n".encode())
    normal = "initializer { random_normal_initializer { mean: 1 stddev: 2 } }"
    settings_of = {
        2: f"""input_names: "city" input_names: "province" feature_type: TagFeature separator: "," combiner: "sqrtn"
            embedding_dim: 8 vocab_file: "{tmp_path}/words.txt"
            initializer {{ constant_initializer {{ consts: [1, 2, 3, 4, 5, 6, 7, 8] }} }}""",
        3: f"""feature_name: "cross" input_names: ["os", "latitude"] feature_type: ComboFeature precision: 1
            embedding_dim: 8 hash_bucket_size: 77 embedding_name: "x" {normal}""",
        4: f"""input_names: "os" feature_type: TagFeature separator: "," kv_separator: ":"
            embedding_dim: 8 hash_bucket_size: 77 embedding_name: "x" {normal}""",
        5: """input_names: "os_version" feature_type: RawFeature raw_input_dim: 3 separator: "," embedding_dim: 8
            initializer { glorot_normal_initializer {} }""",
        6: """input_names: "day_h" feature_type: RawFeature boundaries: [1, 2]""",
        8: """input_names: "is_new_userid" feature_type: RawFeature numeric_transform: LOG1P""",
        9: """input_names: "level" feature_type: RawFeature normalizer_fn: "tf.math.log1p" max_val: 9""",
        11: """input_names: "familyid" feature_type: SequenceFeature separator: "," max_seq_len: 5 kept_end: LAST
            embedding_dim: 8 hash_bucket_size: 77 embedding_name: "x" combiner: "max" initializer {
            random_normal_initializer { mean: 1 stddev: 2 } }""",
        13: """input_names: "constellation" feature_type: SequenceFeature sub_feature_type: RawFeature separator: ","
            raw_input_dim: 2 seq_multi_sep: ":" numeric_transform: LOG1P""",
        14: """input_names: "user_auth_type" feature_type: SequenceFeature sub_feature_type: RawFeature separator: ","
            boundaries: [1, 2] embedding_dim: 3""",
        12: """input_names: "gender" feature_type: VectorFeature separator: "," vector_dim: 4""",
        15: """input_names: "fans_num" feature_type: VectorFeature vector_dim: 4 vector_store: "redis://x"
            max_missing_share: 0""",
        16: """input_names: "follow_num" feature_type: SequenceFeature sub_feature_type: VectorFeature vector_dim: 4
            vector_store: "lmdb://x" separator: "," max_seq_len: 5""",
        7: """input_names: "week_day" feature_type: IdFeature num_buckets: 7 embedding_dim: 8
            initializer { truncated_normal_initializer { mean: 1 stddev: 2 } }""",
    }
    schema = load(
        overrides=[
            *(f"feature_config.features[{i}]={text}" for i, text in settings_of.items()),
            'model_config.feature_groups[2].feature_names=["city", "cross", "os", "os_version", "day_h", "week_day",'
            '"is_new_userid", "level", "familyid", "constellation", "user_auth_type", "gender", "fans_num",'
            '"follow_num"]',
            "data_config.input_fields[22].input_type=STRING",
            "data_config.input_fields[18].default_val=1,2,3,4",
        ]
    ).schema
    assert schema.features == (
        tag_feature(
            "city", ("city", "province"), 8, "city", "vocabulary", 4, ("a", "b", "ö"),
            separator=",", combiner="sqrtn",
        ),
        combo_feature("cross", ("os", "latitude"), 8, "x", "hash", 77, precision=1),
        tag_feature("os", ("os",), 8, "x", "hash", 77, separator=",", kv_separator=":", combiner="mean"),
        raw_feature("os_version", ("os_version",), 8, "os_version", separator=",", dim=3),
        raw_feature("day_h", ("day_h",), 3, boundaries=(1.0, 2.0)),
        id_feature("week_day", ("week_day",), 8, "week_day", "identity", 7),
        raw_feature("is_new_userid", ("is_new_userid",), 1, log1p="before"),
        raw_feature("level", ("level",), 1, max_value=9.0, log1p="after"),
        id_sequence(
            "familyid", ("familyid",), 8, "x", "hash", 77, separator=",", combiner="max",
            max_length=5, keeps_last=True,
        ),
        raw_sequence(
            "constellation", ("constellation",), 2, separator=",", combiner="mean",
            dim=2, number_separator=":", log1p="before",
        ),
        raw_sequence(
            "user_auth_type", ("user_auth_type",), 3, "user_auth_type", separator=",", combiner="mean",
            boundaries=(1.0, 2.0),
        ),
        VectorFeature(name="gender", inputs=("gender",), width=4, numbers=Numbers(4), separator=","),
        VectorFeature(name="fans_num", inputs=("fans_num",), width=4, stored=StoredVectors("redis://x", 4, 0.0)),
        SequenceFeature(
            name="follow_num", inputs=("follow_num",), width=4, stored=StoredVectors("lmdb://x", 4, 0.5),
            separator=",", combiner="mean", max_length=5,
        ),
    )  # fmt: skip
    assert schema.features[0].weight_input == "province"
    assert schema.features[2].weight_input is None
    assert schema.tables == (
        Table("city", 4, 8, ("constant", (1, 2, 3, 4, 5, 6, 7, 8))),
        Table("x", 77, 8, ("random_normal", (1.0, 2.0))),
        Table("os_version", 3, 8, ("glorot_normal", ())),
        Table("week_day", 7, 8, ("truncated_normal", (1.0, 2.0))),
        Table("user_auth_type", 3, 3, ("truncated_normal", (0.0, 1 / 3**0.5))),
    )
    used = ["latitude", "city", "province", "os", "os_version", "day_h", "week_day", "is_new_userid", "level"]
    used += ["familyid", "gender", "constellation", "user_auth_type"]
    assert list(schema.feature_fields()) == [*used, "fans_num", "follow_num"]
    assert list(schema.model_fields()) == used  # exported models take the vectors of the others


ATTENTION = """
    sequence_features {
      group_name: "seq_fea"
      allow_key_search: true
      seq_att_map { key: "brand" key: "cate_id" hist_seq: "tag_brand_list" hist_seq: "tag_category_list" }
    }
"""


def test_target_attention_as_easyrec_writes_it(load):
    sequence = 'feature_type: SequenceFeature separator: "," embedding_dim: 16 hash_bucket_size:'
    features = [
        '{ feature_name: "brand" input_names: "city" embedding_dim: 16 hash_bucket_size: 1000 }',
        '{ feature_name: "cate_id" input_names: "os" embedding_dim: 16 hash_bucket_size: 10 embedding_name: "cate" }',
        f'{{ feature_name: "tag_brand_list" input_names: "familyid" {sequence} 1000 max_seq_len: 5 }}',
        f'{{ feature_name: "tag_category_list" input_names: "constellation" {sequence} 10 embedding_name: "cate" '
        "max_seq_len: 5 }",
    ]
    schema = load(
        ("    wide_deep: DEEP\n", f"    wide_deep: DEEP\n{ATTENTION}"),
        ("feature_config: {", "feature_config: {" + "\n".join(f"  features: {text}" for text in features)),
        overrides=['model_config.feature_groups[2].feature_names=["brand", "tag_category_list", "fans_num"]'],
    ).schema
    assert schema.attentions == (
        Attention("seq_fea", ("brand", "cate_id"), ("tag_brand_list", "tag_category_list"), 32, True),
    )
    assert [(f.name, f.is_joined) for f in schema.features] == [
        ("brand", True), ("tag_category_list", True), ("fans_num", True), ("cate_id", False), ("tag_brand_list", False),
    ]  # fmt: skip
    assert {table.name for table in schema.tables} == {"brand", "cate", "tag_brand_list"}
    assert schema.width == 16 + 16 + 1 + 64
    assert schema.aligned_lists() == [{"familyid": ",", "constellation": ","}]
    assert list(schema.feature_fields()) == ["city", "os", "familyid", "constellation", "fans_num"]
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


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


# --- How text is read


def test_control_characters_may_stand_as_they_are(load):
    raw = [('separator: "\\002"', 'separator: "\x02"'), ('separator: "\\001"', 'separator: "\x01"')]
    assert load(*raw).schema == load().schema
    assert load(*raw).config == load().config


def test_the_empty_separator_stays_empty(load):
    assert load(('separator: "\\002"', 'separator: ""')).schema.layout.value_separator == ""
    assert load(('  separator: "\\002"\n', "")).schema.layout.value_separator == ","


@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t, lambda t: "# ö\n" + t])
def test_line_ends_byte_order_mark_and_comments_change_nothing(load, change):
    assert load(text=change(reference_config())).schema == load().schema


def test_a_written_config_reads_the_same(load, tmp_path):
    pipeline = load()
    pipeline_module.write_config(pipeline.config, str(tmp_path / "written.config"))
    written = load_pipeline(str(tmp_path / "written.config"))
    assert (written.config, written.schema, written.notes) == (pipeline.config, pipeline.schema, pipeline.notes)


def test_loading_imports_no_tensorflow(tmp_path):
    path = write_config(tmp_path, reference_config())
    code = (
        "import sys; from easyrec_mm.config.pipeline import load_pipeline; load_pipeline(sys.argv[1]);"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- Files that cannot be read


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.config: no such file; give the pipeline config with --pipeline_conf"):
        load_pipeline(str(tmp_path / "none.config"))


def test_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}: cannot be read: Is a directory"):
        load_pipeline(str(tmp_path))


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "latin.config").write_bytes('model_dir: "Ö"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.config: byte 12 is not UTF-8 text; save the config as UTF-8"):
        load_pipeline(str(tmp_path / "latin.config"))


# --- Names that are unknown


def test_unknown_fields_and_enum_values_are_all_named_at_once(problems):
    edits = [
        ("batch_size: 64", "batchsize: 64"),
        ("input_type: GroupRTPInput", "input_type: GroupRtpInput"),
        ('input_name: "group_size"', 'input_name: "group_size" defalt_val: "1"'),
        ("wide_deep: DEEP", "wide_deep: DEAP"),
        ("loss_type: L2_LOSS", "loss_type: L2LOSS"),
        ("model_config {", "modell_config {"),
    ]
    text = reference_config(*edits)
    task = "model_config.e2e_mm_dbmtl.task_towers[1].loss_type"
    assert problems(*edits[:5]) == [
        f"{position(text, 'batchsize')}: data_config.batchsize: DatasetConfig has no field 'batchsize'; "
        "did you mean 'batch_size'?",
        f"{position(text, 'GroupRtpInput')}: data_config.input_type: InputType has no value 'GroupRtpInput'; "
        "did you mean 'GroupRTPInput'?",
        f"{position(text, 'defalt_val')}: data_config.input_fields[26].defalt_val: Field has no field 'defalt_val'; "
        "did you mean 'default_val'?",
        f"{position(text, 'DEAP')}: model_config.feature_groups[2].wide_deep: WideOrDeep has no value 'DEAP'; "
        "did you mean 'DEEP'?",
        f"{position(text, 'L2LOSS')}: {task}: LossType has no value 'L2LOSS'; did you mean 'L2_LOSS'?",
    ]
    # What an unknown message holds is not looked at.
    assert problems(*edits) == [
        *problems(*edits[:3]),
        f"{position(text, 'modell_config')}: modell_config: EasyRecConfig has no field 'modell_config'; "
        "did you mean 'model_config'?",
    ]


def test_an_unknown_name_without_a_near_one_lists_the_choices(problems):
    (line,) = problems(('channel: 3\n    }\n  }\n  features', 'depth: 3\n    }\n  }\n  features'))  # fmt: skip
    assert line.endswith("img_shape.depth: ImgShape has no field 'depth'; choose one of channel, height, width")


def test_places_in_lists_of_messages_count_their_elements(problems):
    (line,) = problems(
        ("    auc {}\n", "    auc {}\n  }\n  metrics_set: [{auc {}}, {auc {bins: 1}}]\n  metrics_set {\n")
    )
    assert "eval_config.metrics_set[2].auc.bins: AUC has no field 'bins'" in line


def test_unknown_names_are_never_skipped(problems):
    (line,) = problems(("batch_size: 64", "batchsize: 64"), ignore_unsupported=True)
    assert "did you mean 'batch_size'?" in line


def test_a_number_that_is_no_value_of_an_enum(problems):
    (line,) = problems(("wide_deep: DEEP", "wide_deep: 3"))
    assert "WideOrDeep" in line
    assert "no value with number 3" in line


# --- Names of EasyRec's language that are not supported


def reserved_names(proto, descriptor):
    descriptor.CopyToProto(proto)
    return list(proto.reserved_name)


def unsupported_fields(descriptor=EasyRecConfig.DESCRIPTOR, place="", indent="", seen=None):
    """Lines of a config that sets every unsupported field of every message: (line, config path or None)."""
    seen = {EasyRecConfig.DESCRIPTOR.full_name} if seen is None else seen
    values = ['"text"', "{ a: 1 b { c: [1, 2] } }", "[1, 2]", "NAME", "-1.5e3", '< a: "b" "c" >']
    lines = [
        (f"{indent}{name}: {values[i % len(values)]}", f"{place}{name}")
        for i, name in enumerate(reserved_names(DescriptorProto(), descriptor))
    ]
    for field in descriptor.fields:
        if field.message_type and field.message_type.full_name not in seen:
            seen.add(field.message_type.full_name)
            inner_place = f"{place}{field.name}{'[0]' * field.is_repeated}."
            inner = unsupported_fields(field.message_type, inner_place, indent + "  ", seen)
            if inner:
                lines += [(f"{indent}{field.name} {{", None), *inner, (f"{indent}}}", None)]
    return lines


def unsupported_enum_values(descriptor=EasyRecConfig.DESCRIPTOR, parents=(), seen=None):
    """(text of a config, config path, value, the values that are supported) for each of them."""
    seen = {EasyRecConfig.DESCRIPTOR.full_name} if seen is None else seen
    for field in descriptor.fields:
        part = field.message_type or field.enum_type
        if part is None or part.full_name in seen:
            continue
        seen.add(part.full_name)
        path = (*parents, field)
        if field.message_type:
            yield from unsupported_enum_values(field.message_type, path, seen)
            continue
        place = ".".join(f"{f.name}{'[0]' * f.is_repeated}" for f in path)
        opening, closing = "".join(f"{parent.name} {{ " for parent in parents), " }" * len(parents)
        for value in reserved_names(EnumDescriptorProto(), field.enum_type):
            yield f"{opening}{field.name}: {value}{closing}", place, value, list(field.enum_type.values_by_name)


UNSUPPORTED_FIELDS = unsupported_fields()
UNSUPPORTED_VALUES = list(unsupported_enum_values())


def test_every_unsupported_field_is_named_all_in_one_error():
    text = "\n".join(line for line, _ in UNSUPPORTED_FIELDS)
    expected = [
        f"x.config:{number}:{len(line) - len(line.lstrip()) + 1}: {place}: not supported"
        for number, (line, place) in enumerate(UNSUPPORTED_FIELDS, start=1)
        if place
    ]
    places = [place for _, place in UNSUPPORTED_FIELDS]
    assert {
        "fg_json_path",
        "data_config.input_fields[0].input_dim",
        "feature_config.features[0].shared_names",
        "model_config.e2e_mm_dbmtl.task_towers[0].losses[0].binary_focal_loss.label_smoothing",
        "model_config.e2e_mm_dbmtl.task_towers[0].metrics_set[0].max_f1",
        "train_config.optimizer_config[0].rms_prop_optimizer.learning_rate.transformer_learning_rate",
        "eval_config.eval_online",
    } < set(places)
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.config")
    *lines, summary = str(caught.value).split("\n")
    assert lines == expected
    assert summary == (
        f"{len(expected)} setting(s) of EasyRec's language that easyrec_mm does not support: remove them, or skip the "
        "fields with --ignore_unsupported"
    )
    config, notes = parse_config(text, "x.config", ignore_unsupported=True)
    assert notes == [f"skipped: {line}" for line in expected]
    supported = "\n".join(line for line, place in UNSUPPORTED_FIELDS if place is None)
    assert config == text_format.Parse(supported, EasyRecConfig())


@pytest.mark.parametrize(
    ("text", "place", "value", "choices"), UNSUPPORTED_VALUES, ids=[c[2] for c in UNSUPPORTED_VALUES]
)
@pytest.mark.parametrize("ignore_unsupported", [False, True])
def test_an_unsupported_enum_value_is_never_skipped(text, place, value, choices, ignore_unsupported):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.config", ignore_unsupported)
    assert str(caught.value).split("\n") == [
        f"x.config:{position(text, value)}: {place}: {value} is not supported; choose one of {', '.join(choices)}",
        "1 setting(s) of EasyRec's language that easyrec_mm does not support: remove them",
    ]


def test_all_enums_with_unsupported_values_are_met():
    fields = {place.split(".")[-1] for _, place, _, _ in UNSUPPORTED_VALUES}
    assert fields == {"input_type", "feature_type", "loss_type", "train_distribute"}


def test_skipped_fields_leave_a_config_that_loads(load, problems):
    edits = [
        ("  batch_size: 64", "  file_shard: true batch_size: 64"),
        ("  model_class:", '  model_name: "first" model_class:'),
        ("  num_steps: 2000", "  num_gpus_per_worker: 2\n  num_steps: 2000"),
    ]
    assert len(problems(*edits)) == 4
    pipeline = load(*edits, ignore_unsupported=True)
    assert pipeline.config == load().config
    assert [note.split(": ")[2] for note in pipeline.notes[:3]] == [
        "train_config.num_gpus_per_worker",
        "data_config.file_shard",
        "model_config.model_name",
    ]
    assert all(note.startswith("skipped: ") for note in pipeline.notes[:3])


def test_an_unsupported_value_beside_an_unsupported_field_names_what_stays_wrong(problems):
    edits = [("input_type: GroupRTPInput", "input_type: OdpsRTPInput\n  file_shard: true")]
    assert len(problems(*edits)) == 3
    lines = problems(*edits, ignore_unsupported=True)
    assert len(lines) == 2
    assert "OdpsRTPInput is not supported; choose one of GroupRTPInput" in lines[0]
    assert lines[1].endswith("does not support: remove them")


# --- Syntax


@pytest.mark.parametrize(
    ("edit", "piece", "message"),
    [
        (("batch_size: 64", "batch_size 64"), "64\n  input_type", 'Expected ":"'),
        (("batch_size: 64", "batch_size: sixty"), "sixty", "Couldn't parse integer: sixty"),
        (("batch_size: 64", "batch_size: -64"), "-64", "Value out of range: -64"),
        (("batch_size: 64", "batch_size: 64 batch_size: 32"), "32\n  input_type", "should not have multiple"),
        (("batch_size: 64", "batch_size: [64, 32]"), "[64, 32]", "Couldn't parse integer: ["),
        (("batch_size: 64", "[easy.rec]: 64"), "[easy.rec]", "Expected identifier or number, got ["),
        (("batch_size: 64", "batch_size: 64 ]"), "]\n  input_type", "Expected identifier or number, got ]"),
        (("emb_size: 16\n    }", "emb_size: }"), "}\n    bottom_dnn", "Expected a value, got }"),
        (("hidden_units: 512", "hidden_units: [512, }"), "}\n      dropout", "Expected a value, got }"),
        (("hidden_units: 512", "hidden_units: [[512]]"), "[512]", "Expected a value, got ["),
        (("sync_replicas: true", "sync_replicas: yes"), "yes", 'Expected "true" or "false"'),
        (('rtp_separator: "|"', 'rtp_separator: "|'), '"|\n', "String missing ending quote"),
        (('rtp_separator: "|"', "rtp_separator: bar"), "bar", "Expected string but found: 'bar'"),
        (("input_type: GroupRTPInput", 'input_type: "GroupRTPInput"'), '"GroupRTPInput"', "no value named"),
        (("    auc {}\n", "    auc {} ece {}\n"), "ece", 'member of oneof "metric"'),
    ],
)
def test_syntax_errors_give_line_and_column(problems, edit, piece, message):
    (line,) = problems(edit)
    text = reference_config(edit)
    assert line.startswith(f"{position(text, piece)}: ")
    assert message in line


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data_config {\n  batch_size:", "2:14"),
        ('data_config {\n  label_fields: ["a",', "2:22"),
        ("data_config {\n", "2:1"),
        ("data_config", "1:12"),
        ("}", "1:1"),
        ("[", "1:1"),
    ],
)
def test_a_text_that_breaks_off(problems, text, place):
    (line,) = problems(text=text)
    assert line.startswith(f"{place}: ")


def test_every_missing_required_field_is_named(problems):
    lines = problems(
        ('  model_class: "E2E_MM_DBMTL"\n', ""),
        ("  input_type: GroupRTPInput\n", ""),
        ("      emb_size: 16\n", ""),
        ('input_name: "follow_num" ', ""),
    )
    assert sorted(lines) == sorted(
        f"{place}: is required and missing"
        for place in (
            "data_config.input_type",
            "data_config.input_fields[22].input_name",
            "model_config.model_class",
            "model_config.e2e_mm_dbmtl.highway_dnn.emb_size",
        )
    )


def test_an_empty_file_names_what_a_config_needs(problems):
    places = ("model_dir", "data_config", "model_config")
    assert problems(text="") == [f"{place}: is required and missing" for place in places]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, len(reference_config())), length=st.integers(1, 40), inserted=st.text(max_size=3))
def test_a_damaged_text_loads_or_is_refused_in_plain_words(tmp_path, start, length, inserted):
    text = reference_config()
    path = write_config(tmp_path, text[:start] + inserted + text[start + length :])
    try:
        load_pipeline(path)
    except UserError as error:
        assert str(error).startswith(path)  # noqa: PT017


# --- Settings of the command line


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


def test_overrides_are_checked_like_the_file(load, problems):
    assert load(overrides=["data_config.batch_size=8"]).config.data_config.batch_size == 8
    (line,) = problems(overrides=["data_config.batch_size=0"])
    assert line == "data_config.batch_size: 0 is out of range; give 1 or more"
    assert problems(overrides=["model_config.e2e_mm_dbmtl.highway_dnn="]) == [
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
        ("train_config.precision=FLOAT", "'FLOAT' is not a valid value for precision: "),
        ("model_dir='a", '"\'a" is not a valid value for model_dir: '),
        ("data_config[0].batch_size=3", "data_config has no elements; write it without [0]"),
        ("data_config.batch_size[0]=3", "batch_size has no element 0"),
        ("data_config.label_fields[6]=a", "label_fields has no element 6"),
        ("data_config.label_fields[-7]=a", "label_fields has no element -7"),
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
