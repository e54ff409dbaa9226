"""Compares two models on the same evaluation data, by paired differences of all metrics.

Both models read the same files in step. Corresponding rows must be the same: they must have the same labels, and the
same values in all fields that both configs have; otherwise the comparison fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from easyrec_mm.config.pipeline import Pipeline, load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.delong import DeLong, delong_test
from easyrec_mm.evaluation.estimates import Difference
from easyrec_mm.evaluation.evaluator import (
    as_arrays,
    batch_outputs,
    eval_plan,
    is_enough,
    load_model,
    memory_of,
    plan_columns,
    vectors_of,
)
from easyrec_mm.evaluation.plan import EvalPlan
from easyrec_mm.evaluation.rank_metrics import AUC
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.summary import (
    Entry,
    EvalResults,
    Part,
    Summary,
    compare,
    finite,
    results_of,
    summarize,
)
from easyrec_mm.evaluation.views import Undefined
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.files.folders import shown
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.runs.model_dir import PIPELINE_CONFIG, find_checkpoint
from easyrec_mm.schema import Task
from easyrec_mm.store.feature_vectors import VectorStores

# Prefix of the columns of the other model.
_OTHER = "other:"
_NO_ITEMS = (np.zeros(0, np.uint64), np.zeros(0, np.int64))

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Contender:
    """A trained model to compare: its pipeline, the model, the vectors that it was trained with, and its name."""

    pipeline: Pipeline
    model: MultimodalModel
    vectors: VectorStores
    name: str


def open_contender(
    path: str, config_path: str = "", dtype: str = FLOAT32, ignore_unsupported: bool = False
) -> Contender:
    """Load the model of a model_dir or checkpoint for a comparison.

    Args:
      path: value of --compare.
      config_path: the model's pipeline config; by default pipeline.config, which training writes into the model_dir.
      dtype: Keras dtype policy in which the model computes.
      ignore_unsupported: whether to skip settings of EasyRec's language that are not supported.

    Raises:
      UserError: if the checkpoint or the config does not exist, or they do not fit each other.
    """
    checkpoint = find_checkpoint(path, "--compare")
    if not config_path:
        config_path = str(Path(checkpoint).parent / PIPELINE_CONFIG)
        if not Path(config_path).exists():
            raise UserError(
                f"--compare {path}: has no {PIPELINE_CONFIG} beside it; give its config with --compare_config"
            )
    pipeline = load_pipeline(config_path, ignore_unsupported=ignore_unsupported)
    model, step = load_model(pipeline.config, pipeline.schema, checkpoint, dtype)
    name = f"{shown(checkpoint)} (step {step})"
    return Contender(pipeline, model, vectors_of(pipeline.schema, checkpoint), name)


class _Part(NamedTuple):
    """Rows of a batch: the columns to keep, and the columns that must be equal for both models."""

    kept_columns: Columns
    identity: Columns


def evaluate_and_compare(
    first: Contender, second: Contender, path: str, setting: str, bad_records: BadRecords
) -> EvalResults:
    """Return the first model's results with intervals, and its differences to the second model as `comparison`.

    Args:
      first: the model whose config sets the metrics, slices and clusters.
      second: the model to compare it with.
      path: the evaluation data.
      setting: name of the setting of `path`, for messages.
      bad_records: counts the records that the first model's input cannot read.

    Raises:
      UserError: if the models have no task in common, or their rows differ.
      DataError: if the files cannot be read or hold too many bad records.
    """
    tasks = _common_tasks(first, second)
    config = first.pipeline.config
    plan = eval_plan(config, first.pipeline.schema, confidence=True)
    # Only the entries and scores of this plan are used; the slices come from `plan`.
    common = EvalPlan(config, first.pipeline.schema, True, lambda field: _NO_ITEMS, tasks)
    fields = _common_fields(first, second)
    inputs = _input(first, path, setting, bad_records, tuple({*plan.fields, *fields}))
    # Both models meet the same bad records; the second one does not list them again.
    own_records = BadRecords(None, config.data_config.max_bad_record_share)
    other_inputs = _input(second, path, setting, own_records, fields)
    with Rows(memory_of(config)) as rows:
        pairs = _in_step(
            _parts(first, inputs, plan, fields, ""), _parts(second, other_inputs, common, fields, _OTHER), path
        )
        for part, other_part in pairs:
            _require_same(part, other_part, len(rows), path, (first.name, second.name))
            rows.append({**part.kept_columns, **other_part.kept_columns})
            if is_enough(config, len(rows)):
                break
        slicers = list(plan.slicers.values())
        summary = summarize(rows, plan.entries, slicers, plan.weights)
        of_other = [replace(entry, score=_OTHER + entry.score) for entry in common.entries]
        other_summary = summarize(rows, of_other, slicers, plan.weights)
        results = results_of(summary, plan.weights.num_replicates, plan.bootstrap.level, plan.clusters)
        differences = compare(summary, other_summary, plan.bootstrap.level)
        results.comparison = {
            "other": second.name,
            "method": "paired percentiles of the Poisson bootstrap of clusters; DeLong's test for AUC",
            "clusters": plan.clusters,
            "num_replicates": plan.weights.num_replicates,
            "level": plan.bootstrap.level,
            "differences": _as_json(differences, summary, other_summary, rows, common),
        }
    return results


def _input(contender: Contender, path: str, setting: str, bad_records: BadRecords, fields: tuple[str, ...]) -> Input:
    """Return the evaluation data as read by the model's config, with these fields kept."""
    pipeline, vectors = contender.pipeline, contender.vectors
    data = pipeline.config.data_config
    return Input(data, pipeline.schema, path, setting, bad_records, kept_fields=fields, vectors=vectors)


def _common_tasks(first: Contender, second: Contender) -> set[str]:
    other_tasks = {task.name: task for task in second.pipeline.schema.tasks}
    common = set()
    for task in first.pipeline.schema.tasks:
        if task.name in other_tasks:
            other = other_tasks[task.name]
            if (task.label, task.activation, task.num_class) != (other.label, other.activation, other.num_class):
                raise UserError(
                    f"--compare {second.name}: tower '{task.name}' predicts {_target(other)} there, but "
                    f"{_target(task)} in this model; compare models of the same task"
                )
            common.add(task.name)
    if not common:
        raise UserError(
            f"--compare {second.name}: its towers are {', '.join(other_tasks)}, but those of this model are "
            f"{', '.join(task.name for task in first.pipeline.schema.tasks)}; compare models that share a tower"
        )
    return common


def _target(task: Task) -> str:
    classes = f", {task.num_class} classes" if task.num_class > 1 else ""
    return f"'{task.label}' ({task.activation}{classes})"


def _common_fields(first: Contender, second: Contender) -> tuple[str, ...]:
    """Return the fields that both configs have with the same dtype; they serve to identify rows."""
    types = []
    for contender in (first, second):
        schema = contender.pipeline.schema
        names = {*schema.layout.sample_fields, *schema.labels}
        types.append({field.name: field.dtype for field in schema.fields if field.name in names})
    return tuple(sorted(name for name, dtype in types[0].items() if types[1].get(name) == dtype))


def _parts(
    contender: Contender, inputs: Input, plan: EvalPlan, fields: tuple[str, ...], prefix: str
) -> Iterator[_Part]:
    for batch, kept_fields, outputs in batch_outputs(contender.model, inputs, "compare" if prefix else "evaluate"):
        values = as_arrays(kept_fields)
        identity = {name: values[name] for name in fields}
        if prefix:
            columns = plan.scores(as_arrays(batch.labels), as_arrays(outputs), prefix)
        else:
            columns = plan_columns(plan, batch, kept_fields, outputs)
        yield _Part(columns, identity)


def _in_step(first: Iterator[_Part], second: Iterator[_Part], path: str) -> Iterator[tuple[_Part, _Part]]:
    """Yield equal numbers of rows of both models, although their batches may be cut differently."""
    held: list[_Part | None] = [None, None]
    while True:
        for i, parts in enumerate((first, second)):
            if held[i] is None:
                held[i] = next(parts, None)
        first_part, second_part = held
        if first_part is None and second_part is None:
            return
        if first_part is None or second_part is None:
            shorter, longer = ("this", "the other") if first_part is None else ("the other", "this")
            raise UserError(
                f"{path}: {longer} model reads more rows than {shorter} one; both configs must accept the same groups"
            )
        num_rows = min(_num_rows(first_part), _num_rows(second_part))
        yield _cut(first_part, 0, num_rows), _cut(second_part, 0, num_rows)
        held = [
            _cut(part, num_rows, _num_rows(part)) if _num_rows(part) > num_rows else None
            for part in (first_part, second_part)
        ]


def _num_rows(part: _Part) -> int:
    return len(next(iter(part.kept_columns.values())))


def _cut(part: _Part, start: int, end: int) -> _Part:
    return _Part(*({name: values[start:end] for name, values in columns.items()} for columns in part))


def _require_same(part: _Part, other_part: _Part, first_row: int, path: str, names: tuple[str, str]) -> None:
    for name, values in part.identity.items():
        other_values = other_part.identity[name]
        differs = values != other_values
        if values.dtype != object:
            differs &= ~(np.isnan(values) & np.isnan(other_values))
        if differs.any():
            row = int(np.flatnonzero(differs)[0])
            texts = [_text(column[row]) for column in (values, other_values)]
            raise UserError(
                f"{path}: sample {first_row + row + 1}: '{name}' is {texts[0]} for {names[0]} and {texts[1]} for "
                f"{names[1]}; compare models that read the same rows in the same way"
            )


def _text(value: Any) -> str:
    return repr(value.decode("utf-8", "replace")) if isinstance(value, bytes) else f"{value:g}"


def _as_json(
    differences: dict[str, Difference], first: Summary, second: Summary, rows: Rows, plan: EvalPlan
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, difference in differences.items():
        has_interval = not difference.reason
        results[name] = {
            "this": finite(first.estimates[name].value),
            "other": finite(second.estimates[name].value),
            "difference": finite(difference.value),
            "interval": [difference.low, difference.high] if has_interval else None,
            "p_value": finite(difference.p_value),
            **({"reason": difference.reason} if difference.reason else {}),
        }
    for entry in plan.entries:
        for part in first.parts:
            test = _delong(rows, entry, part) if isinstance(entry.metric, AUC) else None
            if test is not None:
                of_metric = results[entry.name + part.suffix]
                of_metric["delong_p_value"] = finite(test.p_value)
                of_metric["delong_standard_error"] = finite(test.standard_error)
    return results


def _delong(rows: Rows, entry: Entry, part: Part) -> DeLong | None:
    """Return DeLong's test of a part's AUCs, None if one is undefined. It holds the part's scores in memory."""
    entries = (entry, replace(entry, score=_OTHER + entry.score))
    views = [part.of(each.view(rows, ClusterWeights())) for each in entries]
    try:
        first, second = ([np.stack(chunk[:2]) for chunk in view.in_order()] for view in views)
    except Undefined:
        return None
    if not first:
        return None
    (labels, scores), (_, other_scores) = np.concatenate(first, axis=1), np.concatenate(second, axis=1)
    return delong_test(labels, scores, other_scores)
