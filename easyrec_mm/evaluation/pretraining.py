"""Metrics of the item tower of a pre-training: the classes of held-out items and of their nearest neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from easyrec_mm.config.pretraining import CLASSIFIER_ACCURACY, MMP_AT, RECALL_AT, Head, heads_of
from easyrec_mm.data.batch import Batch
from easyrec_mm.errors import DataError
from easyrec_mm.evaluation.neighbours import Array, Classes, knn_accuracy, mean_precision_at, nearest, recall_at
from easyrec_mm.evaluation.summary import EvalResults, Part
from easyrec_mm.network.item_tower import CLASS, IS_THERE, ITEM_VECTOR
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


@dataclass
class HeldOut:
    """Collects the vectors of held-out items with contents, their classes, and those that classifiers choose.

    Args:
      config: a config of pre-training.
    """

    config: EasyRecConfig
    _vectors: list[Array] = field(default_factory=list)
    _labels: dict[str, list[Classes]] = field(default_factory=dict)
    _chosen: dict[str, list[Classes]] = field(default_factory=dict)

    def add(self, batch: Batch, outputs: dict[str, tf.Tensor]) -> None:
        """Add a batch of samples and the model's outputs."""
        is_there = outputs[IS_THERE].numpy()
        self._vectors.append(outputs[ITEM_VECTOR].numpy()[is_there])
        for head in heads_of(self.config):
            label = batch.labels[head.field].numpy()[is_there].astype(np.int64) - 1
            self._labels.setdefault(head.name, []).append(label)
            if head.has_classifier:
                chosen = outputs[f"{CLASS}{head.name}"].numpy()[is_there]
                self._chosen.setdefault(head.name, []).append(chosen)

    def results(self) -> EvalResults:
        """Return the metrics of each head over the items that it has labels of, and "num_samples".

        Raises:
          DataError: if too few items have contents.
        """
        vectors = np.concatenate(self._vectors) if self._vectors else np.zeros([0, 1], np.float32)
        results = EvalResults()
        for head in heads_of(self.config):
            labels = np.concatenate(self._labels.get(head.name, [np.zeros(0, np.int64)]))
            is_own = labels >= 0
            results.update(self._of_head(head, vectors[is_own], labels[is_own], is_own))
        results["num_samples"] = len(vectors)
        results.parts = [Part("", len(vectors), len(vectors))]
        for name, value in results.items():
            if math.isnan(value):
                results.undefined[name] = "each held-out item is alone in its class"
        return results

    def _of_head(self, head: Head, vectors: Array, labels: Classes, is_own: np.ndarray) -> dict[str, float]:
        k = self.config.pretrain_config.num_neighbours
        most = max(k, MMP_AT, *RECALL_AT)
        if len(vectors) <= most:
            raise DataError(
                f"eval_input_path: {len(vectors)} held-out items of '{head.name}' can be read, too few for {most} "
                "neighbours each; give more, or lower pretrain_config.num_neighbours"
            )
        neighbours = nearest(vectors, most)
        values = {f"recall_at_{n}": recall_at(labels, neighbours, n) for n in RECALL_AT}
        values[f"mmp_at_{MMP_AT}"] = mean_precision_at(labels, neighbours, MMP_AT)
        values["knn_accuracy"] = knn_accuracy(labels, neighbours, k)
        if head.has_classifier:
            chosen = np.concatenate(self._chosen[head.name])[is_own]
            values[CLASSIFIER_ACCURACY] = float(np.mean(chosen == labels))
        return {f"{name}_{head.name}": value for name, value in values.items()}
