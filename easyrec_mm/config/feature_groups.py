"""Checks the feature groups of a config: which features go into which part of the network. Never imports TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from easyrec_mm.config.features import TABLE_TYPES
from easyrec_mm.errors import Problems
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.model_pb2 import EasyRecModel, FeatureGroupConfig

Named = dict[str, tuple[str, FeatureConfig]]

# Types of features that have one value for all samples of a group; each needs a feature group of its own.
OF_GROUPS = (FeatureConfig.ImgFeature, FeatureConfig.TextFeature, FeatureConfig.SampleNumFeature)
_IS_DEEP = (FeatureGroupConfig.DEEP, FeatureGroupConfig.WIDE_AND_DEEP)
# Types with tables whose values have no single number per logit.
_NOT_WIDE = (FeatureConfig.SequenceFeature, FeatureConfig.CodeFeature)
_IS_WIDE = (FeatureGroupConfig.WIDE, FeatureGroupConfig.WIDE_AND_DEEP)

# Reason, for messages, why settings for pictures have no effect.
NO_IMAGE_GROUP = "no feature group of an ImgFeature"
VECTORS = "model_config.e2e_mm_dbmtl.vector_model"
NO_TEXT_GROUP = "no feature group of a TextFeature"


@dataclass
class FeatureGroups:
    """The features that the feature groups use.

    image_group  name of the group of the ImgFeature; "" for a network without pictures
    text         name of the TextFeature that has a group; "" for a network without texts
    vectors      features that vector_model names, in order
    deep         features whose vectors are concatenated before the bottom layers, in order
    wide         features whose values are added to the logits, one number per logit -> wide_regularization, in order
    """

    image_group: str = ""
    text: str = ""
    vectors: list[str] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)
    wide: dict[str, float] = field(default_factory=dict)

    @property
    def has_item_vector(self) -> bool:
        """Return whether items have a vector."""
        return bool(self.image_group or self.text or self.vectors)


def feature_groups(model: EasyRecModel, named: Named, problems: Problems) -> FeatureGroups:
    """Return the features that the groups of a model use, and add every problem of the groups.

    Args:
      model: the config's model section.
      named: feature name -> config path and settings.
      problems: collects the mistakes.
    """
    groups = FeatureGroups()
    names: list[str] = []
    own: list[str] = []
    for i, group in enumerate(model.feature_groups):
        place = f"model_config.feature_groups[{i}]"
        if group.group_name in names:
            problems.add(f"{place}.group_name", f"'{group.group_name}' is listed twice; merge the two groups")
        names.append(group.group_name)
        if not group.feature_names:
            problems.add(f"{place}.feature_names", f"group '{group.group_name}' names no feature; add one or remove it")
        if is_of_groups(group, named):
            (name,) = group.feature_names
            _check_own_group(group, name in own, place, named, problems)
            own.append(name)
            if named[name][1].feature_type == FeatureConfig.ImgFeature:
                groups.image_group = groups.image_group or group.group_name
            if named[name][1].feature_type == FeatureConfig.TextFeature:
                groups.text = name
            continue
        for j, name in enumerate(group.feature_names):
            _add(groups, group, name, f"{place}.feature_names[{j}]", named, problems)
    groups.vectors = _item_vectors(model, {*groups.deep, *groups.wide}, named, problems)
    highway = model.e2e_mm_dbmtl.highway_dnn.input
    if model.e2e_mm_dbmtl.HasField("highway_dnn") and groups.image_group not in ("", highway):
        place = "model_config.e2e_mm_dbmtl.highway_dnn.input"
        problems.unknown(place, "image group", highway, [groups.image_group])
    has_deep = not all(is_of_groups(group, named) or group.wide_deep not in _IS_DEEP for group in model.feature_groups)
    if model.e2e_mm_dbmtl.task_towers and not has_deep:
        problems.add("model_config.feature_groups", "has no DEEP group; add one that names the features of the network")
    return groups


def is_of_groups(group: FeatureGroupConfig, named: Named) -> bool:
    """Return whether a group is the one of the ImgFeature, the TextFeature or the SampleNumFeature."""
    names = list(group.feature_names)
    return len(names) == 1 and names[0] in named and named[names[0]][1].feature_type in OF_GROUPS


def wide_name(name: str) -> str:
    """Return the name of the wide part of a feature, which is also the name of its table."""
    return f"{name}_wide"


def wide_features(
    names: Iterable[str], named: Named, num_logits: int, problems: Problems
) -> list[tuple[str, FeatureConfig]]:
    """Return the wide parts of features with their config paths: one number per value and logit, initially 0."""
    parts = []
    for name in names:
        place, original = named[name]
        if wide_name(name) in named:
            conflict = f"the wide part of '{name}' is named '{wide_name(name)}', which is also the name of a feature"
            problems.add(place, f"{conflict}; rename that feature")
        feature = FeatureConfig()
        feature.CopyFrom(original)
        feature.feature_name = wide_name(name)
        feature.embedding_dim = num_logits
        feature.ClearField("embedding_name")
        feature.initializer.constant_initializer.SetInParent()
        parts.append((place, feature))
    return parts


def _item_vectors(model: EasyRecModel, in_groups: set[str], named: Named, problems: Problems) -> list[str]:
    """Return the features that vector_model names; `in_groups` are those of feature groups."""
    names: list[str] = []
    for i, settings in enumerate(model.e2e_mm_dbmtl.vector_model):
        place, name = f"{VECTORS}[{i}].feature_name", settings.feature_name
        if name not in named:
            vectors = [n for n, (_, f) in named.items() if f.feature_type == FeatureConfig.VectorFeature]
            problems.unknown(place, "VectorFeature", name, vectors)
            continue
        feature = named[name][1]
        if feature.feature_type != FeatureConfig.VectorFeature:
            kind = FeatureConfig.FeatureType.Name(feature.feature_type)
            problems.add(place, f"'{name}' is a {kind}; name a VectorFeature")
        elif not feature.per_group:
            problems.add(place, f"'{name}' may differ within a group; set per_group: true on it")
        elif name in names:
            problems.add(place, f"'{name}' is named twice; remove one")
        elif name in in_groups:
            advice = "remove it from the group, or add a second feature of the same field"
            problems.add(place, f"'{name}' is in a feature group, too; {advice}")
        else:
            names.append(name)
    return names


def _add(
    groups: FeatureGroups, group: FeatureGroupConfig, name: str, place: str, named: Named, problems: Problems
) -> None:
    if name not in named:
        problems.unknown(place, "feature", name, named)
        return
    kind = named[name][1].feature_type
    type_name = FeatureConfig.FeatureType.Name(kind)
    if kind in OF_GROUPS:
        problems.add(place, f"'{name}' is of type {type_name}; give it a feature group of its own")
        return
    is_deep, is_wide = group.wide_deep in _IS_DEEP, group.wide_deep in _IS_WIDE
    if (is_deep and name in groups.deep) or (is_wide and name in groups.wide):
        problems.add(place, f"'{name}' is listed twice; remove one")
    elif is_wide and (kind not in TABLE_TYPES or kind in _NOT_WIDE):
        problems.add(place, f"'{name}' is of type {type_name}, which cannot be WIDE; set wide_deep: DEEP")
    else:
        groups.deep += [name] * is_deep
        groups.wide |= {name: group.wide_regularization} if is_wide else {}


def _check_own_group(group: FeatureGroupConfig, is_second: bool, place: str, named: Named, problems: Problems) -> None:
    """Check the group of an ImgFeature or a SampleNumFeature."""
    (name,) = group.feature_names
    type_name = FeatureConfig.FeatureType.Name(named[name][1].feature_type)
    if is_second:
        problems.add(f"{place}.feature_names[0]", f"'{name}' has a feature group already; remove one")
    if group.sequence_features:
        problems.add(
            f"{place}.sequence_features", f"has no effect in the group of the {type_name}; move it to another group"
        )
    if group.wide_deep != FeatureGroupConfig.DEEP:
        problems.add(f"{place}.wide_deep", f"has no effect in the group of the {type_name}; remove it")
