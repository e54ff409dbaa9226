"""Makes the tables of a pre-training: its data sets in one table of items to train on and one of held-out items.

The tables depend on the data sets and the config alone. They are written only if they differ from what lies there, so
that a training that continues, and other workers, read the same files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easyrec_mm import files
from easyrec_mm.config.overrides import Override
from easyrec_mm.config.pipeline import Pipeline, changed_pipeline
from easyrec_mm.config.pretraining import MMP_AT, PLACE, RECALL_AT, head_name, heads_of, tables_of
from easyrec_mm.errors import DataError
from easyrec_mm.files import StorageError
from easyrec_mm.pretraining.data_sets import Items, read_data_sets, single_items
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.stable_hash import hash_column

_MOST_SHOWN = 5
# Rows of a group of rows of the tables, so that their bytes do not depend on a library's default.
_ROWS = 1 << 16


def prepared(pipeline: Pipeline, writes: bool = True) -> Pipeline:
    """Return the pipeline of a pre-training with its numbers of classes, and notes on the data; write its tables.

    Args:
      pipeline: a config with pretrain_config.
      writes: whether this process writes the tables; one of several workers does.

    Raises:
      DataError: if the data sets cannot be read, or nothing can be learned or measured with them.
    """
    config = pipeline.config
    all_items, num_classes = read_data_sets(config)
    held_out = [_held_out(config, items) for items in all_items]
    _require_enough(config, all_items, held_out)
    if writes:
        train, evaluation = tables_of(config)
        _write(_mixed(config, all_items, held_out), train)
        _write(_table(config, all_items, [np.flatnonzero(is_out) for is_out in held_out]), evaluation)
    changes = [
        Override(PLACE, f"{PLACE}.data_sets[{i}].num_class", str(num_classes[head_name(items.data_set)]))
        for i, items in enumerate(all_items)
        if items.data_set.label
    ]
    changed = changed_pipeline(pipeline, changes)
    notes = (*pipeline.notes, *(note for items in all_items if (note := _note(items))))
    return Pipeline(changed.path, changed.config, changed.schema, notes)


def _note(items: Items) -> str:
    single = single_items(items)
    if not single:
        return ""
    shown = ", ".join(f"'{text}'" for text in single[:_MOST_SHOWN]) + (", ..." if len(single) > _MOST_SHOWN else "")
    return (
        f"{items.place}.label: {len(single)} classes have one item, which has no neighbour of its class to be "
        f"compared with: {shown}"
    )


def _held_out(config: EasyRecConfig, items: Items) -> NDArray[np.bool_]:
    """Return whether each item is held out: bool `[N]`."""
    if items.held_out is not None:
        return items.held_out
    share = config.pretrain_config.held_out_share
    is_out: NDArray[np.bool_] = hash_column(items.keys) < np.uint64(share * 2.0**63) * np.uint64(2)
    return is_out


def _require_enough(config: EasyRecConfig, all_items: Sequence[Items], held_out: Sequence[NDArray[np.bool_]]) -> None:
    """Check that each head has items to train on, and held-out items that have enough neighbours.

    Raises:
      DataError: if it does not.
    """
    needed = max(config.pretrain_config.num_neighbours, MMP_AT, *RECALL_AT) + 1
    for items, is_out in zip(all_items, held_out, strict=True):
        if is_out.all():
            advice = "lower pretrain_config.held_out_share, or give more items"
            raise DataError(f"{items.place}: all {len(is_out)} items are held out, none is left to train on; {advice}")
    for head in heads_of(config):
        own = [is_out for items, is_out in zip(all_items, held_out, strict=True) if _is_of(items, head.name)]
        number = sum(int(is_out.sum()) for is_out in own)
        if number < needed:
            raise DataError(
                f"{PLACE}.data_sets: {number} held-out items of '{head.name}' are too few for {needed - 1} neighbours "
                f"each; give {needed} or more: raise held_out_share, set eval_input_path, or lower num_neighbours"
            )


def _is_of(items: Items, head: str) -> bool:
    return bool(items.data_set.label) and head_name(items.data_set) == head


def _mixed(config: EasyRecConfig, all_items: Sequence[Items], held_out: Sequence[NDArray[np.bool_]]) -> pa.Table:
    """Return the items to train on; those of a data set are repeated by its weight, relative to the least one."""
    least = min(items.data_set.weight for items in all_items)
    rows = []
    for items, is_out in zip(all_items, held_out, strict=True):
        own = np.flatnonzero(~is_out)
        times, rest = divmod(items.data_set.weight / least, 1)
        # A part of a repetition takes the items with the smallest hashes.
        order = np.argsort(hash_column(items.keys)[own] * np.uint64(3), kind="stable")
        rows.append(np.concatenate([np.tile(own, int(times)), own[np.sort(order[: round(rest * len(own))])]]))
    table = _table(config, all_items, rows)
    # Mixed here once, because a shuffle buffer would meet one data set after the other.
    order = np.random.default_rng(config.data_config.seed).permutation(len(table))
    return table.take(pa.array(order))


def _table(config: EasyRecConfig, all_items: Sequence[Items], rows: Sequence[NDArray[np.int64]]) -> pa.Table:
    """Return these rows of each data set: contents, and for each head the class + 1, or 0."""
    parts = []
    for items, own in zip(all_items, rows, strict=True):
        columns = {name: texts.take(pa.array(own)) for name, texts in items.contents.items()}
        for head in heads_of(config):
            classes = np.zeros(len(own), np.int64)
            if _is_of(items, head.name) and items.classes is not None:
                classes = items.classes[own] + 1
            columns[head.field] = pa.array(classes)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _write(table: pa.Table, path: str) -> None:
    stream = io.BytesIO()
    pq.write_table(table.combine_chunks(), stream, row_group_size=_ROWS)
    content = stream.getvalue()
    with suppress(OSError, StorageError):
        if files.read(path) == content:
            return
    temporary = files.written_at(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(content)
        files.put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
