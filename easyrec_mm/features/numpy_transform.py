"""Raw field values -> the ids and numbers that the ONNX rec model takes, in NumPy.

The second back end of what tensorflow_transform.py defines; tests hold the two equal, value by value. Inputs:

    id, combo, raw with boundaries   int64 [S]
    raw                              float32 [S, raw_dim]
    tag                              int64 [S, L], and float32 [S, L] under Feature.weight_key: 0 where there is no tag
    sequence                         [S, L, ...], an element as a feature of its kind, and float32 [S, L] as for tags

L is the largest number of tags or elements of a sample of the batch, and at least 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from farmhash import Fingerprint64
from numpy.typing import NDArray

from easyrec_mm.features.expression import Functions, parse_expression
from easyrec_mm.schema import CROSS_SEPARATOR, Feature

# Of a field: S of them, str for text, or an array of int64, bool or float32.
Values = Sequence[str] | NDArray[Any]


# See expression.BACK_END.
_FUNCTIONS: Functions = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "floor": np.floor,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "where": np.where,
    "constant": np.float64,
    "as_number": lambda truth: truth.astype(np.float64),
    "is_finite": np.isfinite,
}


class NumpyTransform:
    """Turns typed field values into the inputs of the ONNX rec model."""

    def __init__(self, features: Sequence[Feature]) -> None:
        features = [feature for feature in features if not feature.store]
        self._features = features
        self._rows = {
            f.name: {text: row for row, text in enumerate(f.vocabulary)} for f in features if f.encoding == "vocabulary"
        }
        self._expressions = {f.name: parse_expression(f.expression) for f in features if f.expression}

    def __call__(self, fields: dict[str, Values], num_samples: int) -> dict[str, NDArray[Any]]:
        """Fields by name, S values each or one for all, defaults filled in -> inputs by name.

        Raises:
          ValueError: if a text is not of the form that its feature needs (text_patterns.py).
        """
        inputs: dict[str, NDArray[Any]] = {}
        for feature in self._features:
            values = _aligned([fields[name] for name in feature.inputs], num_samples)
            for name, value in self._inputs(feature, values).items():
                inputs[name] = value if len(value) == num_samples else np.repeat(value, num_samples, axis=0)
        return inputs

    def _inputs(self, feature: Feature, values: list[Values]) -> dict[str, NDArray[Any]]:
        """The inputs of one feature; `values` are those of its fields."""
        if feature.kind == "raw":
            return {feature.name: _raw(feature, self._numbers(feature, values))}
        if feature.kind == "tag":
            ids, weights = self._tags(feature, values)
            return {feature.name: ids, feature.weight_key: weights}
        if feature.kind == "sequence":
            elements, is_there = self._sequence(feature, values[0])
            return {feature.name: elements, feature.weight_key: is_there}
        if feature.kind == "combo":
            parts = [_as_texts(some, feature.precision) for some in values]
            crosses = [CROSS_SEPARATOR.join(texts) for texts in zip(*parts, strict=True)]
            return {feature.name: self._encode(feature, crosses)}
        return {feature.name: self._encode(feature, values[0])}

    def _numbers(self, feature: Feature, values: list[Values]) -> NDArray[Any]:
        """The numbers of a raw feature, float32 `[S, raw_dim]`."""
        if feature.expression:
            numbers = {name: _as_float64(some) for name, some in zip(feature.inputs, values, strict=True)}
            with np.errstate(all="ignore"):
                result = self._expressions[feature.name].evaluate(numbers, _FUNCTIONS).astype(np.float32)
            return np.where(np.isfinite(result), result, np.float32(0))[:, None]
        texts = values[0]
        if feature.separator:
            zeros = feature.separator.join(["0"] * feature.raw_dim)
            texts = [part for text in texts for part in (text or zeros).split(feature.separator)]
        return _as_floats(texts).reshape(-1, feature.raw_dim)

    def _encode(self, feature: Feature, values: Values) -> NDArray[Any]:
        """Values -> rows of the table, int64 `[S]`."""
        if feature.encoding == "identity":
            ids = _as_integers(values)
            return np.where((ids >= 0) & (ids < feature.num_ids), ids, 0)
        texts = _as_texts(values, feature.precision)
        if feature.encoding == "vocabulary":
            rows = self._rows[feature.name]
            return np.array([rows.get(text, len(rows)) for text in texts], np.int64)
        hashes = np.fromiter(map(Fingerprint64, texts), np.uint64, len(texts))
        return (hashes % np.uint64(feature.num_ids)).astype(np.int64)

    def _tags(self, feature: Feature, values: list[Values]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ids `[S, L]` and weights `[S, L]` of a tag feature."""
        numbers: list[list[str]] | None = None
        if feature.max_selected:
            tags = _selected(feature, *values)
        else:
            tags = _parts(values[0], feature.separator)
            if feature.kv_separator:
                pairs = [[tag.split(feature.kv_separator) for tag in some] for some in tags]
                tags = [[pair[0] for pair in some] for some in pairs]
                numbers = [[pair[1] for pair in some] for some in pairs]
            if feature.weight_input:
                numbers = _parts(values[1], feature.separator)
        is_tag = _is_there(tags)
        weights = is_tag.astype(np.float32)
        if numbers is not None:
            if list(map(len, numbers)) != list(map(len, tags)):
                raise ValueError(f"{feature.name}: the numbers of tags and weights differ")
            weights[is_tag] = _as_floats([number for some in numbers for number in some])
        ids = np.zeros(is_tag.shape, np.int64)
        ids[is_tag] = self._encode(feature, [tag for some in tags for tag in some])
        return ids, weights

    def _sequence(self, feature: Feature, texts: Values) -> tuple[NDArray[Any], NDArray[Any]]:
        """Elements `[S, L, ...]`, and which there are `[S, L]`."""
        parts = _elements(feature, texts)
        flat = [part for some in parts for part in some]
        if feature.elements == "id":
            values = self._encode(feature, flat)
        else:
            texts = [number for part in flat for number in part.split(feature.number_separator or None)]
            values = _raw(feature, _as_floats(texts).reshape(-1, feature.raw_dim))
        is_there = _is_there(parts)
        elements = np.zeros((*is_there.shape, *values.shape[1:]), values.dtype)
        elements[is_there] = values
        return elements, is_there.astype(np.float32)


def vector_keys(feature: Feature, values: Values) -> list[list[str]]:
    """Keys of the vectors of a feature in its store, of each sample."""
    return _elements(feature, values) if feature.kind == "sequence" else [[text] for text in _as_texts(values, -1)]


def _elements(feature: Feature, texts: Values) -> list[list[str]]:
    """The elements of a sequence, of each sample."""
    parts = _parts(texts, feature.separator)
    if not feature.max_length:
        return parts
    kept = slice(-feature.max_length, None) if feature.keeps_last else slice(feature.max_length)
    return [some[kept] for some in parts]


def _parts(texts: Values, separator: str) -> list[list[str]]:
    """Texts `[S]` -> the parts of each that are not empty."""
    return [[part for part in text.split(separator) if part] for text in texts]


def _selected(feature: Feature, keys: Values, maps: Values) -> list[list[str]]:
    """What maps `[S]` have for keys `[S]`."""
    found = []
    for key, entries in zip(_as_texts(keys, -1), _parts(maps, feature.separator), strict=True):
        pairs = [entry.split(feature.kv_separator) for entry in entries]
        found.append([pair[1] for pair in pairs if pair[0] == key][: feature.max_selected])
    return found


def _is_there(lists: list[list[Any]]) -> NDArray[Any]:
    """Which entries of `[S, L]` S lists fill, L being the longest, and at least 1: bool."""
    counts = np.array([len(some) for some in lists], np.int64)
    is_there: NDArray[Any] = np.arange(max(1, *counts.tolist())) < counts[:, None]
    return is_there


def _aligned(values: list[Values], num_samples: int) -> list[Values]:
    """Fields that are read together, all of one length: one value for all is repeated beside others of S."""
    if len({len(some) for some in values}) == 1:
        return values
    return [
        some if len(some) == num_samples else np.repeat(some, num_samples) if isinstance(some, np.ndarray)
        else [some[0]] * num_samples
        for some in values
    ]  # fmt: skip


def _raw(feature: Feature, numbers: NDArray[Any]) -> NDArray[Any]:
    """Numbers float32 `[S, raw_dim]` -> what they become: `[S, raw_dim]`, or buckets int64 `[S]`."""
    if feature.log1p == "before":
        numbers = _log1p(numbers)
    if feature.max_value > feature.min_value:
        numbers = (numbers - np.float32(feature.min_value)) / np.float32(feature.max_value - feature.min_value)
    if feature.log1p == "after":
        numbers = _log1p(numbers)
    if feature.boundaries:
        boundaries = np.array(feature.boundaries, np.float32)
        return np.searchsorted(boundaries, numbers[:, 0], side="right").astype(np.int64)
    return numbers


def _log1p(numbers: NDArray[Any]) -> NDArray[Any]:
    """sign(x) log(1 + |x|), computed in float64."""
    wide = numbers.astype(np.float64)
    return (np.sign(wide) * np.log1p(np.abs(wide))).astype(np.float32)


def _as_floats(values: Values) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values.astype(np.float32)
    return np.array([text or 0 for text in values], np.float32)


def _as_float64(values: Values) -> NDArray[Any]:
    """Text is read as float32, as everywhere."""
    return values.astype(np.float64) if isinstance(values, np.ndarray) else _as_floats(values).astype(np.float64)


def _as_integers(values: Values) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values.astype(np.int64)
    return np.array([int(text or 0) for text in values], np.int64)


def _as_texts(values: Values, precision: int) -> Sequence[str]:
    """The text under which a value is hashed or looked up: integers in decimal, numbers with `precision` digits."""
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind == "f":
        return [f"{value:.{precision if precision >= 0 else 6}f}" for value in values.tolist()]
    return [str(value) for value in values.astype(np.int64).tolist()]
