"""Raw field values -> the ids and numbers that the network takes. One definition for training and the exported models.

`FeatureTransform` maps the fields of S samples to one entry a feature:

    id, combo, raw with boundaries   int64 [S], a row of the table or a bucket
    raw                              float32 [S, raw_dim]
    tag                              ragged int64 [S, (tags)]; weights, if any, under Feature.weight_key, ragged float32
    sequence                         ragged [S, (elements), ...], an element as a feature of its kind

Of features whose vectors lie in a store there is nothing here but their keys (`vector_keys`).

It takes for granted what text_patterns.py says of the text of fields; input formats check that first.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from easyrec_mm.features.expression import Functions, parse_expression
from easyrec_mm.schema import CROSS_SEPARATOR, Feature

# See expression.BACK_END.
_FUNCTIONS: Functions = {
    "abs": tf.abs,
    "sqrt": tf.sqrt,
    "exp": tf.exp,
    "log": tf.math.log,
    "log1p": tf.math.log1p,
    "floor": tf.floor,
    "minimum": tf.minimum,
    "maximum": tf.maximum,
    "where": tf.where,
    "constant": lambda value: tf.constant(value, tf.float64),
    "as_number": lambda truth: tf.cast(truth, tf.float64),
    "is_finite": tf.math.is_finite,
}


class FeatureTransform:
    """Turns typed field values into the values of these features; see the module's docstring for shapes."""

    def __init__(self, features: Sequence[Feature]) -> None:
        features = [feature for feature in features if not feature.store]
        self._features = features
        self.fields = tuple(dict.fromkeys(name for feature in features for name in feature.inputs))
        self.vocabularies = {
            feature.name: tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant(feature.vocabulary, tf.string), tf.range(len(feature.vocabulary), dtype=tf.int64)
                ),
                default_value=len(feature.vocabulary),
            )
            for feature in features
            if feature.encoding == "vocabulary"
        }
        self._expressions = {f.name: parse_expression(f.expression) for f in features if f.expression}

    def __call__(self, fields: dict[str, tf.Tensor]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Fields by name (`fields`), each `[S]` of its dtype -> features by name."""
        features: dict[str, tf.Tensor | tf.RaggedTensor] = {}
        for feature in self._features:
            if feature.kind == "raw":
                features[feature.name] = _raw(feature, self._numbers(feature, fields))
            elif feature.kind == "tag":
                ids, weights = self._tags(feature, fields)
                features[feature.name] = ids
                if weights is not None:
                    features[feature.weight_key] = weights
            elif feature.kind == "sequence":
                features[feature.name] = self._sequence(feature, fields[feature.inputs[0]])
            elif feature.kind == "combo":
                parts = [_as_text(fields[name], feature.precision) for name in feature.inputs]
                features[feature.name] = self._encode(feature, tf.strings.join(parts, CROSS_SEPARATOR))
            else:
                features[feature.name] = self._encode(feature, fields[feature.inputs[0]])
        return features

    def _numbers(self, feature: Feature, fields: dict[str, tf.Tensor]) -> tf.Tensor:
        """The numbers of a raw feature, float32 `[S, raw_dim]`."""
        if feature.expression:
            numbers = {name: _as_float64(fields[name]) for name in feature.inputs}
            result = tf.cast(self._expressions[feature.name].evaluate(numbers, _FUNCTIONS), tf.float32)
            return tf.where(tf.math.is_finite(result), result, 0.0)[:, None]
        values = fields[feature.inputs[0]]
        if feature.separator:
            zeros = feature.separator.join(["0"] * feature.raw_dim)
            text = tf.where(tf.equal(values, ""), zeros, values)
            values = tf.strings.split(text, feature.separator).flat_values
        return tf.reshape(_as_number(values, tf.float32), [-1, feature.raw_dim])

    def _encode(self, feature: Feature, values: tf.Tensor) -> tf.Tensor:
        """Values of any dtype -> rows of the table, int64, same shape."""
        if feature.encoding == "identity":
            ids = _as_number(values, tf.int64)
            return tf.where((ids >= 0) & (ids < feature.num_ids), ids, tf.zeros_like(ids))
        text = _as_text(values, feature.precision)
        if feature.encoding == "hash":
            return tf.strings.to_hash_bucket_fast(text, feature.num_ids)
        return self.vocabularies[feature.name].lookup(text)

    def _tags(self, feature: Feature, fields: dict[str, tf.Tensor]) -> tuple[tf.RaggedTensor, tf.RaggedTensor | None]:
        weights = None
        if feature.max_selected:
            tags = looked_up(feature, *(fields[name] for name in feature.inputs))
            return tags.with_flat_values(self._encode(feature, tags.flat_values)), None
        tags = split_tags(fields[feature.inputs[0]], feature.separator)
        if feature.kv_separator:
            pairs = tf.reshape(tf.strings.split(tags.flat_values, feature.kv_separator).flat_values, [-1, 2])
            weights = tags.with_flat_values(tf.strings.to_number(pairs[:, 1], tf.float32))
            tags = tags.with_flat_values(pairs[:, 0])
        if feature.weight_input:
            texts = split_tags(fields[feature.weight_input], feature.separator)
            weights = tags.with_flat_values(tf.strings.to_number(texts.flat_values, tf.float32))
        return tags.with_flat_values(self._encode(feature, tags.flat_values)), weights

    def _sequence(self, feature: Feature, texts: tf.Tensor) -> tf.RaggedTensor:
        parts = _elements(feature, texts)
        if feature.elements == "id":
            return parts.with_flat_values(self._encode(feature, parts.flat_values))
        numbers = parts.flat_values
        if feature.number_separator:
            numbers = tf.strings.split(numbers, feature.number_separator).flat_values
        numbers = tf.reshape(tf.strings.to_number(numbers, tf.float32), [-1, feature.raw_dim])
        return parts.with_flat_values(_raw(feature, numbers))


def vector_keys(feature: Feature, fields: dict[str, tf.Tensor]) -> tf.Tensor | tf.RaggedTensor:
    """Keys of the vectors of a feature in its store: text `[S]`, or ragged `[S, (elements)]` of a sequence."""
    values = fields[feature.inputs[0]]
    return _elements(feature, values) if feature.kind == "sequence" else _as_text(values, feature.precision)


def _elements(feature: Feature, texts: tf.Tensor) -> tf.RaggedTensor:
    """Text `[S]` -> ragged text `[S, (elements)]` of a sequence."""
    parts = split_tags(texts, feature.separator)
    if not feature.max_length:
        return parts
    return parts[:, -feature.max_length :] if feature.keeps_last else parts[:, : feature.max_length]


def split_tags(text: tf.Tensor, separator: str) -> tf.RaggedTensor:
    """Text `[S]` -> ragged text `[S, (tags)]`; empty tags are dropped, as in EasyRec."""
    if len(separator.encode()) == 1:
        sparse = tf.raw_ops.StringSplit(input=text, delimiter=separator, skip_empty=True)
        num_rows = tf.shape(text, tf.int64)[0]
        return tf.RaggedTensor.from_value_rowids(sparse.values, sparse.indices[:, 0], num_rows, validate=False)
    tags = tf.strings.split(text, separator)
    return tf.ragged.boolean_mask(tags, tf.not_equal(tags, ""))


def looked_up(feature: Feature, keys: tf.Tensor, maps: tf.Tensor) -> tf.RaggedTensor:
    """What maps, text `[S]`, have for keys `[S]` of any dtype: ragged text `[S, (values)]`."""
    entries = split_tags(maps, feature.separator)
    pairs = tf.reshape(tf.strings.split(entries.flat_values, feature.kv_separator).flat_values, [-1, 2])
    wanted = tf.gather(_as_text(keys, feature.precision), entries.value_rowids())
    is_wanted = entries.with_flat_values(tf.equal(pairs[:, 0], wanted))
    return tf.ragged.boolean_mask(entries.with_flat_values(pairs[:, 1]), is_wanted)[:, : feature.max_selected]


def _raw(feature: Feature, numbers: tf.Tensor) -> tf.Tensor:
    """Numbers float32 `[S, raw_dim]` -> what they become: `[S, raw_dim]`, or buckets int64 `[S]`."""
    if feature.log1p == "before":
        numbers = _log1p(numbers)
    if feature.max_value > feature.min_value:
        numbers = (numbers - feature.min_value) / (feature.max_value - feature.min_value)
    if feature.log1p == "after":
        numbers = _log1p(numbers)
    if feature.boundaries:
        buckets = tf.raw_ops.Bucketize(input=numbers[:, 0], boundaries=list(feature.boundaries))
        return tf.cast(buckets, tf.int64)
    return numbers


def _log1p(numbers: tf.Tensor) -> tf.Tensor:
    """sign(x) log(1 + |x|). In float64, so that what is rounded to float32 is the same as in NumPy."""
    wide = tf.cast(numbers, tf.float64)
    return tf.cast(tf.sign(wide) * tf.math.log1p(tf.abs(wide)), tf.float32)


def _as_number(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if values.dtype == tf.string:
        return tf.strings.to_number(tf.where(tf.equal(values, ""), "0", values), dtype)
    return tf.cast(values, dtype)


def _as_float64(values: tf.Tensor) -> tf.Tensor:
    """Text is read as float32, as everywhere."""
    return tf.cast(_as_number(values, tf.float32) if values.dtype == tf.string else values, tf.float64)


def _as_text(values: tf.Tensor, precision: int) -> tf.Tensor:
    """The text under which a value is hashed or looked up: integers in decimal, numbers with `precision` digits."""
    if values.dtype == tf.string:
        return values
    if values.dtype.is_integer:
        return tf.strings.as_string(values)
    return tf.strings.as_string(values, precision=precision)
