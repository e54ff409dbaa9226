"""Makes a feature of a column: an id, tags, numbers in buckets, or a vector; with its settings and their reason."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from easyrec_mm.features.field import LARGEST_NUMBER
from easyrec_mm.features.quantiles import quantile_boundaries
from easyrec_mm.formats.columns import MAX_WHOLE
from easyrec_mm.grouping.column_stats import MAX_COUNTED, ColumnStats
from easyrec_mm.grouping.plans import FeaturePlan, FieldPlan
from easyrec_mm.grouping.text_features import Texts

# Maximum number of distinct texts for a vocabulary, and maximum number of rows of a proposed table.
MAX_VOCABULARY, _MAX_TABLE = 100, 50_000_000
# Whole numbers from 0 to below this select rows of a table directly, if at least half of them occur.
_MAX_BUCKETS = 1000
_NUM_QUANTILES = 16
_SMALL_DIM, _DIM = 8, 16
# With fewer rows per value, the embedding of an id memorizes labels: the id adds a number to the logits instead.
_FEW_ROWS = 300


def plan_feature(plan: FieldPlan, column: ColumnStats, values: pa.Array, texts: Texts, is_id: bool) -> FeaturePlan:
    """Return the feature of a column; its plan gets another default if the feature needs one.

    Args:
      plan: how the column is written.
      column: its statistics.
      values: its values in a sample of the rows, without missing ones.
      texts: what they mean, if they are texts.
      is_id: whether the column is an id.
    """
    if plan.kind == "string":
        feature = _text_feature(plan, column, texts)
    elif plan.kind == "bool" or column.kind == "bool" or (plan.kind == "int64" and _is_dense(column)):
        feature = _bucket_feature(plan, column)
    elif plan.kind == "int64" and (is_id or _run_together(values)):
        feature = _hashed_feature(plan, column)
    else:
        feature = _number_feature(plan, column, values)
    if plan.per_group:
        feature.settings["per_group"] = True
    rows = column.num_values / max(column.num_distinct, 1)
    if feature.feature_type == "IdFeature" and column.num_distinct > MAX_VOCABULARY and rows < _FEW_ROWS:
        feature.wide_rows = rows
        feature.why += (
            f"; {rows:.0f} rows per value, too few for an embedding: one number per value, added to the logits"
        )
    feature.doubt = texts.doubt
    return feature


def missing_default(kind: str, column: ColumnStats) -> int | float | str:
    """Return the value that stands for a missing one: "" for text, else a number that no row has."""
    if kind == "string":
        return ""
    if kind == "int64":
        if column.kind == "bool":
            return 2
        below = min(int(column.least or 0), 0) - 1
        return below if below > -MAX_WHOLE else int(column.greatest) + 1
    return _below(float(column.least or 0.0))


def _text_feature(plan: FieldPlan, column: ColumnStats, texts: Texts) -> FeaturePlan:
    if "raw_input_dim" in texts.settings:
        why = f"{texts.settings['raw_input_dim']} numbers in each text"
        return FeaturePlan(plan.name, "RawFeature", dict(texts.settings), why)
    if texts.settings:
        rows, table_size = table_rows(len(texts.tags))
        settings = {**texts.settings, "hash_bucket_size": rows, "embedding_dim": _SMALL_DIM}
        several = f"{texts.share:.0%} of the texts hold several values"
        why = f"{several}, {len(texts.tags):,} distinct in a sample: {table_size}"
        return FeaturePlan(plan.name, "TagFeature", settings, why)
    counts = {str(value): rows for value, rows in (column.counts or {}).items() if value != ""}
    if not counts or len(counts) > MAX_VOCABULARY:
        return _hashed_feature(plan, column)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    why = f"{len(words)} distinct values{missing_share(column)}: each has a row of the table"
    return FeaturePlan(plan.name, "IdFeature", {"vocab_list": words, "embedding_dim": _SMALL_DIM}, why)


def _hashed_feature(plan: FieldPlan, column: ColumnStats) -> FeaturePlan:
    rows, table_size = table_rows(column.num_distinct)
    about = "" if column.counts is not None else "about "
    missing = missing_share(column)
    why = f"{about}{column.num_distinct:,} distinct values in {column.num_rows:,} rows{missing}: {table_size}"
    dim = _DIM if column.num_distinct > MAX_COUNTED else _SMALL_DIM
    return FeaturePlan(plan.name, "IdFeature", {"hash_bucket_size": rows, "embedding_dim": dim}, why)


def _is_dense(column: ColumnStats) -> bool:
    """Return whether whole numbers fill a small range that starts at 0."""
    if column.counts is None or not column.counts or not 0 <= column.least <= column.greatest < _MAX_BUCKETS:
        return False
    return bool(2 * len(column.counts) >= column.greatest + 1 or column.greatest < 10)


def _run_together(values: pa.Array) -> bool:
    """Return whether most values are equal to others with 32 bits, so that they are ids rather than measurements."""
    numbers = np.unique(values.to_numpy(zero_copy_only=False))
    return 2 * len(np.unique(numbers.astype(np.float32))) < len(numbers)


def _bucket_feature(plan: FieldPlan, column: ColumnStats) -> FeaturePlan:
    if column.kind == "bool":
        rows, values = 2, "true or false"
    else:
        rows, values = int(column.greatest) + 1, f"whole numbers from {column.least} to {column.greatest}"
    why = f"{values}{missing_share(column)}: each has a row of the table"
    if column.num_missing:
        plan.default = rows
        rows += 1
        why += ", and so have missing values"
    return FeaturePlan(plan.name, "IdFeature", {"num_buckets": rows, "embedding_dim": _SMALL_DIM}, why)


def _number_feature(plan: FieldPlan, column: ColumnStats, values: pa.Array) -> FeaturePlan:
    """Return a feature with buckets of about equally many rows, and one for missing values, to learn any effect."""
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    limits = [_short(limit) for limit in quantile_boundaries(numbers, _NUM_QUANTILES)]
    why = (
        f"numbers from {_short(column.least)} to {_short(column.greatest)}, median {_short(np.median(numbers))}"
        f"{missing_share(column)}: {len(limits) + 1} buckets with about the same number of rows each"
    )
    if column.num_missing:
        # The default is below the first bucket of numbers, which then begins at the least value.
        below = _below(float(column.least))
        plan.default = max(int(below), 1 - MAX_WHOLE) if plan.kind == "int64" else below
        limits.insert(0, _short(column.least))
        why += ", and one for missing values"
    return FeaturePlan(plan.name, "RawFeature", {"boundaries": limits, "embedding_dim": _SMALL_DIM}, why)


def table_rows(num_distinct: int) -> tuple[int, str]:
    """Return the rows of a hashed table: twice the number of values, rounded up to two digits; and a description."""
    target = max(2 * num_distinct, 100)
    unit = 10 ** (len(str(target)) - 2)
    rows = -(-target // unit) * unit
    if rows > _MAX_TABLE:
        return (
            _MAX_TABLE,
            f"hashed into {_MAX_TABLE:,} rows, so some values share a row; a larger table may be worthwhile",
        )
    return rows, f"hashed into {rows:,} rows"


def missing_share(column: ColumnStats) -> str:
    """Return a remark on the share of missing values; "" without any."""
    if not column.num_missing:
        return ""
    share = column.num_missing / max(column.num_rows, 1)
    return f", missing in {f'{share:.0%}' if 0.01 <= share < 0.995 else f'{share:.2%}'} of the rows"


def _below(least: float) -> float:
    """Return a number that is less than all others also with 32 bits."""
    return _short(max(least - max(1.0, abs(least)), -LARGEST_NUMBER))


def _short(value: float) -> float:
    """Return the shortest decimal number with the same float32 value."""
    return float(str(np.float32(value)))
