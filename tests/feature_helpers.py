"""Features in a line each."""

from __future__ import annotations

from typing import Any

from easyrec_mm.features.categories import Categories, Encoding
from easyrec_mm.features.combo_feature import ComboFeature
from easyrec_mm.features.expr_feature import ExprFeature
from easyrec_mm.features.feature import StoredVectors
from easyrec_mm.features.id_feature import IdFeature
from easyrec_mm.features.lookup_feature import LookupFeature
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.raw_feature import RawFeature
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.features.tag_feature import TagFeature
from easyrec_mm.features.vector_feature import VectorFeature

Names = tuple[str, ...]
_OF_NUMBERS = ("dim", "boundaries", "min_value", "max_value", "log1p")


def of_categories(
    name: str,
    inputs: Names,
    width: int,
    table: str,
    encoding: Encoding,
    num_ids: int,
    vocabulary: Names,
    precision: int,
) -> dict[str, Any]:
    categories = Categories(encoding, num_ids, vocabulary, precision)
    return {"name": name, "inputs": inputs, "width": width, "table": table, "categories": categories}


def id_feature(name, inputs, width, table, encoding, num_ids, vocabulary=(), precision=-1, **settings) -> IdFeature:
    return IdFeature(**of_categories(name, inputs, width, table, encoding, num_ids, vocabulary, precision), **settings)


def combo_feature(name, inputs, width, table, encoding, num_ids, precision=-1, is_crossed=True) -> ComboFeature:
    settings = of_categories(name, inputs, width, table, encoding, num_ids, (), precision)
    return ComboFeature(**settings, is_crossed=is_crossed)


def tag_feature(name, inputs, width, table, encoding, num_ids, vocabulary=(), **settings) -> TagFeature:
    categories = of_categories(name, inputs, width, table, encoding, num_ids, vocabulary, -1)
    return TagFeature(**categories, **{"combiner": "", **settings})


def lookup_feature(name, inputs, width, table, encoding, num_ids, vocabulary=(), **settings) -> LookupFeature:
    categories = of_categories(name, inputs, width, table, encoding, num_ids, vocabulary, -1)
    return LookupFeature(**categories, **{"combiner": "", **settings})


def raw_feature(name, inputs, width, table=None, separator="", **settings) -> RawFeature:
    numbers = Numbers(**{key: settings.pop(key) for key in _OF_NUMBERS if key in settings})
    return RawFeature(
        name=name, inputs=inputs, width=width, table=table, numbers=numbers, separator=separator, **settings
    )


def expr_feature(name, inputs, width, table=None, expression="", **numbers) -> ExprFeature:
    return ExprFeature(
        name=name, inputs=inputs, width=width, table=table, numbers=Numbers(**numbers), expression=expression
    )


def stored_vector(name, inputs, dim, uri, max_missing_share=1.0) -> VectorFeature:
    return VectorFeature(name=name, inputs=inputs, width=dim, stored=StoredVectors(uri, dim, max_missing_share))


def id_sequence(name, inputs, width, table, encoding, num_ids, vocabulary=(), **settings) -> SequenceFeature:
    categories = of_categories(name, inputs, width, table, encoding, num_ids, vocabulary, -1)
    return SequenceFeature(**categories, **{"combiner": "", **settings})


def raw_sequence(name, inputs, width, table=None, **settings) -> SequenceFeature:
    numbers = Numbers(**{key: settings.pop(key) for key in _OF_NUMBERS if key in settings})
    more = {"combiner": "", **settings}
    return SequenceFeature(name=name, inputs=inputs, width=width, table=table, numbers=numbers, **more)
