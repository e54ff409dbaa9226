"""Finds columns that leak a label: values known only after the impression, or the label itself under another name.

Both tests use the sample of rows that every engine collects, so that they need no pass over the log, and have the same
result on one machine or many. Each test asks how likely a strong but legitimate feature would look like this by chance,
and keeps the column unless that is almost impossible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.formats.columns import NULL_WORDS

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
# The words of a message before and after "never".
Words = tuple[str, str]

# AUC from which on one column leaks a label. Whole models of public click logs reach .75 to .85; .95 is more than a
# single legitimate column reaches, and a column that is set exactly where the label is 1 has 1.
TELLING_AUC = 0.95
# Required evidence: the AUC exceeds that of a strong legitimate column by at least this number of standard errors.
_HONEST_AUC, _NUM_ERRORS = 0.9, 3
# A legitimate value may multiply the odds of a label by at most the first number. A value leaks the label if, for such
# a value, the observed labels (nearly all 1) are less likely than the second number. Fewer rows than the third number
# are no evidence, whatever their labels.
_HONEST_ODDS, _CHANCE, _MIN_ROWS = 10.0, 1e-4, 5
# Share of label 0 among the rows with a value, relative to the share among all rows, that is tolerated as log errors.
_MAX_MISTAKES = 0.01
# Maximum number of distinct values for which each is tested separately, and number of bins for numbers.
_MAX_VALUES, _NUM_BINS = 100, 64
# Texts that mean that there is no value.
_NO_VALUES = pa.array([*NULL_WORDS, "", "0", "false", "False", "none", "-"])


@dataclass(frozen=True)
class _Rows:
    """Rows that count as independent trials.

    index     int64 [N], row numbers in the sample
    targets   label -> bool [N], whether it is 1 (above 0 if it is a number); without labels of one class
    clusters  for item and user: int64 [N], the code of each row
    """

    index: Ints
    targets: dict[str, Bools]
    clusters: tuple[Ints, ...]

    def taken(self, index: Ints, clusters: tuple[Ints, ...]) -> _Rows:
        """Return the rows with these indices, with their codes of the given clusters."""
        targets = {name: is_one[index] for name, is_one in self.targets.items()}
        return _Rows(index, _of_two_classes(targets), tuple(codes[index] for codes in clusters))

    def num_trials(self, rows: Ints) -> int:
        """Count the trials in some rows; an item or user with all its rows among them is one: it may always say yes."""
        counts = [len(rows)]
        for codes in self.clusters:
            inside = np.bincount(codes[rows], minlength=int(codes.max()) + 1)
            is_whole = (inside > 0) & (inside == np.bincount(codes, minlength=len(inside)))
            counts.append(int(inside[~is_whole].sum() + is_whole.sum()))
        return min(counts)


def _of_two_classes(targets: dict[str, Bools]) -> dict[str, Bools]:
    return {name: is_one for name, is_one in targets.items() if is_one.any() and not is_one.all()}


class LeakFinder:
    """Finds which columns of a log leak a label.

    Args:
      sample: rows of the log with all columns, in random order; None if there is no row.
      labels: the label columns.
      item: column of the item.
      user: column of the user; "" if unknown.
    """

    def __init__(self, sample: pa.Table | None, labels: Sequence[str], item: str, user: str = "") -> None:
        self.labels = tuple(labels)
        self._sample = sample
        if sample is None:
            return
        targets = _of_two_classes({label: _numbers(sample[label].combine_chunks()) > 0 for label in labels})
        of_items = _codes(sample[item])[0] + 1
        clusters = (of_items, _codes(sample[user])[0] + 1) if user else (of_items,)
        self._rows = _Rows(np.arange(len(sample)), targets, clusters)
        # For a column that describes the item, all rows of an item are one trial.
        self._items = self._rows.taken(np.unique(of_items, return_index=True)[1], clusters[1:])

    def reason(self, name: str, describes_item: bool = False) -> str:
        """Return why a column leaks a label; "" if it does not, or if there are too few rows as evidence.

        Args:
          name: the column.
          describes_item: whether it has the same value in all rows of an item.
        """
        if self._sample is None:
            return ""
        rows = self._items if describes_item else self._rows
        values = self._sample[name].combine_chunks().take(pa.array(rows.index))
        codes, distinct = _codes(values)
        is_set, words = _set_rows(values, codes, distinct)
        for label, is_one in rows.targets.items():
            auc = _column_auc(values, codes, is_one)
            if auc:
                return f"predicts the label '{label}' too well (AUC {auc:.3f}): perhaps known only after the impression"
            leak = _only_with_label(np.flatnonzero(is_set), np.zeros(int(is_set.sum()), np.int64), 1, rows, is_one)
            if leak:
                return leak[1].reason(words, label)
            if len(distinct) <= _MAX_VALUES:
                present = np.flatnonzero(codes >= 0)
                leak = _only_with_label(present, codes[present], len(distinct), rows, is_one)
                if leak:
                    value = distinct[leak[0]].as_py()
                    return leak[1].reason(("is", repr(value)), label)
        return ""

    def reason_of_tags(self, name: str, separator: str, kv_separator: str = "", describes_item: bool = False) -> str:
        """Return why one of the tags of a column leaks a label, like `reason`."""
        if self._sample is None:
            return ""
        rows = self._items if describes_item else self._rows
        texts = pc.fill_null(self._sample[name].combine_chunks().take(pa.array(rows.index)), "")
        parts = pc.split_pattern(texts, separator)
        place, tags = pc.list_parent_indices(parts).to_numpy(), pc.list_flatten(parts)
        if kv_separator:
            tags = pc.list_element(pc.split_pattern(tags, kv_separator, max_splits=1), 0)
        codes, distinct = _codes(pc.if_else(pc.equal(tags, ""), None, tags))
        num_tags = len(distinct)
        if not num_tags:
            return ""
        pairs = np.unique(place[codes >= 0] * num_tags + codes[codes >= 0])
        place, codes = np.divmod(pairs, num_tags)
        for label, is_one in rows.targets.items():
            share = [
                np.bincount(codes[is_one[place] == target], minlength=num_tags) / (is_one == target).sum()
                for target in (1, 0)
            ]
            aucs = 0.5 + np.abs(share[0] - share[1]) / 2
            best = int(np.argmax(aucs))
            if _is_telling(float(aucs[best]), is_one):
                return (
                    f"predicts the label '{label}' too well by its value '{distinct[best]}' "
                    f"(AUC {aucs[best]:.3f}): perhaps known only after the impression"
                )
            leak = _only_with_label(place, codes, num_tags, rows, is_one)
            if leak:
                tag = distinct[leak[0]].as_py()
                return leak[1].reason(("", f"holds '{tag}'"), label)
        return ""


@dataclass(frozen=True)
class _OnlyWithLabel:
    """The number of rows that have a value, and how many of these have label 0."""

    num_rows: int
    num_zeros: int

    def reason(self, words: Words, label: str) -> str:
        never = " ".join(filter(None, (words[0], "hardly ever" if self.num_zeros else "never", words[1])))
        return (
            f"{never} where '{label}' is 0 ({self.num_zeros:,} of {self.num_rows:,} sampled rows that have "
            "it): known only after the impression"
        )


def _only_with_label(
    place: Ints, codes: Ints, num_values: int, rows: _Rows, is_one: Bools
) -> tuple[int, _OnlyWithLabel] | None:
    """Return a value that, with sufficient evidence, occurs only where the label is 1; None if no value does.

    Args:
      place: int64 [E], the row of each occurrence of a value.
      codes: int64 [E], the value of each occurrence.
      num_values: number of distinct values.
      rows: all rows.
      is_one: bool [N], whether the label is 1.
    """
    num_rows = np.bincount(codes, minlength=num_values)
    num_zeros = num_rows - np.bincount(codes, is_one[place], num_values).astype(np.int64)
    odds = is_one.mean() / (1 - is_one.mean())
    share_of_zeros = 1 / (1 + _HONEST_ODDS * odds)
    few = num_zeros <= _MAX_MISTAKES * (1 - is_one.mean()) * num_rows
    # A value that all rows have says nothing about the label.
    for value in np.flatnonzero(few & (num_rows >= _MIN_ROWS) & (num_rows < len(is_one))):
        trials, zeros = rows.num_trials(place[codes == value]), int(num_zeros[value])
        if trials >= _MIN_ROWS and _chance(zeros, trials, share_of_zeros) < _CHANCE / num_values:
            return int(value), _OnlyWithLabel(int(num_rows[value]), zeros)
    return None


def _chance(most: int, trials: int, probability: float) -> float:
    """Return the chance of at most so many successes, each trial having this probability."""
    from scipy.special import bdtr  # seldom needed, and loaded in a fifth of a second

    return float(bdtr(most, trials, probability))


def _set_rows(values: pa.Array, codes: Ints, distinct: pa.Array) -> tuple[Bools, Words]:
    """Return which rows have a value, bool [N], and the words to say so.

    Missing values and 0 count as no value; if no row has these, the most common value does, such as -1.
    """
    is_text = pa.types.is_string(values.type)
    is_nothing = pc.is_in(distinct, _NO_VALUES) if is_text else pc.equal(distinct.cast(pa.float64(), safe=False), 0.0)
    # The last entry is for missing values, whose code is -1.
    is_something = np.append(~is_nothing.to_numpy(zero_copy_only=False), False)
    is_set: Bools = is_something[codes]
    if not is_set.all() or not len(distinct):
        return is_set, ("is", "set")
    common = int(np.argmax(np.bincount(codes)))
    value = distinct[common].as_py()
    return codes != common, ("is", f"other than {value!r}")


# --- AUC


def _column_auc(values: pa.Array, codes: Ints, is_one: Bools) -> float:
    """Return the AUC with which a column leaks a label; 0 if it does not."""
    # The rate of each value is learned on other rows, so that an id with one row per value leaks nothing.
    aucs = [(held_out_auc(codes + 1, is_one), is_one)]
    if not pa.types.is_string(values.type):
        numbers = _numbers(values)
        is_known = ~np.isnan(numbers)
        auc = roc_auc(is_one[is_known], numbers[is_known])
        aucs.append((max(auc, 1 - auc), is_one[is_known]))
        if is_known.any():
            # Bins also find what small and large numbers have in common.
            limits = np.unique(np.quantile(numbers[is_known], np.arange(1, _NUM_BINS) / _NUM_BINS))
            bins = np.where(is_known, np.searchsorted(limits, numbers, side="right") + 1, 0)
            aucs.append((held_out_auc(bins, is_one), is_one))
    return max((auc for auc, of_rows in aucs if _is_telling(auc, of_rows)), default=0.0)


def _is_telling(auc: float, is_one: Bools) -> bool:
    """Return whether an AUC is that of a leak, with enough rows as evidence (error by Hanley & McNeil, 1982)."""
    ones, zeros = int(is_one.sum()), int((~is_one).sum())
    if auc < TELLING_AUC or not ones or not zeros:
        return False
    honest = _HONEST_AUC
    # Hanley & McNeil give two terms for pairs with one row in common; the larger one is used for both.
    in_common = 2 * honest**2 / (1 + honest) - honest**2
    variance = (honest * (1 - honest) + (ones + zeros - 2) * in_common) / (ones * zeros)
    return auc - honest >= _NUM_ERRORS * math.sqrt(variance)


def held_out_auc(codes: Ints, is_one: Bools) -> float:
    """Return the AUC of the rate of label 1 per value, learned on one half of the rows and measured on the other.

    Args:
      codes: int64 [N] from 0 on, the value of each row; rows are in random order.
      is_one: bool [N], whether the label is 1.
    """
    num_values = int(codes.max()) + 1
    aucs = []
    for half in range(2):
        learnt, held = codes[half::2], codes[1 - half :: 2]
        rate = is_one[half::2].mean() if len(learnt) else 0.5
        num = np.bincount(learnt, minlength=num_values)
        ones = np.bincount(learnt, is_one[half::2], num_values)
        aucs.append(roc_auc(is_one[1 - half :: 2], ((ones + rate) / (num + 1))[held]))
    return sum(aucs) / 2


def roc_auc(is_one: Bools, score: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve; 0.5 if there is only one class."""
    ones = int(is_one.sum())
    zeros = len(is_one) - ones
    if not ones or not zeros:
        return 0.5
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # mean rank, from 1, of equal scores
    return float((rank[is_one].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _codes(values: pa.Array | pa.ChunkedArray) -> tuple[Ints, pa.Array]:
    """Return the index of each value among the distinct values, int64 [N], -1 where it is missing; and these."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = values.dictionary_encode()
    codes: Any = pc.fill_null(encoded.indices.cast(pa.int64()), -1)
    return codes.to_numpy(zero_copy_only=False), encoded.dictionary


def _numbers(values: pa.Array) -> NDArray[np.float64]:
    """Return the values as numbers, NaN where one is missing."""
    numbers: NDArray[np.float64] = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers
