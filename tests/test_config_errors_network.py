"""Mistakes in the network: its parts, dense layers, towers, losses and classes."""

from itertools import pairwise

import pytest
from config_helpers import MODEL, NETWORK, NO_HIGHWAY, NO_IMAGE_GROUP, TOWERS, assert_only_problem, case, tower

from easyrec_mm.config.image import BACKBONE_NAMES

NETWORK_CASES = [
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


@pytest.mark.parametrize(("changes", "place", "says"), NETWORK_CASES)
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)


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
