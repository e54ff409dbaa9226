"""Checks that a model can be trained on what was inferred of a log."""

from __future__ import annotations

from easyrec_mm.errors import DataError
from easyrec_mm.grouping.column_stats import LogStats
from easyrec_mm.grouping.inference import is_binary, is_label_name
from easyrec_mm.grouping.options import GroupOptions
from easyrec_mm.grouping.plans import Inference


def require_trainable(options: GroupOptions, stats: LogStats, inference: Inference) -> None:
    """Check that there are labels, each with several values, and at least one feature."""
    if not inference.labels:
        raise DataError(
            "--label_fields: no column looks like a label of 0 and 1"
            + _labels_of_one_class(stats)
            + "; name the columns that are labels"
            + _columns_of_0_and_1(options, stats)
        )
    for label in inference.labels:
        column = stats.columns[label.name]
        if column.num_distinct == 1:
            raise DataError(
                f"--label_fields: column '{label.name}' is {column.least} in all {stats.num_rows:,} training rows, "
                "so nothing can be learned; give a log with both values, or leave the label out"
            )
    if not inference.features:
        why = "\n".join(f"  {name}: {why}" for name, why in inference.left_out.items())
        raise DataError(
            f"--input {options.input}: no column can become a feature; add columns to the log, or choose one with "
            f"--columns +NAME:\n{why}"
        )


def _labels_of_one_class(stats: LogStats) -> str:
    labels = [
        f"'{name}' is {column.least} in all rows"
        for name, column in stats.columns.items()
        if is_label_name(name) and column.num_distinct == 1 and column.least in (0, 1)
    ]
    return f" ({', '.join(labels)})" if labels else ""


def _columns_of_0_and_1(options: GroupOptions, stats: LogStats) -> str:
    names = [
        f"'{name}'"
        for name, column in stats.columns.items()
        if is_binary(column) and name not in (options.group_by, options.image_field, options.user_field)
    ]
    return f"; {' and '.join(names[:5])} hold{'s' if len(names) == 1 else ''} 0 and 1" if names else ""
