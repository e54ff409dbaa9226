"""Mistakes in features of vectors and sequences, and in the attention to sequences."""

import pytest
from config_helpers import (
    FEATURE,
    FIELD,
    GROUP,
    NETWORK,
    NO_HIGHWAY,
    NO_IMAGE_GROUP,
    assert_only_problem,
    case,
    second_feature,
)

IDS, NUMBERS = "embedding_dim: 4 hash_bucket_size: 9", "sub_feature_type: RawFeature"
KEYS = "sub_feature_type: VectorFeature"
VECTOR_AND_SEQUENCE_CASES = [
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
                "needs min_val and max_val, between which it divides the numbers; set them",
            ),
            (
                f"separator: ',' {IDS} seq_multi_sep: ':'",
                "seq_multi_sep",
                "several ids in an element of a sequence are not supported; join them to one id, or make",
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


@pytest.mark.parametrize(("changes", "place", "says"), [*VECTOR_AND_SEQUENCE_CASES, *ATTENTION_CASES])
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)
