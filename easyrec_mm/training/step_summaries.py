"""What TensorBoard shows of the steps of a training: losses, learning rates, histograms of weights, the graph."""

from __future__ import annotations

import os.path
from collections import defaultdict

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary

from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.train_pb2 import TrainConfig
from easyrec_mm.runs.progress import MetricsLog
from easyrec_mm.runs.shown import MOST_NUMBERS, histogram
from easyrec_mm.training.skipped import Skipped
from easyrec_mm.training.steps import TrainSteps


class StepSummaries:
    """Writes summaries of the steps of a training.

    Args:
      config: settings of the training: which summaries, and how often.
      model: the trained model.
      steps: what trains it.
      skipped: counts of the steps that were skipped.
      log: takes the summaries.
    """

    def __init__(
        self, config: TrainConfig, model: MultimodalModel, steps: TrainSteps, skipped: Skipped, log: MetricsLog
    ) -> None:
        self._config, self._model, self._steps = config, model, steps
        self._skipped, self._log = skipped, log
        self._has_graph = not config.write_graph

    def add(self, step: int, losses: dict[str, tf.Tensor]) -> None:
        """Write the summaries that are due after a step.

        Args:
          step: number of the step, from 1.
          losses: the values that it has returned; {} if it was skipped.
        """
        if not self._has_graph:
            self._has_graph = True
            self._log.write_graph(self._steps.graphs(step - 1)[0])
        if step % self._config.save_summary_steps and losses:
            return
        skipped = {"skipped_steps": self._skipped.num} if self._skipped.num else {}
        self._log.write_summaries("train", step, {**{name: float(v) for name, v in losses.items()}, **skipped})
        if losses:
            self._log.write_summaries("learning_rate", step, learning_rates(self._steps))
            if self._config.summary_model_vars:
                self._log.write_shown(step, weight_histograms(self._model, self._steps))


def learning_rates(steps: TrainSteps) -> dict[str, float]:
    """Return the learning rates of the last step: one for each optimizer, and for its variables with a factor.

    The name of such variables is what their names have in common, and the factor.
    """
    rates = {}
    for number, (optimizer, names) in enumerate(steps.optimizers):
        rate = optimizer.last_learning_rate()
        by_factor: dict[float, list[str]] = defaultdict(list)
        for name, factor in zip(names, optimizer.rate_factors([steps.trained[name] for name in names]), strict=True):
            by_factor[factor].append(name)
        for factor, members in by_factor.items():
            common = os.path.commonpath(members) if len(members) > 1 else members[0]
            part = "" if factor == 1.0 else f"/{common or 'variables'}_x{factor:.4g}"
            rates[f"optimizer_{number}{part}"] = rate * factor
    return rates


def weight_histograms(model: MultimodalModel, steps: TrainSteps) -> list[Summary]:
    """Return histograms of the trained weights and tables; of large ones, of numbers at equal distances."""
    tables = model.tables()
    return [
        histogram(name if name in tables else f"weights/{name}", _sample(variable.value))
        for name, variable in steps.trained.items()
    ]


def _sample(variable: tf.Variable) -> np.ndarray:
    """Return at most about MOST_NUMBERS numbers of a variable, without a copy of all of it."""
    num_rows = int(variable.shape[0]) if variable.shape.rank else 1
    width = max(1, int(np.prod(variable.shape)) // max(1, num_rows))
    if num_rows * width <= MOST_NUMBERS:
        values: np.ndarray = variable.numpy()
        return values
    rows = np.linspace(0, num_rows - 1, min(num_rows, max(1, MOST_NUMBERS // width)), dtype=np.int64)
    flat: np.ndarray = tf.gather(variable, rows).numpy().reshape(-1)
    return flat[:: -(-len(flat) // MOST_NUMBERS)]
