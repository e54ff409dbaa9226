"""Table of the metrics of the config language, which creates the metric that a message describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from easyrec_mm.evaluation.calibration import CalibrationCurve, RecalibratedEntropy
from easyrec_mm.evaluation.group_metrics import GAUC, NDCG, HitRate, RecallAtTopK
from easyrec_mm.evaluation.metrics import (
    ECE,
    Accuracy,
    Calibration,
    LogLoss,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    NormalizedEntropy,
    RootMeanSquaredError,
)
from easyrec_mm.evaluation.rank_metrics import AUC, XAUC, PrAUC

# Oneof field of EvalMetrics -> function that creates the metric from the field's message.
METRICS: dict[str, Callable[[Any], Metric | CalibrationCurve]] = {
    "auc": lambda message: AUC(),
    "gauc": lambda message: GAUC(message.reduction, of=message.uid_field),
    "log_loss": lambda message: LogLoss(),
    "normalized_entropy": lambda message: NormalizedEntropy(),
    "calibration": lambda message: Calibration(),
    "ece": lambda message: ECE(message.num_bins),
    "mean_squared_error": lambda message: MeanSquaredError(),
    "root_mean_squared_error": lambda message: RootMeanSquaredError(),
    "mean_absolute_error": lambda message: MeanAbsoluteError(),
    "accuracy": lambda message: Accuracy(),
    "pr_auc": lambda message: PrAUC(),
    "session_auc": lambda message: GAUC(message.reduction, "session_auc", of=message.session_id_field),
    "ndcg": lambda message: NDCG(message.topk, of=message.session_id_field),
    "recall_at_topk": lambda message: RecallAtTopK(message.topk, of=message.session_id_field),
    "hit_rate": lambda message: HitRate(message.topk, of=message.session_id_field),
    "xauc": lambda message: XAUC(),
    "recalibrated_normalized_entropy": lambda message: RecalibratedEntropy(),
    "calibration_curve": lambda message: CalibrationCurve(message.num_bins, message.strategy),
}
