"""Checks the features of a config and derives what they become: Features and their embedding Tables.

Every problem is collected with its config path. Never imports TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from google.protobuf.message import Message

from easyrec_mm.errors import Problems
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig, Initializer
from easyrec_mm.schema import Encoding, Feature, FeatureKind, Field, RowLayout, Table

_TABLE_TYPES = (FeatureConfig.IdFeature, FeatureConfig.RawFeature, FeatureConfig.TagFeature, FeatureConfig.ComboFeature)
_ID_TYPES = (FeatureConfig.IdFeature, FeatureConfig.TagFeature)

# Settings of FeatureConfig that only some feature types use; the others apply to every type.
SETTINGS_OF_TYPES: dict[str, tuple[int, ...]] = {
    "embedding_name": _TABLE_TYPES,
    "initializer": _TABLE_TYPES,
    "hash_bucket_size": (*_ID_TYPES, FeatureConfig.ComboFeature),
    "num_buckets": _ID_TYPES,
    "vocab_list": _ID_TYPES,
    "vocab_file": _ID_TYPES,
    "precision": (FeatureConfig.IdFeature, FeatureConfig.ComboFeature),
    "kv_separator": (FeatureConfig.TagFeature,),
    "raw_input_dim": (FeatureConfig.RawFeature,),
    "boundaries": (FeatureConfig.RawFeature,),
    "min_val": (FeatureConfig.RawFeature,),
    "max_val": (FeatureConfig.RawFeature,),
    "img_shape": (FeatureConfig.ImgFeature,),
    "resize_method": (FeatureConfig.ImgFeature,),
    "antialias": (FeatureConfig.ImgFeature,),
    "per_group": _TABLE_TYPES,
}

CATEGORY_KINDS: dict[int, FeatureKind] = {
    FeatureConfig.IdFeature: "id",
    FeatureConfig.TagFeature: "tag",
    FeatureConfig.ComboFeature: "combo",
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
    return named


def _is_set(message: Message, name: str) -> bool:
    return any(field.name == name for field, _ in message.ListFields())


def derive_features(
    used: list[tuple[str, FeatureConfig]],
    data: DatasetConfig,
    layout: RowLayout,
    fields: dict[str, Field],
    problems: Problems,
) -> tuple[tuple[Feature, ...], tuple[Table, ...]]:
    features: list[Feature] = []
    tables: dict[str, tuple[str, Table]] = {}
    for place, item in used:
        name = item.feature_name or item.input_names[0]
        misplaced = [i for i in item.input_names if i not in layout.sample_fields]
        for field in misplaced:
            problems.add(f"{place}.input_names", f"'{field}' is no feature value of a sample (label, image or size)")
        if misplaced:
            continue
        if item.feature_type == FeatureConfig.RawFeature:
            feature, rows = _raw_feature(name, place, item, fields, data, problems)
        else:
            feature, rows = _category_feature(name, place, item, fields, data, problems)
        features.append(feature)
        if feature.table:
            table = Table(feature.table, rows, item.embedding_dim, _initializer(item, place, problems))
            first_place, first = tables.setdefault(feature.table, (place, table))
            if first != table:
                problems.add(
                    f"{place}.embedding_name",
                    f"table '{table.name}' is {table.rows} x {table.dim} here and {first.rows} x {first.dim} at "
                    f"{first_place}, or its initializer differs; make them equal",
                )
    return tuple(features), tuple(table for _, table in tables.values())


def _raw_feature(
    name: str, place: str, item: FeatureConfig, fields: dict[str, Field], data: DatasetConfig, problems: Problems
) -> tuple[Feature, int]:
    """The feature and the rows of its table (0 without one)."""
    limits = tuple(item.boundaries)
    if len(item.input_names) != 1:
        problems.add(f"{place}.input_names", f"RawFeature reads one field, not {len(item.input_names)}")
    if any(a >= b for a, b in pairwise(limits)):
        problems.add(f"{place}.boundaries", f"{list(limits)} does not ascend; sort it, without repeats")
    if item.raw_input_dim == 0:
        problems.add(f"{place}.raw_input_dim", "0 numbers are no feature; give 1 or more")
    if item.raw_input_dim > 1:
        _check_inner_separator(item.separator, f"{place}.separator", data, problems)
        if limits:
            problems.add(f"{place}.boundaries", "go with raw_input_dim 1; split the vector into several features")
        if fields[item.input_names[0]].dtype != "string":
            problems.add(f"{place}.raw_input_dim", f"more than one number needs a STRING field, '{name}' is not")
    if (item.HasField("min_val") or item.HasField("max_val")) and item.max_val <= item.min_val:
        problems.add(f"{place}.max_val", f"{item.max_val} is not above min_val {item.min_val}; swap or remove them")
    if (item.embedding_name or item.HasField("initializer")) and not item.embedding_dim:
        problems.add(f"{place}.embedding_dim", "is 0, so the feature has no table; set it, or remove embedding_name")
    rows = (len(limits) + 1 if limits else item.raw_input_dim) if item.embedding_dim else 0
    width = item.embedding_dim or (len(limits) + 1 if limits else item.raw_input_dim)
    feature = Feature(
        name=name,
        kind="raw",
        inputs=tuple(item.input_names),
        width=width,
        table=(item.embedding_name or name) if rows else None,
        separator=item.separator if item.raw_input_dim > 1 else "",
        raw_dim=item.raw_input_dim,
        boundaries=limits,
        min_value=item.min_val,
        max_value=item.max_val,
    )
    return feature, rows


def _category_feature(
    name: str, place: str, item: FeatureConfig, fields: dict[str, Field], data: DatasetConfig, problems: Problems
) -> tuple[Feature, int]:
    """The feature and the rows of its table."""
    kind = CATEGORY_KINDS[item.feature_type]
    if not item.embedding_dim:
        problems.add(f"{place}.embedding_dim", f"is 0; give the width of the embedding of '{name}'")
    least, most = {"id": (1, 1), "tag": (1, 2), "combo": (2, 64)}[kind]
    if not least <= len(item.input_names) <= most:
        problems.add(
            f"{place}.input_names", f"{kind} feature reads {least} to {most} fields, not {len(item.input_names)}"
        )
    inputs = item.input_names[:1] if kind == "tag" else item.input_names
    encoding, vocabulary, num_ids = _encoding(item, name, place, problems)
    for field in (fields[i] for i in inputs):
        if field.dtype == "float32" and encoding != "identity" and item.precision < 0:
            problems.add(f"{place}.precision", f"'{field.name}' is a FLOAT; set the digits with which it becomes an id")
        if field.dtype == "float32" and encoding == "identity":
            problems.add(f"{place}.num_buckets", f"'{field.name}' is a FLOAT; an id by num_buckets is an integer")
        if kind == "tag" and field.dtype != "string":
            problems.add(f"{place}.input_names", f"'{field.name}' must be a STRING field to hold several tags")
    if kind == "tag":
        _check_tag(item, place, fields, data, problems)
    feature = Feature(
        name=name,
        kind=kind,
        inputs=tuple(item.input_names),
        width=item.embedding_dim,
        table=item.embedding_name or name,
        encoding=encoding,
        num_ids=num_ids,
        vocabulary=vocabulary,
        precision=item.precision,
        separator=item.separator if kind == "tag" else "",
        kv_separator=item.kv_separator if kind == "tag" else "",
        combiner=item.combiner if kind == "tag" else "",
    )
    return feature, num_ids


def _check_tag(
    item: FeatureConfig, place: str, fields: dict[str, Field], data: DatasetConfig, problems: Problems
) -> None:
    if item.combiner not in ("mean", "sum", "sqrtn"):
        problems.add(f"{place}.combiner", f"'{item.combiner}' is unknown; choose mean, sum or sqrtn")
    _check_inner_separator(item.separator, f"{place}.separator", data, problems)
    if item.HasField("kv_separator"):
        _check_inner_separator(item.kv_separator, f"{place}.kv_separator", data, problems)
        if item.kv_separator == item.separator:
            problems.add(f"{place}.kv_separator", f"{item.kv_separator!r} is also separator; change one")
        if len(item.input_names) == 2:
            problems.add(f"{place}.kv_separator", "the second input name holds the weights already; remove one")
    if len(item.input_names) == 2 and fields[item.input_names[1]].dtype != "string":
        problems.add(f"{place}.input_names", f"'{item.input_names[1]}' must be a STRING field to hold several weights")


def _encoding(item: FeatureConfig, name: str, place: str, problems: Problems) -> tuple[Encoding, tuple[str, ...], int]:
    """How values become rows: encoding, vocabulary, number of rows."""
    given = [s for s in ("hash_bucket_size", "num_buckets", "vocab_list", "vocab_file") if getattr(item, s)]
    allowed = (
        "hash_bucket_size"
        if item.feature_type == FeatureConfig.ComboFeature
        else ("hash_bucket_size, num_buckets, vocab_list or vocab_file")
    )
    if len(given) != 1:
        problems.add(place, f"'{name}' has {', '.join(given) or 'no number of ids'}; give one of {allowed}")
        return "hash", (), 1
    if given[0] == "hash_bucket_size":
        return "hash", (), item.hash_bucket_size
    if given[0] == "num_buckets":
        return "identity", (), item.num_buckets
    values = tuple(item.vocab_list)
    if given[0] == "vocab_file":
        try:
            values = tuple(Path(item.vocab_file).read_text(encoding="utf-8").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            problems.add(f"{place}.vocab_file", f"'{item.vocab_file}' cannot be read: {error}")
        values = tuple(value.rstrip("\r") for value in (values[:-1] if values and not values[-1] else values))
    if len(set(values)) != len(values):
        repeated = next(v for i, v in enumerate(values) if v in values[:i])
        problems.add(f"{place}.{given[0]}", f"holds '{repeated}' twice; each value has one row")
    return "vocabulary", values, len(values) + 1


def _check_inner_separator(separator: str, place: str, data: DatasetConfig, problems: Problems) -> None:
    names = ("rtp_separator", "group_sample_separator", "separator")
    is_text = data.input_type == DatasetConfig.GroupRTPInput
    outer = {f"data_config.{name}": getattr(data, name) for name in names if is_text}
    if not separator:
        problems.add(place, "is empty; give the character between values")
    for name, value in outer.items():
        if separator and separator == value:
            problems.add(place, f"{separator!r} is also {name}, which splits the line first; choose another")


def _initializer(item: FeatureConfig, place: str, problems: Problems) -> tuple[str, tuple[float, ...]]:
    if not item.HasField("initializer"):
        return "truncated_normal", (0.0, 1.0 / math.sqrt(max(item.embedding_dim, 1)))
    config: Initializer = item.initializer
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
