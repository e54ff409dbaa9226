"""Looks up rows of tables that are divided among the replicas.

A replica asks each other one for the distinct rows that its batch needs and the other holds, so that traffic follows
the batch and not the size of the tables. Tables of equal width share their exchanges. On the way back the gradients of
the rows go to the replicas that hold them: the gradient of a part of a table is that of all replicas.

Shapes: R requested ids, U distinct rows among them, N replicas, M the largest number of rows that a replica asks
another one for, rounded up, K rows that this replica is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas, rounded
from easyrec_mm.distribution.shards import rows_of_each, shard_of


class DividedTables:
    """Tables of any widths.

    Args:
      tables: name -> the part `[rows, dim]` of a table that this replica holds, as shards.py marks it.
      replicas: all replicas; they call `look_up` together, for ids of their own.
    """

    def __init__(self, tables: Mapping[str, tf.Variable], replicas: Replicas) -> None:
        widths = sorted({int(table.shape[1]) for table in tables.values()})
        of_width = [{name: table for name, table in tables.items() if table.shape[1] == width} for width in widths]
        self._groups = [_TablesOfOneWidth(group, replicas) for group in of_width]

    def look_up(self, requests: Mapping[str, tuple[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Return key -> rows float32 `[*ids.shape, dim]`, for key -> (name of a table, its ids)."""
        rows: dict[str, tf.Tensor] = {}
        for group in self._groups:
            own = {key: request for key, request in requests.items() if request[0] in group.names}
            if own:
                rows |= group.look_up(own)
        return rows


class _TablesOfOneWidth:
    """As DividedTables.

    The rows that a replica holds of all tables are numbered through: table after table, each with the same number of
    rows on every replica. Rows of replica k have the keys from k times the sum of these numbers on.
    """

    def __init__(self, tables: Mapping[str, tf.Variable], replicas: Replicas) -> None:
        self.names = list(tables)
        self._tables, self._replicas = tables, replicas
        self._width = next(iter(tables.values())).shape[1]
        self._num_rows: dict[str, int] = {}  # of each replica
        self._starts: dict[str, int] = {}
        self._end = 0
        for name, table in tables.items():
            shard = shard_of(table)
            if shard is None:
                raise ValueError(f"table {name} is not divided")
            self._num_rows[name], self._starts[name] = rows_of_each(shard.num_rows, replicas.num), self._end
            self._end += self._num_rows[name]

    def look_up(self, requests: Mapping[str, tuple[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        keys = [tf.reshape(self._keys(name, ids), [-1]) for name, ids in requests.values()]
        distinct, place = tf.unique(tf.concat(keys, 0))  # [U], [R]
        # In the order of the replicas that hold them.
        order = tf.argsort(distinct)
        distinct, place = tf.gather(distinct, order), tf.gather(tf.math.invert_permutation(order), place)
        exchange = _Exchange(tf.math.floordiv(distinct, self._end), self._replicas)
        asked = exchange.ask(tf.math.floormod(distinct, self._end))  # [K]
        rows = exchange.answer(self._own_rows(asked), place)  # [R, dim]
        parts = tf.split(rows, [tf.size(part) for part in keys])
        return {
            key: tf.reshape(part, tf.concat([tf.shape(ids), [self._width]], 0))
            for part, (key, (_, ids)) in zip(parts, requests.items(), strict=True)
        }

    def _keys(self, name: str, ids: tf.Tensor) -> tf.Tensor:
        ids, each = tf.cast(ids, tf.int64), self._num_rows[name]
        return tf.math.floordiv(ids, each) * self._end + self._starts[name] + tf.math.floormod(ids, each)

    def _own_rows(self, keys: tf.Tensor) -> tf.Tensor:
        """Return rows that this replica holds, for keys without the part that tells the replica."""
        starts = list(self._starts.values())
        if len(starts) == 1:
            return tf.nn.embedding_lookup(self._tables[self.names[0]], keys)
        table = tf.searchsorted(tf.constant(starts, tf.int64), keys, side="right") - 1
        places = tf.dynamic_partition(tf.range(tf.size(keys)), table, len(starts))
        own_ids = tf.dynamic_partition(keys - tf.gather(tf.constant(starts, tf.int64), table), table, len(starts))
        rows = [tf.nn.embedding_lookup(part, ids) for part, ids in zip(self._tables.values(), own_ids, strict=True)]
        return tf.dynamic_stitch(places, rows)


class _Exchange:
    """The exchange of one look-up: keys go to the replicas that hold their rows, and rows come back.

    Args:
      owner: the replica that holds each of the rows, ascending, int `[U]`.
      replicas: all replicas.
    """

    def __init__(self, owner: tf.Tensor, replicas: Replicas) -> None:
        self._replicas = replicas
        counts = tf.math.unsorted_segment_sum(tf.ones_like(owner, tf.int32), owner, replicas.num)
        of_all = tf.reshape(replicas.gather_equal(counts), [replicas.num, replicas.num])
        self._most = rounded(tf.reduce_max(of_all))
        self._is_own = tf.sequence_mask(of_all[replicas.number], self._most)  # [N, M]: rows that this replica needs
        self._is_asked = tf.sequence_mask(of_all[:, replicas.number], self._most)  # [N, M]: rows that others need

    def ask(self, keys: tf.Tensor) -> tf.Tensor:
        """Return the keys `[K]` that all replicas ask this one for, given those `[U]` that this one asks for."""
        return self._swapped(keys, self._is_own, self._is_asked)

    def answer(self, rows: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """Return the row of each place in the keys given to `ask`, `[R, dim]`, given what they ask for, `[K, dim]`."""

        def answered(rows: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            distinct = self._swapped(rows, self._is_asked, self._is_own)  # [U, dim]

            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                of_distinct = tf.math.unsorted_segment_sum(upstream, place, tf.shape(distinct)[0])
                return self._swapped(of_distinct, self._is_own, self._is_asked)

            return tf.gather(distinct, place), gradient

        result: tf.Tensor = tf.custom_gradient(answered)(rows)
        return result

    def _swapped(self, values: tf.Tensor, is_sent: tf.Tensor, is_received: tf.Tensor) -> tf.Tensor:
        shape = tf.concat([[self._replicas.num, self._most], tf.shape(values)[1:]], 0)
        sent = tf.scatter_nd(tf.where(is_sent), values, tf.cast(shape, tf.int64))
        received = self._replicas.swap(sent)
        received.set_shape([self._replicas.num, None, *values.shape[1:]])
        return tf.boolean_mask(received, is_received)
