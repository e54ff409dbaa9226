"""Writes the text of a pipeline config, with comments that explain its sections and the inferred settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from easyrec_mm.config.feature_groups import wide_name
from easyrec_mm.features.field import Kind
from easyrec_mm.formats.rtp import selected_columns, written_layout
from easyrec_mm.grouping import sections, text_lines
from easyrec_mm.grouping.config_text import block, comment, quoted, setting
from easyrec_mm.grouping.options import GroupOptions
from easyrec_mm.grouping.plans import FeaturePlan, FieldPlan, Inference, LabelPlan
from easyrec_mm.protos.data_pb2 import DatasetConfig

FLAT_INPUT_TYPES = ("CSVInput", "ParquetInput")
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
    """The files of the samples.

    train_path, eval_path     the files for training and evaluation; "" for none
    model_dir                 folder for the training
    input_type                their format, as configs name it
    size_field                field of the size of a group; "" for none
    num_groups, num_rows      numbers of groups and rows that train
    num_rows_without_picture  number of these rows that have no picture
    """

    train_path: str
    eval_path: str
    model_dir: str
    input_type: str
    size_field: str
    num_groups: int
    num_rows: int
    num_rows_without_picture: int = 0

    @property
    def is_flat(self) -> bool:
        """Return whether a row of the files is a sample, not a group."""
        return self.input_type in FLAT_INPUT_TYPES


def template(head: list[str], options: GroupOptions, inference: Inference, grouped: Grouped) -> str:
    """Return the text of the config, which load_pipeline can read.

    Args:
      head: the comment at its beginning.
      options: names of columns, and settings of the pictures.
      inference: the columns.
      grouped: the files.
    """
    return "\n".join(
        [
            *comment([*head, *_remarks(inference)]),
            "",
            *_paths(grouped),
            "",
            *_data(options, inference, grouped),
            "",
            *_features(options, inference, grouped),
            "",
            *_model(options, inference, grouped),
            "",
            *_training(options, inference, grouped),
            "",
        ]
    )


def head_of_group(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    """Return the head of a config that `group` writes."""
    labels = ", ".join(label.name for label in inference.labels)
    lines = [
        f"Inferred by easyrec-mm group from {grouped.num_rows:,} training rows of {options.input}.",
        f"  easyrec-mm train --pipeline_config {options.pipeline_config_template}",
        "Check it: no feature may contain what is known only after the impression, such as the viewing time.",
    ]
    if inference.are_labels_guessed:
        lines.append(f"Labels were guessed from names and values: {labels}. Choose others with --label_fields.")
    if inference.left_out:
        lines.append("To make a feature of a column without one, use --columns +NAME of easyrec-mm group.")
    return lines


def _remarks(inference: Inference) -> list[str]:
    lines = [f"Note: {note}." for note in inference.notes]
    return lines + [f"No feature: {name}: {why}." for name, why in inference.left_out.items()]


def _paths(grouped: Grouped) -> list[str]:
    lines = comment([sections.PATHS])
    lines += [f"train_input_path: {quoted(grouped.train_path)}"]
    if grouped.eval_path:
        lines.append(f"eval_input_path: {quoted(grouped.eval_path)}")
    else:
        lines += comment(
            ["No eval_input_path: group --split_by item, user or time:<column> keeps rows for evaluation."]
        )
    return [*lines, f"model_dir: {quoted(grouped.model_dir)}"]


def _data(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    size = grouped.num_rows / max(grouped.num_groups, 1)
    lines = [f"input_type: {grouped.input_type}"]
    if grouped.input_type == "CSVInput":
        lines.append(f"with_header: true separator: {quoted(options.separator)}")
    lines += comment(["Rows." if grouped.is_flat else f"Groups; {size:.1f} samples each on average."])
    lines.append(f"batch_size: {_batch_size(grouped)}")
    if grouped.input_type == INPUT_TYPES["rtp"]:
        layout = written_layout(len(inference.labels), options.rtp_separator)
        lines.append(f"rtp_separator: {quoted(layout.column_separator)}")
        lines.append(f"group_sample_separator: {quoted(layout.sample_separator)}")
        lines.append(f"separator: {quoted(layout.value_separator)}")
        lines.append(f"selected_cols: {quoted(selected_columns(layout))}")
    lines += [f"label_fields: {quoted(label.name)}" for label in inference.labels]
    if grouped.is_flat:
        lines += comment(["Rows with the same picture come together as far as this buffer holds them."])
    else:
        lines += comment(["Files of easyrec-mm group are already shuffled; data sorted by item or day need more."])
    lines.append(f"shuffle_buffer_size: {min(_SHUFFLE_GROUPS, max(grouped.num_groups, 1))}")
    is_packed = options.embed_images and "packed_images" in DatasetConfig.DESCRIPTOR.fields_by_name
    if options.image_root and not is_packed:
        lines.append(f"image_root: {quoted(options.image_root)}")
    if is_packed:
        lines += comment(["Pictures are in tar files beside the shards."])
        lines.append("packed_images: true")
    for field in inference.fields:
        lines += _input_field(field)
    if grouped.size_field:
        lines.append(f"input_fields {{ input_name: {quoted(grouped.size_field)} input_type: INT64 }}")
    return [*comment([sections.DATA]), *block("data_config", lines)]


def _input_field(field: FieldPlan) -> list[str]:
    default = ""
    if field.default is not None:
        value = field.default if isinstance(field.default, str) else setting(field.default)
        default = f" default_val: {quoted(value)}"
    return [f"input_fields {{ input_name: {quoted(field.name)} input_type: {_FIELD_TYPES[field.kind]}{default} }}"]


def _features(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    lines = [*comment([_SMALL_START]), "initializer { truncated_normal_initializer { stddev: 0.1 } }"]
    for feature in inference.features:
        lines += comment([feature.why + ("; the same for all rows of an item" if _is_per_group(feature) else "")])
        settings = "".join(f" {name}: {setting(value)}" for name, value in feature.settings.items())
        column, kind = quoted(feature.column or feature.name), feature.feature_type
        line = f"features {{ input_names: {column} feature_type: {kind}{settings} }}"
        lines += [line] if len(line) <= 118 else _long_feature(feature)
    lines += text_lines.feature(inference.texts)
    width, height = _image_size(options)
    shape = f"img_shape {{ width: {width} height: {height} }}"
    lines.append(f"features {{ input_names: {quoted(options.image_field)} feature_type: ImgFeature {shape} }}")
    if grouped.size_field:
        lines.append(f"features {{ input_names: {quoted(grouped.size_field)} feature_type: SampleNumFeature }}")
    return [*comment([sections.FEATURES]), *block("feature_config", lines)]


def _is_per_group(feature: FeaturePlan) -> bool:
    return bool(feature.settings.get("per_group"))


def _long_feature(feature: FeaturePlan) -> list[str]:
    lines = [f"input_names: {quoted(feature.column or feature.name)}", f"feature_type: {feature.feature_type}"]
    for name, value in feature.settings.items():
        lines += _list(name, value) if isinstance(value, list) else [f"{name}: {setting(value)}"]
    return block("features", lines)


def _list(name: str, values: list[Any]) -> list[str]:
    """Return the setting of a list in lines of limited width, which are never broken within a value."""
    lines = [f"{name}: ["]
    for number, value in enumerate(values, 1):
        text = setting(value) + ("]" if number == len(values) else ", ")
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
        f'feature_groups {{ group_name: "img" feature_names: {quoted(options.image_field)} }}',
    ]
    lines += text_lines.feature_group(inference.texts)
    if grouped.size_field:
        lines.append(f'feature_groups {{ group_name: "sample_num" feature_names: {quoted(grouped.size_field)} }}')
    lines += block("feature_groups", ['group_name: "all"', *(f"feature_names: {quoted(name)}" for name in names)])
    for feature in wide:
        factor = 1 / (_WIDE_DEVIATION**2 * feature.wide_rows)
        lines += comment([f"The expected size of what a value adds to the logits is {_WIDE_DEVIATION:g}."])
        lines += block(
            "feature_groups",
            [
                f"group_name: {quoted(wide_name(feature.name))}",
                f"wide_deep: WIDE wide_regularization: {factor:.2g} feature_names: {quoted(feature.name)}",
            ],
        )
    samples = _batch_size(grouped) * grouped.num_rows / max(grouped.num_groups, 1)
    lines.append(f"embedding_regularization: {_EMBEDDING_PENALTY / samples:.1g}")
    lines += block("e2e_mm_dbmtl", _network(options, inference, grouped))
    return [*comment([sections.MODEL]), *block("model_config", lines)]


def _wide(inference: Inference) -> list[FeaturePlan]:
    """Return the features that add to the logits; none if there are no other features."""
    wide = [feature for feature in inference.features if feature.wide_rows]
    return wide if len(wide) < len(inference.features) else []


def _network(options: GroupOptions, inference: Inference, grouped: Grouped) -> list[str]:
    units = (256, 128) if grouped.num_rows >= 1_000_000 else (128, 64)
    lines = _image_tower(options, grouped) + text_lines.tower(inference.texts)
    lines += comment([_NO_BATCH_NORM])
    lines.append("use_feature_bn: false")
    lines += comment([_PRODUCTS])
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
        lines.append(f"preset: {quoted(options.preset)}")
        upscale = _PRESET_SIDE // max(width, height)
        if upscale > 1:
            lines += comment(
                [f"Enlarges pictures to about the size that the backbone was trained on, {_PRESET_SIDE} pixels."]
            )
            lines.append(f"upscale: {upscale}")
    else:
        lines.append(f"model_name: {quoted(_RANDOM_BACKBONE)}")
    lines += comment(["The backbone is frozen, and runs once per distinct picture."])
    lines.append("trainable: HEAD")
    lines += comment(["img_dnn reads the output of the backbone without a projection, and the colours and edges."])
    lines += ["num_classes: 0", "descriptors {}", "normalize_features: true"]
    if grouped.num_rows_without_picture:
        lines += comment([f"{grouped.num_rows_without_picture:,} rows have no picture: they get a trained vector."])
        lines.append("no_image_vector: true")
    head = ["hidden_units: [512, 16]", "dropout_ratio: [0.5, 0]", "use_bn: false"]
    return [*block("img_model", lines), f"img_dnn {{ {' '.join(head)} }}"]


def _tower(label: LabelPlan, first: LabelPlan, units: int, options: GroupOptions, has_user_ids: bool) -> list[str]:
    name = quoted(label.name)
    lines = [f"tower_name: {name}", f"label_name: {name}"]
    if label.is_binary:
        metrics = ["auc {}", "log_loss {}", "calibration {}"]
        if has_user_ids:
            metrics.insert(1, f"gauc {{ uid_field: {quoted(options.user_field)} }}")
        why = "0 or 1." if label.mean is None else f"{_percent(label.mean)} of the rows are 1."
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
        lines.append(f"relation_tower_names: {quoted(first.name)}")
    lines.append(f"relation_dnn {{ hidden_units: {units // 4} use_bn: false }}")
    return [*comment([why]), *block("task_towers", lines)]


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
        lines += comment(["A higher rate, because few rows train the number of each value."])
        names = [f"embedding/{wide_name(feature.name)}$" for feature in _wide(inference)]
        lines += _optimizer(0.01, 0.1, warmup_steps, 0.001, names)
    lines += comment(
        [
            "Strong weight decay, because otherwise single pictures are learned by heart.",
            "The rate rises slowly, so that what other features also show is learned from those.",
        ],
    )
    lines += _optimizer(0.002, 7, int(_IMAGE_WARMUP * num_steps * num_epochs), 0, ["^image/img_dnn/"])
    lines += comment([f"An epoch has {num_steps:,} steps. The learning rate falls to 0 with the last epoch."])
    lines += [f"num_epochs: {num_epochs}", "save_checkpoints_epochs: 1"]
    lines.append(f"save_summary_steps: {min(100, max(1, num_steps // 20))}")
    export = [f"multi_placeholder: true img_input_name: {quoted(options.image_field)}"]
    evaluation = []
    if grouped.eval_path:
        # The evaluation has no other use for the paths of pictures, by which items are known if they have no column.
        has_item = options.group_by != options.image_field
        item = f" item_id_field: {quoted(options.group_by)}" if has_item else ""
        evaluation = comment([sections.EVALUATION])
        evaluation += [f"eval_config {{ eval_interval_secs: 0{item} }}", ""]
        binary = [label.name for label in inference.labels if label.is_binary]
        if binary:
            export.append(f'exporter_type: "best" best_exporter_metric: {quoted(f"auc_{binary[0]}")}')
    training = [*comment([sections.TRAINING]), *block("train_config", lines)]
    return [*training, "", *evaluation, *comment([sections.EXPORT]), *block("export_config", export)]


def _optimizer(
    rate: float, weight_decay: float, warmup_steps: int, first_rate: float, variables: Iterable[str] = ()
) -> list[str]:
    """Return an optimizer whose rate rises from `first_rate` to `rate` during warm-up, and then falls to 0."""
    schedule = [
        f"learning_rate_base: {rate:g}",
        f"warmup_learning_rate: {first_rate:g}",
        f"warmup_steps: {warmup_steps}",
    ]
    decay = block("learning_rate", block("cosine_decay_learning_rate", schedule))
    settings = [f"variables: {quoted(pattern)}" for pattern in variables]
    settings += block("adamw_optimizer", [f"weight_decay: {weight_decay:g}", *decay])
    return block("optimizer_config", settings)


def _batch_size(grouped: Grouped) -> int:
    """Return a power of 2 that gives about _BATCH_SAMPLES samples per batch, and several batches per epoch."""
    size = grouped.num_rows / max(grouped.num_groups, 1)
    target = min(_BATCH_SAMPLES / size, max(grouped.num_groups / 8, 1))
    power = max(round(math.log2(target)), 0)  # a group may be larger than the target
    return min(max(1 << power, _MIN_BATCH), _MAX_BATCH)


def _image_size(options: GroupOptions) -> tuple[int, int]:
    """Return the width and height of the pictures in the network's input."""
    return options.image_size or (_SIDE, _SIDE)
