"""Tests of every mistake that the checks of a config's meaning find: each names its place and what was given.

A case is what is done to the reference config (overrides as the command line takes them, or edits of the text), the
config path of the problem and a piece of its message. Unless it says otherwise, the problem must be the only one: a
mistake must not drag along messages about its consequences.
"""

from itertools import pairwise

import pytest
from reference import FEATURES, LABELS, reference_config, write_config

from easyrec_mm.config.image import BACKBONE_NAMES
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.config.rules import rule_of
from easyrec_mm.errors import ConfigError
from easyrec_mm.protos.feature_pb2 import FeatureConfig

DATA = "data_config"
MODEL = "model_config"
NETWORK = "model_config.e2e_mm_dbmtl"
TOWERS = f"{NETWORK}.task_towers"
TRAIN = "train_config"
OPTIMIZER = "train_config.optimizer_config[0]"
EXPORT = "export_config"
# The features stand in the order of a sample's values, then the picture and the group size.
FEATURE = {name: f"feature_config.features[{i}]" for i, name in enumerate((*FEATURES, "img_path", "group_size"))}
FIELD = {
    name: f"data_config.input_fields[{i}]" for i, name in enumerate((*LABELS, *FEATURES, "img_path", "group_size"))
}
GROUP = {name: f"model_config.feature_groups[{i}]" for i, name in enumerate(("img", "sample_num", "all"))}


@pytest.fixture
def problems(tmp_path):
    """(place, message) of every problem, when the reference config is loaded with some changes."""

    def run(changes):
        edits = [change for change in changes if isinstance(change, tuple)]
        overrides = [change for change in changes if isinstance(change, str)]
        path = write_config(tmp_path, reference_config(*edits))
        with pytest.raises(ConfigError) as caught:
            load_pipeline(path, overrides)
        lines = str(caught.value).split("\n")
        assert all(line.startswith(f"{path}: ") for line in lines)
        assert all(len(line) < 400 + len(path) for line in lines)
        return [tuple(line.removeprefix(f"{path}: ").split(": ", 1)) for line in lines]

    return run


def case(*changes, place, says):
    return pytest.param(changes, place, says, id=f"{place}: {says}"[:100])


def tower(text):
    return f"{TOWERS}=[{{ tower_name: 'a' label_name: 'like' {text} }}]"


def second_feature(text, name="second"):
    """An edit that puts one more feature before that of the group size."""
    last = '  features: {\n    input_names: "group_size"'
    return last, f'  features: {{ feature_name: "{name}" input_names: "city" {text} }}\n{last}'


def rate(text):
    return f"{OPTIMIZER}=sgd_optimizer {{ learning_rate {{ {text} }} }}"


IDS, NUMBERS = "embedding_dim: 4 hash_bucket_size: 9", "sub_feature_type: RawFeature"
KEYS = "sub_feature_type: VectorFeature"
RATE = f"{OPTIMIZER}.sgd_optimizer.learning_rate"
NO_IMAGE_GROUP = ('  feature_groups {\n    group_name: "img"\n    feature_names: "img_path"\n  }\n', "")
NO_HIGHWAY = ('    highway_dnn {\n      input: "img"\n      emb_size: 16\n    }\n', "")
SGD = "{ sgd_optimizer { learning_rate { constant_learning_rate {} } } }"

# --- data_config

DATA_CASES = [
    case(
        f"{FIELD['city']}.input_name=os",
        f"{FEATURE['city']}.input_names=province",
        f"{FEATURE['city']}.feature_name=city",
        place=f"{FIELD['os']}.input_name",
        says="'os' is listed twice; remove one",
    ),
    case(
        f"{FIELD['day_h']}.default_val=noon",
        place=f"{FIELD['day_h']}.default_val",
        says="'noon' is not a valid INT32; give a number or remove it",
    ),
    case(
        f"{FIELD['fans_num']}.default_val=1.5",
        place=f"{FIELD['fans_num']}.default_val",
        says="'1.5' is not a valid INT64; give a number or remove it",
    ),
    case(
        f"{FIELD['latitude']}.default_val=north",
        place=f"{FIELD['latitude']}.default_val",
        says="'north' is not a valid DOUBLE; give a number or remove it",
    ),
    case(
        f"{FIELD['is_member']}.input_type=BOOL",
        f"{FIELD['is_member']}.default_val=2",
        place=f"{FIELD['is_member']}.default_val",
        says="'2' is not a valid BOOL",
    ),
    case(
        f"{DATA}.label_fields[5]=folow",
        place=f"{DATA}.label_fields[5]",
        says="no input field named 'folow'; did you mean 'follow'?",
    ),
    case(f"{DATA}.label_fields[5]=like", place=f"{DATA}.label_fields[5]", says="'like' is listed twice; remove one"),
    case(
        f"{FIELD['follow']}.input_type=STRING",
        place=f"{DATA}.label_fields[5]",
        says="'follow' is a STRING field; a label is a number, make it INT32 or FLOAT",
    ),
    case(
        ('  selected_cols: "3,4,5,6,7,8,9,11,12"\n', ""),
        place=f"{DATA}.selected_cols",
        says="'' is not a list of column indices from 0; give 6 label column(s) (is_valid_play, play_time, like, "
        "comment, "
        "share, follow), features, image path, group size",
    ),
    case(
        f"{DATA}.selected_cols=3;4;5;6;7;8;9;11;12",
        place=f"{DATA}.selected_cols",
        says="'3;4;5;6;7;8;9;11;12' is not a list of column indices from 0",
    ),
    case(
        f"{DATA}.selected_cols=-1,4,5,6,7,8,9,11,12",
        place=f"{DATA}.selected_cols",
        says="'-1,4,5,6,7,8,9,11,12' is not a list of column indices from 0",
    ),
    case(
        f"{DATA}.selected_cols=3,4,9,11,12",
        place=f"{DATA}.selected_cols",
        says="'3,4,9,11,12' has 5 columns, not 9; give 6 label column(s)",
    ),
    case(
        f"{DATA}.selected_cols=3,4,5,6,7,8,9,11,11",
        place=f"{DATA}.selected_cols",
        says="'3,4,5,6,7,8,9,11,11' names a column twice",
    ),
    case(
        f"{DATA}.separator=|",
        place=f"{DATA}.separator",
        says="'|' is also used as rtp_separator; use different separators",
    ),
    case(
        f"{DATA}.group_sample_separator=|",
        place=f"{DATA}.group_sample_separator",
        says="'|' is also used as rtp_separator",
    ),
    case(
        f"{FEATURE['os']}=input_names: 'os' feature_type: IdFeature num_buckets: 9 embedding_dim: 4",
        f"{FIELD['os']}.default_val=none",
        place=f"{FIELD['os']}.default_val",
        says="'none' does not have the form that the features of 'os' need",
    ),
    # What a copy of a web page leaves of control characters.
    case(
        f"{DATA}.separator=",
        f"{DATA}.group_sample_separator=",
        place=f"{DATA}.group_sample_separator",
        says="is empty; give the character between the parts (if a control character was lost in copying",
    ),
    case(f"{DATA}.rtp_separator=", place=f"{DATA}.rtp_separator", says="is empty; give the character"),
    case(
        f"{DATA}.sample_weight=play_tme",
        place=f"{DATA}.sample_weight",
        says="no input field named 'play_tme'; did you mean 'play_time'?",
    ),
    case(
        f"{DATA}.sample_weight=city",
        place=f"{DATA}.sample_weight",
        says="'city' is a STRING field; a weight is a number, make it FLOAT",
    ),
    case(f"{DATA}.sample_weight=img_path", place=f"{DATA}.sample_weight", says="no input field named 'img_path'"),
    case(f"{DATA}.max_image_pixels=0", place=f"{DATA}.max_image_pixels", says="0 is out of range; give 1 or more"),
    case(f"{DATA}.batch_size=0", place=f"{DATA}.batch_size", says="0 is out of range; give 1 or more"),
    case(f"{DATA}.eval_batch_size=0", place=f"{DATA}.eval_batch_size", says="0 is out of range; give 1 or more"),
    case(
        f"{DATA}.shuffle_buffer_size=0",
        place=f"{DATA}.shuffle_buffer_size",
        says="0 is not a valid size; give 1 or more, or set shuffle: false",
    ),
    case(
        f"{DATA}.max_bad_record_share=1.5",
        place=f"{DATA}.max_bad_record_share",
        says="1.5 is out of range; give a number from 0 to 1",
    ),
    case(
        f"{DATA}.max_bad_record_share=-0.1",
        place=f"{DATA}.max_bad_record_share",
        says="-0.1 is out of range; give a number from 0 to 1",
    ),
]

# --- feature_config

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
        says="0 is out of range; give 1 or more",
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
    # VectorFeature
    *(
        case(
            f"{FEATURE['city']}=input_names: 'city' feature_type: VectorFeature {text}",
            place=f"{FEATURE['city']}.{setting}",
            says=says,
        )
        for text, setting, says in (
            ("", "vector_dim", "is 0; give the number of elements of a vector"),
            ("vector_dim: 4", "separator", "'|' is also used as data_config.rtp_separator"),
            ("vector_dim: 1 embedding_dim: 4", "embedding_dim", "has no effect on a vector, which stays as it is"),
            ("vector_dim: 1 input_names: 'os'", "input_names", "VectorFeature reads one field, not 2"),
            ("vector_dim: 1 embedding_name: 'x'", "embedding_name", "has no effect on VectorFeature 'city'"),
            ("vector_dim: 1 max_missing_share: 0", "max_missing_share", "has no effect without vector_store; set it"),
            (
                "vector_dim: 1 vector_store: 'lmbd://x'",
                "vector_store",
                "'lmbd://x': no store has the scheme 'lmbd://'; did you mean 'lmdb'?",
            ),
            (
                "vector_dim: 1 vector_store: 'x'",
                "vector_store",
                "'x': no store has the scheme '://'; choose one of",
            ),
            (
                "vector_dim: 1 vector_store: 'lmdb://x' max_missing_share: 1.5",
                "max_missing_share",
                "1.5 is out of range; give a number from 0 to 1",
            ),
            ("vector_store: 'lmdb://x'", "vector_dim", "is 0; give the number of elements of a vector"),
        )
    ),
    case(
        f"{FEATURE['level']}=input_names: 'level' feature_type: VectorFeature vector_dim: 3 separator: ','",
        place=f"{FEATURE['level']}.input_names",
        says="'level' must be a STRING field to hold a vector; or set vector_store, if it holds a key",
    ),
    case(
        f"{FEATURE['level']}=input_names: 'level' feature_type: VectorFeature vector_dim: 3 vector_store: 'lmdb://x'",
        f"{FIELD['level']}.input_type=FLOAT",
        place=f"{FEATURE['level']}.input_names",
        says="'level' is a FLOAT; a key is text or a whole number",
    ),
    case(
        second_feature("feature_type: VectorFeature vector_dim: 3 vector_store: 'lmdb://x'", "img_emb"),
        f"{GROUP['all']}.feature_names[0]=img_emb",
        place=f"{FEATURE['group_size']}.feature_name",
        says="'img_emb' needs the name 'img_emb_vector' for an input, but this name is already used; "
        "rename the feature",
    ),
    # SequenceFeature
    *(
        case(
            f"{FEATURE['city']}=input_names: 'city' feature_type: SequenceFeature {text}",
            place=f"{FEATURE['city']}.{setting}",
            says=says,
        )
        for text, setting, says in (
            (f"separator: ',' {IDS} input_names: 'os'", "input_names", "SequenceFeature reads one field, not 2"),
            (IDS, "separator", "'|' is also used as data_config.rtp_separator"),
            (f"separator: ',' {IDS} combiner: 'sqrtn'", "combiner", "'sqrtn' is unknown; choose mean, sum or max"),
            (
                f"separator: ',' {IDS} max_seq_len: 0",
                "max_seq_len",
                "0 is out of range; give 1 or more",
            ),
            (f"separator: ',' {IDS} kept_end: LAST", "kept_end", "has no effect without max_seq_len; set it"),
            (
                f"separator: ',' {IDS} boundaries: 3",
                "boundaries",
                "has no effect on a sequence of IdFeature 'city'; remove it",
            ),
            ("separator: ',' hash_bucket_size: 9", "embedding_dim", "is 0; give the width of the embedding of 'city'"),
            (
                f"separator: ',' {NUMBERS} num_buckets: 3",
                "num_buckets",
                "has no effect on a sequence of RawFeature 'city'",
            ),
            (
                f"separator: ',' {NUMBERS} seq_multi_sep: ':'",
                "seq_multi_sep",
                "has no effect on elements of one number",
            ),
            (f"separator: ',' {NUMBERS} raw_input_dim: 2", "seq_multi_sep", "is missing; give the character between"),
            (
                f"separator: ',' {NUMBERS} raw_input_dim: 2 seq_multi_sep: ','",
                "seq_multi_sep",
                "',' is also used as separator; change one of them",
            ),
            (
                f"separator: ',' {NUMBERS} raw_input_dim: 2 seq_multi_sep: '|'",
                "seq_multi_sep",
                "'|' is also used as data_config.rtp_separator",
            ),
            (
                f"separator: ',' {NUMBERS} raw_input_dim: 2 seq_multi_sep: ':' boundaries: 1",
                "boundaries",
                "apply to one number, but raw_input_dim is 2",
            ),
            (
                f"separator: ',' {KEYS} vector_store: 'lmdb://x' vector_dim: 3 embedding_dim: 4",
                "embedding_dim",
                "has no effect on vectors, which stay as they are; remove it",
            ),
            (
                f"separator: ',' {KEYS} vector_store: 'lmdb://x'",
                "vector_dim",
                "is 0; give the number of elements of a vector",
            ),
            (
                f"separator: ',' {KEYS} vector_dim: 3",
                "vector_store",
                "is missing; name the store of the vectors, or for vectors in the row choose RawFeature with raw_input",
            ),
            (
                f"separator: ',' {KEYS} vector_dim: 3 vector_store: 'file:///x'",
                "vector_store",
                "'file:///x': no store has the scheme 'file://'",
            ),
            (
                f"separator: ',' {KEYS} vector_dim: 3 vector_store: 'lmdb://x' hash_bucket_size: 9",
                "hash_bucket_size",
                "has no effect on",
            ),
            (f"separator: ',' {NUMBERS} vector_dim: 3", "vector_dim", "has no effect on"),
            (
                "separator: ',' sub_feature_type: TagFeature",
                "sub_feature_type",
                "a sequence has no elements of TagFeature; choose IdFeature, RawFeature or VectorFeature",
            ),
        )
    ),
    case(
        f"{FEATURE['day_h']}=input_names: 'day_h' feature_type: SequenceFeature embedding_dim: 4 hash_bucket_size: 9"
        " separator: ','",
        place=f"{FEATURE['day_h']}.input_names",
        says="'day_h' must be a STRING field to hold a sequence",
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
    # The picture and the group size
    case(
        f"{FEATURE['img_path']}=input_names: 'city' feature_name: 'img_path' feature_type: IdFeature embedding_dim: 8"
        " hash_bucket_size: 9",
        NO_HIGHWAY,
        NO_IMAGE_GROUP,
        f"{EXPORT}=",
        place=f"{DATA}.selected_cols",
        says="'3,4,5,6,7,8,9,11,12' has 9 columns, not 8; give 6 label column(s) (",
    ),
    case(
        f"{FEATURE['group_size']}=input_names: 'group_size' feature_type: RawFeature",
        place="feature_config.features",
        says="has no SampleNumFeature; add one: it names the field of the group size",
    ),
    case(
        second_feature("feature_type: ImgFeature img_shape { width: 8 height: 8 }"),
        place="feature_config.features[20]",
        says="a second ImgFeature; a group has one",
    ),
    case(
        second_feature("feature_type: SampleNumFeature"),
        place="feature_config.features[21]",
        says="a second SampleNumFeature; a group has one",
    ),
    case(
        f'{FEATURE["img_path"]}.input_names=["img_path", "city"]',
        place=f"{FEATURE['img_path']}.input_names",
        says="ImgFeature reads one field, not 2",
    ),
    case(
        f'{FEATURE["group_size"]}.input_names=["group_size", "level"]',
        place=f"{FEATURE['group_size']}.input_names",
        says="SampleNumFeature reads one field, not 2",
    ),
    case(
        f"{FEATURE['img_path']}=input_names: 'img_path' feature_type: ImgFeature",
        place=f"{FEATURE['img_path']}.img_shape",
        says="is missing; give width and height in pixels",
    ),
    case(
        f"{FEATURE['img_path']}.img_shape.width=0",
        "export_config=",
        place=f"{FEATURE['img_path']}.img_shape.width",
        says="0 is out of range; give 1 or more",
    ),
    case(
        f"{FEATURE['img_path']}.img_shape.channel=2",
        place=f"{FEATURE['img_path']}.img_shape.channel",
        says="2 is not supported; choose 3 (RGB) or 1 (grey)",
    ),
]

# --- model_config

MODEL_CASES = [
    # Feature groups
    case(
        f"{GROUP['sample_num']}.group_name=img",
        place=f"{GROUP['sample_num']}.group_name",
        says="'img' is listed twice; merge the two groups",
    ),
    case(
        f"{GROUP['img']}.feature_names=[]",
        place=f"{GROUP['img']}.feature_names",
        says="group 'img' names no feature; add one or remove it",
    ),
    case(
        f"{GROUP['all']}.feature_names=[]",
        place=f"{GROUP['all']}.feature_names",
        says="group 'all' names no feature",
    ),
    case(
        f"{GROUP['all']}.feature_names[2]=cty",
        place=f"{GROUP['all']}.feature_names[2]",
        says="no feature named 'cty'; did you mean 'city'?",
    ),
    case(
        f"{GROUP['all']}.feature_names[3]=city",
        place=f"{GROUP['all']}.feature_names[3]",
        says="'city' is listed twice; remove one",
    ),
    case(
        f"{GROUP['all']}.feature_names[3]=img_path",
        place=f"{GROUP['all']}.feature_names[3]",
        says="'img_path' is of type ImgFeature; give it a feature group of its own",
    ),
    case(
        f"{GROUP['all']}.feature_names[3]=group_size",
        place=f"{GROUP['all']}.feature_names[3]",
        says="'group_size' is of type SampleNumFeature; give it a feature group of its own",
    ),
    case(
        f"{MODEL}.feature_groups=[{{ group_name: 'img' feature_names: 'img_path' }}]",
        place=f"{MODEL}.feature_groups",
        says="has no DEEP group; add one that names the features of the network",
    ),
    case(
        f"{GROUP['all']}.wide_deep=WIDE",
        place=f"{MODEL}.feature_groups",
        says="has no DEEP group; add one that names the features of the network",
    ),
    case(
        f"{GROUP['img']}.feature_names=user_auth_type",
        NO_HIGHWAY,
        place=f"{GROUP['all']}.feature_names[14]",
        says="'user_auth_type' is listed twice; remove one",
    ),
    case(
        f"{GROUP['sample_num']}.feature_names=img_path",
        place=f"{GROUP['sample_num']}.feature_names[0]",
        says="'img_path' has a feature group already; remove one",
    ),
    case(
        f"{NETWORK}.highway_dnn.input=image",
        place=f"{NETWORK}.highway_dnn.input",
        says="no image group named 'image'; did you mean 'img'?",
    ),
    case(
        f"{GROUP['img']}.wide_deep=WIDE",
        place=f"{GROUP['img']}.wide_deep",
        says="has no effect in the group of the ImgFeature; remove it",
    ),
    case(
        f"{GROUP['all']}.wide_deep=WIDE_AND_DEEP",
        f"{GROUP['all']}.wide_regularization=-1",
        place=f"{GROUP['all']}.wide_regularization",
        says="-1 is out of range; give 0 or more",
    ),
    case(
        f"{GROUP['all']}.wide_deep=WIDE_AND_DEEP",
        f"{GROUP['all']}.feature_names[2]=seen",
        (
            "feature_config: {",
            'feature_config: { features { feature_name: "seen" input_names: "city" feature_type: SequenceFeature '
            'separator: "," hash_bucket_size: 9 embedding_dim: 4 }',
        ),
        place=f"{GROUP['all']}.feature_names[2]",
        says="'seen' is of type SequenceFeature, which cannot be WIDE; set wide_deep: DEEP",
    ),
    case(
        f"{GROUP['all']}.wide_deep=WIDE_AND_DEEP",
        second_feature("embedding_dim: 4 hash_bucket_size: 9", "city_wide"),
        place=FEATURE["city"],
        says="the wide part of 'city' is named 'city_wide', which is also the name of a feature; rename that feature",
    ),
    case(
        f"{GROUP['all']}.wide_regularization=1",
        place=f"{GROUP['all']}.wide_regularization",
        says="has no effect without wide_deep: WIDE or WIDE_AND_DEEP; set it or remove this",
    ),
    *(
        case(
            NO_IMAGE_GROUP,
            NO_HIGHWAY,
            f"{FEATURE['img_path']}=input_names: 'city' feature_name: 'img_path' hash_bucket_size: 9 embedding_dim: 8",
            f"{DATA}.selected_cols=3,4,5,6,7,8,9,12",
            f"{EXPORT}={setting}",
            place=f"{EXPORT}.{setting.split(':')[0].split(' ')[0]}",
            says="has no effect without an ImgFeature; add one or remove this",
        )
        for setting in ("img_input_name: 'img_path'", "img_shape { width: 224 height: 224 }")
    ),
    case(
        f"{NETWORK}.dot_interaction.dim=0",
        place=f"{NETWORK}.dot_interaction.dim",
        says="0 is out of range; give 1 or more",
    ),
    case(
        f"{NETWORK}.dot_interaction.scale=0",
        place=f"{NETWORK}.dot_interaction.scale",
        says="0 is out of range; give a number above 0",
    ),
    # The network as a whole
    case(
        f"{MODEL}.model_class=DBMTL",
        place=f"{MODEL}.model_class",
        says="no model class named 'DBMTL'; choose one of E2E_MM_DBMTL",
    ),
    case(
        f"{MODEL}=model_class: 'E2E_MM_DBMTL' feature_groups {{ group_name: 'all' feature_names: 'city' }}",
        place=NETWORK,
        says="is missing; it holds the network",
    ),
    case(
        f"{MODEL}.embedding_regularization=-1",
        place=f"{MODEL}.embedding_regularization",
        says="-1 is out of range; give 0 or more",
    ),
    case(
        f"{NETWORK}.l2_regularization=-1",
        place=f"{NETWORK}.l2_regularization",
        says="-1 is out of range; give 0 or more",
    ),
    case(
        NO_IMAGE_GROUP,
        place=f"{NETWORK}.highway_dnn",
        says="has no effect: no feature group of an ImgFeature; add one or remove this",
    ),
    *(
        case(NO_IMAGE_GROUP, NO_HIGHWAY, f"{NETWORK}.{setting}={value}", place=f"{NETWORK}.{setting}", says="no effect")
        for setting, value in (("img_model", ""), ("img_dnn", "hidden_units: 8"), ("image_fusion", "AFTER_BOTTOM"))
    ),
    case(
        f"{NETWORK}.img_model.model_name=ResNett",
        place=f"{NETWORK}.img_model.model_name",
        says="no backbone named 'ResNett'; did you mean 'ResNet-50'?",
    ),
    case(
        f"{NETWORK}.img_model.model_name=vgg16",
        place=f"{NETWORK}.img_model.model_name",
        says=f"no backbone named 'vgg16'; choose one of {', '.join(sorted(BACKBONE_NAMES))}",
    ),
    case(
        f"{NETWORK}.img_model.num_classes=0",
        place=f"{NETWORK}.img_model.num_classes",
        says="0 is not a valid width; give the width of the projection",
    ),
    case(
        f"{NETWORK}.img_dnn.hidden_units=8",
        place=f"{NETWORK}.highway_dnn",
        says="img_dnn is set too; keep one of the two",
    ),
    case(
        f"{NETWORK}.highway_dnn.input=image",
        place=f"{NETWORK}.highway_dnn.input",
        says="no image group named 'image'; did you mean 'img'?",
    ),
    case(
        f"{NETWORK}.highway_dnn.emb_size=0",
        place=f"{NETWORK}.highway_dnn.emb_size",
        says="0 is out of range; give 1 or more",
    ),
    case(
        f"{NETWORK}.expert_dnn.hidden_units=8",
        place=f"{NETWORK}.num_expert",
        says="expert_dnn and num_expert go together; set both or neither",
    ),
    case(f"{NETWORK}.num_expert=3", place=f"{NETWORK}.expert_dnn", says="expert_dnn and num_expert go together"),
    case(f"{NETWORK}.task_towers=[]", place=f"{NETWORK}.task_towers", says="is empty; the model needs a task"),
    # Dense layers, wherever they are
    *(
        case(*changes, f"{dnn}={text}", place=f"{dnn}.{setting}", says=says)
        for dnn, changes in (
            (f"{NETWORK}.bottom_dnn", []),
            (f"{NETWORK}.img_dnn", [NO_HIGHWAY]),
            (f"{NETWORK}.expert_dnn", [f"{NETWORK}.num_expert=2"]),
            (f"{TOWERS}[0].dnn", []),
            (f"{TOWERS}[1].relation_dnn", []),
        )
        for text, setting, says in (
            ("use_bn: true", "hidden_units", "is empty; give the units of each layer, or remove this network"),
            ("hidden_units: [8, 0]", "hidden_units[1]", "0 is out of range; give 1 or more"),
            (
                "hidden_units: [8, 4] dropout_ratio: 0.1",
                "dropout_ratio",
                "has 1 values for 2 layers; give one a layer, or none",
            ),
            (
                "hidden_units: 8 dropout_ratio: 1",
                "dropout_ratio[0]",
                "1 is out of range; give a number from 0 to below 1",
            ),
            (
                "hidden_units: 8 dropout_ratio: -0.5",
                "dropout_ratio[0]",
                "-0.5 is out of range; give a number from 0 to below 1",
            ),
            ("hidden_units: 8 activation: 'tf.nn.rellu'", "activation", "no activation named 'tf.nn.rellu'; "),
        )
    ),
    # Towers
    case(
        f"{TOWERS}[0].label_name=is_valid_pay",
        place=f"{TOWERS}[0].label_name",
        says="no label named 'is_valid_pay'; did you mean 'is_valid_play'?",
    ),
    case(
        f"{TOWERS}[1].tower_name=is_valid_play",
        f"{TOWERS}[1].relation_tower_names=[]",
        place=f"{TOWERS}[1].tower_name",
        says="a second tower named 'is_valid_play'; rename one",
    ),
    case(
        f"{TOWERS}[1].tower_name=play time",
        place=f"{TOWERS}[1].tower_name",
        says="'play time' is not a valid name; use letters, digits and _",
    ),
    case(f"{TOWERS}[1].tower_name=", place=f"{TOWERS}[1].tower_name", says="'' is not a valid name"),
    case(
        f"{TOWERS}[1].relation_tower_names=is_valid_ply",
        place=f"{TOWERS}[1].relation_tower_names",
        says="no tower named 'is_valid_ply'; did you mean 'is_valid_play'?",
    ),
    case(
        f"{TOWERS}[1].relation_tower_names=play_time",
        place=f"{TOWERS}[1].relation_tower_names",
        says="'play_time' is the tower itself; name another",
    ),
    case(
        f"{TOWERS}[0].relation_tower_names=play_time",
        place=TOWERS,
        says="relation_tower_names form a cycle: ",
    ),
    *(
        case(f"{TOWERS}[1].{name}=-1", *changes, place=f"{TOWERS}[1].{name}", says="-1 is out of range; give 0 or more")
        for name, changes in (
            ("weight", []),
            ("in_task_space_weight", [f"{TOWERS}[1].task_space_indicator_label=like"]),
            ("out_task_space_weight", [f"{TOWERS}[1].task_space_indicator_label=like"]),
        )
    ),
    *(
        case(
            f"{TOWERS}[1].{name}=2",
            place=f"{TOWERS}[1].{name}",
            says="has no effect without task_space_indicator_label; set it or remove this",
        )
        for name in ("in_task_space_weight", "out_task_space_weight")
    ),
    case(
        f"{TOWERS}[1].task_space_indicator_label=likes",
        place=f"{TOWERS}[1].task_space_indicator_label",
        says="no label named 'likes'; did you mean 'like'?",
    ),
    # Losses and classes
    case(
        tower("losses { loss_type: L2_LOSS weight: -1 }"),
        place=f"{TOWERS}[0].losses[0].weight",
        says="-1 is out of range; give 0 or more",
    ),
    case(
        tower("losses { loss_type: CLASSIFICATION binary_focal_loss {} }"),
        place=f"{TOWERS}[0].losses[0].binary_focal_loss",
        says="has no effect without loss_type: BINARY_FOCAL_LOSS; set it",
    ),
    case(
        tower("loss_type: L2_LOSS losses { loss_type: SIGMOID_L2_LOSS }"),
        place=f"{TOWERS}[0].loss_type",
        says="has no effect beside losses; remove it",
    ),
    case(
        tower("losses { loss_type: CLASSIFICATION } losses { loss_type: L2_LOSS }"),
        place=f"{TOWERS}[0].losses[1].loss_type",
        says="L2_LOSS needs another output than CLASSIFICATION; a tower has one, split it in two towers",
    ),
    case(tower("num_class: 0"), place=f"{TOWERS}[0].num_class", says="0 is out of range; give 1 or more"),
    *(
        case(tower(f"num_class: 3 {losses}"), place=f"{TOWERS}[0].num_class", says="3 classes go with CLASSIFICATION")
        for losses in (
            "loss_type: L2_LOSS",
            "loss_type: BINARY_FOCAL_LOSS",
            "losses { loss_type: CLASSIFICATION } losses { loss_type: BINARY_FOCAL_LOSS }",
        )
    ),
]

# --- sequence_features

SEQUENCE = 'feature_type: SequenceFeature separator: "," embedding_dim: 16 hash_bucket_size: 100'
OTHER_SEQUENCES = "".join(
    f'  features {{ feature_name: "{name}" input_names: "{field}" {SEQUENCE} {more} }}\n'
    for name, field, more in (("seen", "familyid", ""), ("seen_8", "city", "max_seq_len: 8"))
)


def attention(text, name='group_name: "din"', groups=""):
    """Edits that add sequences, and an attention to group "all"."""
    return [
        ("feature_config: {\n", f"feature_config: {{\n{OTHER_SEQUENCES}"),
        ("    wide_deep: DEEP\n", f"    wide_deep: DEEP\n    sequence_features {{ {name} {text} }}\n{groups}"),
    ]


ATTENTION = "model_config.feature_groups[2].sequence_features[0]"
GOOD_MAP = 'seq_att_map { key: "city" hist_seq: "seen" }'
ATTENTION_CASES = [
    case(
        *attention(GOOD_MAP, ""),
        place=f"{ATTENTION}.group_name",
        says="'' is not a valid name; use letters, digits and _",
    ),
    case(
        *attention(GOOD_MAP, groups=f'    sequence_features {{ group_name: "din" {GOOD_MAP} }}\n'),
        place="model_config.feature_groups[2].sequence_features[1].group_name",
        says="'din' is listed twice; rename one",
    ),
    case(*attention(""), place=f"{ATTENTION}.seq_att_map", says="is empty; name the keys and the sequences"),
    *(
        case(*attention(f"seq_att_map {{ {text} }}"), place=f"{ATTENTION}.{place}", says=says)
        for text, place, says in (
            ('hist_seq: "seen"', "seq_att_map[0].key", "is empty; name a feature"),
            ('key: "city"', "seq_att_map[0].hist_seq", "is empty; name a feature"),
            ('key: "cty" hist_seq: "seen"', "seq_att_map[0].key", "no feature named 'cty'; did you mean 'city'?"),
            ('key: "city" hist_seq: "sen"', "seq_att_map[0].hist_seq", "no feature named 'sen'; did you mean 'seen'?"),
            (
                'key: "city" hist_seq: "os"',
                "seq_att_map[0].hist_seq",
                "'os' is a IdFeature; name a SequenceFeature",
            ),
            (
                'key: "seen" hist_seq: "seen"',
                "seq_att_map[0].key",
                "'seen' is a SequenceFeature; a key must be a feature with one vector per sample",
            ),
            (
                'key: "group_size" hist_seq: "seen"',
                "seq_att_map[0].key",
                "'group_size' is a SampleNumFeature; a key must be",
            ),
            (
                'key: ["city", "fans_num"] hist_seq: "seen"',
                "seq_att_map",
                "keys city (16) + fans_num (1) have 17 numbers, sequences seen (16) have 16; make them equal",
            ),
            (
                'key: ["city", "os"] hist_seq: ["seen", "seen_8"]',
                "seq_att_map",
                "'seen_8' and 'seen' differ in max_seq_len or kept_end",
            ),
        )
    ),
    case(
        *attention(GOOD_MAP),
        f'{GROUP["all"]}.feature_names=["os", "level"]',
        place=f"{ATTENTION}.seq_att_map[0].key",
        says="'city' is not in group 'all'; add it there or set allow_key_search: true",
    ),
    case(
        *attention('seq_att_map { key: "img_path" hist_seq: "seen" }'),
        NO_IMAGE_GROUP,
        NO_HIGHWAY,
        place="model_config.feature_groups[1].sequence_features[0].seq_att_map[0].key",
        says="'img_path' needs the image tower: no feature group of an ImgFeature; add one",
    ),
    case(
        *attention('seq_att_map { key: "img_path" hist_seq: "seen" }'),
        f"{NETWORK}.highway_dnn.emb_size=8",
        place=f"{ATTENTION}.seq_att_map",
        says="keys img_path (8) have 8 numbers, sequences seen (16) have 16; make them equal",
    ),
    case(
        *attention(GOOD_MAP)[:1],
        ('    feature_names: "img_path"\n', f'    feature_names: "img_path" sequence_features {{ {GOOD_MAP} }}\n'),
        place=f"{GROUP['img']}.sequence_features",
        says="has no effect in the group of the ImgFeature; move it to another",
    ),
    *(
        case(*attention(f"{GOOD_MAP} seq_dnn {{ {text} }}"), place=f"{ATTENTION}.seq_dnn.{setting}", says=says)
        for text, setting, says in (
            ("use_bn: true", "hidden_units", "is empty; give the units of each layer"),
            (
                "hidden_units: [8, 4]",
                "hidden_units",
                "[8, 4] ends in 4; the last layer is the score and must have 1 unit; append 1",
            ),
            ("hidden_units: [8, 1] dropout_ratio: 0.1", "dropout_ratio", "has 1 values for 2 layers"),
        )
    ),
]

# --- metrics_set of towers and of eval_config

METRIC_CASES = [
    case(
        f"{TOWERS}[1].metrics_set[0].auc=",
        place=f"{TOWERS}[1].metrics_set[0]",
        says="auc does not apply to tower 'play_time' (value); choose from calibration, mean_absolute_error, ",
    ),
    case(
        tower("num_class: 3 metrics_set { auc {} }"),
        place=f"{TOWERS}[0].metrics_set[0]",
        says="auc does not apply to tower 'a' (multiclass); choose from accuracy, log_loss",
    ),
    *(
        case(f"{metrics}[0]{change}", place=f"{metrics}[0]{place}", says=says)
        for metrics in (f"{TOWERS}[0].metrics_set", "eval_config.metrics_set")
        for change, place, says in (
            ("=", "", "is empty; choose one of auc, gauc, log_loss, "),
            (".gauc.uid_field=familyd", ".gauc.uid_field", "no input field named 'familyd'; did you mean 'familyid'?"),
            (
                "=gauc { uid_field: 'familyid' reduction: 'men' }",
                ".gauc.reduction",
                "no reduction named 'men'; did you mean 'mean'?",
            ),
            (".ece.num_bins=0", ".ece.num_bins", "0 is out of range; give 1 or more"),
            (".calibration_curve.num_bins=0", ".calibration_curve.num_bins", "0 is out of range; give 1 or more"),
            (
                ".calibration_curve.strategy=quantil",
                ".calibration_curve.strategy",
                "no strategy named 'quantil'; did you mean 'quantile'?",
            ),
            (
                "=recall_at_topk { session_id_field: 'familyid' topk: 0 }",
                ".recall_at_topk.topk",
                "0 is out of range; give 1 or more",
            ),
            (
                "=session_auc { session_id_field: 'familyid' reduction: 'men' }",
                ".session_auc.reduction",
                "no reduction named 'men'; did you mean 'mean'?",
            ),
            *(
                (
                    f".{kind}.session_id_field=famlyid",
                    f".{kind}.session_id_field",
                    "no input field named 'famlyid'; did",
                )
                for kind in ("session_auc", "ndcg", "recall_at_topk", "hit_rate")
            ),
        )
    ),
    case(
        f"{TOWERS}[0].metrics_set=[{{gauc {{uid_field: 'familyid'}}}}, {{gauc {{uid_field: 'city'}}}}]",
        place=f"{TOWERS}[0].metrics_set[1]",
        says="a second metric that would be called gauc_is_valid_play; remove one of the two",
    ),
]

# --- eval_config

EVALUATION = "eval_config"


def evaluation_case(setting, place, says, *changes):
    return case(*changes, f"{EVALUATION}.{setting}", place=f"{EVALUATION}.{place}", says=says)


EVALUATION_CASES = [
    evaluation_case(
        "item_id_field=famlyid", "item_id_field", "no input field named 'famlyid'; did you mean 'familyid'"
    ),
    evaluation_case("max_memory_mib=0", "max_memory_mib", "0 is out of range; give 1 or more"),
    evaluation_case(
        "bootstrap.cluster_field=famlyid", "bootstrap.cluster_field", "no input field named 'famlyid'; did"
    ),
    evaluation_case("bootstrap.level=1", "bootstrap.level", "1 is out of range; give a number between 0 and 1"),
    evaluation_case(
        "bootstrap.num_replicates=30",
        "bootstrap.num_replicates",
        "30 are too few for intervals of level 0.95; give 40 or more, or 0 for no intervals",
    ),
    *(
        evaluation_case(f"slices=[{{{text}}}]", f"slices[0]{place}", says)
        for text, place, says in (
            ("", "", "does not say what to slice by; set one of field, item_frequency, group_size, has_picture"),
            ("field: 'famlyid'", ".field", "no input field named 'famlyid'; did you mean 'familyid'?"),
            ("field: 'city' max_values: 0", ".max_values", "0 is out of range; give 1 or more"),
            ("field: 'city' num_quantiles: 3", ".num_quantiles", "'city' is text and has no quantiles; remove it"),
            (
                "field: 'level' num_quantiles: 3 max_values: 2",
                ".max_values",
                "applies only to a field without num_quantiles",
            ),
            ("has_picture {} num_quantiles: 3", ".num_quantiles", "has no effect on has_picture; remove it"),
            ("item_frequency {frequent_from: 1}", ".item_frequency.frequent_from", "1 is out of range; give 2 or more"),
        )
    ),
    evaluation_case("slices=[{field: 'city'}, {field: 'city'}]", "slices[1]", "a second slice by city; remove one"),
    evaluation_case(
        "slices=[{item_frequency {}}]",
        "slices[0].item_frequency",
        "needs the training data to count items in; set train_input_path",
        "train_input_path=",
    ),
]

# --- train_config and export_config

TRAIN_CASES = [
    case(
        f"{TRAIN}.num_epochs=2",
        place=f"{TRAIN}.num_epochs",
        says="2, but data_config.num_epochs is 1",
    ),
    case(
        f"{TRAIN}.optimizer_config=[]",
        place=f"{TRAIN}.optimizer_config",
        says="is missing; choose an optimizer and its learning rate",
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}, {SGD}, {SGD}]",
        place=f"{TRAIN}.optimizer_config",
        says="has 4 entries without `variables`; give 1 (all), 2 (embeddings, rest) or 3 (embeddings, dense, image "
        "tower)",
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}]",
        f"{GROUP['all']}.feature_names=fans_num",
        place=f"{TRAIN}.optimizer_config[0]",
        says="is for embedding tables and the model has none; remove it",
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}, {SGD}]",
        NO_IMAGE_GROUP,
        NO_HIGHWAY,
        place=f"{TRAIN}.optimizer_config[2]",
        says="is for the image tower and the model has none; remove it",
    ),
    case(f"{OPTIMIZER}=", place=OPTIMIZER, says="names no optimizer; choose adam_optimizer, adagrad_optimizer, ..."),
    case("model_dir=", place="model_dir", says="is empty; name a folder"),
    case(
        f"{OPTIMIZER}.embedding_learning_rate_multiplier=-0.5",
        place=f"{OPTIMIZER}.embedding_learning_rate_multiplier",
        says="-0.5 is out of range; give 0 or more",
    ),
    *(
        case(
            f"{OPTIMIZER}.use_moving_average=true",
            f"{OPTIMIZER}.moving_average_decay={decay}",
            place=f"{OPTIMIZER}.moving_average_decay",
            says=f"{decay} is not between 0 and 1",
        )
        for decay in (0, 1)
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}]",
        f"{OPTIMIZER}.use_moving_average=true",
        place=f"{TRAIN}.optimizer_config",
        says="use_moving_average or moving_average_decay differs between optimizers; make them equal, because the",
    ),
    case(
        f'{TRAIN}.freeze_gradient=["ok", "image/("]',
        place=f"{TRAIN}.freeze_gradient[1]",
        says="'image/(' is not a valid regular expression: ",
    ),
    *(
        case(f"{TRAIN}.{name}=0", place=f"{TRAIN}.{name}", says="0 is out of range; give 1 or more")
        for name in ("save_checkpoints_steps", "keep_checkpoint_max", "log_step_count_steps", "save_summary_steps")
    ),
    case(
        f"{TRAIN}.gradient_clipping_by_norm=-1",
        place=f"{TRAIN}.gradient_clipping_by_norm",
        says="-1 is out of range; give 0 or more",
    ),
    case(
        f"{TRAIN}.sync_replicas=false",
        place=f"{TRAIN}.sync_replicas",
        says="false is not supported: training is synchronous; remove it",
    ),
    case(
        f"{TRAIN}.fine_tune_ckpt_var_map=names.txt",
        place=f"{TRAIN}.fine_tune_ckpt_var_map",
        says="has no effect without fine_tune_checkpoint; set it",
    ),
    # Learning rates
    case(rate(""), place=RATE, says="is empty; choose constant_learning_rate, exponential_decay_learning_rate, ..."),
    *(
        case(rate(f"{kind} {{ {text} }}"), place=f"{RATE}.{kind}.{setting}", says=says)
        for kind, text, setting, says in (
            ("constant_learning_rate", "learning_rate: 0", "learning_rate", "0 is out of range; give a number above 0"),
            (
                "exponential_decay_learning_rate",
                "initial_learning_rate: -0.1",
                "initial_learning_rate",
                "-0.1 is out of range; give a number above 0",
            ),
            ("exponential_decay_learning_rate", "decay_steps: 0", "decay_steps", "0 is out of range; give 1 or more"),
            (
                "exponential_decay_learning_rate",
                "burnin_learning_rate: 0.1",
                "burnin_steps",
                "is 0, so burnin_learning_rate has no effect; set both or neither",
            ),
            (
                "manual_step_learning_rate",
                "initial_learning_rate: 0 schedule { step: 1 }",
                "initial_learning_rate",
                "0 is out of range; give a number above 0",
            ),
            ("manual_step_learning_rate", "", "schedule", "steps [] must begin above 0 and ascend"),
            (
                "manual_step_learning_rate",
                "schedule { step: 0 }",
                "schedule",
                "steps [0] must begin above 0 and ascend",
            ),
            (
                "manual_step_learning_rate",
                "schedule { step: 2 } schedule { step: 2 }",
                "schedule",
                "steps [2, 2] must begin above 0 and ascend",
            ),
            (
                "cosine_decay_learning_rate",
                "learning_rate_base: 0",
                "learning_rate_base",
                "0 is out of range; give a number above 0",
            ),
            (
                "cosine_decay_learning_rate",
                "total_steps: 110 warmup_steps: 100 hold_base_rate_steps: 10",
                "total_steps",
                "110 leaves no step after warmup_steps (100) and hold_base_rate_steps (10); raise it or lower them",
            ),
            (
                "poly_decay_learning_rate",
                "learning_rate_base: 1 total_steps: -5 power: 1",
                "total_steps",
                "-5 is out of range; give 0 or more",
            ),
            (
                "poly_decay_learning_rate",
                "learning_rate_base: 1 total_steps: 5 power: 1 warmup_steps: 5",
                "total_steps",
                "5 leaves no step after warmup_steps (5); raise it",
            ),
        )
    ),
    case(
        f"{RATE}=cosine_decay_learning_rate {{}}",
        f"{TRAIN}.num_steps=0",
        "data_config.num_epochs=0",
        place=f"{RATE}.cosine_decay_learning_rate.total_steps",
        says="is not set, and the training has no end; set num_epochs, num_steps or total_steps",
    ),
    # The best checkpoint
    case(
        f"{EXPORT}.early_stop_patience=2",
        place=f"{EXPORT}.early_stop_patience",
        says="has no effect without enable_early_stop: true; set it or remove this",
    ),
    case(
        f"{EXPORT}.best_exporter_threshold=0.5",
        place=f"{EXPORT}.best_exporter_threshold",
        says='has no effect without exporter_type: "best" or enable_early_stop: true',
    ),
    case(
        f"{EXPORT}.enable_early_stop=true",
        "eval_input_path=",
        place=f"{EXPORT}.enable_early_stop",
        says="needs evaluation data; set eval_input_path",
    ),
    case(
        f"{EXPORT}.exporter_type=best",
        "eval_input_path=",
        place=f"{EXPORT}.exporter_type",
        says="needs evaluation data; set eval_input_path",
    ),
    *(
        case(f"{EXPORT}.enable_early_stop=true", f"{EXPORT}.{name}={value}", place=f"{EXPORT}.{name}", says=says)
        for name, value, says in (
            ("max_check_steps", 0, "0 is out of range; give 1 or more"),
            ("early_stop_min_delta", -0.1, "-0.1 is out of range; give 0 or more"),
            ("best_exporter_metric", "auc_is_valid_ply", "did you mean 'auc_is_valid_play'?"),
            ("best_exporter_metric", "accuracy", "no metric of the evaluation named 'accuracy'; choose one of auc, "),
        )
    ),
    *(
        case(
            f"{EXPORT}.exporter_type=best",
            f"{EXPORT}.best_exporter_metric={metric}",
            f"{EXPORT}.metric_bigger={is_bigger}",
            place=f"{EXPORT}.metric_bigger",
            says=f"{is_bigger}, but {better} values of {name} are better; remove it",
        )
        for metric, name, is_bigger, better in (
            ("auc", "auc_is_valid_play", "false", "larger"),
            ("mean_squared_error", "mean_squared_error_play_time", "true", "smaller"),
        )
    ),
    case(
        f"{EXPORT}.exporter_type=best",
        "eval_config.metrics_set=[{ calibration {} }]",
        f"{EXPORT}.best_exporter_metric=calibration",
        place=f"{EXPORT}.best_exporter_metric",
        says="calibration_is_valid_play cannot rank checkpoints, because neither larger nor smaller values of it are "
        "better; choose a metric such as log_loss",
    ),
    # Export
    case(
        f"{EXPORT}.multi_placeholder=false",
        place=f"{EXPORT}.multi_placeholder",
        says="false is not supported: inputs are named by field; remove it",
    ),
    case(
        f"{EXPORT}.img_input_name=image_path",
        place=f"{EXPORT}.img_input_name",
        says="no image field named 'image_path'; did you mean 'img_path'?",
    ),
    *(
        case(
            f"{EXPORT}.img_shape.{name}={value}",
            place=f"{EXPORT}.img_shape",
            says=f"{shape}, but the ImgFeature has 224 x 224 x 3; make them equal",
        )
        for name, value, shape in (
            ("width", 64, "64 x 224 x 3"),
            ("height", 64, "224 x 64 x 3"),
            ("channel", 1, "224 x 224 x 1"),
        )
    ),
]


@pytest.mark.parametrize(
    ("changes", "place", "says"),
    [*DATA_CASES, *FEATURE_CASES, *MODEL_CASES, *ATTENTION_CASES, *METRIC_CASES, *EVALUATION_CASES, *TRAIN_CASES],
)
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    ((found_place, message),) = problems(changes)
    assert found_place == place
    assert says in message


# A setting -> a feature of a type that does not use it, and a value.
MISPLACED = {
    "embedding_name": ("img_path", "embedding_name=x"),
    "initializer": ("group_size", "initializer.glorot_normal_initializer="),
    "hash_bucket_size": ("fans_num", "hash_bucket_size=9"),
    "num_buckets": ("fans_num", "num_buckets=9"),
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


def test_several_mistakes_of_one_stage_are_named_together(problems):
    found = problems(
        [
            f"{DATA}.batch_size=0",
            f"{NETWORK}.highway_dnn.emb_size=0",
            f"{TRAIN}.sync_replicas=false",
            f"{EXPORT}.multi_placeholder=false",
            "eval_config.metrics_set[0].ece.num_bins=0",
        ]
    )
    assert [place for place, _ in found] == [
        f"{DATA}.batch_size",
        f"{NETWORK}.highway_dnn.emb_size",
        "eval_config.metrics_set[0].ece.num_bins",
        f"{TRAIN}.sync_replicas",
        f"{EXPORT}.multi_placeholder",
    ]


def test_a_circle_of_relations_names_its_towers_in_their_order(problems):
    towers = [
        f"{{ tower_name: '{name}' label_name: 'like' relation_tower_names: '{seen}' }}"
        for name, seen in ("ab", "bc", "ca")
    ]
    ((place, message),) = problems([f"{TOWERS}=[{', '.join(towers)}]"])
    assert place == TOWERS
    circle = message.split(": ")[1].split(";")[0].split(" -> ")
    assert sorted(circle[:-1]) == ["a", "b", "c"]
    assert circle[0] == circle[-1]
    sees = {"a": "b", "b": "c", "c": "a"}
    assert all(sees[tower] == other for tower, other in pairwise(circle))


def test_a_config_without_fields_or_without_features(problems):
    fields = problems([f"{DATA}.input_fields=[]"])
    assert fields[0][0] == f"{DATA}.input_fields"
    assert fields[0][1].startswith("is empty; list every field of a sample")
    assert problems(["feature_config="]) == [
        ("feature_config.features", "is empty; the model needs features"),
        ("feature_config.features", "has no SampleNumFeature; add one: it names the field of the group size"),
    ]
