"""Infers what each column of a log is for a model: a label, a feature of some type, or neither; with the reasons.

The result depends on the values of all rows, whether they train or evaluate: not on the format of the files, the order
of the rows or the split.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easyrec_mm.features.field import Kind
from easyrec_mm.formats.columns import MAX_WHOLE
from easyrec_mm.grouping.column_stats import ColumnStats, LogStats
from easyrec_mm.grouping.constancy import ConstantColumns
from easyrec_mm.grouping.feature_plans import MAX_VOCABULARY, missing_default, missing_share, plan_feature
from easyrec_mm.grouping.item_texts import is_item_text, mean_words
from easyrec_mm.grouping.leaks import LeakFinder
from easyrec_mm.grouping.options import GroupOptions
from easyrec_mm.grouping.plans import FeaturePlan, FieldPlan, Inference, LabelPlan
from easyrec_mm.grouping.row_numbers import has_value_per_row, why_row_number
from easyrec_mm.grouping.text_features import Texts, read_texts
from easyrec_mm.grouping.time_columns import TIME, is_time
from easyrec_mm.grouping.time_features import time_features

_NOT_EXPORTED = "cannot be an input of an exported model: rename it, with letters, digits and _"
# A constant column describes the item if random values would have differed within items at least this often.
_MIN_EVIDENCE = 20

_LABEL = re.compile(
    r"(is_)?(label|labels|click|clicked|clicks|clk|conversion|converted|convert|purchase|purchased|buy|bought|pay|paid"
    r"|order|ordered|like|liked|favorite|favourite|cart|add_to_cart|install|share|shared|valid_play|finish)(_label)?"
    r"|is_(finished|follow|followed|comment|commented|forward|download|downloaded|subscribe|subscribed|view|viewed)"
    r"|label_\w+|\w+_label"
)
_ID = re.compile(
    r"(\w+_)?(id|ids|uid|pid|cid|no|code|key|hash|type|cate|category|brand|shop|seller|city|province|region|country"
    r"|gender|sex|os|device|model|level|class|status|channel|slot|weekday|zip|idx|index)"
)


def infer(
    options: GroupOptions, stats: LogStats, constant: ConstantColumns, rounded: frozenset[str] = frozenset()
) -> Inference:
    """Infer what the columns are.

    Args:
      options: the user's settings.
      stats: statistics of all rows.
      constant: columns with the same value in all rows of an item.
      rounded: columns of floats so large that several ids are the same float.
    """
    sample = stats.sample.rows()
    labels, left_out = _labels(options, stats, constant, sample)
    result = Inference([], labels, not options.label_fields, left_out=left_out)
    names = {label.name for label in labels}
    leaks = LeakFinder(sample, [label.name for label in labels], options.group_by, options.user_field)
    for name, column in stats.columns.items():
        is_label = name in names
        per_group = not is_label and _is_per_group(name, column, options, constant)
        kind = column.kind if is_label else _written_kind(column)
        plan = FieldPlan(name, kind, per_group=per_group)
        if column.num_missing and not is_label:
            plan.default = missing_default(kind, column)
        result.fields.append(plan)
        if not is_label and name != options.image_field and name not in left_out:
            values = sample[name].drop_null().combine_chunks() if sample is not None else pa.nulls(0, pa.string())
            num_items = stats.columns[options.group_by].num_distinct if options.group_by in stats.columns else 0
            _plan_column(plan, column, values, options, leaks, result, num_items)
        result.notes += _notes(name, column, options, result)
        if name in rounded and (name in (options.group_by, options.user_field) or _is_id_feature(name, result)):
            result.notes.append(
                f"column '{name}' has floats so large that several ids are the same one; write ids as int64 or text"
            )
    # A column may have the name of a feature of the time.
    result.features = [f for f in result.features if not (f.column and f.name in stats.columns)]
    result.has_user_ids = bool(options.user_field) and options.user_field not in rounded
    return result


def _written_kind(column: ColumnStats) -> Kind:
    """Return the kind to write.

    Whole numbers beyond 18 digits are ids, which training reads as text. A bool with missing values is 0, 1 or a third
    number.
    """
    is_long = column.kind == "int64" and max(abs(column.least or 0), abs(column.greatest or 0)) >= MAX_WHOLE
    if column.kind == "bool" and column.num_missing:
        return "int64"
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
    options: GroupOptions, stats: LogStats, constant: ConstantColumns, sample: pa.Table | None
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
            continue  # it describes the item
        if options.label_fields:
            left_out[name] = "looks like a label that is not in --label_fields; as a feature it would reveal the label"
        elif column.num_missing:
            left_out[name] = (
                f"looks like a label and is missing in {column.num_missing:,} rows; if you name it in --label_fields, "
                "these rows are refused"
            )
        else:
            names.append(name)
    return [_label(name, stats.columns[name], sample) for name in names], left_out


def is_label_name(name: str) -> bool:
    """Return whether a name is that of a label: click, is_buy, label_x."""
    return bool(_LABEL.fullmatch(name.lower()))


def is_binary(column: ColumnStats) -> bool:
    """Return whether a column contains 0 and 1, both and nothing else."""
    return column.kind != "string" and column.counts is not None and set(column.counts) == {0, 1}


def _label(name: str, column: ColumnStats, sample: pa.Table | None) -> LabelPlan:
    values: NDArray[np.float64] = np.zeros(0)
    if sample is not None:
        values = sample[name].drop_null().cast(pa.float64(), safe=False).to_numpy()
    is_binary = column.counts is not None and bool(column.counts) and set(column.counts) <= {0, 1}
    mean, variance = (float(values.mean()), float(values.var())) if len(values) else (0.0, 0.0)
    return LabelPlan(name, is_binary, mean, variance)


def _plan_column(
    plan: FieldPlan,
    column: ColumnStats,
    values: pa.Array,
    options: GroupOptions,
    leaks: LeakFinder,
    result: Inference,
    num_items: int,
) -> None:
    """Add the feature of a column to the result, or the reason why it has none."""
    name = plan.name
    is_wanted = name in options.columns
    # Item and user are ids because of their role, however few rows each value has.
    has_role = name in (options.group_by, options.user_field)
    is_id = bool(_ID.fullmatch(name.lower())) or has_role
    why_not = _why_no_feature(plan, column, values, options, is_id)
    texts = Texts({})
    if not why_not and column.kind == "string" and not has_role:
        texts = read_texts(values, MAX_VOCABULARY)
        why_not = texts.left_out
    is_text = (
        not (why_not or is_id or texts.settings)
        and column.kind == "string"
        and plan.per_group
        and is_item_text(name, column, values, num_items, len(result.texts))
    )
    if not (why_not or is_wanted or has_role):
        why_not = _why_misleading(plan, column, values, texts, leaks, is_id)
    if why_not:
        features = _of_time(plan, column, values, options, leaks) if why_not == TIME else []
        parts = ", ".join(feature.name for feature in features)
        result.left_out[name] = f"{why_not}; features of it: {parts}" if parts else why_not
        result.features += features
        return
    if is_text:
        result.texts.append(name)
        result.notes.append(
            f"column '{name}' is read as text of the item (TextFeature): {column.num_distinct:,} distinct texts of "
            f"{mean_words(values):.1f} words on average"
        )
        return
    result.features.append(plan_feature(plan, column, values, texts, is_id))


def _of_time(
    plan: FieldPlan, column: ColumnStats, values: pa.Array, options: GroupOptions, leaks: LeakFinder
) -> list[FeaturePlan]:
    """Return the features of a time: those of the impression, unless the time leaks a label."""
    if plan.name != options.time_field or leaks.reason(plan.name, plan.per_group):
        return []
    return time_features(plan.name, column, values)


def _why_no_feature(plan: FieldPlan, column: ColumnStats, values: pa.Array, options: GroupOptions, is_id: bool) -> str:
    name = plan.name
    by = options.split_by.by if options.split_by else ""
    time = options.split_by.column if options.split_by else ""
    if column.num_distinct == 0:
        return "has no values"
    if not name.isidentifier():
        return _NOT_EXPORTED
    if name in options.columns:
        return ""
    if name == options.group_by:
        is_new = by == "item"
        return "no item of the evaluation data occurs in the training data (--split_by item)" if is_new else ""
    if name == options.user_field:
        is_new = by == "user"
        return "no user of the evaluation data occurs in the training data (--split_by user)" if is_new else ""
    if name in (options.time_field, time) or is_time(name, column, values, is_id):
        return TIME
    if column.num_distinct == 1 and not column.num_missing:
        return f"is {column.least!r} in all rows"
    return ""


def _why_misleading(
    plan: FieldPlan, column: ColumnStats, values: pa.Array, texts: Texts, leaks: LeakFinder, is_id: bool
) -> str:
    """Return why a feature would only seem to help: it leaks a label or identifies each row; "" if it does neither."""
    why_not = leaks.reason(plan.name, plan.per_group)
    if why_not and is_binary(column):
        labels = ",".join([*leaks.labels, plan.name])
        return f"{why_not}; probably it is another label: to predict it, use --label_fields {labels}"
    if not why_not and texts.tags:
        separators = (texts.settings["separator"], texts.settings.get("kv_separator", ""))
        return leaks.reason_of_tags(plan.name, *separators, describes_item=plan.per_group)
    if why_not or texts.settings:
        return why_not
    # Whole numbers that are written as text are too long to be measurements.
    return why_row_number(column, values, is_id or plan.kind == "string")


def _notes(name: str, column: ColumnStats, options: GroupOptions, result: Inference) -> list[str]:
    """Return what a person should look at in a column."""
    notes = []
    if name == options.image_field and not name.isidentifier():
        notes.append(f"column '{name}' {_NOT_EXPORTED}")
    if column.num_missing * 2 > column.num_rows:
        notes.append(f"column '{name}' is{missing_share(column).removeprefix(',')}")
    if name == options.user_field and column.num_missing:
        notes.append(f"{column.num_missing:,} rows without '{name}' count as those of one user")
    feature = _feature_of(name, result)
    if feature is None or name in options.columns:
        return notes
    if feature.doubt:
        notes.append(f"column '{name}': {feature.doubt}")
    elif feature.feature_type == "RawFeature" and has_value_per_row(column) and column.kind == "int64":
        notes.append(f"column '{name}' has a different whole number in nearly every row and is read as a measurement")
    elif result.are_labels_guessed and name.lower().startswith("is_") and is_binary(column):
        notes.append(f"column '{name}' of 0 and 1 is a feature; if it is an outcome, name it in --label_fields")
    return notes


def _is_id_feature(name: str, result: Inference) -> bool:
    feature = _feature_of(name, result)
    return feature is not None and feature.feature_type == "IdFeature"


def _feature_of(name: str, result: Inference) -> FeaturePlan | None:
    last = result.features[-1] if result.features else None
    return last if last is not None and last.name == name else None
