"""Writes the text of a pipeline config for grouped samples, with comments that explain the inferred settings."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_encoding

from easyrec_mm.config.feature_groups import wide_name
from easyrec_mm.features.field import Kind
from easyrec_mm.formats.rtp import selected_columns, written_layout
from easyrec_mm.grouping.options import GROUP_SIZE, GroupOptions
from easyrec_mm.grouping.plans import FeaturePlan, FieldPlan, Inference, LabelPlan
from easyrec_mm.protos.data_pb2 import DatasetConfig

INPUT_TYPES = {"parquet": "GroupParquetInput", "tfrecord": "GroupTFRecordInput", "rtp": "GroupRTPInput"}
_FIELD_TYPES: dict[Kind, str] = {
    "int64": "INT64",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "bool": "BOOL",
    "string": "STRING",
}
# Target number of samples per batch, and limits for the number of groups per batch.
_BATCH_SAMPLES, _MIN_BATCH, _MAX_BATCH = 1024, 8, 256
# Target number of rows to train on in all epochs together, and maximum number of epochs.
_ROWS_TO_SEE, _MOST_EPOCHS = 8_000_000, 8
# Expected standard deviation of the number that a value of a wide feature adds to the logits; and the product of
# embedding_regularization and the number of samples per batch.
_WIDE_DEVIATION, _EMBEDDING_PENALTY = 0.4, 0.03
# Backbone without pretrained weights; and side of pictures at which pretrained backbones are accurate and fast enough.
_RANDOM_BACKBONE, _PRESET_SIDE = "None", 192
_SMALL_START = "Embeddings start small, so that the effect of a value is learned and not random."
_PRODUCTS = (
    "Products of features, and of the picture with each feature, add to what the layers can learn. They are scaled up, "
    "because products of small embeddings are so small that some seeds do not learn from them."
)
_NO_BATCH_NORM = (
    "No batch normalisation: a batch has few items, so its statistics in training differ from those at evaluation."
)
_WARMUP_STEPS = 50
# Share of the training during which the learning rate of img_dnn rises.
_IMAGE_WARMUP = 1 / 4
_SHUFFLE_GROUPS = 4096
# Default side of pictures.
_SIDE = 64


@dataclass(frozen=True)
class Grouped:
    """The written files for training and evaluation ("" for none), and the numbers of groups and rows that train."""

    train_path: str
    eval_path: str
    num_groups: int
    num_rows: int
    num_rows_without_picture: int


def template(options: GroupOptions, inference: Inference, grouped: Grouped) -> str:
    """Return the text of the config, which load_pipeline can read."""
    return "\n".join(
        [
            *_comment("", _head(options, inference, grouped)),
            *_paths(options, grouped),
            "",
            *_data(options, inference, grouped),
            "",
            *_features(options, inference),
            "",
            *_model(options, inference, grouped),
            "",
            *_training(options, inference, grouped),
            "",
        ]
    )


def _head(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    labels = ", ".join(label.name for label in inference.labels)
    lines = [
        f"Inferred by easyrec-mm group from {grouped.num_rows:,} training rows of {options.input}.",
        f"  easyrec-mm train --pipeline_config {options.pipeline_config_template}",
        "Check it: no feature may contain what is known only after the impression, such as the viewing time.",
    ]
    if inference.are_labels_guessed:
        lines.append(f"Labels were guessed from names and values: {labels}. Choose others with --label_fields.")
    lines += [f"Note: {note}." for note in inference.notes]
    lines += [f"No feature: {name}: {why}." for name, why in inference.left_out.items()]
    if inference.left_out:
        lines.append("To make a feature of such a column anyway, use --columns +NAME of easyrec-mm group.")
    return lines


def _paths(options: GroupOptions, grouped: Grouped) -> list[str]:
    lines = [f"train_input_path: {_text(grouped.train_path)}"]
    if grouped.eval_path:
        lines.append(f"eval_input_path: {_text(grouped.eval_path)}")
    else:
        lines += _comment("", ["No eval_input_path: --split_by item, user or time:<column> keeps rows for evaluation."])
    return [*lines, f"model_dir: {_text(options.output.rstrip('/') + '_model')}"]


def _data(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    size = grouped.num_rows / max(grouped.num_groups, 1)
    lines = [f"input_type: {INPUT_TYPES[options.format]}"]
    lines += _comment("", [f"Groups; {size:.1f} samples each on average."])
    lines.append(f"batch_size: {_batch_size(grouped)}")
    if options.format == "rtp":
        layout = written_layout(len(inference.labels), options.rtp_separator)
        lines.append(f"rtp_separator: {_text(layout.column_separator)}")
        lines.append(f"group_sample_separator: {_text(layout.sample_separator)}")
        lines.append(f"separator: {_text(layout.value_separator)}")
        lines.append(f"selected_cols: {_text(selected_columns(layout))}")
    lines += [f"label_fields: {_text(label.name)}" for label in inference.labels]
    lines += _comment("", ["Groups are already shuffled within and across shards."])
    lines.append(f"shuffle_buffer_size: {min(_SHUFFLE_GROUPS, max(grouped.num_groups, 1))}")
    is_packed = options.embed_images and "packed_images" in DatasetConfig.DESCRIPTOR.fields_by_name
    if options.image_root and not is_packed:
        lines.append(f"image_root: {_text(options.image_root)}")
    if is_packed:
        lines += _comment("", ["Pictures are in tar files beside the shards."])
        lines.append("packed_images: true")
    for field in inference.fields:
        lines += _input_field(field)
    lines.append(f"input_fields {{ input_name: {_text(GROUP_SIZE)} input_type: INT64 }}")
    return _block("data_config", lines)


def _input_field(field: FieldPlan) -> list[str]:
    default = ""
    if field.default is not None:
        text = field.default if isinstance(field.default, str) else _value(field.default)
        default = f" default_val: {_text(text)}"
    return [f"input_fields {{ input_name: {_text(field.name)} input_type: {_FIELD_TYPES[field.kind]}{default} }}"]


def _features(options: GroupOptions, inference: Inference) -> list[str]:
    lines = [*_comment("", [_SMALL_START]), "initializer { truncated_normal_initializer { stddev: 0.1 } }"]
    for feature in inference.features:
        lines += _comment("", [feature.why + ("; the same for all rows of an item" if _is_per_group(feature) else "")])
        settings = "".join(f" {name}: {_value(value)}" for name, value in feature.settings.items())
        column, kind = _text(feature.column or feature.name), feature.feature_type
        text = f"features {{ input_names: {column} feature_type: {kind}{settings} }}"
        lines += [text] if len(text) <= 118 else _long_feature(feature)
    width, height = _image_size(options)
    shape = f"img_shape {{ width: {width} height: {height} }}"
    lines.append(f"features {{ input_names: {_text(options.image_field)} feature_type: ImgFeature {shape} }}")
    lines.append(f"features {{ input_names: {_text(GROUP_SIZE)} feature_type: SampleNumFeature }}")
    return _block("feature_config", lines)


def _is_per_group(feature: FeaturePlan) -> bool:
    return bool(feature.settings.get("per_group"))


def _long_feature(feature: FeaturePlan) -> list[str]:
    lines = [f"input_names: {_text(feature.column or feature.name)}", f"feature_type: {feature.feature_type}"]
    for name, value in feature.settings.items():
        lines += _list(name, value) if isinstance(value, list) else [f"{name}: {_value(value)}"]
    return _block("features", lines)


def _list(name: str, values: list[Any]) -> list[str]:
    """Return the setting of a list in lines of limited width, which are never broken within a value."""
    lines = [f"{name}: ["]
    for number, value in enumerate(values, 1):
        text = _value(value) + ("]" if number == len(values) else ", ")
        if len(lines[-1]) + len(text) > 111:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += text
    return lines


def _model(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    wide = _wide(inference)
    names = [feature.name for feature in inference.features if feature not in wide]
    lines = [
        'model_class: "E2E_MM_DBMTL"',
        f'feature_groups {{ group_name: "img" feature_names: {_text(options.image_field)} }}',
        f'feature_groups {{ group_name: "sample_num" feature_names: {_text(GROUP_SIZE)} }}',
        *_block("feature_groups", ['group_name: "all"', *(f"feature_names: {_text(name)}" for name in names)]),
    ]
    for feature in wide:
        factor = 1 / (_WIDE_DEVIATION**2 * feature.wide_rows)
        lines += _comment("", [f"The expected size of what a value adds to the logits is {_WIDE_DEVIATION:g}."])
        lines += _block(
            "feature_groups",
            [
                f"group_name: {_text(wide_name(feature.name))}",
                f"wide_deep: WIDE wide_regularization: {factor:.2g} feature_names: {_text(feature.name)}",
            ],
        )
    samples = _batch_size(grouped) * grouped.num_rows / max(grouped.num_groups, 1)
    lines.append(f"embedding_regularization: {_EMBEDDING_PENALTY / samples:.1g}")
    return _block("model_config", lines + _block("e2e_mm_dbmtl", _network(options, inference, grouped)))


def _wide(inference: Inference) -> list[FeaturePlan]:
    """Return the features that add to the logits; none if there are no other features."""
    wide = [feature for feature in inference.features if feature.wide_rows]
    return wide if len(wide) < len(inference.features) else []


def _network(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    units = (256, 128) if grouped.num_rows >= 1_000_000 else (128, 64)
    lines = _image_tower(options, grouped)
    lines += _comment("", [_NO_BATCH_NORM])
    lines.append("use_feature_bn: false")
    lines += _comment("", [_PRODUCTS])
    lines.append("dot_interaction { dim: 32 scale: 4 }")
    lines.append(f"bottom_dnn {{ hidden_units: [{units[0]}, {units[1]}] use_bn: false }}")
    labels = sorted(inference.labels, key=lambda label: not label.is_binary)
    for label in labels:
        lines += _tower(label, labels[0], units[1], options, inference.has_user_ids)
    return [*lines, "l2_regularization: 0"]


def _image_tower(options: GroupOptions, grouped: Grouped) -> list[str]:
    lines: list[str] = []
    if options.preset:
        width, height = _image_size(options)
        lines.append(f"preset: {_text(options.preset)}")
        upscale = _PRESET_SIDE // max(width, height)
        if upscale > 1:
            lines += _comment(
                "", [f"Enlarges pictures to about the size that the backbone was trained on, {_PRESET_SIDE} pixels."]
            )
            lines.append(f"upscale: {upscale}")
    else:
        lines.append(f"model_name: {_text(_RANDOM_BACKBONE)}")
    lines += _comment("", ["The backbone is frozen, and runs once per distinct picture."])
    lines.append("trainable: HEAD")
    lines += _comment("", ["img_dnn reads the output of the backbone without a projection, and the colours and edges."])
    lines += ["num_classes: 0", "descriptors {}", "normalize_features: true"]
    if grouped.num_rows_without_picture:
        lines += _comment(
            "", [f"{grouped.num_rows_without_picture:,} rows have no picture: they get a trained vector."]
        )
        lines.append("no_image_vector: true")
    head = ["hidden_units: [512, 16]", "dropout_ratio: [0.5, 0]", "use_bn: false"]
    return [*_block("img_model", lines), f"img_dnn {{ {' '.join(head)} }}"]


def _tower(label: LabelPlan, first: LabelPlan, units: int, options: GroupOptions, has_user_ids: bool) -> list[str]:
    name = _text(label.name)
    lines = [f"tower_name: {name}", f"label_name: {name}"]
    if label.is_binary:
        metrics = ["auc {}", "log_loss {}", "calibration {}"]
        if has_user_ids:
            metrics.insert(1, f"gauc {{ uid_field: {_text(options.user_field)} }}")
        why = f"{_percent(label.mean)} of the rows are 1."
        lines.append("loss_type: CLASSIFICATION")
    else:
        metrics = ["root_mean_squared_error {}", "mean_absolute_error {}"]
        why = (
            f"A number: mean {label.mean:.4g}, variance {label.variance:.4g}; the weight scales its loss to that of a "
            "label of 0 and 1."
        )
        lines.append("loss_type: L2_LOSS")
        lines.append(f"weight: {_weight(label.variance):.1g}")
    lines += [f"metrics_set {{ {metric} }}" for metric in metrics]
    lines.append(f"dnn {{ hidden_units: [{units}, {units // 2}] use_bn: false }}")
    if label is not first:
        lines.append(f"relation_tower_names: {_text(first.name)}")
    lines.append(f"relation_dnn {{ hidden_units: {units // 4} use_bn: false }}")
    return [*_comment("", [why]), *_block("task_towers", lines)]


def _weight(variance: float) -> float:
    """Return the weight that reduces a number's variance to 0.25, the greatest variance of a label of 0 and 1."""
    return min(max(0.25 / variance, 1e-6), 1.0) if variance > 0 else 1.0


def _percent(share: float) -> str:
    return f"{share:.3g}" if share < 0.001 else f"{100 * share:.3g} %"


def _training(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    num_steps = max(1, math.ceil(grouped.num_groups / _batch_size(grouped)))
    num_epochs = min(max(_ROWS_TO_SEE // max(grouped.num_rows, 1), 1), _MOST_EPOCHS)
    # At most half of an epoch, so that a training of one epoch has steps after the warm-up.
    warmup_steps = min(_WARMUP_STEPS, num_steps // 2)
    lines = _optimizer(0.002, 0.1, warmup_steps, 0.0002)
    if _wide(inference):
        lines += _comment("", ["A higher rate, because few rows train the number of each value."])
        names = [f"embedding/{wide_name(feature.name)}$" for feature in _wide(inference)]
        lines += _optimizer(0.01, 0.1, warmup_steps, 0.001, names)
    lines += _comment(
        "",
        [
            "Strong weight decay, because otherwise single pictures are learned by heart.",
            "The rate rises slowly, so that what other features also show is learned from those.",
        ],
    )
    lines += _optimizer(0.002, 7, int(_IMAGE_WARMUP * num_steps * num_epochs), 0, ["^image/img_dnn/"])
    lines += _comment("", [f"An epoch has {num_steps:,} steps. The learning rate falls to 0 with the last epoch."])
    lines += [f"num_epochs: {num_epochs}", "save_checkpoints_epochs: 1"]
    lines.append(f"save_summary_steps: {min(100, max(1, num_steps // 20))}")
    export = [f"multi_placeholder: true img_input_name: {_text(options.image_field)}"]
    evaluation = []
    if grouped.eval_path:
        item = f"item_id_field: {_text(options.group_by)}"
        evaluation = _comment("", ["Every checkpoint is evaluated; confidence intervals resample whole items."])
        evaluation += [f"eval_config {{ eval_interval_secs: 0 {item} }}", ""]
        binary = [label.name for label in inference.labels if label.is_binary]
        if binary:
            export.append(f'exporter_type: "best" best_exporter_metric: {_text(f"auc_{binary[0]}")}')
    return [*_block("train_config", lines), "", *evaluation, *_block("export_config", export)]


def _optimizer(
    rate: float, weight_decay: float, warmup_steps: int, first_rate: float, variables: Iterable[str] = ()
) -> list[str]:
    """Return an optimizer whose rate rises from `first_rate` to `rate` during warm-up, and then falls to 0."""
    schedule = [
        f"learning_rate_base: {rate:g}",
        f"warmup_learning_rate: {first_rate:g}",
        f"warmup_steps: {warmup_steps}",
    ]
    decay = _block("learning_rate", _block("cosine_decay_learning_rate", schedule))
    settings = [f"variables: {_text(pattern)}" for pattern in variables]
    settings += _block("adamw_optimizer", [f"weight_decay: {weight_decay:g}", *decay])
    return _block("optimizer_config", settings)


def _batch_size(grouped: Grouped) -> int:
    """Return a power of 2 that gives about _BATCH_SAMPLES samples per batch, and several batches per epoch."""
    size = grouped.num_rows / max(grouped.num_groups, 1)
    target = min(_BATCH_SAMPLES / size, max(grouped.num_groups / 8, 1))
    power = max(round(math.log2(target)), 0)  # a group may be larger than the target
    return min(max(1 << power, _MIN_BATCH), _MAX_BATCH)


def _image_size(options: GroupOptions) -> tuple[int, int]:
    """Return the width and height of the pictures in the network's input."""
    return options.image_size or (_SIDE, _SIDE)


# --- Text format


def _block(name: str, lines: Iterable[str]) -> list[str]:
    return [f"{name} {{", *(f"  {line}" if line else "" for line in lines), "}"]


def _comment(indent: str, lines: Iterable[str]) -> list[str]:
    def wrap(line: str) -> list[str]:
        # Paths and commands are not broken into two lines.
        return textwrap.wrap(line, 112, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]

    return [f"{indent}# {part}" for line in lines for part in wrap(line)]


def _text(value: str) -> str:
    return f'"{text_encoding.CEscape(value.encode(), as_utf8=True)}"'


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(entry) for entry in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return _text(value) if isinstance(value, str) else str(value)
