"""What metrics lose without a part of the input: permutation importance of pictures, texts of items and features.

A part is replaced by that of other samples, so that it keeps its distribution but says nothing of its own sample
(Breiman, "Random Forests", 2001, section 10; Fisher, Rudin & Dominici, "All Models are Wrong, but Many are Useful",
JMLR 2019, section 3). The model stays as it is: the result says what this model uses, not what a model that is
trained without the part would lose. Pictures are not encoded again. Legend: S samples, I items, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from easyrec_mm.evaluation.estimates import Difference, Estimate, difference, mean_estimate
from easyrec_mm.evaluation.plan import EvalPlan
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.summary import Summary, summarize
from easyrec_mm.explain.pictures import item_vectors
from easyrec_mm.explain.rec_part import RecPart, feature_sets
from easyrec_mm.explain.samples import Features, Samples, take
from easyrec_mm.features.feature import Feature
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.schema import Schema

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

MEAN_PICTURE, OTHER_PICTURE = "picture: the mean of all", "picture: that of another item"
NO_CONTENT, OTHER_CONTENT = "none", "that of another item"
# What all parts and permutations may cost: predictions, and numbers of which metrics and their replicates are made.
# They take about five and ten seconds of a processor.
_MAX_PREDICTIONS = 1_000_000
_MAX_NUMBERS = 250_000_000
_LEAST_SAMPLES = 500
_MAX_REPEATS = 5


@dataclass(frozen=True)
class Change:
    """The metrics with a part of the input replaced, minus those with the input as it is.

    name         what is replaced
    kind         whether it is the picture, another content of the item or a feature
    differences  name of a metric -> its difference, with an interval
    """

    name: str
    kind: Literal["picture", "content", "feature"]
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Ablation:
    """Changes of metrics, and from what they were computed.

    values          name of a metric -> its value with the input as it is
    changes         one for each part of the input
    num_samples     samples that were used
    num_clusters    clusters of them, which the bootstrap draws
    clusters        the unit of a cluster
    num_replicates  of the bootstrap
    level           of the intervals
    num_repeats     permutations of each feature, whose metrics are averaged
    """

    values: Mapping[str, float]
    changes: tuple[Change, ...]
    num_samples: int
    num_clusters: int
    clusters: str
    num_replicates: int
    level: float
    num_repeats: int


@dataclass(frozen=True)
class Pictures:
    """The contents of items.

    vectors      float32 [I, D], as the rec network takes them
    has_picture  bool [I]
    images       float32 [I, D], before they are fused with the vectors of other contents; None without these
    others       kind -> [I, ...], the other contents, see other_contents
    has_other    kind -> bool [I]
    """

    vectors: Floats
    has_picture: Bools
    images: Floats | None = None
    others: Mapping[str, Array] = field(default_factory=dict)
    has_other: Mapping[str, Bools] = field(default_factory=dict)


def most_samples(plan: EvalPlan, schema: Schema) -> int:
    """Return the number of samples with which each part of the input can be replaced once at a reasonable cost."""
    # The input as it is, two changes of pictures, and two of each other content.
    num_parts = len(feature_sets(schema)) + 3 + 2 * len(schema.contents)
    return max(_LEAST_SAMPLES, _affordable(plan) // num_parts)


def _affordable(plan: EvalPlan) -> int:
    """Return how many samples may be predicted and evaluated, over all parts and permutations."""
    return min(_MAX_PREDICTIONS, _MAX_NUMBERS // (max(1, len(plan.entries)) * plan.weights.num_columns))


def ablate(rec: RecPart, samples: Samples, pictures: Pictures | None, plan: EvalPlan, seed: int = 0) -> Ablation:
    """Compute what replacing the picture, and each feature, changes in each metric of the evaluation.

    Args:
      rec: the rec network.
      samples: the samples.
      pictures: the contents of their items; None for a model of items without contents.
      plan: the metrics, and the replicates of the intervals, see explained_plan.
      seed: seed of the permutations.
    """
    measure = _Measure(rec, samples, plan)
    vectors = None if pictures is None else pictures.vectors
    unchanged = measure(samples.features, vectors)
    level = plan.bootstrap.level
    changes: list[Change] = []
    if pictures is not None:
        for kind, name, changed in _changed_items(rec.model, samples, pictures, seed):
            summary = measure(samples.features, changed)
            changes.append(Change(name, kind, _differences([summary], unchanged, level)))
    sets = feature_sets(rec.model.schema)
    by_name = {feature.name: feature for feature in rec.model.schema.features}
    num_repeats = min(_MAX_REPEATS, max(1, _affordable(plan) // max(1, len(sets) * len(samples))))
    for number, (name, members) in enumerate(sets.items()):
        summaries = []
        for repeat in range(num_repeats):
            order = np.random.default_rng([seed, repeat, number]).permutation(len(samples))
            features = _permuted(samples.features, [by_name[member] for member in members], order)
            summaries.append(measure(features, vectors))
        changes.append(Change(name, "feature", _differences(summaries, unchanged, level)))
    return Ablation(
        values={name: estimate.value for name, estimate in unchanged.estimates.items()},
        changes=tuple(changes),
        num_samples=len(samples),
        num_clusters=unchanged.parts[0].num_clusters,
        clusters=plan.clusters,
        num_replicates=plan.weights.num_replicates,
        level=level,
        num_repeats=num_repeats,
    )


def another_item(is_among: Bools, seed: int) -> npt.NDArray[np.int64]:
    """Return for each item another one, int64 `[I]`: a permutation of those with a picture, in which none stays.

    Items without a picture stay, as does an item that is the only one with a picture.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(is_among))
    result = np.arange(len(is_among))
    result[order] = np.roll(order, -1)
    return result


def mean_vector(vectors: Floats, item: npt.NDArray[np.int64], is_among: Bools) -> Floats:
    """Return the mean vector `[D]` of samples with a picture: item -> vector `[I, D]`, sample -> item `[S]`."""
    counts = np.bincount(item, minlength=len(vectors)) * is_among
    total: Floats = np.einsum("i,id->d", counts, vectors, dtype=np.float64) / max(1, counts.sum())
    return total.astype(np.float32)


def changed_content(kind: str, how: str) -> str:
    """Return the name of a change of a kind of content."""
    return f"item's {kind.replace('_', ' ', 1)}: {how}"


def _changed_items(
    model: MultimodalModel, samples: Samples, items: Pictures, seed: int
) -> Iterator[tuple[Literal["picture", "content"], str, Floats]]:
    """Yield what is changed, its name, and the vectors of items after it; items without that part keep theirs."""
    is_used = np.zeros(len(items.vectors), bool)
    is_used[samples.item] = True
    is_among = is_used & items.has_picture
    images = items.vectors if items.images is None else items.images
    if is_among.sum() >= 2:
        mean = np.where(is_among[:, None], mean_vector(images, samples.item, is_among), images)
        yield "picture", MEAN_PICTURE, item_vectors(model, mean, items.others)
        yield "picture", OTHER_PICTURE, item_vectors(model, images[another_item(is_among, seed)], items.others)
    nothing = model.parts.empty()
    for kind, values in items.others.items():
        has_content = is_used & items.has_other[kind]
        if has_content.any():
            without = values.copy()
            without[has_content] = nothing[kind].numpy()
            yield (
                "content",
                changed_content(kind, NO_CONTENT),
                item_vectors(model, images, {**items.others, kind: without}),
            )
        if has_content.sum() >= 2:
            others = {**items.others, kind: values[another_item(has_content, seed)]}
            yield "content", changed_content(kind, OTHER_CONTENT), item_vectors(model, images, others)


def _permuted(features: Features, members: list[Feature], order: npt.NDArray[np.int64]) -> Features:
    """Return the features with the values of some in another order of the samples, each list and its weights whole."""
    keys = [key for feature in members for key in (feature.name, feature.weight_key) if key in features]
    return features | take({key: features[key] for key in keys}, order)


class _Measure:
    """Computes the metrics of changed features and vectors, always of the same samples and replicates."""

    def __init__(self, rec: RecPart, samples: Samples, plan: EvalPlan) -> None:
        self._rec, self._samples, self._plan = rec, samples, plan
        self._columns: dict[str, Array] | None = None

    def __call__(self, features: Features, vectors: Array | None) -> Summary:
        samples, plan = self._samples, self._plan
        outputs = self._rec.outputs(features, vectors, samples.item)
        scores = plan.scores(samples.labels, outputs)
        if self._columns is None:
            # Asked for once, because the plan numbers the groups of all calls.
            has_picture = np.ones(len(samples), bool)
            self._columns = plan.columns(samples.labels, outputs, samples.fields, has_picture)
        with Rows() as rows:
            rows.append(self._columns | scores)
            return summarize(rows, plan.entries, (), plan.weights)


def _differences(summaries: list[Summary], unchanged: Summary, level: float) -> dict[str, Difference]:
    """Return the paired differences of the mean of several summaries to that of the unchanged input."""
    differences = {}
    for name, estimate in unchanged.estimates.items():
        changed: Estimate = mean_estimate([summary.estimates[name] for summary in summaries])
        differences[name] = difference(changed, estimate, level)
    return differences
