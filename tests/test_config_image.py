"""Tests of the checks of `img_model`: every mistake is named with its place and value, every good setting passes.

As in test_config_errors.py, a case is what is done to the reference config, the place of the problem and a piece of its
message, and the problem must be the only one.
"""

import json

import pytest
from reference import FEATURES, LABELS, reference_config, write_config

from easyrec_mm.config.image import BACKBONE_NAMES, PresetFiles, backbone_name, image_losses, read_preset
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.protos.image_pb2 import Augmentation, Descriptors, ImageLoss, ImgModel

NETWORK = "model_config.e2e_mm_dbmtl"
IMAGE = f"{NETWORK}.img_model"
TRAIN = "train_config"
TOWERS = f"{NETWORK}.task_towers"
ALL_GROUP = "model_config.feature_groups[2]"
FEATURE = {name: f"feature_config.features[{i}]" for i, name in enumerate((*FEATURES, "img_path", "group_size"))}
FIELD = {name: f"data_config.input_fields[{i}]" for i, name in enumerate((*LABELS, *FEATURES))}
FAMILY_PER_GROUP = f"{FEATURE['familyid']}.per_group=true"
SGD = "{ sgd_optimizer { learning_rate { constant_learning_rate {} } } }"


@pytest.fixture
def load(tmp_path):
    """Loads the reference config with some overrides."""
    return lambda changes: load_pipeline(write_config(tmp_path, reference_config()), list(changes))


@pytest.fixture
def problems(load, tmp_path):
    """(place, message) of every problem, when the reference config is loaded with some overrides."""

    def run(changes):
        with pytest.raises(ConfigError) as caught:
            load(changes)
        path = tmp_path / "pipeline.config"
        lines = str(caught.value).split("\n")
        assert all(line.startswith(f"{path}: ") and len(line) < 400 + len(str(path)) for line in lines)
        return [tuple(line.removeprefix(f"{path}: ").split(": ", 1)) for line in lines]

    return run


def case(*changes, place, says):
    return pytest.param(changes, place, says, id=f"{place}: {says}"[:100])


def size(width, height, channels=3):
    """Overrides that make the pictures of this size."""
    shape = f"width: {width} height: {height} channel: {channels}"
    return f"{FEATURE['img_path']}.img_shape={shape}", f"export_config.img_shape={shape}"


def loss(text, label="label_name: 'like' num_class: 3"):
    return f"{IMAGE}.image_losses=[{{ {label} {text} }}]"


def contrastive(text="", name="familyid"):
    return loss(f"contrastive {{ item_feature: '{name}' {text} }}", label="")


LOSS = f"{IMAGE}.image_losses[0]"
ITEM = f"{LOSS}.contrastive.item_feature"
CATE_LABEL = (f"{FIELD['follow']}.input_name=cate_label", "data_config.label_fields[5]=cate_label")

BACKBONE_CASES = [
    case(
        f"{IMAGE}.model_name=ResNet-34",
        f"{IMAGE}.preset=resnet_34_imagenet",
        place=f"{IMAGE}.model_name",
        says="has no effect beside preset; keep one of the two",
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
    ("changes", "place", "says"),
    [*BACKBONE_CASES, *TRAINING_CASES, *FEATURE_CASES, *LOSS_CASES, *PICTURE_CASES, *COMPUTE_CASES],
)
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    ((found_place, message),) = problems(changes)
    assert found_place == place
    assert says in message


def test_mistakes_of_several_parts_are_named_together(problems):
    found = problems(
        [
            f"{IMAGE}.num_classes=0",
            f"{IMAGE}.layer_decay=2",
            f"{IMAGE}.category_attention=EACH_STAGE",
            loss(""),
            f"{IMAGE}.modality_dropout=2",
            f"{IMAGE}.encode_ratio=2",
        ]
    )
    assert [place.removeprefix(f"{IMAGE}.") for place, _ in found] == [
        "layer_decay",
        "category_attention",
        "modality_dropout",  # out of range
        "encode_ratio",
        "num_classes",
        "image_losses[0]",
        "modality_dropout",  # without no_image_vector
    ]


# Good settings. Each field of ImgModel, ImageLoss and Augmentation must be in one of them.
GOOD = {
    "plain": [f"{IMAGE}.model_name=ConvNeXt_Tiny", f"{IMAGE}.num_classes=8", f"{IMAGE}.pooling=GEM"],
    "transformer": [
        f"{IMAGE}.model_name=ViT-Tiny",
        f"{IMAGE}.pooling=CLS_TOKEN",
        f"{IMAGE}.feature_layer=vit_encoder",
        f"{IMAGE}.lora_rank=4",
        f"{IMAGE}.lora_alpha=8",
    ],
    # What only the files of the preset can tell is not known yet.
    "preset": [f"{IMAGE}.preset=resnet_18_imagenet", f"{IMAGE}.pooling=CLS_TOKEN", f"{IMAGE}.lora_rank=1"],
    "preset of a site": [f"{IMAGE}.preset=hf://keras/resnet_18_imagenet"],
    "last stages": [f"{IMAGE}.trainable=LAST_N_STAGES", f"{IMAGE}.last_n_stages=2", f"{IMAGE}.unfreeze_at_step=1999"],
    "never the last step": [f"{IMAGE}.trainable=HEAD", f"{IMAGE}.unfreeze_at_step=9999", f"{TRAIN}.num_steps=0"],
    "until a step": [
        f"{IMAGE}.trainable=NONE",
        f"{IMAGE}.unfreeze_at_step=100",
        f"{IMAGE}.learning_rate_multiplier=0.1",
        f"{IMAGE}.layer_decay=0.75",
        f"{IMAGE}.rematerialize=true",
        f"{IMAGE}.image_micro_batch=63",
        f"{IMAGE}.encode_ratio=0.5",
        f"{IMAGE}.max_staleness_steps=1",
        f"{IMAGE}.augmentation=horizontal_flip: true",
        loss("softmax {}"),
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}, {SGD}]",
    ],
    "head": [
        f"{IMAGE}.trainable=HEAD",
        f"{IMAGE}.learning_rate_multiplier=2",
        f"{IMAGE}.augmentation=brightness: 1 contrast: 1 saturation: 1 hue: 1 random_erasing: 1",
        loss("softmax {}"),
    ],
    "smallest crop": [f"{IMAGE}.augmentation.random_resized_crop_min_area=0.01"],
    "grey": [*size(32, 32, 1), f"{IMAGE}.augmentation=brightness: 0.1 contrast: 0.1"],
    "category": [
        FAMILY_PER_GROUP,
        f"{IMAGE}.category_feature=familyid",
        f"{IMAGE}.category_attention=EACH_BLOCK",
    ],
    "category that the rest does not see": [
        FAMILY_PER_GROUP,
        f"{IMAGE}.category_feature=familyid",
        f"{ALL_GROUP}.feature_names=['city', 'province']",
    ],
    "losses": [
        FAMILY_PER_GROUP,
        f"{IMAGE}.image_losses=["
        + ", ".join(
            f"{{ label_name: 'like' num_class: 3 weight: 0.5 {text} }}"
            for text in ("softmax {}", "arcface { rarity_power: 0.25 }", "cosface { margin: 0 }", "multi_similarity {}")
        )
        + ", { contrastive { item_feature: 'familyid' stop_gradient: ITEM } }]",
    ],
    "loss in short": [*CATE_LABEL, f"{IMAGE}.img_loss_weight=0.5"],
    "pictures": [
        f"{IMAGE}.no_image_vector=true",
        f"{IMAGE}.modality_dropout=0.1",
        f"{IMAGE}.image_separator=,",
        f"{IMAGE}.image_pooling=ATTENTION",
        # An item has several, so that a batch has more pictures than groups.
        f"{IMAGE}.image_micro_batch=64",
        f"{IMAGE}.resize=PAD",
    ],
    "descriptors": [
        *size(32, 32, 1),
        f"{IMAGE}.model_name=none",
        f"{IMAGE}.descriptors=colour_grid: 0 colour_bins: 16 edge_grid: 32",
        f"{IMAGE}.normalize_features=true",
    ],
    "enlarged": [
        *size(72, 72),
        f"{IMAGE}.model_name=ViT-Tiny",
        f"{IMAGE}.upscale=2",
        f"{IMAGE}.descriptors=",
    ],
    "optimizers by name": [
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD[:-1]} variables: ['image/backbone'] }}]",
        f"{TRAIN}.fine_tune_checkpoint=model",
        f"{TRAIN}.warm_start=ALL_BUT_ID_EMBEDDINGS",
    ],
}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_good_settings_pass(load, changes):
    load(changes)


@pytest.mark.parametrize("message", [ImgModel, ImageLoss, Augmentation, Descriptors])
def test_each_field_is_in_good_settings(load, message):
    texts = " ".join(str(load(changes).config.model_config) for changes in GOOD.values())
    for name in message.DESCRIPTOR.fields_by_name:
        assert f"{name}:" in texts or f"{name} {{" in texts, name


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *((name, name) for name in BACKBONE_NAMES),
        ("ResNet", "ResNet-18"),
        ("resnet", "ResNet-18"),
        ("MobileNet", "MobileNetV3-Large"),
        ("resnet_50", "ResNet-50"),
        ("RESNET101", "ResNet-101"),
        ("mobilenet-v3-small", "MobileNetV3-Small"),
        ("EfficientNet V2 B0", "EfficientNetV2-B0"),
        ("vit_base", "ViT-Base"),
        ("ResNet-19", None),
        ("", None),
    ],
)
def test_names_of_backbones(written, meant):
    assert backbone_name(written) == meant


def test_the_loss_in_short_is_a_softmax_loss_on_the_category_label(load):
    pipeline = load([*CATE_LABEL, f"{IMAGE}.img_loss_weight=0.5", f"{IMAGE}.num_classes=8", loss("arcface {}")])
    first, short = image_losses(pipeline.config.model_config.e2e_mm_dbmtl.img_model)
    assert first.WhichOneof("loss") == "arcface"
    assert short == ImageLoss(weight=0.5, label_name="cate_label", num_class=8, softmax={})
    assert pipeline.schema.image_labels == (("like", 3), ("cate_label", 8))
    assert pipeline.schema.label_range("cate_label") == (0.0, 7.0, True)


def test_what_is_read_once_a_picture(load):
    """Fields of features per group and labels of losses; both features, each once."""
    pipeline = load(
        [
            FAMILY_PER_GROUP,
            f"{FEATURE['level']}.per_group=true",
            f"{IMAGE}.category_feature=familyid",
            f"{IMAGE}.image_losses=[{{ contrastive {{ item_feature: 'familyid' }} }}, "
            "{ contrastive { item_feature: 'level' } }, { label_name: 'like' num_class: 2 softmax {} }]",
        ]
    )
    schema = pipeline.schema
    assert [feature.name for feature in schema.image_features] == ["familyid", "level"]
    assert schema.category.name == "familyid"
    assert set(schema.group_fields) == {"familyid", "level", "like"}
    assert len(schema.group_fields) == 3


# Folders with presets

SAVED = {"module": "keras_hub", "class_name": "X", "registered_name": "keras_hub>X"}


@pytest.fixture
def preset(tmp_path):
    """Writes the configs of a preset's folder; texts, or settings as Keras saves them."""

    def write(backbone=None, converter=None):
        folder = tmp_path / "preset"
        folder.mkdir()
        for name, content in (("config.json", backbone), ("image_converter.json", converter)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps({**SAVED, "config": content})
                (folder / name).write_text(text, encoding="utf-8")
        return folder

    return write


ANY = (None, None, None)


@pytest.mark.parametrize(
    ("backbone", "converter", "shape", "resized"),
    [
        ({"image_shape": [48, 64, 3]}, None, (48, 64, 3), (None, None)),
        ({"image_shape": [None, None, 3]}, {"image_size": [48, 64]}, (None, None, 3), (48, 64)),
        ({"image_shape": None}, {"image_size": None, "scale": 0.1}, ANY, (None, None)),
        ({"hidden_dim": 8}, {"height": 48, "width": 64, "mean": [0, 0, 0], "variance": [1, 1, 1]}, ANY, (48, 64)),
        (
            {"vision_encoder": {**SAVED, "config": {"image_shape": [48, 64, 3]}}, "text_encoder": {}},
            None,
            (48, 64, 3),
            (None, None),
        ),
        ({"vision_encoder": {**SAVED, "config": {}}}, None, ANY, (None, None)),
    ],
)
def test_what_a_preset_says_of_its_pictures(preset, backbone, converter, shape, resized):
    assert read_preset(preset(backbone, converter)) == PresetFiles(shape, resized)


@pytest.mark.parametrize(
    ("backbone", "converter", "says"),
    [
        (None, None, "config.json is missing (the folder contains nothing); give a folder written by save_to_preset"),
        (None, {}, "config.json is missing (the folder contains image_converter.json)"),
        ("{", None, "config.json is not JSON; give a folder written by save_to_preset"),
        ('{"model_type": "vit"}', None, "config.json is not a config of a keras-hub preset"),
        ("[1, 2]", None, "config.json is not a config of a keras-hub preset"),
        ('{"config": [1]}', None, "config.json is not a config of a keras-hub preset"),
        ({"vision_encoder": None}, None, "config.json is not a config of a keras-hub preset"),
        (
            {"image_shape": [224, 224]},
            None,
            "config.json is not a config of a keras-hub preset: its picture size is [224,",
        ),
        ({"image_shape": 224}, None, "config.json is not a config of a keras-hub preset: its picture size is 224"),
        ({"image_shape": ["a", "b", 3]}, None, "its picture size is ['a', 'b', 3]"),
        ({}, "{", "image_converter.json is not JSON"),
        (
            {},
            {"image_size": 224},
            "image_converter.json is not a config of a keras-hub preset: its picture size is 224",
        ),
    ],
)
def test_files_of_a_preset_that_cannot_be_read(problems, preset, backbone, converter, says):
    folder = preset(backbone, converter)
    ((place, message),) = problems([f"{IMAGE}.preset={folder}"])
    assert place == f"{IMAGE}.preset"
    assert message.startswith(f"'{folder}': ")
    assert says in message


def test_a_preset_of_bytes_that_are_no_text(problems, preset):
    folder = preset()
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    ((_, message),) = problems([f"{IMAGE}.preset={folder}"])
    assert "config.json is not JSON" in message


def test_many_files_in_the_place_of_a_preset(problems, preset):
    """A few are named."""
    folder = preset()
    for i in range(20):
        (folder / f"part-{i:02}").touch()
    ((_, message),) = problems([f"{IMAGE}.preset={folder}"])
    assert "part-07" in message
    assert "part-08" not in message


@pytest.mark.parametrize(
    ("backbone", "converter", "fits", "takes"),
    [
        ({"image_shape": [48, 64, 3]}, None, (64, 48, 3), "64 x 48 x 3"),
        ({"image_shape": [None, None, 3]}, {"image_size": [48, 64]}, (64, 48, 3), "64 x 48 x 3"),
        ({"image_shape": [None, None, 3]}, None, (20, 30, 3), "any x any x 3"),
        # The backbone's own shape is what it cannot do without.
        ({"image_shape": [48, 64, 3]}, {"image_size": [96, 96]}, (64, 48, 3), "64 x 48 x 3"),
        ({}, {"image_size": [48, 64]}, (64, 48, 1), "64 x 48 x any"),
    ],
)
def test_the_size_of_a_presets_pictures(load, problems, preset, backbone, converter, fits, takes):
    """In the order of img_shape: width, height, channels; a preset's files hold the height first."""
    folder = preset(backbone, converter)
    load([*size(*fits), f"{IMAGE}.preset={folder}"])
    width, height, channels = takes.split(" x ")
    others = [(63, 48, 3)] * (width != "any") + [(64, 47, 3)] * (height != "any") + [(64, 48, 1)] * (channels != "any")
    assert others
    for other in others:
        ((place, message),) = problems([*size(*other), f"{IMAGE}.preset={folder}"])
        assert place == f"{IMAGE}.preset"
        given = f"{other[0]} x {other[1]} x {other[2]}"
        assert message == (
            f"'{folder}' takes pictures of {takes} (width x height x channels), but would get {given}; "
            "change img_shape or upscale"
        )
