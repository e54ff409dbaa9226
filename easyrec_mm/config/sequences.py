"""Checks `sequence_features` of the feature groups: which keys attend to which sequences. Never imports TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from easyrec_mm.config.feature_groups import NO_IMAGE_GROUP, OF_GROUPS, Named, is_of_groups
from easyrec_mm.errors import Problems
from easyrec_mm.features.feature import Feature
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.model_pb2 import EasyRecModel, FeatureGroupConfig, SeqAttGroupConfig
from easyrec_mm.schema import IMAGE_KEY, Attention


def attention_groups(model: EasyRecModel) -> Iterator[tuple[str, FeatureGroupConfig, SeqAttGroupConfig]]:
    """Yield (config path, feature group, attention) of each attention, in order."""
    for i, group in enumerate(model.feature_groups):
        for j, attention in enumerate(group.sequence_features):
            yield f"model_config.feature_groups[{i}].sequence_features[{j}]", group, attention


def check_attentions(
    model: EasyRecModel,
    joined: Collection[str],
    named: Named,
    item_name: str,
    has_item_vector: bool,
    problems: Problems,
) -> list[str]:
    """Check every attention; return the features that only attentions read, each once.

    Args:
      model: the config's model section.
      joined: names of the features whose vectors the network takes directly.
      named: feature name -> config path and settings.
      item_name: name of the feature that stands for the item vector, see schema.py.
      has_item_vector: whether the network has an image tower or a text tower.
      problems: collects the mistakes.
    """
    names: list[str] = []
    only_attended: list[str] = []
    for place, group, attention in attention_groups(model):
        if is_of_groups(group, named):
            continue
        if not re.fullmatch(r"\w[\w.-]*", attention.group_name):
            problems.add(
                f"{place}.group_name", f"'{attention.group_name}' is not a valid name; use letters, digits and _"
            )
        elif attention.group_name in names:
            problems.add(f"{place}.group_name", f"'{attention.group_name}' is listed twice; rename one")
        names.append(attention.group_name)
        if not attention.seq_att_map:
            problems.add(f"{place}.seq_att_map", "is empty; name the keys and the sequences that they attend to")
        for j, pairs in enumerate(attention.seq_att_map):
            here = f"{place}.seq_att_map[{j}]"
            keys = _feature_names(pairs.key, f"{here}.key", named, problems)
            for name in keys:
                if name != item_name:
                    _check_key(name, named[name][1].feature_type, attention, group, f"{here}.key", problems)
            if item_name in pairs.key and not has_item_vector:
                problems.add(f"{here}.key", f"'{item_name}' needs the image tower: {NO_IMAGE_GROUP}; add one")
            sequences = _feature_names(pairs.hist_seq, f"{here}.hist_seq", named, problems)
            for name in sequences:
                kind = named[name][1].feature_type
                if kind != FeatureConfig.SequenceFeature:
                    type_name = FeatureConfig.FeatureType.Name(kind)
                    problems.add(f"{here}.hist_seq", f"'{name}' is a {type_name}; name a SequenceFeature")
            vectors = [name for name in keys if named[name][1].feature_type not in OF_GROUPS]
            only_attended += [name for name in (*vectors, *sequences) if name not in joined]
        _check_ends(attention, place, named, problems)
    return list(dict.fromkeys(only_attended))


def derive_attentions(
    model: EasyRecModel, features: Sequence[Feature], item_name: str, item_width: int, problems: Problems
) -> tuple[Attention, ...]:
    """Return the attentions of a checked config, given its features, and name and width of the item vector."""
    widths = {feature.name: feature.width for feature in features}
    widths[IMAGE_KEY] = item_width
    attentions = []
    for place, _, attention in attention_groups(model):
        keys = tuple(IMAGE_KEY if name == item_name else name for part in attention.seq_att_map for name in part.key)
        sequences = tuple(name for part in attention.seq_att_map for name in part.hist_seq)
        shown = {**{name: name for name in widths}, IMAGE_KEY: item_name}
        total, other = (sum(widths[name] for name in names) for names in (keys, sequences))
        if total != other:
            sums = [" + ".join(f"{shown[name]} ({widths[name]})" for name in names) for names in (keys, sequences)]
            problems.add(
                f"{place}.seq_att_map",
                f"keys {sums[0]} have {total} numbers, sequences {sums[1]} have {other}; make them equal",
            )
        attentions.append(Attention(attention.group_name, keys, sequences, other, attention.need_key_feature))
    return tuple(attentions)


def _feature_names(names: Sequence[str], place: str, named: Named, problems: Problems) -> list[str]:
    """Return the names that are names of features; add a problem for each other name."""
    if not names:
        problems.add(place, "is empty; name a feature")
    for name in names:
        if name not in named:
            problems.unknown(place, "feature", name, named)
    return [name for name in names if name in named]


def _check_key(
    name: str, kind: int, attention: SeqAttGroupConfig, group: FeatureGroupConfig, place: str, problems: Problems
) -> None:
    if kind in (FeatureConfig.SequenceFeature, FeatureConfig.SampleNumFeature):
        type_name = FeatureConfig.FeatureType.Name(kind)
        problems.add(place, f"'{name}' is a {type_name}; a key must be a feature with one vector per sample")
    elif kind == FeatureConfig.TextFeature:
        problems.add(place, f"'{name}' is a part of the item vector; name the ImgFeature, which stands for this vector")
    elif name not in group.feature_names and not attention.allow_key_search:
        problem = f"'{name}' is not in group '{group.group_name}'"
        problems.add(place, f"{problem}; add it there or set allow_key_search: true")


def _check_ends(attention: SeqAttGroupConfig, place: str, named: Named, problems: Problems) -> None:
    """Check that sequences which are attended to together are cut to the same length at the same end."""
    sequences = [name for part in attention.seq_att_map for name in part.hist_seq if name in named]
    ends = {name: (named[name][1].max_seq_len, named[name][1].kept_end) for name in sequences}
    for name in sequences:
        if ends[name] != ends[sequences[0]]:
            problems.add(
                f"{place}.seq_att_map",
                f"'{name}' and '{sequences[0]}' differ in max_seq_len or kept_end; sequences that are attended to "
                "together are cut alike, make them equal",
            )
