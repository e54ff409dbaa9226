"""Mistakes in losses on image vectors, and in features that are read once a picture."""

import pytest
from config_helpers import (
    ALL_GROUP,
    FAMILY_PER_GROUP,
    FEATURE,
    IMAGE,
    ITEM,
    LOSS,
    TOWERS,
    assert_only_problem,
    case,
    contrastive,
    loss,
)

# Features read once a picture: the setting that names one, and the overrides that do.
PER_IMAGE = [
    (f"{IMAGE}.category_feature", lambda name: f"{IMAGE}.category_feature={name}"),
    (ITEM, lambda name: contrastive(name=name)),
]
FEATURE_CASES = [
    *(
        case(
            *changes,
            override(name),
            place=place,
            says=says,
        )
        for place, override in PER_IMAGE
        for name, changes, says in (
            ("familyid", [], "'familyid' may differ within a group; set per_group: true on it"),
            ("famlyid", [FAMILY_PER_GROUP], "no feature named 'famlyid'; did you mean 'familyid'?"),
            (
                "day_h",
                [f"{FEATURE['day_h']}=input_names: 'day_h' feature_type: RawFeature per_group: true"],
                "'day_h' is a RawFeature; name an IdFeature or ComboFeature",
            ),
            (
                "city",
                [
                    f"{FEATURE['city']}=input_names: 'city' feature_type: TagFeature separator: ',' embedding_dim: 8 "
                    "hash_bucket_size: 9 per_group: true"
                ],
                "'city' is a TagFeature; name an IdFeature or ComboFeature",
            ),
        )
    ),
    # The contrastive loss compares with the embedding that the model has of the item.
    case(
        FAMILY_PER_GROUP,
        contrastive(),
        f"{ALL_GROUP}.feature_names=['city', 'province']",
        place=ITEM,
        says="'familyid' is in no DEEP feature group; add it to one",
    ),
    case(
        f"{IMAGE}.category_attention=EACH_BLOCK",
        place=f"{IMAGE}.category_attention",
        says="has no effect without category_feature; set it or remove this",
    ),
]
LOSS_CASES = [
    case(
        loss(""),
        place=LOSS,
        says="does not set a loss; choose one of softmax, arcface, cosface, multi_similarity, contra",
    ),
    *(
        case(
            loss(f"softmax {{}} weight: {value}"),
            place=f"{LOSS}.weight",
            says=f"{value} is out of range; give a number above 0",
        )
        for value in ("0", "-1", "nan")
    ),
    *(
        case(
            loss("softmax {}", f"{label} num_class: 3"),
            place=f"{LOSS}.label_name",
            says=says,
        )
        for label, says in (
            ("label_name: 'folow'", "no label named 'folow'; did you mean 'follow'?"),
            ("label_name: 'city'", "no label named 'city'; choose one of comment, follow, is_valid_play, like, "),
            ("", "no label named ''; choose one of comment, "),
        )
    ),
    *(
        case(
            loss("arcface {}", f"label_name: 'like' {text}"),
            place=f"{LOSS}.num_class",
            says=f"{value} classes are too few; give 2 or more",
        )
        for text, value in (("", 0), ("num_class: 1", 1))
    ),
    *(
        case(loss(f"{kind} {{ {name}: {value} }}"), place=f"{LOSS}.{kind}.{name}", says=f"{value} {says}")
        for kind, name, value, says in (
            ("arcface", "scale", "0", "is out of range; give a number above 0"),
            ("arcface", "margin", "-0.1", "is out of range; give 0 or more"),
            ("cosface", "scale", "-3", "is out of range; give a number above 0"),
            ("cosface", "margin", "-1", "is out of range; give 0 or more"),
            ("cosface", "rarity_power", "-0.25", "is out of range; give 0 or more"),
            ("multi_similarity", "alpha", "0", "is out of range; give a number above 0"),
            ("multi_similarity", "beta", "-1", "is out of range; give a number above 0"),
            ("multi_similarity", "epsilon", "-0.1", "is out of range; give 0 or more"),
        )
    ),
    *(
        case(
            FAMILY_PER_GROUP,
            contrastive(f"temperature: {value}"),
            place=f"{LOSS}.contrastive.temperature",
            says=f"{value} is out of range; give a number above 0",
        )
        for value in ("0", "-0.1")
    ),
    *(
        case(
            FAMILY_PER_GROUP,
            loss("contrastive { item_feature: 'familyid' }", text),
            place=f"{LOSS}.{name}",
            says="has no effect on contrastive, which compares items; remove it",
        )
        for name, text in (("label_name", "label_name: 'like'"), ("num_class", "num_class: 3"))
    ),
    case(f"{IMAGE}.img_loss_weight=-1", place=f"{IMAGE}.img_loss_weight", says="-1 is out of range; give 0 or more"),
    case(
        f"{IMAGE}.img_loss_weight=0.5",
        place=f"{IMAGE}.img_loss_weight",
        says="needs a label field 'cate_label'; add it, or use image_losses",
    ),
    # A label has one number of classes.
    case(
        f"{IMAGE}.image_losses=[{{ label_name: 'like' num_class: 3 softmax {{}} }}, "
        "{ label_name: 'like' num_class: 4 arcface {} }]",
        place=f"{IMAGE}.image_losses[1].num_class",
        says="4, but 'like' has 3 elsewhere; make them equal",
    ),
    case(
        f"{TOWERS}[1].label_name=like",
        f"{TOWERS}[1].loss_type=CLASSIFICATION",
        f"{TOWERS}[1].num_class=5",
        f"{TOWERS}[1].metrics_set=[]",
        loss("softmax {}"),
        place=f"{LOSS}.num_class",
        says="3, but 'like' has 5 elsewhere; make them equal",
    ),
]


@pytest.mark.parametrize(("changes", "place", "says"), [*FEATURE_CASES, *LOSS_CASES])
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)
