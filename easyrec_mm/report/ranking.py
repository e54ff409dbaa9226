"""ROC and precision-recall curves. Areas are those of the metrics AUC and PR-AUC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.rank_metrics import AUC, PrAUC, tie_runs
from easyrec_mm.evaluation.views import View
from easyrec_mm.report.context import Context
from easyrec_mm.report.figures import MAX_POINTS, Floats, add_line, add_reference, new_figure
from easyrec_mm.report.section import Part, Plot, Text, Unavailable, by_task, tried
from easyrec_mm.schema import Task


@dataclass(frozen=True)
class RankCurve:
    """Counts of the samples above thresholds, by descending threshold, from (0, 0) to all samples.

    positives, negatives  float64 `[P]`, numbers of samples above the threshold; equal scores are never separated
    """

    positives: Floats
    negatives: Floats

    @property
    def roc(self) -> tuple[Floats, Floats]:
        """Return false and true positive rates."""
        return self.negatives / self.negatives[-1], self.positives / self.positives[-1]

    @property
    def precision_recall(self) -> tuple[Floats, Floats]:
        """Return recall and precision, without the threshold above all scores, whose precision is undefined."""
        positives, negatives = self.positives[1:], self.negatives[1:]
        return positives / positives[-1], positives / (positives + negatives)


def rank_curve(view: View, max_points: int = MAX_POINTS) -> RankCurve:
    """Return the curve of a view, with every threshold, or of many those that divide the samples evenly.

    All points that stay are exact. The samples are read one chunk after the other, and two points never have less than
    1 / max_points of the positives, or of the negatives, between them, so that both curves are fine at their ends.

    Raises:
      Unavailable: if all labels are of one class.
    """
    totals = np.zeros(2)
    for positives, negatives in tie_runs(view):
        totals += positives.sum(), negatives.sum()
    if not totals.all():
        raise Unavailable("All labels are of one class: there is no curve.")
    steps = totals * 2 / max_points
    so_far, kept, last = np.zeros(2), [np.zeros((1, 2))], np.zeros(2)
    for positives, negatives in tie_runs(view):
        sums = np.cumsum(np.concatenate([positives, negatives], axis=1), axis=0) + so_far  # [R, 2]
        so_far = sums[-1]
        places = np.floor(sums / steps)
        is_new = (places != np.concatenate([[np.floor(last / steps)], places[:-1]])).any(axis=1)
        kept.append(sums[is_new])
        last = so_far
    points = np.concatenate(kept)
    if (points[-1] != totals).any():
        points = np.concatenate([points, totals[None]])
    return RankCurve(points[:, 0], points[:, 1])


def curves(context: Context) -> Sequence[Part]:
    """Return the curves of each task with two classes."""
    return by_task({task.name: tried(_of_task, context, task) for task in context.evaluated.plan.tasks})


def _of_task(context: Context, task: Task) -> Sequence[Part]:
    if task.activation != "binary":
        raise Unavailable(f"'{task.name}' predicts no probability of a click: curves of ranks are for two classes.")
    roc = new_figure("false positive rate", "true positive rate", 460, xaxis_range=[0, 1], yaxis_range=[0, 1.01])
    recall = new_figure("recall", "precision", 460, xaxis_range=[0, 1])
    add_reference(roc, [0, 1], [0, 1], "chance")
    rate = None
    notes: list[Part] = []
    for number, run in enumerate(context.runs):
        try:
            evaluated = context.evaluated_of(run)
            if task not in evaluated.plan.tasks:
                raise Unavailable(f"it has no tower '{task.name}' of the same label and output.")
            view = evaluated.view(task)
            curve = rank_curve(view)
        except (UserError, Unavailable) as error:
            if number == 0:
                raise
            notes.append(Text(f"{run.name} is not shown: {error}", "note"))
            continue
        area, pr_area = AUC().estimate(view).value, PrAUC().estimate(view).value
        add_line(roc, *curve.roc, f"{run.name}: AUC {area:.4f}", number)
        add_line(recall, *curve.precision_recall, f"{run.name}: PR-AUC {pr_area:.4f}", number)
        if number == 0:
            rate = curve.positives[-1] / (curve.positives[-1] + curve.negatives[-1])
    if rate is not None:
        add_reference(recall, [0, 1], [rate, rate], f"chance: {rate:.4f}")
    recall.update_yaxes(rangemode="tozero")
    return [
        Plot(roc, "ROC curve", "Which share of the negatives stands above a threshold, and which of the positives."),
        Plot(recall, "Precision-recall curve", "Of the samples above a threshold, the share that is positive."),
        *notes,
    ]
