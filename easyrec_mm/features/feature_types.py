"""The types of features. To add one, write a file like id_feature.py, list its class here, extend feature.proto."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from easyrec_mm.features.categories import Categories
from easyrec_mm.features.code_feature import CodeFeature
from easyrec_mm.features.combo_feature import ComboFeature
from easyrec_mm.features.expr_feature import ExprFeature
from easyrec_mm.features.feature import Feature, StoredVectors
from easyrec_mm.features.id_feature import IdFeature
from easyrec_mm.features.lookup_feature import LookupFeature
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.raw_feature import RawFeature
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.features.tag_feature import TagFeature
from easyrec_mm.features.text_feature import TextFeature
from easyrec_mm.features.vector_feature import VectorFeature

_TYPES: tuple[type[Feature], ...] = (
    IdFeature, RawFeature, TagFeature, ComboFeature, LookupFeature, SequenceFeature, ExprFeature, VectorFeature,
    TextFeature, CodeFeature,
)  # fmt: skip
# Name in the config language -> type.
FEATURE_TYPES = {feature_type.__name__: feature_type for feature_type in _TYPES}
_PARTS: dict[str, Any] = {"categories": Categories, "numbers": Numbers, "stored": StoredVectors}


def feature_to_dict(feature: Feature) -> dict[str, Any]:
    """Return a feature as values that JSON can represent."""
    return {"type": type(feature).__name__, **asdict(feature)}


def feature_from_dict(values: dict[str, Any]) -> Feature:
    """Return the feature from the result of `feature_to_dict`, which may have been saved as JSON in between.

    Raises:
      KeyError, TypeError: if `values` are not those of a feature.
    """
    if "kind" in values:
        return _of_format_1(values)
    values = _with_tuples(values)
    for name, part in _PARTS.items():
        if values[name] is not None:
            values[name] = part(**_with_tuples(values[name]))
    return FEATURE_TYPES[values.pop("type")](**values)


# Settings of format 1 that its first manifests lack.
_DEFAULTS_OF_FORMAT_1: dict[str, Any] = {
    "table": None, "encoding": None, "num_ids": 0, "vocabulary": (), "precision": -1, "separator": "",
    "kv_separator": "", "combiner": "", "raw_dim": 1, "boundaries": (), "min_value": 0.0, "max_value": 0.0,
    "log1p": "", "expression": "", "max_selected": 0, "number_separator": "", "max_length": 0, "keeps_last": False,
    "store": "", "max_missing_share": 1.0, "is_joined": True, "is_wide": False,
}  # fmt: skip


def _of_format_1(values: dict[str, Any]) -> Feature:
    """Return a feature of a manifest of format 1, in which a feature has the settings of all types."""
    settings = _DEFAULTS_OF_FORMAT_1 | _with_tuples(values)
    shared = {name: settings[name] for name in ("name", "inputs", "width", "table", "is_joined", "is_wide")}
    if settings["encoding"] is not None:
        categories = Categories(
            settings["encoding"], settings["num_ids"], settings["vocabulary"], settings["precision"]
        )
        shared["categories"] = categories
    elif settings["store"]:
        shared["stored"] = StoredVectors(settings["store"], settings["raw_dim"], settings["max_missing_share"])
    else:
        scaling = (settings[name] for name in ("boundaries", "min_value", "max_value", "log1p"))
        shared["numbers"] = Numbers(settings["raw_dim"], *scaling)
    texts = {name: settings[name] for name in ("separator", "kv_separator", "combiner")}
    kind = settings["kind"]
    if kind == "sequence":
        del texts["kv_separator"]
        sequence_settings = {name: settings[name] for name in ("number_separator", "max_length", "keeps_last")}
        return SequenceFeature(**shared, **texts, **sequence_settings)
    if kind == "tag" and settings["max_selected"]:
        return LookupFeature(**shared, **texts, max_selected=settings["max_selected"])
    if kind == "tag":
        return TagFeature(**shared, **texts)
    if kind == "raw" and settings["expression"]:
        return ExprFeature(**shared, expression=settings["expression"])
    if kind == "raw" and settings["store"]:
        return VectorFeature(**shared)
    if kind == "raw":
        return RawFeature(**shared, separator=settings["separator"])
    return (IdFeature if kind == "id" else ComboFeature)(**shared)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
