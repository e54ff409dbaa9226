"""Mistakes in `img_model`: backbones, what is trained, pictures and what is computed."""

import pytest
from config_helpers import CATE_LABEL, FAMILY_PER_GROUP, IMAGE, SGD, TRAIN, assert_only_problem, case, loss, size

from easyrec_mm.protos.image_pb2 import Augmentation

BACKBONE_CASES = [
    case(
        f"{IMAGE}.model_name=ResNet-34",
        f"{IMAGE}.preset=resnet_34_imagenet",
        place=f"{IMAGE}.model_name",
        says="has no effect beside preset; keep one of the two",
    ),
    case(
        f"{IMAGE}.feature_layer=stack2_block1_out",
        f"{IMAGE}.min_map_size=4",
        place=f"{IMAGE}.min_map_size",
        says="has no effect beside feature_layer; keep one of the two",
    ),
    case(
        f"{IMAGE}.model_name=ConvNeXt-Tny",
        place=f"{IMAGE}.model_name",
        says="no backbone named 'ConvNeXt-Tny'; did you mean 'ConvNeXt-Tiny'?",
    ),
    case(
        *size(40, 32),
        f"{IMAGE}.model_name=vit_tiny",
        place=f"{IMAGE}.model_name",
        says="ViT-Tiny cuts pictures into patches of 16 x 16, and img_shape is 40 x 32; give multiples of 16",
    ),
    case(
        *size(32, 40),
        f"{IMAGE}.model_name=ViT-Base",
        place=f"{IMAGE}.model_name",
        says="patches of 16 x 16, and img_shape is 32 x 40",
    ),
    case(
        f"{IMAGE}.pooling=CLS_TOKEN",
        place=f"{IMAGE}.pooling",
        says="ResNet-18 has no class token; choose AVG, MAX or GEM",
    ),
    case(
        f"{IMAGE}.model_name=MobileNet",
        f"{IMAGE}.lora_rank=4",
        place=f"{IMAGE}.lora_rank",
        says="MobileNetV3-Large is not a transformer; choose a transformer, or remove this setting",
    ),
    case(
        FAMILY_PER_GROUP,
        f"{IMAGE}.model_name=ViT-Small",
        f"{IMAGE}.category_feature=familyid",
        place=f"{IMAGE}.category_feature",
        says="ViT-Small has no convolutions, which this attention needs; choose another backbone, or remove it",
    ),
    case(
        f"{IMAGE}.preset=/no/such/folder",
        place=f"{IMAGE}.preset",
        says="no folder '/no/such/folder'; give a folder written by save_to_preset, or the name of a keras-hub preset",
    ),
]
TRAINING_CASES = [
    case(
        f"{IMAGE}.trainable=LAST_N_STAGES",
        place=f"{IMAGE}.last_n_stages",
        says="works only together with trainable: LAST_N_STAGES; set both or neither",
    ),
    *(
        case(
            *changes, f"{IMAGE}.last_n_stages=2", place=f"{IMAGE}.last_n_stages", says="together with trainable: LAST_N"
        )
        for changes in ([], [f"{IMAGE}.trainable=HEAD"])
    ),
    case(
        f"{IMAGE}.unfreeze_at_step=100",
        place=f"{IMAGE}.unfreeze_at_step",
        says="has no effect with trainable: ALL, which trains everything from the start; change one of them",
    ),
    case(
        f"{IMAGE}.unfreeze_at_step=9999",
        place=f"{IMAGE}.unfreeze_at_step",
        says="has no effect with trainable: ALL, which trains everything from the start; change one of them",
    ),
    *(
        case(
            f"{IMAGE}.trainable=NONE",
            f"{IMAGE}.unfreeze_at_step={step}",
            place=f"{IMAGE}.unfreeze_at_step",
            says=f"{step} is past the last step (2000, train_config.num_steps); lower it",
        )
        for step in (2000, 2001)
    ),
    *(
        case(
            f"{IMAGE}.learning_rate_multiplier={value}",
            place=f"{IMAGE}.learning_rate_multiplier",
            says=f"{value} is out of range; give a number above 0",
        )
        for value in ("0", "-1", "nan")
    ),
    *(
        case(
            f"{IMAGE}.layer_decay={value}",
            place=f"{IMAGE}.layer_decay",
            says=f"{value} is out of range; give a number above 0, at most 1",
        )
        for value in ("0", "1.5", "-0.5", "nan")
    ),
    case(
        f"{IMAGE}.lora_alpha=8",
        place=f"{IMAGE}.lora_alpha",
        says="has no effect without lora_rank; set it or remove this",
    ),
    *(
        case(
            f"{IMAGE}.model_name=ViT-Tiny",
            f"{IMAGE}.lora_rank=4",
            f"{IMAGE}.lora_alpha={value}",
            place=f"{IMAGE}.lora_alpha",
            says=f"{value} is out of range; give a number above 0",
        )
        for value in ("0", "-2")
    ),
    # What does nothing where the backbone is never trained.
    *(
        case(
            f"{IMAGE}.trainable={kind}",
            *changes,
            place=f"{IMAGE}.{name}",
            says=f"has no effect with trainable: {kind}; remove one of the two",
        )
        for name, kinds, changes in (
            ("layer_decay", "HEAD NONE", [f"{IMAGE}.layer_decay=0.9"]),
            ("lora_rank", "HEAD NONE", [f"{IMAGE}.lora_rank=4", f"{IMAGE}.model_name=ViT-Tiny"]),
            ("rematerialize", "HEAD NONE", [f"{IMAGE}.rematerialize=true"]),
            ("image_micro_batch", "HEAD NONE", [f"{IMAGE}.image_micro_batch=8"]),
            ("encode_ratio", "HEAD NONE", [f"{IMAGE}.encode_ratio=0.5"]),
            ("learning_rate_multiplier", "NONE", [f"{IMAGE}.learning_rate_multiplier=0.1"]),
            ("augmentation", "NONE", [f"{IMAGE}.augmentation=horizontal_flip: true"]),
            ("image_losses", "NONE", [loss("softmax {}")]),
            ("img_loss_weight", "NONE", [*CATE_LABEL, f"{IMAGE}.img_loss_weight=1"]),
        )
        for kind in kinds.split()
    ),
    case(
        f"{IMAGE}.trainable=NONE",
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}, {SGD}]",
        place=f"{TRAIN}.optimizer_config[2]",
        says="is for the image tower, which trainable: NONE does not train; remove it",
    ),
    # One for variables by name is not counted.
    case(
        f"{IMAGE}.trainable=NONE",
        f"{TRAIN}.optimizer_config=[{SGD[:-1]} variables: 'rec/' }}, {SGD}, {SGD}, {SGD}]",
        place=f"{TRAIN}.optimizer_config[3]",
        says="is for the image tower, which trainable: NONE does not train; remove it",
    ),
    # Optimizers and warm starts
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD[:-1]} variables: ['rec/', 'image/('] }}]",
        place=f"{TRAIN}.optimizer_config[1].variables[1]",
        says="'image/(' is not a valid regular expression: ",
    ),
    case(
        f"{TRAIN}.warm_start=ALL_BUT_ID_EMBEDDINGS",
        place=f"{TRAIN}.warm_start",
        says="has no effect without fine_tune_checkpoint; set it",
    ),
]
PICTURE_CASES = [
    *(
        case(
            f"{IMAGE}.no_image_vector=true",
            f"{IMAGE}.modality_dropout={value}",
            place=f"{IMAGE}.modality_dropout",
            says=f"{value} is out of range; give a number from 0 to below 1",
        )
        for value in ("1", "-0.1", "nan")
    ),
    case(
        f"{IMAGE}.modality_dropout=0.1",
        place=f"{IMAGE}.modality_dropout",
        says="needs no_image_vector: true, whose vector replaces those of dropped pictures",
    ),
    case(
        f"{IMAGE}.image_pooling=MAX",
        place=f"{IMAGE}.image_pooling",
        says="has no effect without image_separator; set it or remove this",
    ),
    case(
        f"{IMAGE}.image_separator=|",
        place=f"{IMAGE}.image_separator",
        says="'|' is also used as data_config.rtp_separator; change one",
    ),
    case(
        f'{IMAGE}.image_separator="\\001"',
        place=f"{IMAGE}.image_separator",
        says="'\\x01' is also used as data_config.group_sample_separator; change one",
    ),
    case(
        f"{IMAGE}.augmentation=",
        place=f"{IMAGE}.augmentation",
        says="changes nothing; set one of its fields, or remove it",
    ),
    *(
        case(
            f"{IMAGE}.augmentation=horizontal_flip: true {name}: {value}",
            place=f"{IMAGE}.augmentation.{name}",
            says=f"{value} is out of range; give a number from {0.01 if name.endswith('area') else 0:g} to 1",
        )
        for name in Augmentation.DESCRIPTOR.fields_by_name
        if name != "horizontal_flip"
        for value in ("-0.1", "1.5", "nan")
    ),
    case(
        f"{IMAGE}.augmentation.random_resized_crop_min_area=0.009",
        place=f"{IMAGE}.augmentation.random_resized_crop_min_area",
        says="0.009 is out of range; give a number from 0.01 to 1",
    ),
    *(
        case(
            *size(32, 32, 1),
            f"{IMAGE}.augmentation=horizontal_flip: true {name}: 0.5",
            place=f"{IMAGE}.augmentation.{name}",
            says="has no effect on grey pictures; remove it",
        )
        for name in ("saturation", "hue")
    ),
]
COMPUTE_CASES = [
    *(
        case(
            f"{IMAGE}.encode_ratio={value}",
            place=f"{IMAGE}.encode_ratio",
            says=f"{value} is out of range; give a number above 0, at most 1",
        )
        for value in ("0", "1.5", "-0.5", "nan")
    ),
    *(
        case(
            f"{IMAGE}.max_staleness_steps={value}",
            place=f"{IMAGE}.max_staleness_steps",
            says="has no effect without encode_ratio below 1; set it or remove this",
        )
        for value in (1, 10)
    ),
    case(
        f"{IMAGE}.encode_ratio=0.5",
        f"{IMAGE}.max_staleness_steps=0",
        place=f"{IMAGE}.max_staleness_steps",
        says="0 is out of range; give 1 or more",
    ),
    case(f"{IMAGE}.upscale=0", place=f"{IMAGE}.upscale", says="0 is out of range; give 1 or more"),
    *(
        case(*size(8, 16), f"{IMAGE}.descriptors={text}", place=f"{IMAGE}.descriptors{place}", says=says)
        for text, place, says in (
            ("colour_grid: 0 colour_bins: 0 edge_grid: 0", "", "has no effect; set one of its fields above 0"),
            ("colour_bins: 1", ".colour_bins", "1 is not between 2 and 16"),
            ("colour_bins: 17", ".colour_bins", "17 is not between 2 and 16"),
            ("colour_grid: 9", ".colour_grid", "9 cells per side are too many for these pictures; give 8 or fewer"),
            ("edge_grid: 33", ".edge_grid", "33 cells per side are too many for these pictures; give 8 or fewer"),
        )
    ),
    case(
        f"{IMAGE}.encode_ratio=0.5",
        "train_config.sync_batch_norm=true",
        "train_config.share_pictures=true",
        "train_config.train_distribute=MultiWorkerMirroredStrategy",
        place=f"{IMAGE}.encode_ratio",
        says="0.5 does not go with train_config.share_pictures, because each worker draws which of its own pictures",
    ),
    *(
        case(
            f"{IMAGE}.image_micro_batch={value}",
            place=f"{IMAGE}.image_micro_batch",
            says=f"{value} has no effect: a batch has at most 64 pictures (data_config.batch_size); lower or remove it",
        )
        for value in (64, 100)
    ),
]


@pytest.mark.parametrize(
    ("changes", "place", "says"), [*BACKBONE_CASES, *TRAINING_CASES, *PICTURE_CASES, *COMPUTE_CASES]
)
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)


def test_mistakes_of_several_parts_are_named_together(problems):
    mistakes = problems(
        [
            f"{IMAGE}.num_classes=0",
            f"{IMAGE}.layer_decay=2",
            f"{IMAGE}.category_attention=EACH_STAGE",
            loss(""),
            f"{IMAGE}.modality_dropout=2",
            f"{IMAGE}.encode_ratio=2",
        ]
    )
    assert [place.removeprefix(f"{IMAGE}.") for place, _ in mistakes] == [
        "layer_decay",
        "category_attention",
        "modality_dropout",  # out of range
        "encode_ratio",
        "num_classes",
        "image_losses[0]",
        "modality_dropout",  # without no_image_vector
    ]
