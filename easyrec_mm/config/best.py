"""Choice of the best evaluation of a training, and early stopping, as export_config defines them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from easyrec_mm.config.evaluation import METRIC_KINDS
from easyrec_mm.errors import Problems
from easyrec_mm.protos.export_pb2 import ExportConfig
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

BEST = "best"
# Metric -> whether larger values are better; None if the best value is neither the largest nor the smallest.
BIGGER_IS_BETTER: dict[str, bool | None] = {
    name: kind.bigger_is_better if kind.HasField("bigger_is_better") else None for name, kind in METRIC_KINDS.items()
}


@dataclass(frozen=True)
class Criterion:
    """The rule for the best evaluation of a training and for early stopping.

    metric      name in the results of an evaluation, such as "auc_click"
    is_bigger   whether larger values are better
    threshold   value that the best evaluation must reach; None accepts any value
    min_delta   smallest change that counts as an improvement
    patience    number of consecutive evaluations without improvement after which training ends; 0 for no limit
    max_steps   number of steps without improvement after which training ends; 0 for no limit
    """

    metric: str
    is_bigger: bool = True
    threshold: float | None = None
    min_delta: float = 0.0
    patience: int = 0
    max_steps: int = 0

    def gain(self, value: float, reference: float) -> float:
        """Return by how much `value` is better than `reference`; negative if it is worse."""
        return value - reference if self.is_bigger else reference - value

    def is_reached(self, value: float) -> bool:
        """Return whether a value reaches the threshold."""
        return self.threshold is None or self.gain(value, self.threshold) >= 0

    def condition(self) -> str:
        """Return the condition on the best evaluation, such as "auc_click >= 0.8", or the metric without threshold."""
        if self.threshold is None:
            return self.metric
        return f"{self.metric} {'>=' if self.is_bigger else '<='} {self.threshold:g}"


def criterion_of(config: EasyRecConfig, metrics: Mapping[str, str]) -> Criterion | None:
    """Return the criterion of a checked config; None if it has neither best export nor early stopping.

    `metrics` is the same mapping as in `check_best`.
    """
    export = config.export_config
    if not _is_used(export):
        return None
    name = find_metric(export.best_exporter_metric, metrics)
    if name is None:
        return None
    counts_steps = export.HasField("max_check_steps") or not export.early_stop_patience
    return Criterion(
        metric=name,
        is_bigger=bool(BIGGER_IS_BETTER.get(metrics[name], export.metric_bigger)),
        threshold=_decimal(export.best_exporter_threshold) if export.HasField("best_exporter_threshold") else None,
        min_delta=_decimal(export.early_stop_min_delta),
        patience=export.early_stop_patience if export.enable_early_stop else 0,
        max_steps=export.max_check_steps if export.enable_early_stop and counts_steps else 0,
    )


def find_metric(name: str, metrics: Mapping[str, str]) -> str | None:
    """Return the metric called `name`; for a kind such as "auc", the first metric of this kind; None if not found."""
    if name in metrics:
        return name
    return next((full for full, kind in metrics.items() if kind == name), None)


def check_best(config: EasyRecConfig, metrics: Mapping[str, str], problems: Problems) -> None:
    """Add every problem with the choice of the best checkpoint and with early stopping.

    Args:
      config: the whole config.
      metrics: name of each metric of an evaluation, such as "auc_click" -> its kind, such as "auc".
      problems: collects the mistakes.
    """
    export, place = config.export_config, "export_config"
    if export.HasField("best_exporter_threshold") and not _is_used(export):
        problems.add(
            f"{place}.best_exporter_threshold",
            'has no effect without exporter_type: "best" or enable_early_stop: true; set one or remove this',
        )
    if not _is_used(export):
        return
    reason = f"{place}.enable_early_stop" if export.enable_early_stop else f"{place}.exporter_type"
    if not config.eval_input_path:
        problems.add(reason, "needs evaluation data; set eval_input_path")
    _check_metric(export, metrics, f"{place}.best_exporter_metric", problems)


def _check_metric(export: ExportConfig, metrics: Mapping[str, str], place: str, problems: Problems) -> None:
    name = find_metric(export.best_exporter_metric, metrics)
    if name is None:
        problems.unknown(place, "metric of the evaluation", export.best_exporter_metric, _names(metrics))
        return
    is_bigger = BIGGER_IS_BETTER.get(metrics[name], export.metric_bigger)
    if is_bigger is None:
        problems.add(
            place,
            f"{name} cannot rank checkpoints, because neither larger nor smaller values of it are better; choose a "
            "metric such as log_loss",
        )
    elif export.HasField("metric_bigger") and export.metric_bigger != is_bigger:
        better = "larger" if is_bigger else "smaller"
        problems.add(
            "export_config.metric_bigger",
            f"{str(export.metric_bigger).lower()}, but {better} values of {name} are better; remove it",
        )


def _decimal(value: float) -> float:
    """Return the number as written in the config: 0.8 instead of protobuf's float32 0.800000012."""
    return float(f"{value:.7g}")


def _is_used(export: ExportConfig) -> bool:
    return export.exporter_type == BEST or export.enable_early_stop


def _names(metrics: Mapping[str, str]) -> Iterable[str]:
    return {*metrics, *metrics.values()}
