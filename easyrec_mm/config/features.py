"""Checks the features of a config and derives Features and their embedding Tables from them.

Every problem is collected with its config path. Never imports TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from easyrec_mm.config.rules import names_in, rule_of
from easyrec_mm.errors import Problems
from easyrec_mm.features.feature import Feature, Table
from easyrec_mm.features.feature_types import FEATURE_TYPES
from easyrec_mm.features.field import Field
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig, Initializer
from easyrec_mm.schema import RowLayout

# Types whose features may have a table.
_WITHOUT_TABLE = ("VectorFeature", "TextFeature")
TABLE_TYPES = tuple(FeatureConfig.FeatureType.Value(name) for name in FEATURE_TYPES if name not in _WITHOUT_TABLE)


def features_by_name(
    features: Sequence[FeatureConfig], place: str, fields: Sequence[Field], problems: Problems
) -> dict[str, tuple[str, FeatureConfig]]:
    """Return feature name -> (config path, feature); add the problems of names, inputs and settings without effect."""
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
        field_names = [field.name for field in fields]
        for missing in (i for i in feature.input_names if i not in field_names):
            problems.unknown(f"{here}.input_names", "input field", missing, field_names)
        kind = FeatureConfig.FeatureType.Name(feature.feature_type)
        element = FeatureConfig.FeatureType.Name(feature.sub_feature_type)
        for field, _ in feature.ListFields():
            types, element_types = names_in(rule_of(field).feature_types), names_in(rule_of(field).element_types)
            if types and kind not in types:
                problems.add(f"{here}.{field.name}", f"has no effect on {kind} '{name}'; remove it")
            elif element_types and kind == "SequenceFeature" and element not in element_types:
                problems.add(f"{here}.{field.name}", f"has no effect on a sequence of {element} '{name}'; remove it")
    return named


def derive_features(
    used: list[tuple[str, FeatureConfig]],
    data: DatasetConfig,
    layout: RowLayout,
    fields: dict[str, Field],
    initializer: Initializer | None,
    problems: Problems,
) -> tuple[tuple[Feature, ...], tuple[Table, ...]]:
    """Return the features and their tables.

    Args:
      used: config path and settings of each feature.
      data: how rows are read.
      layout: positions of the values of a sample.
      fields: the fields by name.
      initializer: for tables of features that do not set their own; None for the default of the config language.
      problems: collects the mistakes.
    """
    features: list[Feature] = []
    tables: dict[str, tuple[str, Table]] = {}
    for place, item in used:
        name = item.feature_name or item.input_names[0]
        misplaced = [i for i in item.input_names if i not in layout.sample_fields]
        for field in misplaced:
            problems.add(f"{place}.input_names", f"'{field}' is not a feature value of a sample (label, image or size)")
        if misplaced:
            continue
        feature_type = FEATURE_TYPES[FeatureConfig.FeatureType.Name(item.feature_type)]
        feature = feature_type.of_config(FeatureSettings(name, place, item, fields, data, problems))
        features.append(feature)
        if feature.table:
            table = Table(
                feature.table, feature.num_rows, item.embedding_dim, _initializer(item, initializer, place, problems)
            )
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
