"""Good settings of `img_model` pass, each field in one of them, and mean what they say."""

import pytest
from config_helpers import (
    ALL_GROUP,
    CATE_LABEL,
    FAMILY_PER_GROUP,
    FEATURE,
    IMAGE,
    SGD,
    TRAIN,
    assert_only_problem,
    loss,
    size,
)

from easyrec_mm.config.image import BACKBONE_NAMES, backbone_name, image_losses
from easyrec_mm.protos.image_pb2 import Augmentation, Descriptors, ImageLoss, ImgModel

# Good settings. Each field of ImgModel, ImageLoss and Augmentation must be in one of them.
BACKGROUND = f"{IMAGE}.transparent_background=#f0e0ff"
GOOD = {
    "plain": [f"{IMAGE}.model_name=ConvNeXt_Tiny", f"{IMAGE}.num_classes=8", f"{IMAGE}.pooling=GEM", BACKGROUND],
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
    "small pictures": [f"{IMAGE}.min_map_size=4"],
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
    load(overrides=changes)


@pytest.mark.parametrize("message", [ImgModel, ImageLoss, Augmentation, Descriptors])
def test_each_field_is_in_good_settings(load, message):
    texts = " ".join(str(load(overrides=changes).config.model_config) for changes in GOOD.values())
    # The loss of pictures and texts needs texts, see test_item_texts.py.
    for name in set(message.DESCRIPTOR.fields_by_name) - {"text_contrastive"}:
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
    pipeline = load(
        overrides=[*CATE_LABEL, f"{IMAGE}.img_loss_weight=0.5", f"{IMAGE}.num_classes=8", loss("arcface {}")]
    )
    first, short = image_losses(pipeline.config.model_config.e2e_mm_dbmtl.img_model)
    assert first.WhichOneof("loss") == "arcface"
    assert short == ImageLoss(weight=0.5, label_name="cate_label", num_class=8, softmax={})
    assert pipeline.schema.image_labels == (("like", 3), ("cate_label", 8))
    assert pipeline.schema.label_range("cate_label") == (0.0, 7.0, True)


def test_what_is_read_once_a_picture(load):
    """Fields of features per group and labels of losses; both features, each once."""
    pipeline = load(
        overrides=[
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


@pytest.mark.parametrize(
    ("text", "colour"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("Teal", (0, 128, 128))]
)
def test_the_background_is_a_colour(load, text, colour):
    assert load(overrides=[f"{IMAGE}.transparent_background={text}"]).schema.image.background == colour


def test_what_is_no_colour(problems):
    place = f"{IMAGE}.transparent_background"
    says = "'whitish' is not a colour; give a name, such as white, or #rrggbb"
    assert_only_problem(problems((f"{place}=whitish",)), place, says)
