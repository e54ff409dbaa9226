"""Finds batch norms that a number far beyond all others has made useless."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from easyrec_mm.data.batch import Batch
from easyrec_mm.features.outliers import OUTLIER_ADVICE, is_far, usual_size


class BatchNormWatch:
    """Tells once if a batch norm of a model is spoiled."""

    def __init__(self) -> None:
        self.batch: Batch | None = None  # the last one, for what is usual
        self._has_told = False

    def warning(self, weights: Mapping[str, tf.Variable]) -> str | None:
        """Return the warning of `spoiled_batch_norm`, if it was not returned before."""
        if self.batch is None or self._has_told:
            return None
        warning = spoiled_batch_norm(weights, self.batch)
        self._has_told = warning is not None
        return warning


def spoiled_batch_norm(weights: Mapping[str, tf.Variable], batch: Batch) -> str | None:
    """Return a warning of a batch norm that no longer tells usual numbers apart in evaluation; None if there is none.

    Args:
      weights: name -> value of the network's variables.
      batch: any batch, for what is usual.
    """
    usual = max((usual_size(values.numpy()) for values in batch.features.values() if _are_numbers(values)), default=0.0)
    for name, value in weights.items():
        deviation = float(tf.sqrt(tf.reduce_max(value))) if name.endswith("moving_variance") else 0.0
        if is_far(deviation, usual):
            return (
                f"numbers that reached {name.rpartition('/')[0]} deviate by {deviation:.3g}, those of the last batch "
                f"are within {usual:.3g}: in evaluation, this batch norm makes nearly all samples equal. Look for a "
                f"number far beyond the others with 'easyrec-mm stats'; {OUTLIER_ADVICE}"
            )
    return None


def _are_numbers(values: tf.Tensor | tf.RaggedTensor) -> bool:
    return isinstance(values, tf.Tensor) and values.dtype.is_floating
