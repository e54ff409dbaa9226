"""Mistakes in data_config: each is named with its place and what was given."""

import pytest
from config_helpers import DATA, FEATURE, FIELD, assert_only_problem, case

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


@pytest.mark.parametrize(("changes", "place", "says"), DATA_CASES)
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)


def test_a_config_without_fields_or_without_features(problems):
    fields = problems([f"{DATA}.input_fields=[]"])
    assert fields[0][0] == f"{DATA}.input_fields"
    assert fields[0][1].startswith("is empty; list every field of a sample")
    assert problems(["feature_config="]) == [
        ("feature_config.features", "is empty; the model needs features"),
        ("feature_config.features", "has no SampleNumFeature; add one: it names the field of the group size"),
    ]
