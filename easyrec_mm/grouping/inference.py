"""Infers what each column of a log is for a model: a label, a feature of some type, or neither; with the reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easyrec_mm.features.field import Kind
from easyrec_mm.features.quantiles import quantile_boundaries
from easyrec_mm.formats.columns import MAX_WHOLE
from easyrec_mm.formats.grouped_table import GroupFields
from easyrec_mm.grouping.column_stats import MAX_COUNTED, ColumnStats, LogStats
from easyrec_mm.grouping.constancy import ConstantColumns
from easyrec_mm.grouping.leaks import LeakFinder
from easyrec_mm.grouping.options import GROUP_SIZE, GroupOptions
from easyrec_mm.grouping.row_numbers import TIME, is_time, why_row_number

# Maximum number of distinct texts for a vocabulary, and maximum number of rows of a proposed table.
_MAX_VOCABULARY, _MAX_TABLE = 100, 50_000_000
# Whole numbers from 0 to below this select rows of a table directly, if at least half of them occur.
_MAX_BUCKETS = 1000
_NUM_QUANTILES = 16
_SMALL_DIM, _DIM = 8, 16
# A constant column describes the item if random values would have differed within items at least this often.
_MIN_EVIDENCE = 20
# With fewer rows per value, the embedding of an id memorizes labels: the id adds a number to the logits instead.
_FEW_ROWS = 300
_TAG_SEPARATORS = ("|", ",", ";", " ")

_LABEL = re.compile(
    r"(is_)?(label|labels|click|clicked|clicks|clk|conversion|converted|convert|purchase|purchased|buy|bought|pay|paid"
    r"|order|ordered|like|liked|favorite|favourite|cart|add_to_cart|install|share|shared|valid_play|finish)(_label)?"
    r"|is_\w+|label_\w+|\w+_label"
)
_ID = re.compile(
    r"(\w+_)?(id|ids|uid|pid|cid|no|code|key|hash|type|cate|category|brand|shop|seller|city|province|region|country"
    r"|gender|sex|os|device|model|level|class|status|channel|slot|weekday|zip|idx|index)"
)


@dataclass
class FieldPlan:
    """An input field. `default` replaces a missing value; None for the default of the config language."""

    name: str
    kind: Kind
    default: int | float | None = None
    per_group: bool = False


@dataclass
class FeaturePlan:
    """A feature: its `settings` by name, and the reason for them.

    wide_rows  mean number of rows per value, if this is so small that the feature adds a number to the logits; else 0
    """

    name: str
    feature_type: str
    settings: dict[str, Any]
    why: str
    wide_rows: float = 0.0


@dataclass
class LabelPlan:
    """A label, whether it is a class (0 or 1) or a number, and the mean and variance of its values."""

    name: str
    is_binary: bool
    mean: float
    variance: float


@dataclass
class Inference:
    """The inferred columns. `left_out` gives the reasons for not using columns; `notes` are for a person to read."""

    fields: list[FieldPlan]
    labels: list[LabelPlan]
    are_labels_guessed: bool
    features: list[FeaturePlan] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def group_fields(self, options: GroupOptions) -> GroupFields:
        """Return how the columns are written."""
        return GroupFields(
            kinds={plan.name: plan.kind for plan in self.fields},
            labels=tuple(label.name for label in self.labels),
            image=options.image_field,
            size=GROUP_SIZE,
            per_group=frozenset(plan.name for plan in self.fields if plan.per_group),
            defaults={plan.name: plan.default for plan in self.fields if plan.default is not None},
            column_separator=options.rtp_separator,
        )


def infer(options: GroupOptions, stats: LogStats, constant: ConstantColumns) -> Inference:
    """Infer what the columns are.

    Args:
      options: the user's settings.
      stats: statistics of the rows that train.
      constant: columns with the same value in all rows of an item.
    """
    labels, left_out = _labels(options, stats, constant)
    result = Inference([], labels, not options.label_fields, left_out=left_out)
    names = {label.name for label in labels}
    leaks = LeakFinder(stats.sample.table, [label.name for label in labels], options.group_by, options.user_field)
    for name, column in stats.columns.items():
        per_group = name not in names and _is_per_group(name, column, options, constant)
        plan = FieldPlan(name, _written_kind(column), per_group=per_group)
        result.fields.append(plan)
        if name not in names and name != options.image_field and name not in left_out:
            _plan_feature(plan, column, options, stats, leaks, result)
        if column.num_missing * 2 > column.num_rows:
            result.notes.append(
                f"column '{name}' is missing in {_share(column.num_missing, column.num_rows)} of the rows"
            )
    return result


def _written_kind(column: ColumnStats) -> Kind:
    """Return the kind to write: text for whole numbers beyond 18 digits, which are ids that training reads as text."""
    is_long = column.kind == "int64" and max(abs(column.least or 0), abs(column.greatest or 0)) >= MAX_WHOLE
    return "string" if is_long else column.kind


def _is_per_group(name: str, column: ColumnStats, options: GroupOptions, constant: ConstantColumns) -> bool:
    """Return whether a column describes the item: it never differed within an item, but random values would have."""
    if name in (options.group_by, options.image_field, *options.group_fields):
        return True
    if name not in constant.names or name in (options.user_field, options.time_field):
        return False
    shares = np.array(list(column.counts.values())) / max(column.num_values, 1) if column.counts else np.zeros(1)
    return bool(constant.num_compared * (1 - float(np.sum(shares**2))) >= _MIN_EVIDENCE)


def _labels(
    options: GroupOptions, stats: LogStats, constant: ConstantColumns
) -> tuple[list[LabelPlan], dict[str, str]]:
    """Return the labels; and columns that look like labels but are not used, as they would leak labels as features."""
    names = list(options.label_fields)
    left_out: dict[str, str] = {}
    own = {options.group_by, options.image_field, options.user_field, options.time_field, *options.group_fields}
    for name, column in stats.columns.items():
        if name in names or name in own or not is_label_name(name) or not is_binary(column):
            continue
        if name in options.columns and (options.label_fields or column.num_missing):
            continue
        if name.lower().startswith("is_") and _is_per_group(name, column, options, constant):
            continue  # it describes the item, like is_new
        if options.label_fields:
            left_out[name] = "looks like a label that is not in --label_fields; as a feature it would reveal the label"
        elif column.num_missing:
            left_out[name] = (
                f"looks like a label and is missing in {column.num_missing:,} rows; if you name it in --label_fields, "
                "these rows are refused"
            )
        else:
            names.append(name)
    return [_label(name, stats) for name in names], left_out


def is_label_name(name: str) -> bool:
    """Return whether a name is that of a label: click, is_buy, label_x."""
    return bool(_LABEL.fullmatch(name.lower()))


def is_binary(column: ColumnStats) -> bool:
    """Return whether a column contains 0 and 1, both and nothing else."""
    return column.kind != "string" and column.counts is not None and set(column.counts) == {0, 1}


def _label(name: str, stats: LogStats) -> LabelPlan:
    values = _numbers(stats, name)
    column = stats.columns[name]
    is_binary = column.counts is not None and bool(column.counts) and set(column.counts) <= {0, 1}
    mean, variance = (float(values.mean()), float(values.var())) if len(values) else (0.0, 0.0)
    return LabelPlan(name, is_binary, mean, variance)


def _plan_feature(
    plan: FieldPlan,
    column: ColumnStats,
    options: GroupOptions,
    stats: LogStats,
    leaks: LeakFinder,
    result: Inference,
) -> None:
    """Add the feature of a column to the result, or the reason why it has none."""
    name = plan.name
    is_wanted = name in options.columns
    # Item and user are ids because of their role, however few rows each value has.
    has_role = name in (options.group_by, options.user_field)
    why_not = _why_no_feature(name, column, options, is_wanted)
    if not why_not:
        is_id = bool(_ID.fullmatch(name.lower())) or has_role
        feature = _feature(plan, column, stats, is_id)
        if not (is_wanted or has_role):
            why_not = _why_misleading(feature, plan, column, stats, leaks, is_id)
    if why_not:
        result.left_out[name] = why_not
        return
    if plan.per_group:
        feature.settings["per_group"] = True
    rows = column.num_values / max(column.num_distinct, 1)
    if feature.feature_type == "IdFeature" and column.num_distinct > _MAX_VOCABULARY and rows < _FEW_ROWS:
        feature.wide_rows = rows
        feature.why += (
            f"; {rows:.0f} rows per value, too few for an embedding: one number per value, added to the logits"
        )
    result.features.append(feature)


def _feature(plan: FieldPlan, column: ColumnStats, stats: LogStats, is_id: bool) -> FeaturePlan:
    if plan.kind == "string":
        return _text_feature(plan, column, stats)
    if plan.kind == "bool" or (plan.kind == "int64" and _is_dense(column)):
        return _bucket_feature(plan, column, stats)
    if plan.kind == "int64" and is_id:
        return _hashed_feature(plan, column, stats)
    return _number_feature(plan, column, stats)


def _why_no_feature(name: str, column: ColumnStats, options: GroupOptions, is_wanted: bool) -> str:
    by = options.split_by.by if options.split_by else ""
    time = options.split_by.column if options.split_by else ""
    if column.num_distinct == 0:
        return "has no values"
    if is_wanted:
        return ""
    if name in (options.time_field, time) or is_time(name, column):
        return TIME
    if name == options.group_by and by == "item":
        return "no item of the evaluation data occurs in the training data (--split_by item)"
    if name == options.user_field and by == "user":
        return "no user of the evaluation data occurs in the training data (--split_by user)"
    if column.num_distinct == 1 and not column.num_missing:
        return f"is {column.least!r} in all rows"
    return ""


def _why_misleading(
    feature: FeaturePlan, plan: FieldPlan, column: ColumnStats, stats: LogStats, leaks: LeakFinder, is_id: bool
) -> str:
    """Return why a feature would only seem to help: it leaks a label or identifies each row; "" if it does neither."""
    why_not = leaks.reason(plan.name, plan.per_group)
    if why_not and is_binary(column):
        labels = ",".join([*leaks.labels, plan.name])
        return f"{why_not}; probably it is another label: to predict it, use --label_fields {labels}"
    if not why_not and feature.feature_type == "TagFeature":
        separators = (feature.settings["separator"], feature.settings.get("kv_separator", ""))
        return leaks.reason_of_tags(plan.name, *separators, describes_item=plan.per_group)
    if why_not or stats.sample.table is None or "separator" in feature.settings:
        return why_not
    # Whole numbers that are written as text are too long to be measurements.
    return why_row_number(column, stats.sample.table, plan.name, is_id or plan.kind == "string")


def _numbers(stats: LogStats, name: str) -> NDArray[np.float64]:
    """Return the values of a column in the sample, without missing ones."""
    if stats.sample.table is None:
        return np.zeros(0)
    return stats.sample.table[name].drop_null().cast(pa.float64(), safe=False).to_numpy()  # type: ignore[no-any-return]


# --- Kinds of features


def _text_feature(plan: FieldPlan, column: ColumnStats, stats: LogStats) -> FeaturePlan:
    table = stats.sample.table
    values = [value for value in table[plan.name].drop_null().to_pylist() if value] if table is not None else []
    several = _tag_feature(plan, values) if plan.name and column.kind == "string" else None
    if several:
        return several
    counts = {value: rows for value, rows in (column.counts or {}).items() if value != ""}
    if counts and len(counts) <= _MAX_VOCABULARY:
        words = [str(value) for value in sorted(counts, key=lambda value: (-counts[value], value))]
        settings = {"vocab_list": words, "embedding_dim": _SMALL_DIM}
        return FeaturePlan(
            plan.name,
            "IdFeature",
            settings,
            f"{len(words)} distinct values{_missing(column)}: each has a row of the table",
        )
    return _hashed_feature(plan, column, stats)


def _hashed_feature(plan: FieldPlan, column: ColumnStats, stats: LogStats) -> FeaturePlan:
    if plan.kind == "int64" and column.num_missing and (column.least or 0) >= 0:
        plan.default = -1
    rows, table_size = table_rows(column.num_distinct)
    about = "" if column.counts is not None else "about "
    why = f"{about}{column.num_distinct:,} distinct values in {column.num_rows:,} rows{_missing(column)}: {table_size}"
    dim = _DIM if column.num_distinct > MAX_COUNTED else _SMALL_DIM
    return FeaturePlan(plan.name, "IdFeature", {"hash_bucket_size": rows, "embedding_dim": dim}, why)


def _tag_feature(plan: FieldPlan, values: list[str]) -> FeaturePlan | None:
    """Return a feature for texts of several values, if at least a tenth of the texts contain a separator; else None."""
    for separator in _TAG_SEPARATORS:
        having = sum(separator in value for value in values)
        parts = [part for value in values for part in value.split(separator) if part]
        distinct = set(parts)
        # The parts must be words that recur, not pieces of sentences.
        if having * 10 < len(values) or not having or len(distinct) * 2 > len(parts):
            continue
        share = f"{_share(having, len(values))} of the texts hold several values"
        lengths = {value.count(separator) + 1 for value in values}
        if len(lengths) == 1 and all(_is_number(part) for part in distinct) and separator != " ":
            (length,) = lengths
            settings: dict[str, Any] = {"raw_input_dim": length, "separator": separator}
            return FeaturePlan(plan.name, "RawFeature", settings, f"{length} numbers in each text")
        pairs = [part.rsplit(":", 1) for part in distinct]
        has_weights = all(len(pair) == 2 and _is_number(pair[1]) for pair in pairs)
        tags = {pair[0] for pair in pairs} if has_weights else distinct
        rows, table_size = table_rows(len(tags))
        settings = {"separator": separator}
        if has_weights:
            settings["kv_separator"] = ":"
        settings |= {"hash_bucket_size": rows, "embedding_dim": _SMALL_DIM}
        return FeaturePlan(
            plan.name, "TagFeature", settings, f"{share}, {len(tags):,} distinct in a sample: {table_size}"
        )
    return None


def _is_dense(column: ColumnStats) -> bool:
    """Return whether whole numbers fill a small range that starts at 0."""
    if column.counts is None or not column.counts or not 0 <= column.least <= column.greatest < _MAX_BUCKETS:
        return False
    return bool(2 * len(column.counts) >= column.greatest + 1 or column.greatest < 10)


def _bucket_feature(plan: FieldPlan, column: ColumnStats, stats: LogStats) -> FeaturePlan:
    rows = int(column.greatest) + 1 if plan.kind == "int64" else 2
    why = (
        f"whole numbers from {int(column.least)} to {int(column.greatest)}{_missing(column)}: each has a row of the "
        "table"
    )
    if column.num_missing and plan.kind == "int64":
        plan.default = rows
        rows += 1
        why += ", and so have missing values"
    return FeaturePlan(plan.name, "IdFeature", {"num_buckets": rows, "embedding_dim": _SMALL_DIM}, why)


def _number_feature(plan: FieldPlan, column: ColumnStats, stats: LogStats) -> FeaturePlan:
    """Return a feature with buckets of about equally many rows, and one for missing values, to learn any effect."""
    values = _numbers(stats, plan.name)
    limits = [_short(limit) for limit in quantile_boundaries(values, _NUM_QUANTILES)]
    why = (
        f"numbers from {_short(column.least)} to {_short(column.greatest)}, median {_short(np.median(values))}"
        f"{_missing(column)}: {len(limits) + 1} buckets with about the same number of rows each"
    )
    if column.num_missing:
        # The default is below the first bucket of numbers, which then begins at the least value.
        below = float(column.least) - max(1.0, abs(float(column.least)))
        plan.default = int(below) if plan.kind == "int64" else _short(below)
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


def _missing(column: ColumnStats) -> str:
    return f", missing in {_share(column.num_missing, column.num_rows)} of the rows" if column.num_missing else ""


def _share(part: int, total: int) -> str:
    share = part / max(total, 1)
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?", text))


def _short(value: float) -> float:
    """Return the shortest decimal number with the same float32 value."""
    return float(str(np.float32(value)))
