"""Joint attributions: how much picture, ids and numbers each add to a logit, together its difference to a baseline.

Integrated gradients (Sundararajan, Taly & Yan, "Axiomatic attribution for deep networks", ICML 2017, equation 1):
(x - x') times the integral over a of the gradient at x' + a (x - x'), along one path on which all inputs move together.
Their sum is F(x) - F(x') (completeness, proposition 1), up to the error of the numerical integration, which is measured
and reduced by more steps. Legend: N samples, K steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from easyrec_mm.explain.path import Baseline, VectorPath, ends_of, logits_at
from easyrec_mm.explain.rec_part import feature_sets
from easyrec_mm.explain.samples import Features, take
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.schema import Schema

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PICTURE, TEXT, PICTURE_AND_TEXT = "picture", "item's text", "picture and item's text"
CONTENTS = "item's contents"
# The error that is looked for: a share of the difference of the logits, or that much of a logit if it is larger.
MAX_ERROR_SHARE, MAX_ERROR = 0.01, 0.001
FIRST_STEPS, MAX_STEPS = 16, 1024
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Attributions:
    """What each part of the input adds to the logit of samples.

    names      name of a feature, or of features that belong together; see `item_part` for that of the item
    values     float64 [N, parts]
    logits     float64 [N], of the samples
    baselines  float64 [N], at the baseline
    num_steps  int64 [N], steps of the integration
    """

    names: tuple[str, ...]
    values: Floats
    logits: Floats
    baselines: Floats
    num_steps: Ints

    @property
    def errors(self) -> Floats:
        """Return by how much the parts of each sample fail to add up to the difference of its logits, float64 `[N]`."""
        return np.asarray(np.abs(self.values.sum(axis=1) - (self.logits - self.baselines)))

    @property
    def is_exact(self) -> npt.NDArray[np.bool_]:
        """Return of which samples the error is as small as looked for, bool `[N]`."""
        return np.asarray(self.errors <= allowed_error(self.logits - self.baselines))


def allowed_error(differences: Floats) -> Floats:
    """Return the error that is looked for, given differences of logits."""
    return np.maximum(MAX_ERROR, MAX_ERROR_SHARE * np.abs(differences))


@dataclass(frozen=True)
class Logit:
    """The logit that is attributed: its task, and the class of each sample `[N]`; zeros for a task without classes."""

    task: str
    classes: Sequence[int] | Ints


def attribute(
    model: MultimodalModel,
    features: Features,
    image: VectorPath | None,
    baseline: Baseline,
    logit: Logit,
    max_steps: int = MAX_STEPS,
) -> Attributions:
    """Attribute a logit of samples to their features and their pictures.

    Args:
      model: the model.
      features: the features of N samples.
      image: the path of the vectors of their items; None for a model without pictures and texts.
      baseline: where the path of the features begins.
      logit: the logit, for each sample.
      max_steps: steps after which the error is accepted as it is.
    """
    path = _Path(model, features, image, baseline, logit)
    number = len(logit.classes)
    everything = np.arange(number)
    baselines, logits = (path.logits(everything, place) for place in (0.0, 1.0))
    differences = logits - baselines
    values, steps = np.zeros((number, len(path.names))), np.zeros(number, np.int64)
    remaining, num_steps = everything, FIRST_STEPS
    while len(remaining) and num_steps <= max_steps:
        values[remaining] = path.integral(remaining, num_steps)
        steps[remaining] = num_steps
        errors = np.abs(values[remaining].sum(axis=1) - differences[remaining])
        remaining = remaining[errors > allowed_error(differences[remaining])]
        num_steps *= 2
    return Attributions(path.names, values, logits, baselines, steps)


def item_part(schema: Schema) -> str:
    """Return the name of the part that the vector of an item is: of its contents, which are fused."""
    if not schema.contents:
        return PICTURE
    if schema.text is None or len(schema.contents) > 1:
        return CONTENTS
    return PICTURE_AND_TEXT if schema.uses_image else TEXT


class _Path:
    """The path of samples; arguments as for `attribute`."""

    def __init__(
        self, model: MultimodalModel, features: Features, image: VectorPath | None, baseline: Baseline, logit: Logit
    ) -> None:
        self._model, self._features, self._image = model, features, image
        self._baseline, self._logit = baseline, logit
        sets = feature_sets(model.schema)
        self.names = (*sets, *([item_part(model.schema)] if image is not None else []))
        self._part = {member: part for part, members in enumerate(sets.values()) for member in members}

    def logits(self, rows: Ints, place: float) -> Floats:
        """Return the logits of samples at a place of the path, from 0 to 1: float64 `[n]`."""
        parts = [self._at(part, np.array([place]), np.zeros(1))[1] for part, _ in self._portions(rows, np.zeros(1))]
        return np.concatenate(parts)

    def integral(self, rows: Ints, num_steps: int) -> Floats:
        """Return the attributions of samples, float64 `[n, parts]`, by the quadrature of Gauss and Legendre."""
        nodes, weights = np.polynomial.legendre.leggauss(num_steps)
        places, weights = (nodes + 1) / 2, weights / 2
        values = np.zeros((len(self._logit.classes), len(self.names)))
        for part, steps in self._portions(rows, places):
            values[part] += self._at(part, places[steps], weights[steps])[0]
        return values[rows]

    def _portions(self, rows: Ints, places: Floats) -> Iterator[tuple[Ints, slice]]:
        """Yield samples and steps that are computed at once."""
        num_steps = min(len(places), _ROWS_AT_A_TIME)
        num_rows = max(1, _ROWS_AT_A_TIME // num_steps)
        for start in range(0, len(rows), num_rows):
            for step in range(0, len(places), num_steps):
                yield rows[start : start + num_rows], slice(step, step + num_steps)

    def _at(self, rows: Ints, places: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """Return the attributions of samples at some steps, `[n, parts]`, and the sum of their logits `[n]`."""
        shape = (len(rows), len(places))
        # Each sample as often as there are steps, one behind the other.
        ends = ends_of(self._model, take(self._features, np.repeat(rows, len(places))))
        alpha = tf.constant(np.tile(places, len(rows)), tf.float32)
        starts = {name: self._baseline.features[name] for name in ends.numbers}
        moves = {name: end - starts[name] for name, end in ends.numbers.items()}
        of_elements = {name: _of_elements(alpha, ends.sample_of(name)) for name in moves}
        moved = {name: starts[name] + of_elements[name] * move for name, move in moves.items()}
        vector = vector_move = None
        if self._image is not None:
            vector_move = tf.constant(np.repeat(self._image.moves(rows), len(places), axis=0))
            vector = self._image.baseline + alpha[:, None] * vector_move
        watched = [*moved.values(), *([vector] if vector is not None else [])]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            logits = logits_at(self._model, ends, moved, vector)[self._logit.task]
            classes = np.repeat(np.asarray(self._logit.classes)[rows], len(places))
            of_class = tf.gather(logits, classes, batch_dims=1)
            total = tf.reduce_sum(of_class)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(total, watched, unconnected_gradients="zero")]
        values = np.zeros((*shape, len(self.names)))
        for name, gradient in zip(moved, gradients, strict=False):
            of_rows = tf.reduce_sum(gradient * moves[name], axis=1)
            sample = ends.sample_of(name)
            if sample is not None:
                of_rows = tf.math.unsorted_segment_sum(of_rows, sample, len(alpha))
            values[..., self._part[name]] += of_rows.numpy().reshape(shape)
        if vector_move is not None:
            products = (gradients[-1] * vector_move).numpy().astype(np.float64)
            values[..., -1] = products.sum(axis=1).reshape(shape)
        return np.einsum("nkp,k->np", values, weights), of_class.numpy().reshape(shape).sum(axis=1, dtype=np.float64)


def _of_elements(alpha: tf.Tensor, sample: tf.Tensor | None) -> tf.Tensor:
    """Return the place of each element of a list, given the sample of each: `[elements, 1]`; or of each sample."""
    return (alpha if sample is None else tf.gather(alpha, sample))[:, None]
