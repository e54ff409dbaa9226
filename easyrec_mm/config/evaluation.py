"""Checks metrics and eval_config, and defines the names of results. Never imports TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, get_args

from easyrec_mm.config.pretraining import is_pretraining, pretraining_metrics
from easyrec_mm.config.rules import names_in
from easyrec_mm.errors import Problems
from easyrec_mm.protos import options_pb2
from easyrec_mm.protos.eval_pb2 import Bootstrap, EvalMetrics, EvalSlice
from easyrec_mm.protos.options_pb2 import MetricKind
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Activation, Schema, Task

# Metric -> its properties, which are options of its field in EvalMetrics.
METRIC_KINDS: dict[str, MetricKind] = {
    field.name: field.GetOptions().Extensions[options_pb2.metric_kind] for field in EvalMetrics.DESCRIPTOR.fields
}
# Activation of a tower -> the metrics that apply to its output.
METRICS_OF_ACTIVATION: dict[str, set[str]] = {
    activation: {name for name, kind in METRIC_KINDS.items() if activation in names_in(kind.outputs)}
    for activation in get_args(Activation)
}

# Metric with a rank limit -> its name if the limit is set, as in EasyRec's recall_at_top5.
_TOP_NAMES = {"ndcg": "ndcg_at_top", "recall_at_topk": "recall_at_top", "hit_rate": "hit_rate_at_top"}
_GROUP_SETTINGS = ("uid_field", "session_id_field")
_NUMBERS = ("int64", "bool", "float32")


def result_name(message: EvalMetrics, task: str) -> str:
    """Return the name of a result, such as "auc_click" or "ndcg_at_top10_click"."""
    kind = message.WhichOneof("metric")
    topk = getattr(getattr(message, kind), "topk", 0)
    return f"{_TOP_NAMES[kind]}{topk}_{task}" if topk else f"{kind}_{task}"


class NamedMetric(NamedTuple):
    """A numeric result: its name, such as "auc_click", the kind of its metric, and its task."""

    name: str
    kind: str
    task: str


def named_metrics(config: EasyRecConfig, schema: Schema) -> list[NamedMetric]:
    """Return the numeric results, each once, in the order of the towers."""
    metrics = {}
    for tower, task in zip(config.model_config.e2e_mm_dbmtl.task_towers, schema.tasks, strict=True):
        for message in [*tower.metrics_set, *config.eval_config.metrics_set]:
            kind = message.WhichOneof("metric")
            if kind in METRICS_OF_ACTIVATION[task.activation] and kind != "calibration_curve":
                name = result_name(message, task.name)
                metrics[name] = NamedMetric(name, kind, task.name)
    return list(metrics.values())


def evaluation_metrics(config: EasyRecConfig, schema: Schema) -> dict[str, str]:
    """Return the name of each numeric result -> the kind of its metric, such as "auc", in the order of the towers."""
    if is_pretraining(config):
        return pretraining_metrics(config)
    return {metric.name: metric.kind for metric in named_metrics(config, schema)}


def group_field(message: EvalMetrics) -> str:
    """Return the input field of the users or sessions within which a metric is computed; "" if it has none."""
    setting = _group_setting(message)
    return str(getattr(getattr(message, message.WhichOneof("metric")), setting)) if setting else ""


def item_field(config: EasyRecConfig, schema: Schema) -> str:
    """Return the input field that identifies the item; "" if the config has none."""
    return str(config.eval_config.item_id_field or schema.image.field)


def cluster_field(config: EasyRecConfig, schema: Schema) -> str:
    """Return the input field whose values are the clusters that a bootstrap draws as a whole; "" for groups."""
    return str(config.eval_config.bootstrap.cluster_field or item_field(config, schema))


def projector_fields(config: EasyRecConfig, schema: Schema) -> tuple[str, ...]:
    """Return the input fields that TensorBoard's projector shows of each item."""
    named = tuple(config.train_config.projector_fields)
    # Those of the default are read anyway: no group can become a bad record because it is shown.
    of_groups = [name for name in schema.group_fields if name not in schema.labels]
    return tuple(dict.fromkeys(named or (*schema.image_fields(), *of_groups)))


def slice_name(message: EvalSlice) -> str:
    """Return the name of a slice, such as "price" for the field price, or "item_frequency"."""
    kind = message.WhichOneof("by")
    return str(message.field if kind == "field" else kind)


def _group_setting(message: EvalMetrics) -> str:
    settings = getattr(message, message.WhichOneof("metric"))
    return next((name for name in _GROUP_SETTINGS if name in settings.DESCRIPTOR.fields_by_name), "")


def check_metrics(
    metrics: Iterable[EvalMetrics], place: str, task: Task | None, schema: Schema, problems: Problems
) -> None:
    """Add every problem of a metrics_set, which belongs to the tower of `task`, or to all towers if `task` is None."""
    by_name: dict[str, EvalMetrics] = {}
    for i, metric in enumerate(metrics):
        here = f"{place}[{i}]"
        kind = metric.WhichOneof("metric")
        if kind is None:
            problems.add(here, f"is empty; choose one of {', '.join(EvalMetrics.DESCRIPTOR.fields_by_name)}")
            continue
        _check_metric(metric, kind, here, task, schema, problems)
        name = result_name(metric, task.name if task else "<tower>")
        if by_name.setdefault(name, metric) != metric:
            problems.add(here, f"a second metric that would be called {name}; remove one of the two")


def _check_metric(
    metric: EvalMetrics, kind: str, place: str, task: Task | None, schema: Schema, problems: Problems
) -> None:
    if task is not None and kind not in METRICS_OF_ACTIVATION[task.activation]:
        choices = ", ".join(sorted(METRICS_OF_ACTIVATION[task.activation]))
        problems.add(place, f"{kind} does not apply to tower '{task.name}' ({task.activation}); choose from {choices}")
    group_setting = _group_setting(metric)
    if group_setting:
        _check_id(group_field(metric), f"{place}.{kind}.{group_setting}", schema, problems)


def check_evaluation(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    """Add every problem of eval_config."""
    evaluation = config.eval_config
    check_metrics(evaluation.metrics_set, "eval_config.metrics_set", None, schema, problems)
    if evaluation.HasField("item_id_field"):
        _check_id(evaluation.item_id_field, "eval_config.item_id_field", schema, problems)
    for i, name in enumerate(config.train_config.projector_fields):
        _check_field(name, f"train_config.projector_fields[{i}]", schema, problems)
    _check_bootstrap(evaluation.bootstrap, schema, problems)
    names: set[str] = set()
    for i, part in enumerate(evaluation.slices):
        place = f"eval_config.slices[{i}]"
        if part.WhichOneof("by") is None:
            problems.add(
                place, "does not say what to slice by; set one of field, item_frequency, group_size, has_picture"
            )
            continue
        _check_slice(part, place, config, schema, problems)
        if slice_name(part) in names:
            problems.add(place, f"a second slice by {slice_name(part)}; remove one of the two")
        names.add(slice_name(part))


def _check_bootstrap(bootstrap: Bootstrap, schema: Schema, problems: Problems) -> None:
    place = "eval_config.bootstrap"
    if bootstrap.HasField("cluster_field"):
        _check_id(bootstrap.cluster_field, f"{place}.cluster_field", schema, problems)
    if 0 < bootstrap.num_replicates * (1 - bootstrap.level) / 2 < 1 - 1e-9:
        least = round(2 / (1 - bootstrap.level))
        problems.add(
            f"{place}.num_replicates",
            f"{bootstrap.num_replicates} are too few for intervals of level {bootstrap.level:g}; give {least} or more, "
            "or 0 for no intervals",
        )


def _check_slice(part: EvalSlice, place: str, config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    kind = part.WhichOneof("by")
    if part.HasField("num_quantiles") and kind not in ("field", "group_size"):
        problems.add(f"{place}.num_quantiles", f"has no effect on {kind}; remove it")
    if part.HasField("max_values") and (kind != "field" or part.num_quantiles):
        problems.add(f"{place}.max_values", "applies only to a field without num_quantiles; remove it")
    if kind == "field":
        is_known = _check_field(part.field, f"{place}.field", schema, problems)
        if is_known and part.num_quantiles and schema.field(part.field).dtype not in _NUMBERS:
            problems.add(f"{place}.num_quantiles", f"'{part.field}' is text and has no quantiles; remove it")
    if kind == "has_picture" and not schema.image.field:
        problems.add(f"{place}.has_picture", "the config has no ImgFeature; add one or remove this")
    if kind == "item_frequency":
        if not (config.eval_config.item_id_field or schema.image.field):
            problems.add(
                f"{place}.item_frequency",
                "needs eval_config.item_id_field, the input field that holds the item's id; set it",
            )
        if not config.train_input_path:
            problems.add(f"{place}.item_frequency", "needs the training data to count items in; set train_input_path")


def _check_id(name: str, place: str, schema: Schema, problems: Problems) -> None:
    """Check a field whose values tell users, sessions or items apart."""
    if _check_field(name, place, schema, problems) and schema.field(name).dtype == "float32":
        reason = "is a FLOAT or DOUBLE, kept with 32 bits, in which large ids are the same"
        problems.add(place, f"'{name}' {reason}; set its input_type to INT64 or STRING")


def _check_field(name: str, place: str, schema: Schema, problems: Problems) -> bool:
    names = (*schema.layout.sample_fields, *schema.labels)
    if name not in names:
        problems.unknown(place, "input field", name, schema.layout.sample_fields)
    return name in names
