"""The arms of the test: variants of the user's config that differ only in their use of pictures and texts of items.

Never imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from easyrec_mm.config.feature_groups import Named, is_of_groups
from easyrec_mm.config.image import NO_BACKBONE, backbone_name
from easyrec_mm.config.pipeline import Pipeline, check_config
from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.image_pb2 import ImgModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.worth.names import ARMS, END_TO_END, FROZEN, NO_CONTENT, NO_TEXT, NONE, OWN, SHUFFLED

# Layer decay for a pretrained backbone whose config sets none: the full learning rate would spoil its first stages,
# which detect what all pictures have in common (Bao et al., BEiT, ICLR 2022, use 0.65 to 0.95).
_LAYER_DECAY = 0.7


class _SenselessError(Exception):
    """An arm is impossible, or the same model as another arm; the message says why."""


@dataclass(frozen=True)
class Arm:
    """An arm: `name` is one of names.ARMS; `pipeline` has its config, whose model_dir is set for each run."""

    name: str
    pipeline: Pipeline

    @property
    def is_frozen(self) -> bool:
        """Whether each picture is encoded only once in a training."""
        img_model = self.pipeline.config.model_config.e2e_mm_dbmtl.img_model
        kinds = (ImgModel.HEAD, ImgModel.NONE)
        changes = img_model.unfreeze_at_step or img_model.HasField("augmentation")
        return self.pipeline.schema.uses_image and img_model.trainable in kinds and not changes


def arms_of(pipeline: Pipeline, names: Sequence[str], shuffled_pictures: Path) -> tuple[list[Arm], dict[str, str]]:
    """Return the arms that make sense for a config, in the order of names.ARMS, and why other arms are left out.

    Args:
      pipeline: the user's config.
      names: names of the arms to test; () for all.
      shuffled_pictures: the file that the arm with other items' pictures will read.

    Raises:
      UserError: if the config has no pictures and texts, or a requested arm is unknown or makes no sense.
    """
    if not pipeline.schema.has_item_vector:
        raise UserError(
            f"{pipeline.path}: has no pictures (no feature group of an ImgFeature), so there is nothing to compare"
        )
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise UserError(f"--arms: unknown arm '{unknown[0]}'; choose from {', '.join(ARMS)}")
    arms, left_out = [], {}
    of_texts = (NO_TEXT, NO_CONTENT) if pipeline.schema.text is None else ()
    for name in ARMS:
        if name in of_texts and name not in names:
            continue  # a config without texts has no reason to mention them
        if names and name not in names and name != OWN:
            left_out[name] = "not in --arms"
            continue
        config = EasyRecConfig()
        config.CopyFrom(pipeline.config)
        try:
            _require_content(name, pipeline)
            _CHANGES[name](config, shuffled_pictures)
            arms.append(Arm(name, _checked(config, pipeline)))
        except (_SenselessError, ConfigError) as error:
            if name in names:
                raise UserError(f"--arms: '{name}' does not apply to {pipeline.path}: {error}") from error
            left_out[name] = str(error)
    return arms, left_out


def _checked(config: EasyRecConfig, pipeline: Pipeline) -> Pipeline:
    schema, _ = check_config(config, pipeline.path)
    return Pipeline(pipeline.path, config, schema, ())


def _own(config: EasyRecConfig, shuffled_pictures: Path) -> None:
    """Leave the config unchanged."""


def _require_content(name: str, pipeline: Pipeline) -> None:
    """Check that the config has what an arm changes."""
    schema = pipeline.schema
    if name in (NONE, SHUFFLED, FROZEN, END_TO_END, NO_CONTENT) and not schema.uses_image:
        raise _SenselessError("the config has no pictures (no feature group of an ImgFeature)")
    if name in (NO_TEXT, NO_CONTENT) and schema.text is None:
        raise _SenselessError("the config has no texts of items (no feature group of a TextFeature)")


def _none(config: EasyRecConfig, shuffled_pictures: Path) -> None:
    """Remove the image tower, but keep the ImgFeature: the same rows are read, and evaluations can use its field."""
    _remove_group(config, FeatureConfig.ImgFeature, "picture")
    network = config.model_config.e2e_mm_dbmtl
    num_others = _has_group(config, FeatureConfig.TextFeature) + len(network.vector_model)
    for name in ("img_model", "img_dnn", "highway_dnn", *_of_fusion(num_others)):
        network.ClearField(name)
    for name in ("image_cache_dir", "image_cache_gib", "packed_images"):
        config.data_config.ClearField(name)
    _remove_settings(config, _is_of_picture if num_others else _is_of_item)


def _no_text(config: EasyRecConfig, shuffled_pictures: Path) -> None:
    """Remove the text tower, but keep the TextFeature, for the same reason."""
    _remove_group(config, FeatureConfig.TextFeature, "text")
    network = config.model_config.e2e_mm_dbmtl
    num_others = _has_group(config, FeatureConfig.ImgFeature) + len(network.vector_model)
    for name in ("text_model", *_of_fusion(num_others)):
        network.ClearField(name)
    _remove_settings(config, _is_of_text if num_others else _is_of_item)


def _of_fusion(num_parts: int) -> tuple[str, ...]:
    """Return the settings of the item vector that do not apply to items of so many parts."""
    return (("item_fusion", "image_fusion"), ("item_fusion",), ())[min(num_parts, 2)]


def _no_content(config: EasyRecConfig, shuffled_pictures: Path) -> None:
    config.model_config.e2e_mm_dbmtl.ClearField("vector_model")
    _no_text(config, shuffled_pictures)
    _none(config, shuffled_pictures)


def _remove_group(config: EasyRecConfig, kind: FeatureConfig.FeatureType, content: str) -> None:
    """Remove the feature group of the only feature of a kind."""
    model, named = config.model_config, _named(config)
    name = next(name for name, (_, feature) in named.items() if feature.feature_type == kind)
    groups = [g for g in model.feature_groups if not (is_of_groups(g, named) and g.feature_names[0] == name)]
    for group in groups:
        for attention in group.sequence_features:
            if any(name in pairs.key for pairs in attention.seq_att_map):
                raise _SenselessError(
                    f"the attention '{attention.group_name}' has the {content} as a key, so {content}s cannot be left "
                    "out"
                )
    del model.feature_groups[:]
    model.feature_groups.extend(groups)


def _named(config: EasyRecConfig) -> Named:
    features = [*config.feature_config.features, *config.feature_configs]
    return {feature.feature_name or feature.input_names[0]: ("", feature) for feature in features}


def _has_group(config: EasyRecConfig, kind: FeatureConfig.FeatureType) -> bool:
    named = _named(config)
    groups = [group for group in config.model_config.feature_groups if is_of_groups(group, named)]
    return any(named[group.feature_names[0]][1].feature_type == kind for group in groups)


def _remove_settings(config: EasyRecConfig, is_removed: Callable[[str], bool]) -> None:
    """Remove the settings of the training that apply only to variables which are removed, by their patterns."""
    train = config.train_config
    optimizers = [o for o in train.optimizer_config if not (o.variables and all(map(is_removed, o.variables)))]
    by_part = [i for i, optimizer in enumerate(optimizers) if not optimizer.variables]
    if len(by_part) == 3 and is_removed is _is_of_item:
        del optimizers[by_part[2]]
    del train.optimizer_config[:]
    train.optimizer_config.extend(optimizers)
    frozen = [pattern for pattern in train.freeze_gradient if not is_removed(pattern)]
    del train.freeze_gradient[:]
    train.freeze_gradient.extend(frozen)


def _is_of_item(pattern: str) -> bool:
    """Return whether a pattern of variable names is for the towers of items."""
    return pattern.lstrip("^").startswith("image/")


def _is_of_text(pattern: str) -> bool:
    """Return whether a pattern is for the text tower, or for its fusion with the image vector."""
    return pattern.lstrip("^").startswith(("image/text/", "image/fusion/"))


def _is_of_picture(pattern: str) -> bool:
    """Return whether a pattern is for the towers of items, but neither for all of them nor for other contents."""
    rest = pattern.lstrip("^")
    return rest != "image/" and _is_of_item(rest) and not rest.startswith(("image/text/", "image/vector_"))


def _shuffled(config: EasyRecConfig, shuffled_pictures: Path) -> None:
    config.data_config.shuffled_pictures = str(shuffled_pictures)


def _frozen(config: EasyRecConfig, shuffled_pictures: Path) -> None:
    img_model = config.model_config.e2e_mm_dbmtl.img_model
    _require_backbone(img_model)
    if img_model.trainable in (ImgModel.HEAD, ImgModel.NONE) and not img_model.unfreeze_at_step:
        raise _SenselessError(f"the config already freezes the backbone, so this would be the same as '{OWN}'")
    if not (img_model.preset or config.train_config.fine_tune_checkpoint):
        raise _SenselessError("the backbone has random weights, so freezing it makes no sense")
    _clear_training(img_model)
    for name in ("encode_ratio", "max_staleness_steps", "rematerialize", "image_micro_batch"):
        img_model.ClearField(name)
    img_model.trainable = ImgModel.HEAD


def _end_to_end(config: EasyRecConfig, shuffled_pictures: Path) -> None:
    img_model = config.model_config.e2e_mm_dbmtl.img_model
    _require_backbone(img_model)
    if img_model.trainable == ImgModel.ALL and not img_model.lora_rank:
        raise _SenselessError(f"the config already trains the whole tower, so this would be the same as '{OWN}'")
    _clear_training(img_model)
    img_model.trainable = ImgModel.ALL
    if img_model.preset and not img_model.HasField("layer_decay"):
        img_model.layer_decay = _LAYER_DECAY


def _require_backbone(img_model: ImgModel) -> None:
    if not img_model.preset and backbone_name(img_model.model_name) == NO_BACKBONE:
        raise _SenselessError('the image tower has no backbone (model_name: "None")')


def _clear_training(img_model: ImgModel) -> None:
    """Remove the settings that choose the part of the tower to train."""
    for name in ("trainable", "last_n_stages", "unfreeze_at_step", "lora_rank", "lora_alpha"):
        img_model.ClearField(name)


_CHANGES: dict[str, Callable[[EasyRecConfig, Path], None]] = {
    OWN: _own,
    NONE: _none,
    SHUFFLED: _shuffled,
    FROZEN: _frozen,
    END_TO_END: _end_to_end,
    NO_TEXT: _no_text,
    NO_CONTENT: _no_content,
}
