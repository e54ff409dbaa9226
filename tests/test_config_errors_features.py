"""Mistakes in features of numbers and categories, and settings that a type of feature does not use."""

import pytest
from config_helpers import FEATURE, FIELD, assert_only_problem, case

from easyrec_mm.config.rules import rule_of
from easyrec_mm.protos.feature_pb2 import FeatureConfig

FEATURE_CASES = [
    case(
        f"{FEATURE['city']}.input_names=[]",
        place=f"{FEATURE['city']}.input_names",
        says="is empty; name the input field(s)",
    ),
    case(
        f"{FEATURE['os']}.input_names=city",
        place=FEATURE["os"],
        says="a second feature named 'city'; give one of them another feature_name",
    ),
    case(
        f"{FEATURE['city']}.input_names=cty",
        place=f"{FEATURE['city']}.input_names",
        says="no input field named 'cty'; did you mean 'city'?",
    ),
    case(
        "feature_configs=input_names: 'city' feature_type: IdFeature",
        place="feature_configs",
        says="feature_config.features is set too; keep one of the two",
    ),
    # Fields among the labels and columns of a group are no values of a sample.
    *(
        case(
            f"{FEATURE['city']}.input_names={field}",
            f"{FEATURE['city']}.feature_name=city",
            place=f"{FEATURE['city']}.input_names",
            says=f"'{field}' is not a feature value of a sample (label, image or size)",
        )
        for field in ("like", "img_path", "group_size")
    ),
    case(
        f"{FEATURE['city']}.embedding_name=places",
        f"{FEATURE['province']}.embedding_name=places",
        place=f"{FEATURE['province']}.embedding_name",
        says=f"table 'places' is 100 x 16 here and 1000 x 16 at {FEATURE['city']}, or its initializer differs",
    ),
    case(
        f"{FEATURE['city']}.embedding_name=places",
        f"{FEATURE['os_version']}.embedding_name=places",
        f"{FEATURE['os_version']}.initializer.random_normal_initializer=",
        place=f"{FEATURE['os_version']}.embedding_name",
        says="or its initializer differs; make them equal",
    ),
    # RawFeature
    case(
        f'{FEATURE["fans_num"]}.input_names=["fans_num", "follow_num"]',
        place=f"{FEATURE['fans_num']}.input_names",
        says="RawFeature reads one field, not 2",
    ),
    case(
        f"{FEATURE['latitude']}.boundaries=[1, 3, 2]",
        place=f"{FEATURE['latitude']}.boundaries",
        says="[1.0, 3.0, 2.0] is not in ascending order; sort it and remove repeats",
    ),
    case(
        f"{FEATURE['latitude']}.boundaries=[1, 2, 2]",
        place=f"{FEATURE['latitude']}.boundaries",
        says="[1.0, 2.0, 2.0] is not in ascending order",
    ),
    case(
        f"{FEATURE['fans_num']}.raw_input_dim=0",
        place=f"{FEATURE['fans_num']}.raw_input_dim",
        says="0 is out of range; give a number from 1 to 8192",
    ),
    case(
        f"{FEATURE['fans_num']}.raw_input_dim=2",
        f"{FEATURE['fans_num']}.separator=,",
        place=f"{FEATURE['fans_num']}.raw_input_dim",
        says="more than one number needs a STRING field, 'fans_num' is not",
    ),
    case(
        f"{FEATURE['city']}=input_names: 'city' feature_type: RawFeature raw_input_dim: 2 separator: ',' boundaries: 1",
        place=f"{FEATURE['city']}.boundaries",
        says="apply to one number, but raw_input_dim is 2",
    ),
    case(
        f"{FEATURE['city']}=input_names: 'city' feature_type: RawFeature raw_input_dim: 2",
        place=f"{FEATURE['city']}.separator",
        says="'|' is also used as data_config.rtp_separator, which splits the line first; choose another character",
    ),
    case(
        f"{FEATURE['fans_num']}.max_val=-1",
        place=f"{FEATURE['fans_num']}.max_val",
        says="-1.0 is not above min_val 0.0; swap or remove them",
    ),
    case(
        f"{FEATURE['billboard_num']}.min_val=3",
        place=f"{FEATURE['billboard_num']}.max_val",
        says="0.0 is not above min_val 3.0",
    ),
    case(
        f"{FEATURE['fans_num']}.embedding_name=numbers",
        place=f"{FEATURE['fans_num']}.embedding_dim",
        says="is 0, so the feature has no table; set it, or remove embedding_name",
    ),
    case(
        f"{FEATURE['fans_num']}.initializer.glorot_normal_initializer=",
        place=f"{FEATURE['fans_num']}.embedding_dim",
        says="is 0, so the feature has no table",
    ),
    case(
        f"{FEATURE['fans_num']}.normalizer_fn=tf.math.sqrt",
        place=f"{FEATURE['fans_num']}.normalizer_fn",
        says="'tf.math.sqrt' is not supported; choose tf.math.log1p, or write an ExprFeature",
    ),
    case(
        f"{FEATURE['fans_num']}.normalizer_fn=tf.math.log1p",
        f"{FEATURE['fans_num']}.numeric_transform=LOG1P",
        place=f"{FEATURE['fans_num']}.normalizer_fn",
        says="numeric_transform is set too; keep one of the two",
    ),
    # ExprFeature
    *(
        case(
            f"{FEATURE['fans_num']}=feature_name: 'fans_num' input_names: ['fans_num', 'level'] "
            f"feature_type: ExprFeature expression: '{expression}' {more}",
            place=f"{FEATURE['fans_num']}.{setting}",
            says=says,
        )
        for expression, more, setting, says in (
            ("", "", "expression", 'is empty; give one over input_names, as in "log1p(clicks) - log1p(shows)"'),
            ("fans_num + levle", "", "expression", "no input name named 'levle'; did you mean 'level'?"),
            ("fans_num", "", "expression", "does not read 'level'; use it, or remove it from input_names"),
            (
                "fans_num + level + visitor_num",
                "",
                "expression",
                "reads 'visitor_num', which is not among input_names; add it there",
            ),
            ("fans_num > level & level > 1", "", "expression", "compares twice; write (a < b) & (b < c)"),
            ("fans_num + level > 1", "raw_input_dim: 2", "raw_input_dim", "has no effect on ExprFeature 'fans_num'"),
            ("fans_num - level", "boundaries: [2, 1]", "boundaries", "[2.0, 1.0] is not in ascending order"),
        )
    ),
    # Categories
    case(
        f"{FEATURE['city']}.embedding_dim=0",
        place=f"{FEATURE['city']}.embedding_dim",
        says="is 0; give the width of the embedding of 'city'",
    ),
    case(
        f'{FEATURE["city"]}.input_names=["city", "os"]',
        place=f"{FEATURE['city']}.input_names",
        says="IdFeature reads one field, not 2",
    ),
    case(
        f"{FEATURE['city']}.feature_type=ComboFeature",
        place=f"{FEATURE['city']}.input_names",
        says="ComboFeature reads 2 to 64 fields, not 1",
    ),
    case(
        f"{FEATURE['city']}=input_names: ['city', 'os', 'province'] feature_type: TagFeature separator: ','"
        " embedding_dim: 8 hash_bucket_size: 9",
        place=f"{FEATURE['city']}.input_names",
        says="TagFeature reads 1 to 2 fields, not 3",
    ),
    case(
        f"{FIELD['city']}.input_type=FLOAT",
        place=f"{FEATURE['city']}.precision",
        says="'city' is a FLOAT; set the digits with which it becomes an id",
    ),
    case(
        f"{FIELD['gender']}=input_name: 'gender' input_type: DOUBLE",
        place=f"{FEATURE['gender']}.precision",
        says="'gender' is a FLOAT; set the digits with which it becomes an id",
    ),
    case(
        f"{FIELD['day_h']}.input_type=FLOAT",
        place=f"{FEATURE['day_h']}.num_buckets",
        says="'day_h' is a FLOAT; an id by num_buckets is an integer",
    ),
    case(
        f"{FEATURE['day_h']}=input_names: 'day_h' feature_type: TagFeature separator: ',' num_buckets: 24"
        " embedding_dim: 8",
        place=f"{FEATURE['day_h']}.input_names",
        says="'day_h' must be a STRING field to hold several tags",
    ),
    case(
        f"{FEATURE['city']}=input_names: ['city', 'day_h'] feature_type: TagFeature separator: ','"
        " embedding_dim: 8 hash_bucket_size: 9",
        place=f"{FEATURE['city']}.input_names",
        says="'day_h' must be a STRING field to hold several weights",
    ),
    *(
        case(
            f"{FEATURE['city']}.feature_type=TagFeature",
            *([] if text.startswith("separator") else [f"{FEATURE['city']}.separator=,"]),
            f"{FEATURE['city']}.{text}",
            place=f"{FEATURE['city']}.{text.partition('=')[0]}",
            says=says,
        )
        for text, says in (
            ("combiner=max", "'max' is unknown; choose mean, sum or sqrtn"),
            ("separator=", "is empty; give the character between values"),
            ("separator=|", "'|' is also used as data_config.rtp_separator"),
            ('separator="\\001"', "'\\x01' is also used as data_config.group_sample_separator"),
            ('separator="\\002"', "'\\x02' is also used as data_config.separator"),
            ("kv_separator=", "is empty; give the character between values"),
            ("kv_separator=,", "',' is also used as separator; change one of them"),
            ("kv_separator=|", "'|' is also used as data_config.rtp_separator"),
        )
    ),
    case(
        f"{FEATURE['city']}=input_names: ['city', 'os'] feature_type: TagFeature separator: ',' kv_separator: ':'"
        " embedding_dim: 8 hash_bucket_size: 9",
        place=f"{FEATURE['city']}.kv_separator",
        says="the second input name holds the weights already; remove one",
    ),
    # LookupFeature
    *(
        case(
            f"{FEATURE['city']}=feature_name: 'city' feature_type: LookupFeature embedding_dim: 8 hash_bucket_size: 9 "
            f"{text}",
            place=f"{FEATURE['city']}.{setting}",
            says=says,
        )
        for text, setting, says in (
            (
                "input_names: 'city' separator: ',' kv_separator: ':'",
                "input_names",
                "LookupFeature reads 2 fields, not 1",
            ),
            (
                "input_names: ['os', 'city'] separator: ','",
                "kv_separator",
                'is missing; give the character between key and value, such as ":"',
            ),
            (
                "input_names: ['os', 'city'] separator: ',' kv_separator: ','",
                "kv_separator",
                "',' is also used as separator; change one of them",
            ),
            (
                "input_names: ['os', 'city'] separator: ',' kv_separator: ':' lookup_max_sel_elem_num: 0",
                "lookup_max_sel_elem_num",
                "0 is out of range; give 1 or more",
            ),
            (
                "input_names: ['visitor_num', 'city'] separator: ',' kv_separator: ':'",
                "input_names",
                "'visitor_num' is a FLOAT; a key is text or a whole number",
            ),
            (
                "input_names: ['city', 'level'] separator: ',' kv_separator: ':'",
                "input_names",
                "'level' must be a STRING field to hold a map",
            ),
            (
                "input_names: ['os', 'city'] separator: ',' kv_separator: ':' combiner: 'max'",
                "combiner",
                "'max' is unknown; choose mean, sum or sqrtn",
            ),
            (
                "input_names: ['os', 'city'] separator: ',' kv_separator: ':' initializer {}",
                "initializer",
                "is empty; choose one of its fields or remove it",
            ),
        )
    ),
    case(
        f"{FEATURE['city']}.hash_bucket_size=0",
        place=FEATURE["city"],
        says="'city' has no number of ids; give one of hash_bucket_size, num_buckets, vocab_list or vocab_file",
    ),
    case(
        f"{FEATURE['city']}.num_buckets=3",
        place=FEATURE["city"],
        says="'city' has hash_bucket_size, num_buckets; give one of",
    ),
    case(
        f"{FEATURE['city']}=input_names: ['city', 'os'] feature_type: ComboFeature embedding_dim: 8",
        place=FEATURE["city"],
        says="'city' has no number of ids; give one of hash_bucket_size",
    ),
    case(
        f"{FEATURE['gender']}.vocab_list=[]",
        f"{FEATURE['gender']}.vocab_file=/nowhere/words.txt",
        place=f"{FEATURE['gender']}.vocab_file",
        says="'/nowhere/words.txt' cannot be read: ",
    ),
    case(
        f'{FEATURE["gender"]}.vocab_list=["M", "F", "M"]',
        place=f"{FEATURE['gender']}.vocab_list",
        says="holds 'M' twice; each value has one row",
    ),
    case(
        f"{FEATURE['city']}.initializer=",
        place=f"{FEATURE['city']}.initializer",
        says="is empty; choose one of its fields or remove it",
    ),
    case(
        f"{FEATURE['city']}.initializer.constant_initializer.consts=[1, 2, 3]",
        place=f"{FEATURE['city']}.initializer.constant_initializer.consts",
        says="has 3 values; give 1 or embedding_dim (16)",
    ),
]


# What EasyRec means by num_buckets of numbers and by seq_multi_sep, where it cannot be meant here.
FEATURE_CASES += [
    case(f"{FEATURE['fans_num']}.{setting}", *others, place=f"{FEATURE['fans_num']}.{place}", says=says)
    for setting, *others, place, says in (
        (
            "feature_name=f", f"{FEATURE['fans_num']}=input_names: 'fans_num' feature_type: RawFeature num_buckets: 9",
            "num_buckets", "needs min_val and max_val, between which it divides the numbers; set them",
        ),
        ("num_buckets=1", "num_buckets", "1 bucket does not divide numbers; give 2 or more, or remove it"),
        ("num_buckets=9", f"{FEATURE['fans_num']}.max_val=-1", "max_val", "-1.0 is not above min_val 0.0"),
        (
            "num_buckets=200000", f"{FEATURE['fans_num']}.max_val=9", "num_buckets",
            "200000 buckets of a number are too many; give 100000 or fewer",
        ),
        (
            "num_buckets=9", f"{FEATURE['fans_num']}.max_val=9", f"{FEATURE['fans_num']}.boundaries=[1]",
            "num_buckets", "has no effect beside boundaries; keep one of the two",
        ),
        (
            "seq_multi_sep=,", "seq_multi_sep",
            "several numbers or vectors in a RawFeature are not supported; read them as a SequenceFeature with",
        ),
    )
]  # fmt: skip


@pytest.mark.parametrize(("changes", "place", "says"), FEATURE_CASES)
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)


# A setting -> a feature of a type that does not use it, and a value.
MISPLACED = {
    "embedding_name": ("img_path", "embedding_name=x"),
    "initializer": ("group_size", "initializer.glorot_normal_initializer="),
    "hash_bucket_size": ("fans_num", "hash_bucket_size=9"),
    "num_buckets": ("img_path", "num_buckets=9"),
    "vocab_list": ("fans_num", "vocab_list=a"),
    "vocab_file": ("fans_num", "vocab_file=a"),
    "precision": ("fans_num", "precision=2"),
    "kv_separator": ("city", "kv_separator=:"),
    "raw_input_dim": ("city", "raw_input_dim=1"),
    "boundaries": ("city", "boundaries=[1, 2]"),
    "min_val": ("city", "min_val=0"),
    "max_val": ("city", "max_val=0"),
    "numeric_transform": ("city", "numeric_transform=LOG1P"),
    "normalizer_fn": ("city", "normalizer_fn=tf.math.log1p"),
    "expression": ("city", "expression=city + 1"),
    "lookup_max_sel_elem_num": ("city", "lookup_max_sel_elem_num=3"),
    "sub_feature_type": ("city", "sub_feature_type=IdFeature"),
    "seq_multi_sep": ("city", "seq_multi_sep=,"),
    "max_seq_len": ("city", "max_seq_len=3"),
    "kept_end": ("city", "kept_end=LAST"),
    "vector_dim": ("city", "vector_dim=4"),
    "vector_store": ("city", "vector_store=lmdb://x"),
    "max_missing_share": ("city", "max_missing_share=0.1"),
    "img_shape": ("city", "img_shape=width: 8 height: 8"),
    "resize_method": ("city", "resize_method=BILINEAR"),
    "antialias": ("group_size", "antialias=true"),
    "per_group": ("group_size", "per_group=true"),
}
KINDS = {"img_path": "ImgFeature", "group_size": "SampleNumFeature", "city": "IdFeature", "fans_num": "RawFeature"}


def settings_of_some_types():
    return [field.name for field in FeatureConfig.DESCRIPTOR.fields if rule_of(field).feature_types]


@pytest.mark.parametrize("setting", settings_of_some_types())
def test_a_setting_without_effect_on_a_type_of_feature(problems, setting):
    name, text = MISPLACED[setting]
    assert problems([f"{FEATURE[name]}.{text}"]) == [
        (f"{FEATURE[name]}.{setting}", f"has no effect on {KINDS[name]} '{name}'; remove it")
    ]
