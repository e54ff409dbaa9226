"""Mistakes in the features of the picture and the group size, and in groups of features."""

import pytest
from config_helpers import (
    DATA,
    EXPORT,
    FEATURE,
    GROUP,
    MODEL,
    NETWORK,
    NO_HIGHWAY,
    NO_IMAGE_GROUP,
    assert_only_problem,
    case,
    second_feature,
)

# The picture and the group size

PICTURE_CASES = [
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


# Feature groups

GROUP_CASES = [
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
]


@pytest.mark.parametrize(("changes", "place", "says"), [*PICTURE_CASES, *GROUP_CASES])
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)
