"""Embedding tables and the layer that turns features into one vector per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import keras
import tensorflow as tf

from easyrec_mm.distribution.divided_tables import DividedTables
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import Shard, mark, shard_of_replica
from easyrec_mm.features.code_feature import CodeFeature
from easyrec_mm.features.feature import Feature, Table
from easyrec_mm.network.layers.row_lookup import joined, look_up_rows
from easyrec_mm.network.layers.target_attention import TargetAttention
from easyrec_mm.schema import IMAGE_KEY, Attention

ROWS_AT_A_TIME = 1 << 18
# Standard deviation of a standard normal distribution truncated at -2 and 2.
_CUT_DEVIATION = 0.87962566


class EmbeddingTable(keras.layers.Layer):
    """An embedding table `[rows, dim]`, float32 whatever the precision of other layers.

    Its gradient is tf.IndexedSlices of the rows looked up (row_lookup.py): a step's cost does not depend on the number
    of rows, provided that the optimizer handles such gradients (optimizers.py).

    Args:
      table: the whole table.
      shard: the part of it that is held here, whose initial values are those that it has in the whole table; None for
        all rows.
    """

    def __init__(self, table: Table, shard: Shard | None = None) -> None:
        super().__init__(dtype="float32")
        first, stop = (0, table.rows) if shard is None else (shard.first, shard.stop)
        self.embeddings = self.add_weight(
            shape=(stop - first, table.dim), initializer="zeros", name="embeddings", dtype="float32", autocast=False
        )
        if shard is not None:
            mark(self.embeddings.value, shard)
        # A part of the rows at a time: drawing a whole table at once would need several times its memory.
        for start in range(0, table.rows, ROWS_AT_A_TIME):
            end = min(start + ROWS_AT_A_TIME, table.rows)
            # Takes its seed also for rows that are held elsewhere.
            initializer = _initializer(table)
            if start >= stop or end <= first:
                continue
            rows = initializer(shape=(end - start, table.dim), dtype="float32")
            ids = tf.range(max(start, first), min(end, stop))
            self.embeddings.value.scatter_update(tf.IndexedSlices(tf.gather(rows, ids - start), ids - first))
        self.built = True


class FeatureEmbedding(keras.layers.Layer):
    """All features of a sample in one vector: `width` numbers per feature in the order of `features`, then the outputs
    of attentions, then the numbers of wide features, which are added to the logits.

    Args:
      features: the features of the model.
      tables: their tables; features that name the same table share it.
      attentions: the attentions, each with its layer.
      divided: names of the tables of which each replica holds a part.
      replicas: the replicas that look up together; by default this process alone.

    `is_divided` is whether all replicas have to call it together, those without samples, too.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        tables: Sequence[Table],
        attentions: Sequence[tuple[Attention, TargetAttention]] = (),
        name: str = "features",
        divided: Collection[str] = (),
        replicas: Replicas | None = None,
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self._features = features
        replicas = replicas or Replicas()
        shards = {
            table.name: shard_of_replica(table.rows, replicas.number, replicas.num)
            for table in tables
            if table.name in divided
        }
        self.tables = {table.name: EmbeddingTable(table, shards.get(table.name)) for table in tables}
        self._divided = DividedTables({name: self.tables[name].embeddings.value for name in shards}, replicas)
        self._divided_names = set(shards)
        self.is_divided = bool(shards)
        self._attentions = [attention for attention, _ in attentions]
        self._attention_layers = [layer for _, layer in attentions]
        self._by_name = {feature.name: feature for feature in features}
        self._attended = {name for attention in self._attentions for name in attention.sequences}

    def call(
        self,
        values: dict[str, tf.Tensor | tf.RaggedTensor],
        image_vector: tf.Tensor | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Join the feature values of FeatureTransform; image vectors `[S, D]` may be keys of attentions.

        Returns:
          float32 `[S, Schema.width + Schema.wide_width]`, and the scalar sum of the squares of all values from tables
          except those that are added to the logits.
        """
        rows = self.look_up({f.name: (f.table, table_ids(f, values[f.name])) for f in self._features if f.table})
        of_features = {feature.name: rows.get(feature.name) for feature in self._features}
        return self.join(values, of_features, image_vector, training)

    def join(
        self,
        values: dict[str, tf.Tensor | tf.RaggedTensor],
        rows: dict[str, tf.Tensor | None],
        image_vector: tf.Tensor | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return what `call` returns, for rows that are already looked up; `values` and `rows` as in feature_vector."""
        attended = [f for f in self._features if f.name in self._attended]
        elements = {f.name: element_vectors(f, values, rows[f.name]) for f in attended}
        of_samples = [f for f in self._features if f.is_joined or f.name not in self._attended]
        vectors = feature_vectors(of_samples, values, rows)
        of_tables = [elements[f.name] for f in attended if f.table]
        of_tables += [vectors[f.name] for f in of_samples if f.table and not f.is_wide]
        flat = [tf.reshape(numbers, [-1]) for numbers in _joined_by_width(of_tables)]
        squares = tf.reduce_sum(tf.square(joined(flat))) if flat else tf.constant(0.0)
        if image_vector is not None:
            vectors[IMAGE_KEY] = image_vector
        parts = [vectors[feature.name] for feature in self._features if feature.is_joined]
        for attention, layer in zip(self._attentions, self._attention_layers, strict=True):
            key = tf.concat([vectors[name] for name in attention.keys], axis=1)
            history = tf.concat([elements[name] for name in attention.sequences], axis=-1)
            first = attention.sequences[0]
            if isinstance(values.get(first), tf.RaggedTensor):
                result = layer(key, values[first].with_flat_values(history), training=training)
            else:
                result = layer.padded(key, history, values[self._by_name[first].weight_key])
            parts += [result, key] if attention.joins_key else [result]
        parts += [vectors[feature.name] for feature in self._features if feature.is_wide]
        return tf.concat(parts, axis=1), squares

    def look_up(self, requests: Mapping[str, tuple[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Return key -> rows float32 `[*ids.shape, dim]`, for key -> (name of a table, its ids).

        If there are divided tables, all replicas call it together.
        """
        of_whole = {key: request for key, request in requests.items() if request[0] not in self._divided_names}
        rows = look_up_rows([(self.tables[table].embeddings.value, ids) for table, ids in of_whole.values()])
        return dict(zip(of_whole, rows, strict=True)) | self._divided.look_up(requests)


def table_ids(feature: Feature, value: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    """Return the ids `[N]` of the rows of its table that a feature needs for a value of FeatureTransform."""
    if feature.multiplies_rows:
        return tf.range(feature.num_numbers, dtype=tf.int64)
    if isinstance(feature, CodeFeature):
        return tf.reshape(tf.stack(feature.prefix_ids(tf.cast(value, tf.int64)), axis=1), [-1])  # [S levels]
    return value.flat_values if feature.is_list else value


def feature_vectors(
    features: Sequence[Feature],
    values: dict[str, tf.Tensor | tf.RaggedTensor],
    rows: dict[str, tf.Tensor | None],
) -> dict[str, tf.Tensor]:
    """Return `feature_vector` of each feature by name; `rows` holds its argument by name.

    Ragged lists of a kind are combined together, as the lists of as many times more samples.
    """
    vectors: dict[str, tf.Tensor] = {}
    by_kind: dict[tuple[str, int, bool], list[Feature]] = {}
    for feature in features:
        if feature.is_list and isinstance(values.get(feature.name), tf.RaggedTensor):
            kind = feature.combiner, feature.width, feature.weight_key in values
            by_kind.setdefault(kind, []).append(feature)
        else:
            vectors[feature.name] = feature_vector(feature, values, rows[feature.name])
    for (combiner, _, has_weights), members in by_kind.items():
        elements = joined([element_vectors(f, values, rows[f.name]) for f in members])
        lists = _joined_lists([values[f.name] for f in members])
        weights = None
        if has_weights:
            weights = lists.with_flat_values(joined([values[f.weight_key].flat_values for f in members]))
        combined = tf.split(combine(elements, lists, weights, combiner), len(members))
        vectors |= zip([f.name for f in members], combined, strict=True)
    return vectors


def _joined_lists(lists: Sequence[tf.RaggedTensor]) -> tf.RaggedTensor:
    """Return ragged tensors `[S, (values)]` one behind the other, without their values, for their row partition."""
    if len(lists) == 1:
        return lists[0]
    splits = tf.stack([ragged.row_splits for ragged in lists])  # [lists, S + 1]
    lengths = tf.reshape(splits[:, 1:] - splits[:, :-1], [-1])
    return tf.RaggedTensor.from_row_lengths(tf.range(tf.reduce_sum(lengths)), lengths, validate=False)


def _joined_by_width(parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return tensors `[N, width]` one behind the other, those of each width, or of each rank, in one."""
    by_width: dict[tuple[int | None, ...], list[tf.Tensor]] = {}
    for part in parts:
        by_width.setdefault(tuple(part.shape[1:]), []).append(part)
    return [joined(members) for members in by_width.values()]


def feature_vector(
    feature: Feature, values: dict[str, tf.Tensor | tf.RaggedTensor], rows: tf.Tensor | None
) -> tf.Tensor:
    """Return a feature's numbers in the network: float32 `[S, width]`.

    Args:
      feature: the feature.
      values: feature values of FeatureTransform. A list may be padded instead of ragged,
        as in NumpyTransform: `[S, L, ...]`, with the weights `[S, L]` under `weight_key`, 0 where a sample
        has fewer values. Ids whose rows are given in `rows` may be missing.
      rows: looked-up rows of a feature with a table, float32 `[S, dim]`; for a list `[values of all samples, dim]`,
        or `[S, L, dim]` if it is padded; for codes those of all levels, `[S levels, dim]` or `[S, levels, dim]`; for
        numbers that multiply rows, all rows of the table.
    """
    vectors = element_vectors(feature, values, rows)
    if not feature.is_list:
        return vectors
    value, weights = values.get(feature.name), values.get(feature.weight_key)
    if isinstance(value, tf.RaggedTensor):
        return combine(vectors, value, weights, feature.combiner)
    return combine_padded(vectors, weights, feature.combiner)


def element_vectors(
    feature: Feature, values: dict[str, tf.Tensor | tf.RaggedTensor], rows: tf.Tensor | None
) -> tf.Tensor:
    """Return a feature's numbers per list element: `[values of all samples, width]`, or padded `[S, L, width]`.

    Arguments as for feature_vector, whose result this is for features that are no lists.
    """
    value = values.get(feature.name)
    if isinstance(value, tf.RaggedTensor):
        value = value.flat_values
    if feature.multiplies_rows:
        return tf.matmul(value, rows)
    if isinstance(feature, CodeFeature):
        return tf.reshape(rows, [-1, feature.width])
    if rows is not None:
        return rows
    return value if feature.num_numbers else tf.one_hot(value, feature.width)


def combine(rows: tf.Tensor, tags: tf.RaggedTensor, weights: tf.RaggedTensor | None, combiner: str) -> tf.Tensor:
    """Combine the rows of each sample's tags or elements; a sample without tags gets zeros.

    mean: sum(w x) / sum(w); sum: sum(w x); sqrtn: sum(w x) / sqrt(sum(w^2)); w is 1 without weights. max: the largest
    value per dimension; weights are ignored.

    Args:
      rows: float32 `[number of tags, dim]`.
      tags: ragged `[S, (tags)]`, for its row partition.
      weights: ragged like `tags`, float32, or None.

    Returns:
      float32 `[S, dim]`.
    """
    num_samples, sample = tags.nrows(), tags.value_rowids()
    if combiner == "max":
        largest = tf.math.unsorted_segment_max(rows, sample, num_samples)
        return tf.where(tags.row_lengths()[:, None] > 0, largest, 0.0)
    weight = tf.ones(tf.shape(rows)[:1]) if weights is None else weights.flat_values
    return _combined(
        rows * weight[:, None], weight, combiner, lambda x: tf.math.unsorted_segment_sum(x, sample, num_samples)
    )


def combine_padded(rows: tf.Tensor, weights: tf.Tensor, combiner: str) -> tf.Tensor:
    """Combine rows `[S, L, dim]` by weights `[S, L]`, 0 for padding, as `combine` does, with operations of ONNX."""
    if combiner == "max":
        largest = tf.reduce_max(tf.where(weights[:, :, None] > 0, rows, rows.dtype.min), axis=1)
        return tf.where(tf.reduce_max(weights, axis=1)[:, None] > 0, largest, 0.0)
    return _combined(rows * weights[:, :, None], weights, combiner, lambda x: tf.reduce_sum(x, axis=1))


def _combined(
    weighted: tf.Tensor, weights: tf.Tensor, combiner: str, sum_of_sample: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    total = sum_of_sample(weighted)
    if combiner == "sum":
        return total
    divisor = sum_of_sample(weights) if combiner == "mean" else tf.sqrt(sum_of_sample(tf.square(weights)))
    return tf.math.divide_no_nan(total, divisor[:, None])


def _initializer(table: Table) -> Callable[..., tf.Tensor]:
    """Return an initializer of rows of a table; each call returns another initializer, with its own seed."""
    kind, values = table.initializer
    initializer: Callable[..., tf.Tensor]
    if kind == "constant":
        return lambda shape, dtype: tf.broadcast_to(tf.constant(values, dtype), shape)
    if kind == "random_normal":
        initializer = keras.initializers.RandomNormal(*values)
    elif kind == "truncated_normal":
        initializer = keras.initializers.TruncatedNormal(*values)
    else:
        # Glorot's deviation for the whole table; the division makes up for the truncation of the distribution.
        deviation = math.sqrt(2.0 / (table.rows + table.dim)) / _CUT_DEVIATION
        initializer = keras.initializers.TruncatedNormal(0.0, deviation)
    return initializer
