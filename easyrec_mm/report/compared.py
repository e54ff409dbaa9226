"""Differences of two models on the same samples: paired, with the intervals of the bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.estimates import Difference, difference
from easyrec_mm.evaluation.plan import score_column
from easyrec_mm.report.context import Context
from easyrec_mm.report.evaluated import Evaluated
from easyrec_mm.report.run import Run
from easyrec_mm.report.section import Unavailable


@dataclass(frozen=True)
class Comparison:
    """What can be said of another model beside the first.

    run          its training
    evaluated    its outputs on the first model's evaluation data; None if it cannot be evaluated there
    differences  result name -> the first minus the other; {} if they are not of the same samples
    shared       names of the metrics that both have of the same task: its label and output are the same
    reason       why something is missing; "" if nothing is
    """

    run: Run
    evaluated: Evaluated | None
    differences: dict[str, Difference]
    shared: frozenset[str] = frozenset()
    reason: str = ""


def comparisons(context: Context) -> list[Comparison]:
    """Return what can be said of each of the other models.

    Raises:
      Unavailable, UserError: if the first model cannot be evaluated.
    """
    first = context.evaluated
    result = []
    for run in context.runs[1:]:
        try:
            other = context.evaluated_of(run)
        except (Unavailable, UserError) as error:
            result.append(Comparison(run, None, {}, reason=f"{run.name} is not evaluated: {error}"))
            continue
        shared = _shared_metrics(first, other)
        reason = why_not_paired(first, other)
        if reason:
            result.append(Comparison(run, other, {}, shared, f"{run.name}: no differences, because {reason}."))
        else:
            result.append(Comparison(run, other, _differences(first, other, shared), shared))
    return result


def _shared_metrics(first: Evaluated, other: Evaluated) -> frozenset[str]:
    """Return the names of the metrics that two models have of tasks that are the same in both."""
    same = [task for task in first.plan.tasks if task in other.plan.tasks]
    scores = {score_column(task) for task in same}
    others = {entry.name: entry for entry in other.plan.entries}
    shared = set()
    for entry in first.plan.entries:
        twin = others.get(entry.name)
        # Scores of tasks of classes are columns of the metric's terms.
        is_of_same = entry.score in scores or entry.score.startswith("terms:")
        if twin is not None and is_of_same and (twin.label, twin.score) == (entry.label, entry.score):
            shared.add(entry.name)
    return frozenset(shared)


def _differences(first: Evaluated, other: Evaluated, shared: frozenset[str]) -> dict[str, Difference]:
    """Return the differences of the shared metrics, also of each slice that both have, first minus other."""
    level = first.plan.bootstrap.level
    return {
        name: difference(estimate, other.summary.estimates[name], level)
        for name, estimate in first.summary.estimates.items()
        if name in other.summary.estimates and name.partition("/")[0] in shared
    }


def why_not_paired(first: Evaluated, other: Evaluated) -> str:
    """Return why two models do not have the same samples; "" if they have.

    Bootstrap replicates belong together where each sample has the same cluster, and metrics where it has the same
    label, group and slice.
    """
    if len(first.rows) != len(other.rows):
        return f"it reads {len(other.rows):,} samples, and the first model {len(first.rows):,}"
    for column in _shared_columns(first, other):
        if not np.array_equal(first.rows.column(column), other.rows.column(column), equal_nan=False):
            return (
                f"its samples have other values of '{column.partition(':')[2] or column}' than those of the first model"
            )
    return ""


def _shared_columns(first: Evaluated, other: Evaluated) -> list[str]:
    """Return the columns that both have, but for their scores."""
    names = [set(evaluated.rows.names) for evaluated in (first, other)]
    return sorted(name for name in names[0] & names[1] if not name.startswith(("score:", "terms:", "origin:")))
