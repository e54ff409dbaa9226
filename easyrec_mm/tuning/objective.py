"""What a search improves: a metric of the evaluation, and its value for a trial."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from easyrec_mm.config.best import BEST, BIGGER_IS_BETTER, find_metric
from easyrec_mm.config.evaluation import evaluation_metrics
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.errors import ConfigError, UserError, did_you_mean
from easyrec_mm.runs.evaluations import METRICS, read_evaluations


class Objective(NamedTuple):
    """The metric that a search improves.

    metric     its name in the results of an evaluation, such as "auc_click"
    is_bigger  whether larger values are better
    takes_best whether a trial counts by its best evaluation, as the best checkpoint is exported; else by its last
    """

    metric: str
    is_bigger: bool
    takes_best: bool

    def value(self, evaluations: list[float]) -> float | None:
        """Return the value of a trial; None if it has no evaluation."""
        if not evaluations:
            return None
        if not self.takes_best:
            return evaluations[-1]
        return max(evaluations) if self.is_bigger else min(evaluations)


def objective_of(pipeline: Pipeline, name: str) -> Objective:
    """Return the objective of a search.

    Args:
      pipeline: the config.
      name: --metric, such as "auc_click" or "auc"; "" for that of the config (best_exporter_metric), or else the first
        of which larger or smaller values are better.

    Raises:
      ConfigError: if the config has no evaluation data.
      UserError: if there is no such metric, or it has no better direction.
    """
    config = pipeline.config
    if not config.eval_input_path:
        raise ConfigError(
            f"{pipeline.path}: eval_input_path: is missing; give evaluation data, which compare the trials"
        )
    kinds = evaluation_metrics(config, pipeline.schema)
    directed = {metric: kind for metric, kind in kinds.items() if BIGGER_IS_BETTER.get(kind) is not None}
    if name:
        metric = find_metric(name, kinds)
        if metric is None:
            raise UserError(f"--metric {name}: no such metric in the evaluation; {did_you_mean(name, directed)}")
        if metric not in directed:
            raise UserError(
                f"--metric {name}: neither larger nor smaller values are better; {did_you_mean('', directed)}"
            )
    else:
        metric = find_metric(config.export_config.best_exporter_metric, directed) or next(iter(directed), None)
        if metric is None:
            raise ConfigError(f"{pipeline.path}: no metric can compare trials; add one to a metrics_set, such as auc")
    takes_best = config.export_config.exporter_type == BEST
    return Objective(metric, bool(BIGGER_IS_BETTER[kinds[metric]]), takes_best)


def values_in(model_dir: Path, metric: str) -> list[float]:
    """Return the values of a metric in the evaluations of a training, in their order; undefined ones are left out."""
    evaluations = read_evaluations(model_dir / METRICS, metric)
    return [evaluation.value for evaluation in evaluations if evaluation.value is not None]
