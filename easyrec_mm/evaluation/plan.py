"""The evaluation plan of a config: its metrics and slices, the input fields they need, and the columns to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from easyrec_mm.config.evaluation import (
    METRICS_OF_ACTIVATION,
    cluster_field,
    group_field,
    item_field,
    result_name,
    slice_name,
)
from easyrec_mm.evaluation.metric_table import METRICS
from easyrec_mm.evaluation.metrics import MeanOfTerms, SumMetric
from easyrec_mm.evaluation.rows import Columns
from easyrec_mm.evaluation.slices import ByFrequency, ByPicture, ByQuantile, ByValue, Slicer
from easyrec_mm.evaluation.summary import CLUSTER, Entry
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.protos.eval_pb2 import EvalSlice
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema, Task
from easyrec_mm.stable_hash import Hashes, hash_array, mix

Array = npt.NDArray[Any]
_GROUP_SIZE_BINS = 4

# Hashes of items, uint64 [items] ascending, and their counts, int64 [items].
ItemCounts = tuple[Array, Array]


def evaluation_fields(config: EasyRecConfig, schema: Schema) -> tuple[str, ...]:
    """Return the input fields that an evaluation of the config reads in addition to those that the model reads."""
    nothing = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    return EvalPlan(config, schema, False, lambda field: nothing).fields


class EvalPlan:
    """The plan for evaluating one model.

    Args:
      config: the pipeline config.
      schema: the schema of the config.
      confidence: whether to compute bootstrap replicates, as eval_config.bootstrap says.
      count_items: input field -> how often the training data contain each item; called only if a slice needs it.
      tasks: names of the tasks to evaluate; all by default.
    """

    def __init__(
        self,
        config: EasyRecConfig,
        schema: Schema,
        confidence: bool,
        count_items: Callable[[str], ItemCounts],
        tasks: set[str] | None = None,
    ) -> None:
        evaluation = config.eval_config
        self._schema = schema
        self.bootstrap = evaluation.bootstrap
        self.weights = ClusterWeights(self.bootstrap.num_replicates if confidence else 0, self.bootstrap.seed)
        self.item_field = item_field(config, schema)
        self.cluster_field = cluster_field(config, schema)
        self._num_groups = 0
        self._groups: dict[str, str] = {}  # input field -> column
        self._terms: dict[str, tuple[Task, SumMetric]] = {}  # column -> multiclass task, metric of the kept terms
        self.tasks = [task for task in schema.tasks if tasks is None or task.name in tasks]
        self.entries = self._entries(config)
        self.slicers: dict[str, Slicer] = {}
        for i, part in enumerate(evaluation.slices):
            self.slicers[slice_name(part)] = self._slicer(part, f"eval_config.slices[{i}]", count_items)

    def _entries(self, config: EasyRecConfig) -> list[Entry]:
        entries: dict[str, Entry] = {}
        towers = {tower.tower_name: tower for tower in config.model_config.e2e_mm_dbmtl.task_towers}
        for task in self.tasks:
            for message in [*towers[task.name].metrics_set, *config.eval_config.metrics_set]:
                kind = message.WhichOneof("metric")
                name = result_name(message, task.name)
                if kind not in METRICS_OF_ACTIVATION[task.activation] or name in entries:
                    continue
                metric = METRICS[kind](getattr(message, kind))
                score, group = score_column(task), ""
                if group_field(message):
                    group = self._groups.setdefault(group_field(message), f"group:{group_field(message)}")
                if task.activation == "multiclass" and isinstance(metric, SumMetric):
                    score = f"terms:{name}"
                    self._terms[score] = (task, metric)
                    metric = MeanOfTerms()
                entries[name] = Entry(name, metric, label_column(task), score, group)
        return list(entries.values())

    def _slicer(self, part: EvalSlice, place: str, count_items: Callable[[str], ItemCounts]) -> Slicer:
        kind, name = part.WhichOneof("by"), slice_name(part)
        if kind == "has_picture":
            return ByPicture()
        if kind == "item_frequency":
            return ByFrequency(count_items(self.item_field), part.item_frequency.frequent_from)
        if kind == "group_size" or part.num_quantiles:
            return ByQuantile(name, part.num_quantiles or _GROUP_SIZE_BINS)
        return ByValue(name, part.max_values, f"{place}.field")

    @property
    def uses_image(self) -> bool:
        """Whether the model uses pictures."""
        return self._schema.uses_image

    @property
    def fields(self) -> tuple[str, ...]:
        """Input fields to keep for `columns`, in addition to the fields that the model reads."""
        names = {*self._groups}
        special = {"item_frequency": self.item_field, "group_size": self._schema.group_size_field}
        special["has_picture"] = self._schema.image.field
        names |= {special.get(name, name) for name in self.slicers}
        if self.weights.num_replicates:
            names |= {self.cluster_field, self._schema.group_size_field}
        return tuple(sorted(names))

    def columns(
        self, labels: Mapping[str, Array], outputs: Mapping[str, Array], fields: Mapping[str, Array], has_picture: Array
    ) -> Columns:
        """Return the columns to keep of a batch.

        Args:
          labels: name of a label -> `[N]`.
          outputs: name of a model output -> `[N]` or `[N, C]`.
          fields: name of a field, one of the property `fields` -> `[N]`, bytes or numbers.
          has_picture: bool `[N]`, whether the input found a picture of the item.
        """
        columns: Columns = self.scores(labels, outputs)
        for task in self.tasks:
            columns[label_column(task)] = labels[task.label].astype(np.float32)
        for field, column in self._groups.items():
            columns[column] = hash_array(fields[field])
        for name, slicer in self.slicers.items():
            if isinstance(slicer, ByFrequency):
                values: Array = hash_array(fields[self.item_field])
            elif isinstance(slicer, ByPicture):
                values = has_picture & (fields[self._schema.image.field] != b"")
            else:
                values = fields[self._schema.group_size_field if name == "group_size" else name]
            columns[slicer.column] = slicer.raw(values)
        num_rows = len(has_picture)
        columns[CLUSTER] = self._clusters(fields) if self.weights.num_replicates else np.zeros(num_rows, np.uint64)
        return columns

    def scores(self, labels: Mapping[str, Array], outputs: Mapping[str, Array], prefix: str = "") -> Columns:
        """Return the columns of predictions, with a prefix before their names."""
        columns: Columns = {}
        for task in self.tasks:
            if task.activation != "multiclass":
                columns[prefix + score_column(task)] = outputs[task.score_name].astype(np.float32)
        for column, (task, metric) in self._terms.items():
            predictions = outputs[task.score_name].astype(np.float64)
            columns[prefix + column] = metric.terms(labels[task.label].astype(np.float64), predictions)[0]
        return columns

    @property
    def clusters(self) -> str:
        """Name of the unit that a bootstrap replicate draws as a whole, for reports."""
        return self.cluster_field or "group"

    def _clusters(self, fields: Mapping[str, Array]) -> Hashes:
        groups = self._group_numbers(fields[self._schema.group_size_field])
        if not self.cluster_field:
            return groups
        values = fields[self.cluster_field]
        hashes = hash_array(values)
        # Items without a picture share the empty path, but are different items.
        return np.where(values == b"", groups, hashes) if self.cluster_field == self._schema.image.field else hashes

    def num_groups(self, fields: Mapping[str, Array]) -> int:
        """Return the number of groups of a batch that are numbered, given its fields as for `columns`."""
        if not self.weights.num_replicates or not fields:
            return 0
        return len(_group_starts(fields[self._schema.group_size_field]))

    def skip_groups(self, number: int) -> None:
        """Number the next groups as if that many came before them, which other workers evaluate."""
        self._num_groups += number

    def _group_numbers(self, sizes: Array) -> Hashes:
        """Return a hashed group number per row, uint64 `[N]`, given the size of each row's group `[N]`."""
        starts = _group_starts(sizes)
        numbers = np.repeat(np.arange(len(starts), dtype=np.uint64), np.diff([*starts, len(sizes)]))
        numbers += np.uint64(self._num_groups)
        self._num_groups += len(starts)
        return mix(numbers)


def _group_starts(sizes: Array) -> list[int]:
    """Return the first row of each group, given the size of each row's group `[N]`."""
    starts, start = [], 0
    while start < len(sizes):
        starts.append(start)
        start += max(1, int(sizes[start]))
    return starts


def label_column(task: Task) -> str:
    """Return the name of the column of Rows with the label of a task."""
    return f"label:{task.label}"


def score_column(task: Task) -> str:
    """Return the name of the column of Rows with the prediction of a task."""
    return f"score:{task.name}"
