"""Checks `img_model`, the image tower's section of a config.

Adds every problem to a Problems list with its config path. Never imports TensorFlow: properties that only the built
backbone has (its layers and stages, the weights of a preset) are checked in layers/backbones.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from easyrec_mm.config.feature_groups import NO_TEXT_GROUP
from easyrec_mm.errors import Problems
from easyrec_mm.protos.image_pb2 import Augmentation, ImageLoss, ImgModel
from easyrec_mm.protos.model_pb2 import E2E_MM_DBMTL
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.train_pb2 import NoStrategy
from easyrec_mm.schema import Schema
from easyrec_mm.weights.catalog import CATALOG, preset_location

PLACE = "model_config.e2e_mm_dbmtl.img_model"
CONVOLUTIONAL = (
    "ResNet-18", "ResNet-34", "ResNet-50", "ResNet-101", "MobileNetV3-Small", "MobileNetV3-Large", "EfficientNetV2-B0",
    "ConvNeXt-Tiny",
)  # fmt: skip
TRANSFORMERS = ("ViT-Tiny", "ViT-Small", "ViT-Base")
# No network: only the mean colour of a picture, which descriptors complement.
NO_BACKBONE = "None"
BACKBONE_NAMES = (*CONVOLUTIONAL, *TRANSFORMERS, NO_BACKBONE)
# Names in EasyRec's branch -> names here.
ALIASES = {"ResNet": "ResNet-18", "MobileNet": "MobileNetV3-Large"}
VIT_PATCH_SIZE = 16
# Least sides of pictures, in pixels: nothing of smaller ones is left for the last layers. Others take any size.
LEAST_SIDES = {"MobileNetV3-Small": 31, "MobileNetV3-Large": 31, "ConvNeXt-Tiny": 32}
# Least and most bins per colour channel (with more, most colours occur in no picture); most cells per side of a grid.
COLOUR_BINS, LARGEST_GRID = (2, 16), 32
# The label that ImgModel.img_loss_weight uses.
CATE_LABEL = "cate_label"


def backbone_name(name: str) -> str | None:
    """Return the entry of BACKBONE_NAMES that a name means, ignoring case and hyphens; None for an unknown name."""
    by_plain_name = {_plain(choice): choice for choice in BACKBONE_NAMES}
    by_plain_name |= {_plain(alias): choice for alias, choice in ALIASES.items()}
    return by_plain_name.get(_plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def image_losses(tower: ImgModel) -> list[ImageLoss]:
    """Return the losses on image vectors, including the one that img_loss_weight abbreviates."""
    losses = list(tower.image_losses)
    if tower.img_loss_weight > 0:
        short = ImageLoss(weight=tower.img_loss_weight, label_name=CATE_LABEL, num_class=tower.num_classes)
        short.softmax.SetInParent()
        losses.append(short)
    return losses


def image_vector_width(network: E2E_MM_DBMTL) -> int:
    """Return the width of an image vector."""
    if network.HasField("highway_dnn"):
        return int(network.highway_dnn.emb_size)
    if network.HasField("img_dnn"):
        return int(network.img_dnn.hidden_units[-1]) if network.img_dnn.hidden_units else 0
    return int(network.img_model.num_classes)


def is_frozen_for_good(tower: ImgModel) -> bool:
    """Return whether the backbone is never trained."""
    return tower.trainable in (ImgModel.HEAD, ImgModel.NONE) and not tower.unfreeze_at_step


def check_image_tower(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    """Add every problem of img_model, for a model with an image tower."""
    tower = config.model_config.e2e_mm_dbmtl.img_model
    _check_backbone(config.model_config.e2e_mm_dbmtl, schema, problems)
    _check_training(tower, config, problems)
    _check_losses(tower, schema, problems)
    _check_pictures(tower, config, schema, problems)
    _check_compute(tower, config, problems)


def _check_backbone(network: E2E_MM_DBMTL, schema: Schema, problems: Problems) -> None:
    tower = network.img_model
    # Pre-training may compare the features of the backbone themselves.
    if tower.num_classes == 0 and network.task_towers and not network.HasField("img_dnn"):
        problems.add(f"{PLACE}.num_classes", "0 is not a valid width; give the width of the projection, or add img_dnn")
    if tower.feature_layer and tower.min_map_size:
        problems.add(f"{PLACE}.min_map_size", "has no effect beside feature_layer; keep one of the two")
    _check_descriptors(tower, schema, problems)
    if tower.preset and tower.HasField("model_name"):
        problems.add(f"{PLACE}.model_name", "has no effect beside preset; keep one of the two")
    if tower.preset:
        _check_preset(tower, schema, problems)
        return
    name = backbone_name(tower.model_name)
    if name is None:
        problems.unknown(f"{PLACE}.model_name", "backbone", tower.model_name, BACKBONE_NAMES)
    is_transformer = name in TRANSFORMERS
    width, height = (side * tower.upscale for side in (schema.image.width, schema.image.height))
    if is_transformer and (height % VIT_PATCH_SIZE or width % VIT_PATCH_SIZE):
        enlarged = " enlarged" if tower.upscale > 1 else ""
        problems.add(
            f"{PLACE}.model_name",
            f"{name} cuts pictures into patches of {VIT_PATCH_SIZE} x {VIT_PATCH_SIZE}, and img_shape is{enlarged} "
            f"{width} x {height}; give multiples of {VIT_PATCH_SIZE}",
        )
    least = LEAST_SIDES.get(name or "", 1)
    if 0 < min(width, height) < least:
        enlarged = " enlarged" if tower.upscale > 1 else ""
        problems.add(
            f"{PLACE}.model_name",
            f"{name} takes pictures of {least} x {least} or more, and img_shape is{enlarged} {width} x {height}; "
            "enlarge img_shape, set upscale, or choose another backbone",
        )
    if name and not is_transformer and tower.pooling == ImgModel.CLS_TOKEN:
        problems.add(f"{PLACE}.pooling", f"{name} has no class token; choose AVG, MAX or GEM")
    if name and not is_transformer and tower.lora_rank:
        problems.add(f"{PLACE}.lora_rank", f"{name} is not a transformer; choose a transformer, or remove this setting")
    if is_transformer and tower.category_feature:
        problems.add(
            f"{PLACE}.category_feature",
            f"{name} has no convolutions, which this attention needs; choose another backbone, or remove it",
        )


def _check_descriptors(tower: ImgModel, schema: Schema, problems: Problems) -> None:
    descriptors, place = tower.descriptors, f"{PLACE}.descriptors"
    if tower.HasField("descriptors") and not (
        descriptors.colour_grid or descriptors.colour_bins or descriptors.edge_grid
    ):
        problems.add(place, "has no effect; set one of its fields above 0, or remove it")
    least, most = COLOUR_BINS
    if descriptors.colour_bins and not least <= descriptors.colour_bins <= most:
        problems.add(f"{place}.colour_bins", f"{descriptors.colour_bins} is not between {least} and {most}")
    side = min(schema.image.height, schema.image.width, LARGEST_GRID)
    for name in ("colour_grid", "edge_grid"):
        if tower.HasField("descriptors") and getattr(descriptors, name) > side:
            problems.add(
                f"{place}.{name}",
                f"{getattr(descriptors, name)} cells per side are too many for these pictures; give {side} or fewer",
            )


class PresetFiles(NamedTuple):
    """The picture sizes that a preset accepts; None stands for any size.

    image_shape   height, width and channels that the backbone accepts
    image_size    height and width to which pictures are resized for the backbone
    """

    image_shape: tuple[int | None, ...]
    image_size: tuple[int | None, ...]


def read_preset(folder: Path) -> PresetFiles:
    """Read the picture sizes from the configs in a preset's folder.

    Raises:
      ValueError: naming the file that is missing or invalid.
    """
    config_file, converter_file = folder / "config.json", folder / "image_converter.json"
    backbone = _settings(config_file)
    if "image_shape" not in backbone and "vision_encoder" in backbone:
        # A model of pictures and text contains the backbone as its vision encoder.
        backbone = _settings_of(backbone["vision_encoder"], config_file)
    converter = _settings(converter_file) if converter_file.exists() else {}
    # Older presets of keras-hub have height and width instead of image_size.
    size = converter.get("image_size", [converter.get("height"), converter.get("width")])
    return PresetFiles(_sizes(backbone.get("image_shape"), 3, config_file), _sizes(size, 2, converter_file))


def _settings(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        there = ", ".join(sorted(item.name for item in path.parent.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{path.name} is missing (the folder contains {there}); give a folder written by save_to_preset"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON; give a folder written by save_to_preset") from error
    return _settings_of(saved, path)


def _settings_of(saved: object, path: Path) -> dict[str, Any]:
    """Return the settings of an object that Keras saved."""
    settings = saved.get("config") if isinstance(saved, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(f"{path.name} is not a config of a keras-hub preset; give a folder written by save_to_preset")
    return settings


def _sizes(value: object, number: int, path: Path) -> tuple[int | None, ...]:
    sizes = [None] * number if value is None else value
    if not isinstance(sizes, list) or len(sizes) != number or {type(size) for size in sizes} - {int, type(None)}:
        raise ValueError(f"{path.name} is not a config of a keras-hub preset: its picture size is {sizes}")
    return tuple(sizes)


def _check_preset(tower: ImgModel, schema: Schema, problems: Problems) -> None:
    preset, place = tower.preset, f"{PLACE}.preset"
    if preset in CATALOG and CATALOG[preset].kind != "image":
        problems.add(place, f"'{preset}' encodes texts; use it in text_model, or choose a preset of pictures")
        return
    folder = Path(preset_location(preset))
    if not folder.is_dir():
        if preset in CATALOG:
            problems.add(place, f"'{preset}' is not on this machine yet; run: easyrec-mm weights fetch {preset}")
        elif "/" in preset and "://" not in preset:
            problems.add(
                place,
                f"no folder '{preset}'; give a folder written by save_to_preset, or the name of a keras-hub preset",
            )
        return
    try:
        files = read_preset(folder)
    except ValueError as error:
        problems.add(place, f"'{preset}': {error}")
        return
    image = schema.image
    shape = (image.height * tower.upscale, image.width * tower.upscale, image.channels)
    preset_shape = [own or resized for own, resized in zip(files.image_shape, (*files.image_size, None), strict=True)]
    if any(want is not None and want != have for want, have in zip(preset_shape, shape, strict=True)):
        text = " x ".join(
            "any" if size is None else str(size) for size in (preset_shape[1], preset_shape[0], preset_shape[2])
        )
        problems.add(
            place,
            f"'{preset}' takes pictures of {text} (width x height x channels), but would get {shape[1]} x {shape[0]} x "
            f"{shape[2]}; change img_shape or upscale",
        )


def _check_training(tower: ImgModel, config: EasyRecConfig, problems: Problems) -> None:
    is_partial = tower.trainable == ImgModel.LAST_N_STAGES
    if is_partial != (tower.last_n_stages > 0):
        problems.add(f"{PLACE}.last_n_stages", "works only together with trainable: LAST_N_STAGES; set both or neither")
    train = config.train_config
    if tower.unfreeze_at_step and tower.trainable == ImgModel.ALL:
        problems.add(
            f"{PLACE}.unfreeze_at_step",
            "has no effect with trainable: ALL, which trains everything from the start; change one of them",
        )
    elif train.num_steps and tower.unfreeze_at_step >= train.num_steps:
        problems.add(
            f"{PLACE}.unfreeze_at_step",
            f"{tower.unfreeze_at_step} is past the last step ({train.num_steps}, train_config.num_steps); lower it",
        )
    never_trained = {
        "learning_rate_multiplier": tower.trainable == ImgModel.NONE and tower.learning_rate_multiplier != 1,
        "layer_decay": tower.layer_decay != 1,
        "lora_rank": tower.lora_rank > 0,
        "rematerialize": tower.rematerialize,
        "image_micro_batch": tower.image_micro_batch > 0,
        "encode_ratio": tower.encode_ratio < 1,
        "augmentation": tower.trainable == ImgModel.NONE and tower.HasField("augmentation"),
        "image_losses": tower.trainable == ImgModel.NONE and bool(tower.image_losses),
        "img_loss_weight": tower.trainable == ImgModel.NONE and tower.img_loss_weight > 0,
    }
    if is_frozen_for_good(tower):
        kind = ImgModel.Trainable.Name(tower.trainable)
        for name, is_set in never_trained.items():
            if is_set:
                problems.add(f"{PLACE}.{name}", f"has no effect with trainable: {kind}; remove one of the two")
        plain = [i for i, optimizer in enumerate(train.optimizer_config) if not optimizer.variables]
        if tower.trainable == ImgModel.NONE and len(plain) > 2:
            place = f"train_config.optimizer_config[{plain[2]}]"
            problems.add(place, "is for the image tower, which trainable: NONE does not train; remove it")


def _check_losses(tower: ImgModel, schema: Schema, problems: Problems) -> None:
    if tower.img_loss_weight > 0 and CATE_LABEL not in schema.labels:
        problems.add(f"{PLACE}.img_loss_weight", f"needs a label field '{CATE_LABEL}'; add it, or use image_losses")
    for i, loss in enumerate(tower.image_losses):
        place = f"{PLACE}.image_losses[{i}]"
        kind = loss.WhichOneof("loss")
        if kind is None:
            kinds = ", ".join(field.name for field in ImageLoss.DESCRIPTOR.oneofs_by_name["loss"].fields)
            problems.add(place, f"does not set a loss; choose one of {kinds}")
            continue
        if kind in ("contrastive", "text_contrastive"):
            for name in ("label_name", "num_class"):
                if loss.HasField(name):
                    problems.add(f"{place}.{name}", f"has no effect on {kind}, which compares items; remove it")
            if kind == "text_contrastive" and schema.text is None:
                problems.add(f"{place}.{kind}", f"has no effect: {NO_TEXT_GROUP}; add one or remove this")
            continue
        if loss.label_name not in schema.labels:
            problems.unknown(f"{place}.label_name", "label", loss.label_name, schema.labels)
        if loss.num_class < 2:
            problems.add(f"{place}.num_class", f"{loss.num_class} classes are too few; give 2 or more")


def _check_pictures(tower: ImgModel, config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    if tower.modality_dropout and not tower.no_image_vector:
        problems.add(
            f"{PLACE}.modality_dropout", "needs no_image_vector: true, whose vector replaces those of dropped pictures"
        )
    if tower.image_separator:
        data = config.data_config
        for name in ("rtp_separator", "group_sample_separator"):
            if tower.image_separator == getattr(data, name):
                problems.add(
                    f"{PLACE}.image_separator",
                    f"{tower.image_separator!r} is also used as data_config.{name}; change one of them",
                )
    if tower.HasField("augmentation"):
        changes: Augmentation = tower.augmentation
        if all(getattr(changes, field.name) == field.default_value for field in changes.DESCRIPTOR.fields):
            problems.add(f"{PLACE}.augmentation", "changes nothing; set one of its fields, or remove it")
        for name in ("saturation", "hue"):
            if schema.image.channels == 1 and getattr(changes, name):
                problems.add(f"{PLACE}.augmentation.{name}", "has no effect on grey pictures; remove it")


def _check_compute(tower: ImgModel, config: EasyRecConfig, problems: Problems) -> None:
    if tower.HasField("max_staleness_steps") and not tower.encode_ratio < 1:
        problems.add(
            f"{PLACE}.max_staleness_steps", "has no effect without encode_ratio below 1; set it or remove this"
        )
    train = config.train_config
    if tower.encode_ratio < 1 and train.share_pictures and train.train_distribute != NoStrategy:
        problems.add(
            f"{PLACE}.encode_ratio",
            f"{tower.encode_ratio:g} does not go with train_config.share_pictures, because each worker draws which of "
            "its own pictures are encoded; remove one of the two",
        )
    batch_size = config.data_config.batch_size
    if tower.image_micro_batch >= max(batch_size, 1) and not tower.image_separator:
        problems.add(
            f"{PLACE}.image_micro_batch",
            f"{tower.image_micro_batch} has no effect: a batch has at most {batch_size} pictures "
            "(data_config.batch_size); lower or remove it",
        )
