"""The built-in space `pictures`: how the image tower learns, how wide its vectors are, what is frozen, augmentation."""

from __future__ import annotations

from collections.abc import Iterator

from easyrec_mm.config.image import NO_BACKBONE, PLACE, backbone_name, image_vector_width
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.tuning.built_in import choices, fitting, log_range, number_range
from easyrec_mm.tuning.space import Entry

PICTURES = "pictures"
_NETWORK = "model_config.e2e_mm_dbmtl"
_SOURCE = f"--space {PICTURES}"


def picture_space(pipeline: Pipeline) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries that fit a config, and why others are left out, by setting.

    Raises:
      ConfigError: if the config has no pictures.
    """
    if not pipeline.schema.uses_image:
        raise ConfigError(
            f"{_SOURCE}: {pipeline.path} has no pictures (no feature group of an ImgFeature); give a space of your "
            "own, as docs/tuning.md describes"
        )
    return fitting(list(_candidates(pipeline)), pipeline)


def _candidates(pipeline: Pipeline) -> Iterator[Entry]:
    network = pipeline.config.model_config.e2e_mm_dbmtl
    tower = network.img_model
    is_pretrained = bool(tower.preset or pipeline.config.train_config.fine_tune_checkpoint)
    has_backbone = bool(tower.preset) or backbone_name(tower.model_name) != NO_BACKBONE
    yield log_range(
        _SOURCE, f"{PLACE}.learning_rate_multiplier", 0.01 if is_pretrained else 0.1, 1.0 if is_pretrained else 3.0
    )
    width = (
        f"{_NETWORK}.highway_dnn.emb_size" if network.HasField("highway_dnn")
        else f"{_NETWORK}.img_dnn.hidden_units[-1]" if network.HasField("img_dnn")
        else f"{PLACE}.num_classes"
    )  # fmt: skip
    yield choices(_SOURCE, width, *sorted({8, 16, 32, 64, image_vector_width(network)}))
    if has_backbone and is_pretrained:
        # A frozen backbone with random weights is not worth a trial.
        yield choices(_SOURCE, f"{PLACE}.trainable", "HEAD", "ALL")
    elif has_backbone:
        yield log_range(_SOURCE, f"{PLACE}.layer_decay", 0.5, 1.0)
    yield choices(_SOURCE, f"{PLACE}.augmentation.horizontal_flip", False, True)
    # Below 1, so that augmentation is never without any effect, which is an error.
    for name, low, high in (("random_resized_crop_min_area", 0.3, 0.95), ("brightness", 0.0, 0.4)):
        yield number_range(_SOURCE, f"{PLACE}.augmentation.{name}", low, high)
