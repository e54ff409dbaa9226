"""Facts about the steps since the last report, of all workers: rates, use of the device, bytes that they exchange."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from easyrec_mm.data.batch import InputBatch
from easyrec_mm.distribution.replicas import SENT_BYTES, Replicas
from easyrec_mm.runs.progress import Counts, rates_of
from easyrec_mm.training.flops import StepFlops


class RunFacts:
    """Sums up facts about steps.

    Args:
      replicas: the workers; all report after the same steps.
      count_flops: makes the count of operations of the present phase, from one of its batches.
      peak: floating point operations per second that this worker's device can do.
    """

    def __init__(self, replicas: Replicas, count_flops: Callable[[InputBatch], StepFlops], peak: float) -> None:
        self._replicas, self._count_flops, self._peak = replicas, count_flops, peak
        self._of_phases: dict[int, StepFlops] = {}
        self._steps, self._flops = 0, 0.0
        self._sent: dict[str, list[tf.Tensor]] = {name: [] for name in SENT_BYTES}

    def add(self, item: InputBatch, phase: int, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Add a step that belongs to a phase; return its values without those that are reported here."""
        if phase not in self._of_phases:
            self._of_phases[phase] = self._count_flops(item)
        self._steps += 1
        self._flops += self._of_phases[phase].of(item.batch)
        for name, parts in self._sent.items():
            if name in values:
                parts.append(values[name])
        return {name: value for name, value in values.items() if name not in self._sent}

    def report(self, counts: Counts) -> dict[str, float]:
        """Return the facts since the last report: those of all workers together.

        Args:
          counts: what this worker has done since then.
        """
        sent = [float(tf.add_n(parts)) if parts else 0.0 for parts in self._sent.values()]
        own = [counts.samples, counts.images, counts.encoded, counts.waited_s]
        sums = self._replicas.agree(*own, self._flops, self._peak, *sent)
        samples, images, encoded, waited_s, flops, peak, *sent = sums
        steps = max(self._steps, 1)
        together = Counts(counts.seconds, samples, images, encoded, waited_s / self._replicas.num)
        self._steps, self._flops = 0, 0.0
        for parts in self._sent.values():
            parts.clear()
        return {
            **rates_of(together),
            "flops_per_step": flops / steps,
            "mfu": flops / (counts.seconds * peak),
            **{name: number / steps for name, number in zip(self._sent, sent, strict=True)},
        }
