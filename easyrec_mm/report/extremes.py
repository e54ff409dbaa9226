"""The best and the worst predictions of a task: found while the evaluation data are read, with the values they have."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.schema import Task

Array = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """A sample of the evaluation data.

    number   its place among all samples, from 0
    label    its label
    score    its prediction; of classes the probability of the label's class
    file     the file, or table, that holds its group
    row      the row of the group, from 1
    picture  path of its picture in the form that picture readers take; None without a picture
    fields   values of the input fields, as texts
    """

    number: int
    label: float
    score: float
    file: str
    row: int
    picture: bytes | None
    fields: dict[str, str]


@dataclass
class Ranking:
    """The samples with the smallest keys among those of a kind.

    title     what they are
    is_meant  labels -> bool [N], the samples of the kind
    key       (labels, scores) -> [N], smaller is more extreme
    """

    title: str
    is_meant: Callable[[Array], Array]
    key: Callable[[Array, Array], Array]
    samples: list[tuple[float, Sample]] = field(default_factory=list)  # by their keys

    def add(self, labels: Array, scores: Array, describe: Callable[[Array], list[Sample]], num: int) -> None:
        """Consider the samples of a batch.

        Args:
          labels: `[N]`.
          scores: `[N]`.
          describe: returns the samples at some indices.
          num: number of samples to keep.
        """
        keys = np.where(self.is_meant(labels) & ~np.isnan(scores), self.key(labels, scores), np.inf)
        limit = self.samples[-1][0] if len(self.samples) == num else np.inf
        places = np.flatnonzero(keys < limit)
        if not len(places):
            return
        places = places[np.argsort(keys[places], kind="stable")[:num]]
        new = zip(keys[places].tolist(), describe(places), strict=True)
        self.samples = list(heapq.merge(self.samples, new, key=lambda pair: pair[0]))[:num]


def rankings_of(task: Task) -> list[Ranking]:
    """Return the rankings of a task, the worst first: their samples are to be filled."""

    def all_labels(labels: Array) -> Array:
        return np.ones(len(labels), bool)

    if task.activation == "binary":
        return [
            Ranking("worst: predicted high, label 0", lambda y: y <= 0.5, lambda y, p: -p),
            Ranking("worst: predicted low, label 1", lambda y: y > 0.5, lambda y, p: p),
            Ranking("best: predicted high, label 1", lambda y: y > 0.5, lambda y, p: -p),
            Ranking("best: predicted low, label 0", lambda y: y <= 0.5, lambda y, p: p),
        ]
    if task.activation == "multiclass":
        return [
            Ranking("worst: the label's class has the lowest probability", all_labels, lambda y, p: p),
            Ranking("best: the label's class has the highest probability", all_labels, lambda y, p: -p),
        ]
    return [
        Ranking("worst: predicted too high", all_labels, lambda y, p: y - p),
        Ranking("worst: predicted too low", all_labels, lambda y, p: p - y),
        Ranking("best: nearest to the label", all_labels, lambda y, p: np.abs(p - y)),
    ]


def score_of(task: Task, labels: Array, outputs: Array) -> Array:
    """Return the scores `[N]` of a task: its predictions, or of classes `[N, C]` the probability of the label's."""
    if task.activation != "multiclass":
        return outputs.astype(np.float64)
    place = np.clip(labels.astype(np.int64), 0, outputs.shape[1] - 1)
    return np.asarray(outputs[np.arange(len(labels)), place], np.float64)


def in_words(samples: Sequence[tuple[float, Sample]]) -> list[Sample]:
    """Return the samples of a ranking without their keys."""
    return [sample for _, sample in samples]
