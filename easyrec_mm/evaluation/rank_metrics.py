"""Metrics of the order of all scores: areas under curves, and the share of pairs in the right order.

Equal scores form one run, so that the result does not depend on how they happen to be sorted. A label above 0.5 is
positive.

Legend: N rows, R runs of equal scores, W columns of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from easyrec_mm.evaluation.metrics import ONE_CLASS, Metric
from easyrec_mm.evaluation.segments import segment_sums, starts_of
from easyrec_mm.evaluation.views import Floats, Undefined, View

Array = npt.NDArray[Any]


class AUC(Metric):
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order; ties count half.

    It is the Mann-Whitney statistic (Hanley & McNeil, Radiology 1982), counted in whole numbers. NaN when only one
    class is present.
    """

    undefined = ONE_CLASS

    def values(self, view: View) -> Floats:
        """See Metric.values."""
        doubled_pairs, num_positives, num_negatives = np.zeros((3, view.weights.num_columns))
        for positives, negatives in tie_runs(view):
            above = np.cumsum(positives, axis=0) + (num_positives - positives)  # [R, W] positives with higher scores
            doubled_pairs += np.einsum("rw,rw->w", negatives, 2 * above + positives)
            num_positives += positives.sum(axis=0)
            num_negatives += negatives.sum(axis=0)
        return doubled_pairs / (2 * num_positives * num_negatives)


class PrAUC(Metric):
    """Area under the precision-recall curve as average precision: sum over runs of precision times recall increase.

    Points are not interpolated (Davis & Goadrich, ICML 2006); the result equals scikit-learn's
    average_precision_score. NaN without positives.
    """

    undefined = "no label is positive"

    def values(self, view: View) -> Floats:
        """See Metric.values."""
        total, num_positives, num_samples = np.zeros((3, view.weights.num_columns))
        for positives, negatives in tie_runs(view):
            positives_so_far = np.cumsum(positives, axis=0) + num_positives  # [R, W]
            samples_so_far = np.cumsum(positives + negatives, axis=0) + num_samples
            # The first rows may be missing from a replicate: it then has 0 samples so far.
            precision = positives_so_far / np.maximum(samples_so_far, 1)
            total += np.einsum("rw,rw->w", positives, precision)
            num_positives, num_samples = positives_so_far[-1], samples_so_far[-1]
        return total / num_positives


def tie_runs(view: View) -> Iterator[tuple[Floats, Floats]]:
    """Yield the weights of positives and negatives `[R, W]` in runs of equal scores, by descending score."""
    for _, samples, positives in runs_of_scores(view, lambda labels: labels > 0.5):
        yield positives, samples - positives


def runs_of_scores(view: View, of_label: Callable[[Floats], Array]) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Yield runs of equal scores by descending score, several runs at a time and each run complete.

    Args:
      view: the rows.
      of_label: function from labels `[N]` to the values that are summed.

    Yields:
      Scores `[R]`, weights of the rows `[R, W]`, and weighted sums of `of_label` `[R, W]`.
    """
    held: tuple[Floats, Floats, Floats] | None = None  # the last run, which may continue in the next chunk
    for chunk in view.by_score():
        weights = view.weights.of(chunk.cluster)
        starts = starts_of(chunk.score)
        score = chunk.score[starts]
        samples = segment_sums(weights, starts)
        labels = segment_sums(weights * of_label(chunk.label)[:, None], starts)
        if held is not None:
            if held[0][0] == score[0]:
                samples[0] += held[1][0]
                labels[0] += held[2][0]
            else:
                yield held
        held = (score[-1:], samples[-1:], labels[-1:])
        if len(score) > 1:
            yield score[:-1], samples[:-1], labels[:-1]
    if held is not None:
        yield held


class XAUC(Metric):
    """Share of pairs of samples with different labels that are in the right order; equal predictions count half.

    Zhan et al., "Deconfounding Duration Bias in Watch-time Prediction", KDD 2022, section 5.1, sample pairs; here all
    pairs count. NaN when all labels are equal. Holds the view in memory, about 200 bytes per row.

    Replicates are accurate to first order: each row has a count of the pairs that contain it, and a replicate is the
    ratio of two weighted sums of these counts (Hajek's projection of a U-statistic); terms of the order of 1 / number
    of clusters are left out.
    """

    undefined = "all labels are equal"

    def values(self, view: View) -> Floats:
        """See Metric.values."""
        chunks = list(view.in_order())
        label, score = (np.concatenate([chunk[i] for chunk in chunks]) for i in (0, 1))
        in_order, comparable = pairs_of_rows(label, score)
        if not comparable.any():
            raise Undefined(self.undefined)
        sums, start = np.zeros((2, view.weights.num_columns)), 0
        for chunk in chunks:
            end = start + len(chunk.label)
            # With weight w_i of row i, the sum of w_i w_j over pairs is, to first order, that of (2 w_i - 1) pairs_i.
            weights = 2.0 * view.weights.of(chunk.cluster) - 1
            sums += np.stack([in_order[start:end], comparable[start:end]]) @ weights
            start = end
        # Of few rows, a replicate may have hardly any pairs left, and the expansion then leaves the range of shares.
        share = sums[0] / np.where(sums[1] > 0, sums[1], np.nan)
        return np.asarray(np.clip(share, 0.0, 1.0))


def pairs_of_rows(label: Floats, score: Floats) -> tuple[Floats, Floats]:
    """Return for each row its pairs in the right order (tied scores half), and its pairs with different labels.

    Both are float64 `[N]`, counted on the levels of a wavelet tree over the ranks of the scores, in N log N steps.
    """
    size = len(label)
    # Among equal labels the scores descend, so that such pairs never count as a smaller score before a greater one.
    order = np.lexsort((-score, label))
    label, score = label[order], score[order]
    _, rank = np.unique(score, return_inverse=True)
    right = np.zeros(size, np.int64)
    place = np.arange(size)  # rows sorted by the higher bits of their rank, then by label
    block = np.zeros(size, np.int64)  # first place of the rows with the same higher bits
    for bit in reversed(range(int(rank.max(initial=0)).bit_length())):
        is_high = (rank[place] >> bit) & 1
        high_before = np.cumsum(is_high) - is_high
        high_in_block = high_before - high_before[block]
        low_in_block = np.arange(size) - block - high_in_block
        last = np.append(np.flatnonzero(np.diff(block)), size - 1)  # last place of each block
        sizes = np.diff(last, prepend=-1)
        num_high = np.repeat((high_in_block + is_high)[last], sizes)
        num_low = np.repeat(sizes, sizes) - num_high
        # A high rank is above the low ranks before it in its block, a low rank is below the high ranks after it.
        right[place] += np.where(is_high, low_in_block, num_high - high_in_block)
        then = block + np.where(is_high, num_low + high_in_block, low_in_block)
        new_place, new_block = np.empty_like(place), np.empty_like(block)
        new_place[then] = place
        new_block[then] = block + is_high * num_low
        place, block = new_place, new_block
    same_label = _run_sizes(label)
    same_score = np.bincount(rank, minlength=1)[rank]
    same_both = _run_sizes(label, score)
    in_order, comparable = np.empty(size), np.empty(size)
    in_order[order] = right + (same_score - same_both) / 2
    comparable[order] = size - same_label
    return in_order, comparable


def _run_sizes(*columns: Floats) -> npt.NDArray[np.int64]:
    """Return for each row of sorted columns the size of its run of equal values `[N]`."""
    sizes = np.diff(starts_of(*columns), append=len(columns[0]))
    return np.repeat(sizes, sizes)
