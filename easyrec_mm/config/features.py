"""Checks the features of a config and derives what they become: Features and their embedding Tables.

Every problem is collected with its config path. Never imports TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from google.protobuf.message import Message

from easyrec_mm.config.feature_kinds import KINDS, Given
from easyrec_mm.errors import Problems
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig, Initializer
from easyrec_mm.schema import Feature, Field, RowLayout, Table

_ONE_NUMBER_TYPES = (FeatureConfig.RawFeature, FeatureConfig.ExprFeature, FeatureConfig.SequenceFeature)
TABLE_TYPES = tuple(kind for kind in KINDS if kind != FeatureConfig.VectorFeature)
_VECTOR_TYPES = (FeatureConfig.VectorFeature, FeatureConfig.SequenceFeature)
_SEQUENCE_TYPES = (FeatureConfig.SequenceFeature,)
_TAG_TYPES = (FeatureConfig.TagFeature, FeatureConfig.LookupFeature)
_ID_TYPES = (FeatureConfig.IdFeature, *_TAG_TYPES, FeatureConfig.SequenceFeature)
_IDS, _NUMBERS = (FeatureConfig.IdFeature,), (FeatureConfig.RawFeature,)

# Settings of FeatureConfig that only some feature types use; the others apply to every type.
SETTINGS_OF_TYPES: dict[str, tuple[int, ...]] = {
    "embedding_name": TABLE_TYPES,
    "initializer": TABLE_TYPES,
    "hash_bucket_size": (*_ID_TYPES, FeatureConfig.ComboFeature),
    "num_buckets": _ID_TYPES,
    "vocab_list": _ID_TYPES,
    "vocab_file": _ID_TYPES,
    "precision": (FeatureConfig.IdFeature, FeatureConfig.ComboFeature),
    "kv_separator": _TAG_TYPES,
    "lookup_max_sel_elem_num": (FeatureConfig.LookupFeature,),
    "raw_input_dim": (FeatureConfig.RawFeature, FeatureConfig.SequenceFeature),
    "boundaries": _ONE_NUMBER_TYPES,
    "min_val": _ONE_NUMBER_TYPES,
    "max_val": _ONE_NUMBER_TYPES,
    "numeric_transform": _ONE_NUMBER_TYPES,
    "normalizer_fn": _ONE_NUMBER_TYPES,
    "expression": (FeatureConfig.ExprFeature,),
    "sub_feature_type": _SEQUENCE_TYPES,
    "seq_multi_sep": _SEQUENCE_TYPES,
    "max_seq_len": _SEQUENCE_TYPES,
    "kept_end": _SEQUENCE_TYPES,
    "vector_dim": _VECTOR_TYPES,
    "vector_store": _VECTOR_TYPES,
    "max_missing_share": _VECTOR_TYPES,
    "img_shape": (FeatureConfig.ImgFeature,),
    "resize_method": (FeatureConfig.ImgFeature,),
    "antialias": (FeatureConfig.ImgFeature,),
    "per_group": tuple(KINDS),
}
# Settings that only some types of elements of a SequenceFeature use.
SETTINGS_OF_ELEMENTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("hash_bucket_size", "num_buckets", "vocab_list", "vocab_file"), _IDS),
    **dict.fromkeys(("raw_input_dim", "boundaries", "min_val", "max_val", "seq_multi_sep"), _NUMBERS),
    **dict.fromkeys(("numeric_transform", "normalizer_fn"), _NUMBERS),
    **dict.fromkeys(("embedding_name", "initializer"), (*_IDS, *_NUMBERS)),
    **dict.fromkeys(("vector_dim", "vector_store", "max_missing_share"), (FeatureConfig.VectorFeature,)),
}


def features_by_name(
    features: Sequence[FeatureConfig], place: str, fields: Sequence[Field], problems: Problems
) -> dict[str, tuple[str, FeatureConfig]]:
    """Feature name -> (config path, feature), for every feature of the config."""
    named: dict[str, tuple[str, FeatureConfig]] = {}
    for i, feature in enumerate(features):
        here = f"{place}[{i}]"
        if not feature.input_names:
            problems.add(f"{here}.input_names", "is empty; name the input field(s) of the feature")
            continue
        name = feature.feature_name or feature.input_names[0]
        if name in named:
            problems.add(here, f"a second feature named '{name}'; give one of them another feature_name")
            continue
        named[name] = (here, feature)
        known = [field.name for field in fields]
        for missing in (i for i in feature.input_names if i not in known):
            problems.unknown(f"{here}.input_names", "input field", missing, known)
        kind = FeatureConfig.FeatureType.Name(feature.feature_type)
        for setting, types in SETTINGS_OF_TYPES.items():
            if feature.feature_type not in types and _is_set(feature, setting):
                problems.add(f"{here}.{setting}", f"has no effect on {kind} '{name}'; remove it")
        if feature.feature_type == FeatureConfig.SequenceFeature:
            kind = FeatureConfig.FeatureType.Name(feature.sub_feature_type)
            for setting, types in SETTINGS_OF_ELEMENTS.items():
                if feature.sub_feature_type not in types and _is_set(feature, setting):
                    problems.add(f"{here}.{setting}", f"has no effect on a sequence of {kind} '{name}'; remove it")
    return named


def _is_set(message: Message, name: str) -> bool:
    return any(field.name == name for field, _ in message.ListFields())


def derive_features(
    used: list[tuple[str, FeatureConfig]],
    data: DatasetConfig,
    layout: RowLayout,
    fields: dict[str, Field],
    initializer: Initializer | None,
    problems: Problems,
) -> tuple[tuple[Feature, ...], tuple[Table, ...]]:
    """The features and their tables.

    Args:
      used: config path and settings of each.
      data: how rows are read.
      layout: where the values of a sample stand.
      fields: the fields by name.
      initializer: of tables of features that do not set their own; None for that of the language.
      problems: where mistakes go.
    """
    features: list[Feature] = []
    tables: dict[str, tuple[str, Table]] = {}
    for place, item in used:
        name = item.feature_name or item.input_names[0]
        misplaced = [i for i in item.input_names if i not in layout.sample_fields]
        for field in misplaced:
            problems.add(f"{place}.input_names", f"'{field}' is no feature value of a sample (label, image or size)")
        if misplaced:
            continue
        feature, rows = KINDS[item.feature_type](Given(name, place, item, fields, data, problems))
        features.append(feature)
        if feature.table:
            table = Table(feature.table, rows, item.embedding_dim, _initializer(item, initializer, place, problems))
            first_place, first = tables.setdefault(feature.table, (place, table))
            if first != table:
                problems.add(
                    f"{place}.embedding_name",
                    f"table '{table.name}' is {table.rows} x {table.dim} here and {first.rows} x {first.dim} at "
                    f"{first_place}, or its initializer differs; make them equal",
                )
    return tuple(features), tuple(table for _, table in tables.values())


def _initializer(
    item: FeatureConfig, of_all: Initializer | None, place: str, problems: Problems
) -> tuple[str, tuple[float, ...]]:
    config = item.initializer if item.HasField("initializer") else of_all
    place = place if item.HasField("initializer") else "feature_config"
    if config is None:
        return "truncated_normal", (0.0, 1.0 / math.sqrt(max(item.embedding_dim, 1)))
    which = config.WhichOneof("initializer_oneof")
    if which == "truncated_normal_initializer":
        normal = config.truncated_normal_initializer
        return "truncated_normal", (normal.mean, normal.stddev)
    if which == "random_normal_initializer":
        return "random_normal", (config.random_normal_initializer.mean, config.random_normal_initializer.stddev)
    if which == "glorot_normal_initializer":
        return "glorot_normal", ()
    if which is None:
        problems.add(f"{place}.initializer", "is empty; choose one of its fields or remove it")
    values = tuple(config.constant_initializer.consts) or (0.0,)
    if which and len(values) not in (1, item.embedding_dim):
        problems.add(
            f"{place}.initializer.constant_initializer.consts",
            f"has {len(values)} values; give 1 or embedding_dim ({item.embedding_dim})",
        )
    return "constant", values
