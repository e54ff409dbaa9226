"""Metrics within groups of rows, such as the rows of a user or session, averaged over the groups.

Equal scores form one run: a metric is the mean over all orders of the tied rows (McSherry & Najork, ECIR 2008).

With bootstrap replicates there are two cases. If each group lies within one cluster, groups are drawn as a whole: a
group's value does not change, and it counts as often as its cluster is drawn. Otherwise rows are drawn, each with its
cluster: a group's value changes, and it counts once per replicate, as long as the value is defined.

Legend: N rows, R runs of equal scores within a group, V groups, W columns of weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import gammaln

from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.evaluation.metrics import Metric
from easyrec_mm.evaluation.segments import Places, segment_sums, starts_of
from easyrec_mm.evaluation.views import Chunk, Floats, View


@dataclass(frozen=True)
class Runs:
    """Runs of equal scores, or of equal labels, group by group.

    samples     [R, W], total weights of the rows
    positives   [R, W], total weights of the rows with a label above 0.5
    gains       [R, W], weighted sums of the labels
    first_run   [V], index of the first run of each group
    """

    samples: Floats
    positives: Floats
    gains: Floats
    first_run: Places

    def before(self, values: Floats) -> Floats:
        """Return for each run the sum `[R, W]` of values `[R, W]` over the earlier runs of its group."""
        sums = np.cumsum(values, axis=0) - values
        num_runs = np.diff(self.first_run, append=len(values))
        result: Floats = sums - np.repeat(sums[self.first_run], num_runs, axis=0)
        return result

    def of_groups(self, values: Floats) -> Floats:
        """Return the sums `[V, W]` of values `[R, W]` over each group."""
        return segment_sums(values, self.first_run)


class GroupMetric(Metric):
    """A metric within groups, averaged over the groups for which it is defined."""

    def values(self, view: View) -> Floats:
        """See Metric.values."""
        sums = np.zeros((2, view.weights.num_columns))
        are_whole = view.weights.num_columns == 1 or _are_whole(view)
        for chunk in view.by_group():
            first_row = starts_of(chunk.group)
            if are_whole:
                ones = np.ones((len(chunk.label), 1))
                values, weights = self.of_groups(chunk, ones)  # [V, 1]
                is_kept = weights[:, 0] > 0
                values, weights, clusters = values[is_kept], weights[is_kept], chunk.cluster[first_row][is_kept]
                for first, last in view.blocks(len(clusters)):
                    counts = view.weights.of(clusters, first, last).astype(np.float64)  # [V, W]
                    sums[:, first:last] += np.concatenate([values * weights, weights], axis=1).T @ counts
                continue
            for first, last in view.blocks(len(chunk.label)):
                counts = view.weights.of(chunk.cluster, first, last).astype(np.float64)  # [N, W]
                values, weights = self.of_groups(chunk, counts)
                sums[0, first:last] += np.where(weights > 0, values * weights, 0).sum(axis=0)
                sums[1, first:last] += weights.sum(axis=0)
        return np.asarray(sums[0] / sums[1])

    @abstractmethod
    def of_groups(self, chunk: Chunk, row_weights: Floats) -> tuple[Floats, Floats]:
        """Return the groups' values `[V, W]`, and their weights `[V, W]` in the average: 0 where undefined.

        Args:
          chunk: rows sorted by group, then by descending score.
          row_weights: weights of the rows `[N, W]`, whole numbers.
        """


class GAUC(GroupMetric):
    """AUC within each user or session, averaged over those that have both classes (Zhou et al., KDD 2018).

    `reduction` sets the weights of groups: "mean" (equal), "mean_by_sample_num" (number of samples) or
    "mean_by_positive_num" (number of positives). NaN when no group has both classes.
    """

    # Reduction -> function from the groups' numbers of positives and negatives to their weights.
    REDUCTIONS: ClassVar[dict[str, Callable[[Floats, Floats], Floats]]] = {
        "mean": lambda num_positives, num_negatives: np.ones_like(num_positives),
        "mean_by_sample_num": lambda num_positives, num_negatives: num_positives + num_negatives,
        "mean_by_positive_num": lambda num_positives, num_negatives: num_positives,
    }

    def __init__(self, reduction: str = "mean", name: str = "gauc", of: str = "user") -> None:
        if reduction not in self.REDUCTIONS:
            choices = did_you_mean(reduction, self.REDUCTIONS)
            raise ConfigError(f"{name}.reduction: '{reduction}' is unknown; {choices}")
        self.reduction = reduction
        self.undefined = f"no {of} has both a positive and a negative label"

    def of_groups(self, chunk: Chunk, row_weights: Floats) -> tuple[Floats, Floats]:
        """See GroupMetric.of_groups."""
        runs = _runs(chunk, chunk.score, row_weights)
        negatives = runs.samples - runs.positives
        doubled_pairs = runs.of_groups(negatives * (2 * runs.before(runs.positives) + runs.positives))
        num_positives, num_negatives = runs.of_groups(runs.positives), runs.of_groups(negatives)
        weights = self.REDUCTIONS[self.reduction](num_positives, num_negatives)
        is_defined = (num_positives > 0) & (num_negatives > 0)
        return doubled_pairs / (2 * num_positives * num_negatives), np.where(is_defined, weights, 0)


class _TopMetric(GroupMetric):
    """A metric of the first `topk` rows of a session, averaged over the sessions that have a positive label."""

    def __init__(self, topk: int = 0, of: str = "session") -> None:
        self.topk = topk
        self.undefined = f"no {of} has a positive label"

    def in_top(self, runs: Runs) -> Floats:
        """Return the number of rows of each run `[R, W]` that are among the first `topk` rows of the group."""
        taken: Floats = np.clip(self.topk - runs.before(runs.samples), 0, runs.samples)
        return taken


class RecallAtTopK(_TopMetric):
    """Share of a session's positives that are among its first `topk` rows."""

    def of_groups(self, chunk: Chunk, row_weights: Floats) -> tuple[Floats, Floats]:
        """See GroupMetric.of_groups."""
        runs = _runs(chunk, chunk.score, row_weights)
        hits = runs.of_groups(runs.positives / np.maximum(runs.samples, 1) * self.in_top(runs))
        num_positives = runs.of_groups(runs.positives)
        return hits / num_positives, (num_positives > 0).astype(np.float64)


class HitRate(_TopMetric):
    """Share of the sessions with a positive label that have a positive among their first `topk` rows.

    If the limit cuts a run of equal scores, a session counts with the probability that a positive is before the limit.
    """

    def of_groups(self, chunk: Chunk, row_weights: Floats) -> tuple[Floats, Floats]:
        """See GroupMetric.of_groups."""
        runs = _runs(chunk, chunk.score, row_weights)
        taken, negatives = self.in_top(runs), runs.samples - runs.positives
        # Probability that none of p positives is among t rows drawn from m: C(m - p, t) / C(m, t), hypergeometric.
        left = negatives - taken
        log_none = gammaln(negatives + 1) + gammaln(runs.samples - taken + 1)
        log_none -= gammaln(np.maximum(left, 0) + 1) + gammaln(runs.samples + 1)
        log_none = np.where(left < 0, -np.inf, np.where(runs.positives * taken > 0, log_none, 0.0))
        return 1 - np.exp(runs.of_groups(log_none)), (runs.of_groups(runs.positives) > 0).astype(np.float64)


class NDCG(_TopMetric):
    """Normalised discounted cumulative gain of the first `topk` rows of a session, or of all rows if `topk` is 0.

    It is DCG = sum over ranks i of label / log2(i + 1), divided by the DCG of the best order (Jarvelin & Kekalainen,
    TOIS 2002), and equal to scikit-learn's ndcg_score. Sessions whose labels are all 0 do not count.
    """

    def of_groups(self, chunk: Chunk, row_weights: Floats) -> tuple[Floats, Floats]:
        """See GroupMetric.of_groups."""
        best_order = np.lexsort((-chunk.label, chunk.group))
        best = chunk.take(best_order)
        gain = self._gain(_runs(chunk, chunk.score, row_weights))
        best_gain = self._gain(_runs(best, best.label, row_weights[best_order]))
        return gain / best_gain, (best_gain > 0).astype(np.float64)

    def _gain(self, runs: Runs) -> Floats:
        """Return the DCG of each group `[V, W]`."""
        before = runs.before(runs.samples)
        longest = int((before + runs.samples).max())
        discounts = 1 / np.log2(np.arange(2, longest + 2))
        if self.topk:
            discounts[self.topk :] = 0
        sums = np.concatenate([[0], np.cumsum(discounts)])  # [k]: of the first k ranks
        discount = sums[(before + runs.samples).astype(np.int64)] - sums[before.astype(np.int64)]
        return runs.of_groups(runs.gains / np.maximum(runs.samples, 1) * discount)


def _runs(chunk: Chunk, values: Floats, row_weights: Floats) -> Runs:
    """Return the runs of equal values `[N]` of a chunk that is sorted by group and value."""
    starts = starts_of(chunk.group, values)
    is_positive = (chunk.label > 0.5)[:, None]
    return Runs(
        segment_sums(row_weights, starts),
        segment_sums(row_weights * is_positive, starts),
        segment_sums(row_weights * chunk.label[:, None], starts),
        starts_of(chunk.group[starts]),
    )


def _are_whole(view: View) -> bool:
    """Return whether each group lies within one cluster."""
    if view.group == view.cluster:
        return True
    for chunk in view.by_group():
        starts = starts_of(chunk.group)
        least, most = (extreme.reduceat(chunk.cluster, starts) for extreme in (np.minimum, np.maximum))
        if not np.array_equal(least, most):
            return False
    return True
