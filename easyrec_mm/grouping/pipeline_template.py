"""The text of a pipeline config for grouped samples, with a comment that says why on what was inferred."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from google.protobuf import text_encoding
from PIL import Image, UnidentifiedImageError

from easyrec_mm.files import StorageError, join, read
from easyrec_mm.grouping.columns import Kind
from easyrec_mm.grouping.grouped_rtp import RtpLayout
from easyrec_mm.grouping.inference import FeaturePlan, FieldPlan, Inference, LabelPlan
from easyrec_mm.grouping.options import GROUP_SIZE, GroupOptions
from easyrec_mm.protos.data_pb2 import DatasetConfig

INPUT_TYPES = {"parquet": "GroupParquetInput", "tfrecord": "GroupTFRecordInput", "rtp": "GroupRTPInput"}
_FIELD_TYPES: dict[Kind, str] = {
    "int64": "INT64",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "bool": "BOOL",
    "string": "STRING",
}
# Samples of a batch that are aimed at, and limits of its groups.
_BATCH_SAMPLES, _MIN_BATCH, _MAX_BATCH = 1024, 8, 256
_NUM_EPOCHS = 3
_WARMUP_STEPS = 50
_SHUFFLE_GROUPS = 4096
# Sides of pictures that are proposed, and pictures that are looked at.
_SIDES, _NUM_PICTURES = (64, 96, 128, 160, 224), 64


@dataclass(frozen=True)
class Grouped:
    """What was written: files for training and evaluation ("" for none), and groups and rows that train."""

    train_path: str
    eval_path: str
    num_groups: int
    num_rows: int
    num_rows_without_picture: int
    pictures: tuple[str, ...]  # some paths


def template(options: GroupOptions, inference: Inference, grouped: Grouped) -> str:
    """The text of the config; load_pipeline reads it."""
    return "\n".join(
        [
            *_comment("", _head(options, inference, grouped)),
            *_paths(options, grouped),
            "",
            *_data(options, inference, grouped),
            "",
            *_features(options, inference, grouped),
            "",
            *_model(options, inference, grouped),
            "",
            *_training(options, grouped),
            "",
        ]
    )


def _head(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    labels = ", ".join(label.name for label in inference.labels)
    lines = [
        f"Inferred by easyrec-mm group from {grouped.num_rows:,} rows of {options.input} that train.",
        f"  easyrec-mm train --pipeline_config {options.pipeline_config_template}",
        "Look through it: no feature may hold what is known only after the impression, as the time of viewing.",
    ]
    if inference.are_labels_guessed:
        lines.append(f"Labels were guessed by name and values: {labels}. --label_fields tells others.")
    lines += [f"Note: {note}." for note in inference.notes]
    lines += [f"No feature: {name}: {why}." for name, why in inference.left_out.items()]
    return lines


def _paths(options: GroupOptions, grouped: Grouped) -> list[str]:
    lines = [f"train_input_path: {_text(grouped.train_path)}"]
    if grouped.eval_path:
        lines.append(f"eval_input_path: {_text(grouped.eval_path)}")
    else:
        lines += _comment("", ["No eval_input_path: --split_by item, user or time sets rows apart to evaluate."])
    return [*lines, f"model_dir: {_text(options.output.rstrip('/') + '_model')}"]


def _data(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    size = grouped.num_rows / max(grouped.num_groups, 1)
    lines = [f"input_type: {INPUT_TYPES[options.format]}"]
    lines += _comment("", [f"Groups; {size:.1f} samples each on average."])
    lines.append(f"batch_size: {_batch_size(grouped)}")
    if options.format == "rtp":
        layout = RtpLayout.of(len(inference.labels), options.rtp_separator)
        columns = (*layout.label_columns, layout.features_column, layout.image_column, layout.size_column)
        lines.append(f"rtp_separator: {_text(layout.column_separator)}")
        lines.append(f"group_sample_separator: {_text(layout.sample_separator)}")
        lines.append(f"separator: {_text(layout.value_separator)}")
        lines.append(f'selected_cols: "{",".join(map(str, columns))}"')
    lines += [f"label_fields: {_text(label.name)}" for label in inference.labels]
    lines += _comment("", ["Groups are shuffled within and over the shards already."])
    lines.append(f"shuffle_buffer_size: {min(_SHUFFLE_GROUPS, max(grouped.num_groups, 1))}")
    is_packed = options.embed_images and "packed_images" in DatasetConfig.DESCRIPTOR.fields_by_name
    if options.image_root and not is_packed:
        lines.append(f"image_root: {_text(options.image_root)}")
    if is_packed:
        lines += _comment("", ["Pictures are in tar files beside the shards."])
        lines.append("packed_images: true")
    for one in inference.fields:
        lines += _input_field(one)
    lines.append(f"input_fields {{ input_name: {_text(GROUP_SIZE)} input_type: INT64 }}")
    return _block("data_config", lines)


def _input_field(one: FieldPlan) -> list[str]:
    default = "" if one.default is None else f" default_val: {_text(_value(one.default))}"
    return [f"input_fields {{ input_name: {_text(one.name)} input_type: {_FIELD_TYPES[one.kind]}{default} }}"]


def _features(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    lines: list[str] = []
    for feature in inference.features:
        lines += _comment("", [feature.why + ("; the same for all rows of an item" if _is_per_group(feature) else "")])
        settings = "".join(f" {name}: {_value(value)}" for name, value in feature.settings.items())
        text = f"features {{ input_names: {_text(feature.name)} feature_type: {feature.feature_type}{settings} }}"
        lines += [text] if len(text) <= 118 else _long_feature(feature)
    (width, height), why = _image_size(options, grouped)
    lines += _comment("", [why])
    shape = f"img_shape {{ width: {width} height: {height} }}"
    lines.append(f"features {{ input_names: {_text(options.image_field)} feature_type: ImgFeature {shape} }}")
    lines.append(f"features {{ input_names: {_text(GROUP_SIZE)} feature_type: SampleNumFeature }}")
    return _block("feature_config", lines)


def _is_per_group(feature: FeaturePlan) -> bool:
    return bool(feature.settings.get("per_group"))


def _long_feature(feature: FeaturePlan) -> list[str]:
    lines = [f"input_names: {_text(feature.name)}", f"feature_type: {feature.feature_type}"]
    for name, value in feature.settings.items():
        lines += textwrap.wrap(f"{name}: {_value(value)}", 110, break_long_words=False, break_on_hyphens=False)
    return _block("features", lines)


def _model(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    names = [feature.name for feature in inference.features]
    lines = [
        'model_class: "E2E_MM_DBMTL"',
        f'feature_groups {{ group_name: "img" feature_names: {_text(options.image_field)} }}',
        f'feature_groups {{ group_name: "sample_num" feature_names: {_text(GROUP_SIZE)} }}',
        *_block("feature_groups", ['group_name: "all"', *(f"feature_names: {_text(name)}" for name in names)]),
        "embedding_regularization: 1e-6",
    ]
    return _block("model_config", lines + _block("e2e_mm_dbmtl", _network(options, inference, grouped)))


def _network(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    units = (256, 128) if grouped.num_rows >= 1_000_000 else (128, 64)
    lines = []
    if grouped.num_rows_without_picture:
        lines += _comment(
            "", [f"{grouped.num_rows_without_picture:,} rows have no picture: they take a trained vector."]
        )
        lines.append('img_model { model_name: "ResNet" num_classes: 16 no_image_vector: true }')
    else:
        lines.append('img_model { model_name: "ResNet" num_classes: 16 }')
    lines.append('highway_dnn { input: "img" emb_size: 16 }')
    lines.append(f"bottom_dnn {{ hidden_units: [{units[0]}, {units[1]}] }}")
    labels = sorted(inference.labels, key=lambda label: not label.is_binary)
    for label in labels:
        lines += _tower(label, labels[0], units[1], options)
    return [*lines, "l2_regularization: 1e-6"]


def _tower(label: LabelPlan, first: LabelPlan, units: int, options: GroupOptions) -> list[str]:
    name = _text(label.name)
    lines = [f"tower_name: {name}", f"label_name: {name}"]
    if label.is_binary:
        metrics = ["auc {}", "log_loss {}", "calibration {}"]
        if options.user_field:
            metrics.insert(1, f"gauc {{ uid_field: {_text(options.user_field)} }}")
        why = f"{_percent(label.mean)} of the rows are 1."
        lines.append("loss_type: CLASSIFICATION")
    else:
        metrics = ["root_mean_squared_error {}", "mean_absolute_error {}"]
        why = (
            f"A number: mean {label.mean:.4g}, variance {label.variance:.4g}; the weight makes it as heavy as a click."
        )
        lines.append("loss_type: L2_LOSS")
        lines.append(f"weight: {_weight(label.variance):.1g}")
    lines += [f"metrics_set {{ {metric} }}" for metric in metrics]
    lines.append(f"dnn {{ hidden_units: [{units}, {units // 2}] }}")
    if label is not first:
        lines.append(f"relation_tower_names: {_text(first.name)}")
    lines.append(f"relation_dnn {{ hidden_units: {units // 4} }}")
    return [*_comment("", [why]), *_block("task_towers", lines)]


def _weight(variance: float) -> float:
    """Of a number's squared error, so that it counts as much as that of a label of 0 and 1 at most does."""
    return min(max(0.25 / variance, 1e-6), 1.0) if variance > 0 else 1.0


def _percent(share: float) -> str:
    return f"{share:.3g}" if share < 0.001 else f"{100 * share:.3g} %"


def _training(options: GroupOptions, grouped: Grouped) -> list[str]:
    num_steps = max(1, math.ceil(grouped.num_groups / _batch_size(grouped)))
    # At most half of an epoch: one epoch must leave steps behind it.
    warmup_steps = min(_WARMUP_STEPS, num_steps // 2)
    rate = ["learning_rate_base: 0.002", "warmup_learning_rate: 0.0002", f"warmup_steps: {warmup_steps}"]
    optimizer = ["weight_decay: 0.1", *_block("learning_rate", _block("cosine_decay_learning_rate", rate))]
    lines = _block("optimizer_config", _block("adamw_optimizer", optimizer))
    lines += _comment("", [f"An epoch has {num_steps:,} steps. The learning rate falls to 0 with the last epoch."])
    lines += [f"num_epochs: {_NUM_EPOCHS}", "save_checkpoints_epochs: 1"]
    lines.append(f"save_summary_steps: {min(100, max(1, num_steps // 20))}")
    export = f"export_config {{ multi_placeholder: true img_input_name: {_text(options.image_field)} }}"
    evaluation = []
    if grouped.eval_path:
        evaluation = [*_comment("", ["Every checkpoint is evaluated."]), "eval_config { eval_interval_secs: 0 }", ""]
    return [*_block("train_config", lines), "", *evaluation, export]


def _batch_size(grouped: Grouped) -> int:
    """A power of 2 with about _BATCH_SAMPLES samples, and several batches an epoch."""
    size = grouped.num_rows / max(grouped.num_groups, 1)
    wanted = min(_BATCH_SAMPLES / size, max(grouped.num_groups / 8, 1))
    return min(max(1 << round(math.log2(wanted)), _MIN_BATCH), _MAX_BATCH)


def _image_size(options: GroupOptions, grouped: Grouped) -> tuple[tuple[int, int], str]:
    if options.image_size:
        return options.image_size, "The size to which --image_size made the pictures."
    shorter = []
    for path in grouped.pictures[:_NUM_PICTURES]:
        try:
            with Image.open(io.BytesIO(read(join(options.image_root, path)))) as picture:
                shorter.append(min(picture.size))
        except (OSError, StorageError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    if not shorter:
        return (224, 224), "No picture could be looked at; the size is that of most pretrained backbones."
    side = max([one for one in _SIDES if one <= median(shorter)], default=_SIDES[0])
    return (side, side), f"The shorter side of {len(shorter)} pictures is {median(shorter):g} pixels (median)."


# --- Text format


def _block(name: str, lines: Iterable[str]) -> list[str]:
    return [f"{name} {{", *(f"  {line}" if line else "" for line in lines), "}"]


def _comment(indent: str, lines: Iterable[str]) -> list[str]:
    def wrap(line: str) -> list[str]:
        # Paths and commands stay whole.
        return textwrap.wrap(line, 112, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]

    return [f"{indent}# {part}" for line in lines for part in wrap(line)]


def _text(value: str) -> str:
    return f'"{text_encoding.CEscape(value.encode(), as_utf8=True)}"'


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return _text(value) if isinstance(value, str) else str(value)
