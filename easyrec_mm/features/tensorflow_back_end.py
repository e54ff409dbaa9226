"""The operations of feature types in TensorFlow. Lists are ragged tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.expression import Expression, Functions
from easyrec_mm.features.field import Dtype
from easyrec_mm.features.times import LARGEST_TIME, TIME_PARTS, TIME_ZERO, seconds_of

# Dtype of a field -> dtype of its values as tensors.
DTYPES: dict[Dtype, tf.DType] = {"int64": tf.int64, "bool": tf.bool, "float32": tf.float32, "string": tf.string}


def _divided(numbers: tf.Tensor, divisor: tf.Tensor | float) -> tf.Tensor:
    """Divide; with `/`, TensorFlow would multiply by the reciprocal of a constant, which changes the last digit."""
    return tf.math.divide_no_nan(numbers, divisor)


_FUNCTIONS: Functions = {
    "abs": tf.abs,
    "sqrt": tf.sqrt,
    "exp": tf.exp,
    "log": tf.math.log,
    "log1p": tf.math.log1p,
    "floor": tf.floor,
    "divide": _divided,
    "minimum": tf.minimum,
    "maximum": tf.maximum,
    "where": tf.where,
    "constant": lambda value: tf.constant(value, tf.float64),
    "as_number": lambda value: tf.cast(value, tf.float64),
    "as_whole": lambda number: tf.cast(tf.clip_by_value(tf.floor(number), -LARGEST_TIME, LARGEST_TIME), tf.int64),
    "is_finite": tf.math.is_finite,
}


class TensorFlowBackEnd(BackEnd):
    """Operations on tensors.

    Args:
      vocabularies: feature -> its vocabulary.
    """

    functions = _FUNCTIONS

    def __init__(self, vocabularies: Mapping[str, Sequence[str]]) -> None:
        self.vocabularies = {
            name: tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant(texts, tf.string), tf.range(len(texts), dtype=tf.int64)
                ),
                default_value=len(texts),
            )
            for name, texts in vocabularies.items()
        }

    def texts(self, values: tf.Tensor, precision: int = -1) -> tf.Tensor:
        if values.dtype == tf.string:
            return values
        if values.dtype.is_integer:
            return tf.strings.as_string(values)
        return tf.strings.as_string(values, precision=precision)

    def filled(self, values: tf.Tensor, text: str) -> tf.Tensor:
        return tf.where(tf.equal(values, ""), text, values) if values.dtype == tf.string else values

    def integers(self, values: tf.Tensor) -> tf.Tensor:
        return _as_number(self.filled(values, "0"), tf.int64)

    def floats(self, values: tf.Tensor) -> tf.Tensor:
        return _as_number(values, tf.float32)

    def vectors(self, values: tf.Tensor, separator: str, dim: int) -> tf.Tensor:
        if separator:
            values = tf.strings.split(values, separator).flat_values
        return tf.reshape(self.floats(values), [-1, dim])

    def evaluate(self, expression: Expression, fields: dict[str, tf.Tensor]) -> tf.Tensor:
        times = expression.text_fields()
        numbers = {
            name: self._times(values) if name in times else self._numbers(values) for name, values in fields.items()
        }
        result = tf.cast(expression.evaluate(numbers, self.functions), tf.float32)
        return tf.where(tf.math.is_finite(result), result, 0.0)

    def _numbers(self, values: tf.Tensor) -> tf.Tensor:
        # Text is read as float32, as everywhere else.
        return tf.cast(self.floats(self.filled(values, "0")) if values.dtype == tf.string else values, tf.float64)

    def _times(self, values: tf.Tensor) -> tf.Tensor:
        # A part that is left out is empty, and then 0.
        parts = tf.strings.regex_replace(self.filled(values, TIME_ZERO), TIME_PARTS, r"\1,\2,\3,0\4,0\5,0\6,\7,0\8,0\9")
        columns = tf.unstack(tf.reshape(tf.strings.split(parts, ",").flat_values, [-1, 9]), axis=1)
        sign = tf.where(tf.equal(columns.pop(6), "-"), tf.constant(-1, tf.int64), tf.constant(1, tf.int64))
        numbers = [self.integers(column) for column in columns]
        return tf.cast(seconds_of([*numbers[:6], sign, *numbers[6:]]), tf.float64)

    def scale(self, numbers: tf.Tensor, least: float, greatest: float) -> tf.Tensor:
        return _divided(numbers - least, greatest - least)

    def log1p(self, numbers: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(numbers, tf.float64)
        return tf.cast(tf.sign(wide) * tf.math.log1p(tf.abs(wide)), tf.float32)

    def buckets(self, numbers: tf.Tensor, boundaries: tuple[float, ...]) -> tf.Tensor:
        buckets = tf.raw_ops.Bucketize(input=numbers[:, 0], boundaries=list(boundaries))
        return tf.cast(buckets, tf.int64)

    def within(self, ids: tf.Tensor, num_ids: int) -> tf.Tensor:
        return tf.where((ids >= 0) & (ids < num_ids), ids, tf.zeros_like(ids))

    def hashes(self, texts: tf.Tensor, num_ids: int) -> tf.Tensor:
        return tf.strings.to_hash_bucket_fast(texts, num_ids)

    def look_up(self, feature: str, texts: tf.Tensor) -> tf.Tensor:
        return self.vocabularies[feature].lookup(texts)

    def join(self, columns: Sequence[tf.Tensor], separator: str) -> tf.Tensor:
        return tf.strings.join(columns, separator)

    def cross(self, columns: Sequence[tf.Tensor], num_ids: int) -> tf.Tensor:
        return tf.sparse.cross_hashed([tf.reshape(texts, [-1, 1]) for texts in columns], num_ids).values

    def split(self, texts: tf.Tensor, separator: str) -> tf.RaggedTensor:
        return split_texts(texts, separator)

    def pairs(self, texts: tf.Tensor, separator: str) -> tuple[tf.Tensor, tf.Tensor]:
        parts = tf.reshape(tf.strings.split(texts, separator).flat_values, [-1, 2])
        return parts[:, 0], parts[:, 1]

    def with_values_of(self, lists: tf.RaggedTensor, source: tf.RaggedTensor) -> tf.RaggedTensor:
        return lists.with_flat_values(source.flat_values)

    def values_for(self, lists: tf.RaggedTensor, keys: tf.Tensor, values: tf.Tensor) -> tf.RaggedTensor:
        is_equal = tf.equal(lists.flat_values, tf.gather(keys, lists.value_rowids()))
        return tf.ragged.boolean_mask(lists.with_flat_values(values), lists.with_flat_values(is_equal))

    def cut(self, lists: tf.RaggedTensor, length: int, keeps_last: bool) -> tf.RaggedTensor:
        return lists[:, -length:] if keeps_last else lists[:, :length]


def split_texts(texts: tf.Tensor, separator: str) -> tf.RaggedTensor:
    """Split texts into lists of their parts, see BackEnd.split."""
    if len(separator.encode()) == 1:
        sparse = tf.raw_ops.StringSplit(input=texts, delimiter=separator, skip_empty=True)
        num_rows = tf.shape(texts, tf.int64)[0]
        return tf.RaggedTensor.from_value_rowids(sparse.values, sparse.indices[:, 0], num_rows, validate=False)
    parts = tf.strings.split(texts, separator)
    return tf.ragged.boolean_mask(parts, tf.not_equal(parts, ""))


def _as_number(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.strings.to_number(values, dtype) if values.dtype == tf.string else tf.cast(values, dtype)
