"""Checks the data, feature-group and label sections of a config and derives the Schema.

Every problem is collected with its config path, so that a user sees all of them at once. Never imports TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from easyrec_mm.config.feature_groups import (
    NO_IMAGE_GROUP,
    FeatureGroups,
    Named,
    feature_groups,
    wide_features,
    wide_name,
)  # fmt: skip
from easyrec_mm.config.features import derive_features, features_by_name
from easyrec_mm.config.image import PLACE, image_losses
from easyrec_mm.config.sequences import check_attentions, derive_attentions
from easyrec_mm.errors import Problems
from easyrec_mm.features.text_patterns import VALUE_PATTERNS, text_patterns
from easyrec_mm.protos import options_pb2
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.image_pb2 import ImgModel
from easyrec_mm.protos.loss_pb2 import LossType
from easyrec_mm.protos.model_pb2 import BayesTaskTower
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import NO_IMAGE, Activation, Dtype, Feature, Field, Image, RowLayout, Schema, Table, Task

DTYPES: dict[int, Dtype] = {
    DatasetConfig.INT32: "int64",
    DatasetConfig.INT64: "int64",
    DatasetConfig.BOOL: "bool",
    DatasetConfig.STRING: "string",
    DatasetConfig.FLOAT: "float32",
    DatasetConfig.DOUBLE: "float32",
}

# Inputs of lines.
GROUP_RTP = (DatasetConfig.GroupRTPInput, DatasetConfig.OdpsGroupRTPInput)
# Between the columns of a line that a row of a table becomes; not in any text that people use to write samples.
ODPS_SEPARATOR = "\x1f\x1e\x1f"


def derive_schema(config: EasyRecConfig, problems: Problems) -> Schema:
    """The Schema of a parsed config.

    Raises:
      ConfigError: with every problem of the data, feature and feature-group sections and of the towers' labels.
    """
    fields = _fields(config.data_config, problems)
    named = _named_features(config, fields, problems)
    image_name, image = _image(config, named, problems)
    size_field = _group_size_field(config.data_config, named, problems)
    labels = _labels(config, fields, problems)
    problems.raise_if_any()

    not_in_features = {*labels, image.field, size_field}
    sample_fields = tuple(field.name for field in fields if field.name not in not_in_features)
    layout = _layout(config.data_config, labels, sample_fields, bool(image.field), problems)
    groups = feature_groups(config.model_config, named, problems)
    tasks = _tasks(config, labels, problems)
    network = _network_features(config, named, image_name, groups, fields, layout, tasks, problems)
    _check_caches(config.data_config, bool(groups.image_group), problems)
    sample_weight = _sample_weight(config.data_config, fields, layout, labels, problems)
    problems.raise_if_any()
    tower = config.model_config.e2e_mm_dbmtl.img_model
    schema = Schema(
        fields=tuple(fields),
        labels=labels,
        sample_weight=sample_weight,
        features=network.features,
        tables=network.tables,
        image=image,
        uses_image=bool(groups.image_group),
        group_size_field=size_field,
        layout=layout,
        tasks=tasks,
        group_fields=_group_fields(config, named),
        image_features=network.image_features,
        category_feature=tower.category_feature,
        image_labels=_image_labels(tower, tasks, problems),
        image_separator=tower.image_separator,
        has_no_image_vector=tower.no_image_vector,
        attentions=derive_attentions(config.model_config, network.features, image_name, problems),
    )
    problems.raise_if_any()
    _check_defaults(schema, problems)
    return schema


class _NetworkFeatures(NamedTuple):
    """What the network reads: features and their tables, and the features that are read once per picture."""

    features: tuple[Feature, ...]
    tables: tuple[Table, ...]
    image_features: tuple[Feature, ...]


def _named_features(config: EasyRecConfig, fields: Sequence[Field], problems: Problems) -> Named:
    """Every feature of the config by name."""
    features = list(config.feature_config.features) or list(config.feature_configs)
    place = "feature_config.features" if config.feature_config.features else "feature_configs"
    if config.feature_config.features and config.feature_configs:
        problems.add("feature_configs", "feature_config.features is set too; keep one of the two")
    if not features:
        problems.add("feature_config.features", "is empty; the model needs features")
    return features_by_name(features, place, fields, problems)


def _network_features(
    config: EasyRecConfig,
    named: Named,
    image_name: str,
    groups: FeatureGroups,
    fields: Sequence[Field],
    layout: RowLayout,
    tasks: Sequence[Task],
    problems: Problems,
) -> _NetworkFeatures:
    """The features that feature groups, attentions and the image tower name."""
    uses_image = bool(groups.image_group)
    only_attended = check_attentions(config.model_config, groups.deep, named, image_name, uses_image, problems)
    wide = wide_features(groups.wide, named, sum(task.num_class for task in tasks), problems)
    used = [named[name] for name in (*groups.deep, *only_attended)] + wide
    by_name = {field.name: field for field in fields}
    initializer = config.feature_config.initializer if config.feature_config.HasField("initializer") else None
    features, tables = derive_features(used, config.data_config, layout, by_name, initializer, problems)
    of_images = _image_features(config, named, groups.deep, problems)
    image_features, _ = derive_features(of_images, config.data_config, layout, by_name, initializer, problems)
    wide_names = {wide_name(name) for name in groups.wide}
    features = tuple(
        replace(f, is_joined=f.name not in {*only_attended, *wide_names}, is_wide=f.name in wide_names)
        for f in features
    )
    return _NetworkFeatures(features, tables, image_features)


def _check_caches(data: DatasetConfig, uses_image: bool, problems: Problems) -> None:
    """Where copies of files are kept, and how pictures are stored."""
    for name in ("image_cache_dir", "file_cache_dir"):
        if "://" in getattr(data, name):
            problems.add(f"data_config.{name}", f"'{getattr(data, name)}' is not of this machine; give a folder of it")
    for name in ("image_cache_dir", "packed_images", "shuffled_pictures"):
        if getattr(data, name) and not uses_image:
            problems.add(f"data_config.{name}", f"has no effect: {NO_IMAGE_GROUP}; add one or remove this")
    for name in ("image_cache_dir", "image_root"):
        if data.packed_images and getattr(data, name):
            problems.add(f"data_config.{name}", "has no effect on packed_images, which lie beside the data; remove it")


def _check_defaults(schema: Schema, problems: Problems) -> None:
    """A default of a STRING field must be what the features that read it can take."""
    patterns = text_patterns(schema)
    for i, field in enumerate(schema.fields):
        fits = all(re.fullmatch(pattern, field.default) for pattern in patterns.get(field.name, []))
        if field.dtype == "string" and field.default and not fits:
            what = f"'{field.default}' is not of the form that the features of '{field.name}' need"
            problems.add(f"data_config.input_fields[{i}].default_val", f"{what}; give a value like those of the data")


def _fields(data: DatasetConfig, problems: Problems) -> list[Field]:
    fields: dict[str, Field] = {}
    if not data.input_fields:
        problems.add("data_config.input_fields", "is empty; list every field of a sample, in the order of the row")
    for i, item in enumerate(data.input_fields):
        place = f"data_config.input_fields[{i}]"
        if item.input_name in fields:
            problems.add(f"{place}.input_name", f"'{item.input_name}' is listed twice; remove one")
            continue
        dtype = DTYPES[item.input_type]
        default = item.default_val or ("" if dtype == "string" else "0")
        pattern = VALUE_PATTERNS.get(dtype)
        if pattern and not re.fullmatch(pattern, default):
            kind = DatasetConfig.FieldType.Name(item.input_type)
            problems.add(f"{place}.default_val", f"'{default}' is not a valid {kind}; give a number or remove it")
            default = "0"
        fields[item.input_name] = Field(item.input_name, dtype, default, item.HasField("default_val"))
    return list(fields.values())


def _only(kind: int, named: Named, why: str, problems: Problems) -> tuple[str, str, FeatureConfig] | None:
    """Name, path and config of the one feature of that type."""
    found = [(name, *item) for name, item in named.items() if item[1].feature_type == kind]
    type_name = FeatureConfig.FeatureType.Name(kind)
    if not found:
        problems.add("feature_config.features", f"has no {type_name}; add one: {why}")
        return None
    name, place, feature = found[0]
    for _, other, _ in found[1:]:
        problems.add(other, f"a second {type_name}; a group has one")
    if len(feature.input_names) != 1:
        problems.add(f"{place}.input_names", f"{type_name} reads one field, not {len(feature.input_names)}")
    return name, place, feature


def _image(config: EasyRecConfig, named: Named, problems: Problems) -> tuple[str, Image]:
    data = config.data_config
    if all(feature.feature_type != FeatureConfig.ImgFeature for _, feature in named.values()):
        return "", NO_IMAGE
    found = _only(FeatureConfig.ImgFeature, named, "it names the field of the image path", problems)
    if found is None:
        return "", NO_IMAGE
    name, place, feature = found
    if not feature.HasField("img_shape"):
        problems.add(f"{place}.img_shape", "is missing; give width and height in pixels")
    shape = feature.img_shape
    if shape.channel not in (1, 3):
        problems.add(f"{place}.img_shape.channel", f"{shape.channel} is not supported; choose 3 (RGB) or 1 (grey)")
    method = FeatureConfig.ResizeMethod.Name(feature.resize_method)
    pixels = data.max_image_pixels
    resize = ImgModel.Resize.Name(config.model_config.e2e_mm_dbmtl.img_model.resize)
    return name, Image(
        feature.input_names[0], shape.height, shape.width, shape.channel, method, feature.antialias, pixels, resize
    )


def _group_size_field(data: DatasetConfig, named: Named, problems: Problems) -> str:
    kinds = [feature.feature_type for _, feature in named.values()]
    if data.input_type not in GROUP_RTP and FeatureConfig.SampleNumFeature not in kinds:
        return ""  # tables say it by the length of their lists
    found = _only(FeatureConfig.SampleNumFeature, named, "it names the field of the group size", problems)
    return found[2].input_names[0] if found else ""


def _labels(config: EasyRecConfig, fields: Sequence[Field], problems: Problems) -> tuple[str, ...]:
    data = config.data_config
    by_name = {f.name: f for f in fields}
    if data.label_fields:
        labels = list(data.label_fields)
    else:
        towers = config.model_config.e2e_mm_dbmtl.task_towers
        named = {t.label_name for t in towers} | {t.task_space_indicator_label for t in towers}
        labels = [f.name for f in fields if f.name in named]
    for i, label in enumerate(labels):
        place = f"data_config.label_fields[{i}]"
        if label not in by_name:
            problems.unknown(place, "input field", label, by_name)
        elif labels.index(label) < i:
            problems.add(place, f"'{label}' is listed twice; remove one")
        elif by_name[label].dtype == "string":
            problems.add(place, f"'{label}' is a STRING field; a label is a number, make it INT32 or FLOAT")
    return tuple(labels)


def _layout(
    data: DatasetConfig, labels: tuple[str, ...], sample_fields: tuple[str, ...], has_image: bool, problems: Problems
) -> RowLayout:
    """Where the parts of a line stand; of other inputs than GroupRTP, the fields alone."""
    if data.with_header and data.input_type != DatasetConfig.CSVInput:
        problems.add("data_config.with_header", "has no effect but with input_type CSVInput; remove it")
    if data.input_type in GROUP_RTP:
        return _line_layout(data, labels, sample_fields, has_image, problems)
    kind = DatasetConfig.InputType.Name(data.input_type)
    if data.input_type == DatasetConfig.CSVInput and len(data.separator) != 1:
        problems.add("data_config.separator", f"{data.separator!r} does not split CSV; give one character")
    for setting in ("rtp_separator", "group_sample_separator", "selected_cols", "separator"):
        if data.HasField(setting) and not (setting == "separator" and data.input_type == DatasetConfig.CSVInput):
            problems.add(f"data_config.{setting}", f"has no effect with input_type {kind}; remove it")
    return RowLayout((), -1, -1, -1, sample_fields, "", "", "")


def _line_layout(
    data: DatasetConfig, labels: tuple[str, ...], sample_fields: tuple[str, ...], has_image: bool, problems: Problems
) -> RowLayout:
    columns = _selected_columns(data, labels, has_image, problems)
    num_labels = len(labels)
    is_table = data.input_type == DatasetConfig.OdpsGroupRTPInput
    if is_table and data.HasField("rtp_separator"):
        problems.add("data_config.rtp_separator", "has no effect with input_type OdpsGroupRTPInput; remove it")
    separators = {
        "rtp_separator": ODPS_SEPARATOR if is_table else data.rtp_separator,
        "group_sample_separator": data.group_sample_separator,
        "separator": data.separator,
    }
    for i, (name, value) in enumerate(separators.items()):
        if not value and name != "separator":
            hint = 'a control character that was lost in copying is written "\\001"'
            problems.add(f"data_config.{name}", f"is empty; give the character between the parts ({hint})")
        for other, other_value in list(separators.items())[:i]:
            if value and value == other_value:
                problems.add(f"data_config.{name}", f"{value!r} is also {other}; lines could not be split, change one")
    return RowLayout(
        label_columns=tuple(columns[:num_labels]),
        features_column=columns[num_labels],
        image_column=columns[num_labels + 1] if has_image else -1,
        size_column=columns[-1],
        sample_fields=sample_fields,
        column_separator=separators["rtp_separator"],
        sample_separator=data.group_sample_separator,
        value_separator=data.separator,
    )


def _selected_columns(data: DatasetConfig, labels: tuple[str, ...], has_image: bool, problems: Problems) -> list[int]:
    """Which columns of a line are read. Lines of a table have those that are read, and no others."""
    place = "data_config.selected_cols"
    num_columns = len(labels) + 2 + has_image
    image = "image path, " if has_image else ""
    wanted = f"{len(labels)} label column(s) ({', '.join(labels) or 'none'}), features, {image}group size"
    texts = [text.strip() for text in data.selected_cols.split(",")]
    is_table = data.input_type == DatasetConfig.OdpsGroupRTPInput
    if not (all(texts) if is_table else all(re.fullmatch("[0-9]+", text) for text in texts)):
        what = "names of columns" if is_table else "column indices from 0"
        problems.add(place, f"'{data.selected_cols}' is not a list of {what}; give {wanted}")
    elif len(texts) != num_columns:
        problems.add(place, f"'{data.selected_cols}' has {len(texts)} columns, not {num_columns}: it gives {wanted}")
    elif len(set(texts if is_table else map(int, texts))) != num_columns:
        problems.add(place, f"'{data.selected_cols}' names a column twice; each part has its own")
    elif not is_table:
        return [int(text) for text in texts]
    # If a problem is noted, the checks that follow need some layout.
    return list(range(num_columns))


def _sample_weight(
    data: DatasetConfig, fields: Sequence[Field], layout: RowLayout, labels: tuple[str, ...], problems: Problems
) -> str | None:
    name = data.sample_weight
    if not name:
        return None
    known = {*layout.sample_fields, *labels}
    if name not in known:
        problems.unknown("data_config.sample_weight", "input field", name, known)
    elif next(f for f in fields if f.name == name).dtype == "string":
        problems.add("data_config.sample_weight", f"'{name}' is a STRING field; a weight is a number, make it FLOAT")
    return name


def _image_features(
    config: EasyRecConfig,
    named: Named,
    deep: list[str],
    problems: Problems,
) -> list[tuple[str, FeatureConfig]]:
    """The features that are read once a picture, each with its config path; `deep` are those of the network."""
    tower = config.model_config.e2e_mm_dbmtl.img_model
    wanted = [(f"{PLACE}.category_feature", tower.category_feature)] if tower.category_feature else []
    for i, loss in enumerate(tower.image_losses):
        if loss.WhichOneof("loss") == "contrastive":
            place = f"{PLACE}.image_losses[{i}].contrastive.item_feature"
            wanted.append((place, loss.contrastive.item_feature))
            if loss.contrastive.item_feature in named and loss.contrastive.item_feature not in deep:
                problems.add(place, f"'{loss.contrastive.item_feature}' is in no DEEP feature group; add it to one")
    kinds = (FeatureConfig.IdFeature, FeatureConfig.ComboFeature)
    found: Named = {}
    for place, name in wanted:
        if name not in named:
            problems.unknown(place, "feature", name, [n for n, (_, f) in named.items() if f.feature_type in kinds])
        elif named[name][1].feature_type not in kinds:
            kind = FeatureConfig.FeatureType.Name(named[name][1].feature_type)
            problems.add(place, f"'{name}' is a {kind}; name an IdFeature or ComboFeature")
        elif not named[name][1].per_group:
            problems.add(place, f"'{name}' may differ within a group; set per_group: true on it")
        else:
            found[name] = named[name]
    return list(found.values())


def _group_fields(config: EasyRecConfig, named: Named) -> tuple[str, ...]:
    """Fields of features per group, and the labels of losses on image vectors."""
    fields = [name for _, feature in named.values() if feature.per_group for name in feature.input_names]
    labels = [loss.label_name for loss in image_losses(config.model_config.e2e_mm_dbmtl.img_model) if loss.label_name]
    return tuple(dict.fromkeys([*fields, *labels]))


def _image_labels(tower: ImgModel, tasks: Sequence[Task], problems: Problems) -> tuple[tuple[str, int], ...]:
    """Labels of the losses on image vectors and their classes."""
    classes: dict[str, int] = {}
    of_tasks = {task.label: max(task.num_class, 2) for task in tasks if task.activation in ("binary", "multiclass")}
    for i, loss in enumerate(image_losses(tower)):
        if loss.label_name:
            other = classes.get(loss.label_name, of_tasks.get(loss.label_name, loss.num_class))
            if other != loss.num_class:
                is_short = i == len(tower.image_losses)
                place = f"{PLACE}.{'img_loss_weight' if is_short else f'image_losses[{i}].num_class'}"
                problems.add(place, f"{loss.num_class}, but '{loss.label_name}' has {other} elsewhere; make them equal")
            classes[loss.label_name] = loss.num_class
    return tuple(classes.items())


def _tasks(config: EasyRecConfig, labels: tuple[str, ...], problems: Problems) -> tuple[Task, ...]:
    tasks = []
    towers = config.model_config.e2e_mm_dbmtl.task_towers
    for i, tower in enumerate(towers):
        place = f"model_config.e2e_mm_dbmtl.task_towers[{i}]"
        label = tower.label_name or (labels[i] if i < len(labels) else "")
        if label not in labels:
            problems.unknown(f"{place}.label_name", "label", label, labels)
        tasks.append(Task(tower.tower_name, label, _activation(tower, place, problems), tower.num_class))
    used = {task.label for task in tasks} | {t.task_space_indicator_label for t in towers}
    used.add(config.data_config.sample_weight)
    used |= {loss.label_name for loss in image_losses(config.model_config.e2e_mm_dbmtl.img_model)}
    for i, label in enumerate(labels):
        if label not in used:
            problems.notes.append(
                f"data_config.label_fields[{i}]: label '{label}' is read and checked; no tower uses it"
            )
    return tuple(tasks)


def _activation(tower: BayesTaskTower, place: str, problems: Problems) -> Activation:
    losses = [(f"{place}.losses[{i}].loss_type", loss.loss_type) for i, loss in enumerate(tower.losses)]
    losses = losses or [(f"{place}.loss_type", tower.loss_type)]
    if tower.losses and tower.HasField("loss_type") and tower.loss_type not in [kind for _, kind in losses]:
        problems.add(f"{place}.loss_type", "has no effect beside losses; remove it")
    activation = _output_of_loss(losses[0][1])
    for where, kind in losses:
        if _output_of_loss(kind) != activation:
            first, this = LossType.Name(losses[0][1]), LossType.Name(kind)
            problems.add(where, f"{this} needs another output than {first}; a tower has one, split it in two towers")
    if tower.num_class > 1:
        if activation != "binary" or any(kind != LossType.CLASSIFICATION for _, kind in losses):
            problems.add(f"{place}.num_class", f"{tower.num_class} classes go with CLASSIFICATION alone; remove it")
        return "multiclass"
    return activation


def _output_of_loss(kind: int) -> Activation:
    """What the output of a tower with a loss is."""
    options = LossType.DESCRIPTOR.values_by_number[kind].GetOptions()
    output: Activation = options.Extensions[options_pb2.output]
    return output
