"""Raw field values -> the ids and numbers that the network takes. One definition for training and the exported models.

`FeatureTransform` maps the fields of S samples to one entry a feature:

    id, combo, raw with boundaries   int64 [S], a row of the table or a bucket
    raw                              float32 [S, raw_dim]
    tag                              ragged int64 [S, (tags)]; weights, if any, under Feature.weight_key, ragged float32

`text_patterns` says what the text of a field must look like for that to succeed; input formats check it first.
"""

from __future__ import annotations

import re

import tensorflow as tf

from easyrec_mm.schema import INTEGER_PATTERN, NUMBER_PATTERN, VALUE_PATTERNS, Feature, Schema

# Between the values of a cross before it is hashed; ASCII's "group separator" does not occur in values.
_CROSS_SEPARATOR = "\x1d"

# RE2 repeats a part at most 1000 times, and a part that holds "{1,2}" half as often.
_MOST_REPEATS = 400


class FeatureTransform:
    """Turns typed field values into feature values; see the module's docstring for shapes."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._vocabularies = {
            feature.name: tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant(feature.vocabulary, tf.string), tf.range(len(feature.vocabulary), dtype=tf.int64)
                ),
                default_value=len(feature.vocabulary),
            )
            for feature in schema.features
            if feature.encoding == "vocabulary"
        }

    def __call__(self, fields: dict[str, tf.Tensor]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Fields by name, each `[S]` of its dtype -> features by name."""
        features: dict[str, tf.Tensor | tf.RaggedTensor] = {}
        for feature in self._schema.features:
            if feature.kind == "raw":
                features[feature.name] = _raw(feature, fields[feature.inputs[0]])
            elif feature.kind == "tag":
                ids, weights = self._tags(feature, fields)
                features[feature.name] = ids
                if weights is not None:
                    features[feature.weight_key] = weights
            elif feature.kind == "combo":
                parts = [_as_text(fields[name], feature.precision) for name in feature.inputs]
                features[feature.name] = self._encode(feature, tf.strings.join(parts, _CROSS_SEPARATOR))
            else:
                features[feature.name] = self._encode(feature, fields[feature.inputs[0]])
        return features

    def _encode(self, feature: Feature, values: tf.Tensor) -> tf.Tensor:
        """Values of any dtype -> rows of the table, int64, same shape."""
        if feature.encoding == "identity":
            ids = _as_number(values, tf.int64)
            return tf.where((ids >= 0) & (ids < feature.num_ids), ids, tf.zeros_like(ids))
        text = _as_text(values, feature.precision)
        if feature.encoding == "hash":
            return tf.strings.to_hash_bucket_fast(text, feature.num_ids)
        return self._vocabularies[feature.name].lookup(text)

    def _tags(self, feature: Feature, fields: dict[str, tf.Tensor]) -> tuple[tf.RaggedTensor, tf.RaggedTensor | None]:
        tags = split_tags(fields[feature.inputs[0]], feature.separator)
        weights = None
        if feature.kv_separator:
            pairs = tf.reshape(tf.strings.split(tags.flat_values, feature.kv_separator).flat_values, [-1, 2])
            weights = tags.with_flat_values(tf.strings.to_number(pairs[:, 1], tf.float32))
            tags = tags.with_flat_values(pairs[:, 0])
        if feature.weight_input:
            texts = split_tags(fields[feature.weight_input], feature.separator)
            weights = tags.with_flat_values(tf.strings.to_number(texts.flat_values, tf.float32))
        return tags.with_flat_values(self._encode(feature, tags.flat_values)), weights


def split_tags(text: tf.Tensor, separator: str) -> tf.RaggedTensor:
    """Text `[S]` -> ragged text `[S, (tags)]`; empty tags are dropped, as in EasyRec."""
    if len(separator.encode()) == 1:
        sparse = tf.raw_ops.StringSplit(input=text, delimiter=separator, skip_empty=True)
        num_rows = tf.shape(text, tf.int64)[0]
        return tf.RaggedTensor.from_value_rowids(sparse.values, sparse.indices[:, 0], num_rows, validate=False)
    tags = tf.strings.split(text, separator)
    return tf.ragged.boolean_mask(tags, tf.not_equal(tags, ""))


def _raw(feature: Feature, values: tf.Tensor) -> tf.Tensor:
    if feature.separator:
        zeros = feature.separator.join(["0"] * feature.raw_dim)
        text = tf.where(tf.equal(values, ""), zeros, values)
        values = tf.strings.split(text, feature.separator).flat_values
    numbers = tf.reshape(_as_number(values, tf.float32), [-1, feature.raw_dim])  # [S, raw_dim]
    if feature.max_value > feature.min_value:
        numbers = (numbers - feature.min_value) / (feature.max_value - feature.min_value)
    if feature.boundaries:
        buckets = tf.raw_ops.Bucketize(input=numbers[:, 0], boundaries=list(feature.boundaries))
        return tf.cast(buckets, tf.int64)
    return numbers


def _as_number(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if values.dtype == tf.string:
        return tf.strings.to_number(tf.where(tf.equal(values, ""), "0", values), dtype)
    return tf.cast(values, dtype)


def _as_text(values: tf.Tensor, precision: int) -> tf.Tensor:
    """The text under which a value is hashed or looked up: integers in decimal, numbers with `precision` digits."""
    if values.dtype == tf.string:
        return values
    if values.dtype.is_integer:
        return tf.strings.as_string(values)
    return tf.strings.as_string(values, precision=precision)


def text_patterns(schema: Schema) -> dict[str, list[str]]:
    """Regular expressions (of both RE2 and Python) that a field's text, if it is not empty, must match in full."""
    patterns = {field.name: [VALUE_PATTERNS[field.dtype]] for field in schema.fields if field.dtype in VALUE_PATTERNS}
    string_fields = {field.name for field in schema.fields if field.dtype == "string"}
    for feature in schema.features:
        for name, pattern in _feature_patterns(feature):
            if name in string_fields:
                patterns.setdefault(name, []).append(pattern)
    return patterns


def _feature_patterns(feature: Feature) -> list[tuple[str, str]]:
    separator = re.escape(feature.separator)
    first = feature.inputs[0]
    number, integer = (_between(p, feature.separator + feature.kv_separator) for p in (NUMBER_PATTERN, INTEGER_PATTERN))
    if feature.kind == "raw":
        whole, rest = divmod(feature.raw_dim - 1, _MOST_REPEATS)
        repeats = [_MOST_REPEATS] * whole + [rest] * (rest > 0)
        return [(first, number + "".join(f"(?:{separator}{number}){{{count}}}" for count in repeats))]
    if feature.kind == "id" and feature.encoding == "identity":
        return [(first, INTEGER_PATTERN)]
    if feature.kind != "tag":
        return []
    found = []
    key_separator = re.escape(feature.kv_separator)
    # Input formats match many values at once, between line ends.
    tag = integer if feature.encoding == "identity" else rf"[^{separator}{key_separator}\n]*"
    if feature.kv_separator:
        found.append((first, _list_of(f"{tag}{key_separator}{number}", separator)))
    elif feature.encoding == "identity":
        found.append((first, _list_of(tag, separator)))
    if feature.weight_input:
        found.append((feature.weight_input, _list_of(number, separator)))
    return found


def _between(pattern: str, separators: str) -> str:
    """The pattern of a number where separators split first: none of their characters is part of a number."""
    if "." in separators:
        pattern = pattern.replace(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)", "[0-9]+")
    if "e" in separators.lower():
        pattern = pattern.replace("(?:[eE][+-]?[0-9]{1,2})?", "")
    spaces = "".join(code for space, code in ((" ", " "), ("\t", r"\t")) if space not in separators)
    signs = "".join(sign for sign in "+-" if sign not in separators)
    pattern = pattern.replace(r"[ \t]*", f"[{spaces}]*" if spaces else "")
    return pattern.replace("[+-]?", f"[{signs}]?" if signs else "")


def _list_of(element: str, separator: str) -> str:
    return f"(?:(?:{element})?{separator})*(?:{element})?"
