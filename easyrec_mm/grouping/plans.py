"""What is inferred of a log: how each field is written, which are labels, and which features they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from easyrec_mm.features.field import Kind
from easyrec_mm.formats.grouped_table import GroupFields
from easyrec_mm.grouping.options import GROUP_SIZE, GroupOptions


@dataclass
class FieldPlan:
    """An input field. `default` replaces a missing value; None if none is missing."""

    name: str
    kind: Kind
    default: int | float | str | None = None
    per_group: bool = False


@dataclass
class FeaturePlan:
    """A feature: its `settings` by name, and the reason for them.

    wide_rows  mean number of rows per value, if this is so small that the feature adds a number to the logits; else 0
    doubt      what a person should look at, as it may be otherwise; "" for nothing
    column     the column that the feature reads, if that has another name; "" otherwise
    """

    name: str
    feature_type: str
    settings: dict[str, Any]
    why: str
    wide_rows: float = 0.0
    doubt: str = ""
    column: str = ""


@dataclass
class LabelPlan:
    """A label, whether it is a class (0 or 1) or a number, and the mean and variance of its values, if known."""

    name: str
    is_binary: bool
    mean: float | None = None
    variance: float = 0.0


@dataclass
class Inference:
    """The inferred columns.

    texts           columns that together are the text of an item
    left_out        column -> the reason for not using it
    notes           what a person should look at
    has_user_ids    whether the column of the user tells users apart
    """

    fields: list[FieldPlan]
    labels: list[LabelPlan]
    are_labels_guessed: bool
    features: list[FeaturePlan] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    has_user_ids: bool = False

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
