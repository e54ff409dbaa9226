"""What features, tables and attentions of a pipeline file become."""

import json

from feature_helpers import combo_feature, id_feature, id_sequence, raw_feature, raw_sequence, tag_feature

from easyrec_mm.features.feature import StoredVectors, Table
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.features.vector_feature import VectorFeature
from easyrec_mm.schema import Attention, Schema


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
