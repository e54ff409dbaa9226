"""Checks the data, feature-group and label sections of a config and derives the Schema.

Every problem is collected with its config path, so that a user sees all of them at once. Never imports TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from PIL import ImageColor

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
from easyrec_mm.config.item import item_vector_width
from easyrec_mm.config.pretraining import heads_of
from easyrec_mm.config.row_layout import GROUP_RTP, row_layout
from easyrec_mm.config.sequences import check_attentions, derive_attentions
from easyrec_mm.config.serve_constants import with_constants
from easyrec_mm.config.tasks import image_labels, tasks_of
from easyrec_mm.errors import Problems
from easyrec_mm.features.feature import Feature, Table
from easyrec_mm.features.field import KINDS, Field, dtype_of
from easyrec_mm.features.text_feature import TextFeature
from easyrec_mm.features.text_patterns import VALUE_PATTERNS
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.image_pb2 import ImgModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import NO_IMAGE, Attention, Image, RowLayout, Schema, Task


def derive_schema(config: EasyRecConfig, problems: Problems) -> Schema:
    """Return the Schema of a parsed config.

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
    layout = row_layout(config.data_config, labels, sample_fields, bool(image.field), problems)
    groups = feature_groups(config.model_config, named, problems)
    tasks = tasks_of(config, labels, problems)
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
        image_labels=image_labels(tower, tasks, problems) + _head_labels(config),
        image_separator=tower.image_separator,
        has_no_image_vector=tower.no_image_vector,
        attentions=_attentions(config, network.features, image_name, groups, named, problems),
        text=_text(config.data_config, named, groups.text, fields, layout, problems),
        item_vectors=_item_vectors(config.data_config, named, groups.vectors, fields, layout, problems),
    )
    problems.raise_if_any()
    _check_defaults(schema, problems)
    return with_constants(schema, config.export_config, problems)


def _head_labels(config: EasyRecConfig) -> tuple[tuple[str, int], ...]:
    """Return the columns of classes of a pre-training, with the numbers of their values: 0 stands for no label."""
    return tuple((head.field, head.num_class + 1) for head in heads_of(config))


class _NetworkFeatures(NamedTuple):
    """Inputs of the network: features and their tables, and the features that are read once per picture."""

    features: tuple[Feature, ...]
    tables: tuple[Table, ...]
    image_features: tuple[Feature, ...]


def _named_features(config: EasyRecConfig, fields: Sequence[Field], problems: Problems) -> Named:
    """Return every feature of the config by name."""
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
    """Return the features that feature groups, attentions and the image tower name."""
    item_name = _item_name(image_name, groups)
    only_attended = check_attentions(
        config.model_config, groups.deep, named, item_name, groups.has_item_vector, problems
    )
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
    """Check where copies of files are kept, and how pictures are stored."""
    for name in ("image_cache_dir", "file_cache_dir"):
        if "://" in getattr(data, name):
            problems.add(f"data_config.{name}", f"'{getattr(data, name)}' is not on this machine; give a local folder")
    for name in ("image_cache_dir", "packed_images", "shuffled_pictures"):
        if getattr(data, name) and not uses_image:
            problems.add(f"data_config.{name}", f"has no effect: {NO_IMAGE_GROUP}; add one or remove this")
    for name in ("image_cache_dir", "image_root"):
        if data.packed_images and getattr(data, name):
            problems.add(f"data_config.{name}", "has no effect on packed_images, which lie beside the data; remove it")


def _check_defaults(schema: Schema, problems: Problems) -> None:
    """Check that the default of each STRING field is valid for the features that read it."""
    patterns = schema.text_patterns()
    for i, field in enumerate(schema.fields):
        fits = all(re.fullmatch(pattern, field.default) for pattern in patterns.get(field.name, []))
        if field.dtype == "string" and field.default and not fits:
            problem = f"'{field.default}' does not have the form that the features of '{field.name}' need"
            problems.add(
                f"data_config.input_fields[{i}].default_val", f"{problem}; give a value like those of the data"
            )


def _fields(data: DatasetConfig, problems: Problems) -> list[Field]:
    fields: dict[str, Field] = {}
    if not data.input_fields:
        problems.add("data_config.input_fields", "is empty; list every field of a sample, in the order of the row")
    for i, item in enumerate(data.input_fields):
        place = f"data_config.input_fields[{i}]"
        if item.input_name in fields:
            problems.add(f"{place}.input_name", f"'{item.input_name}' is listed twice; remove one")
            continue
        dtype = dtype_of(KINDS[DatasetConfig.FieldType.Name(item.input_type)])
        default = item.default_val or ("" if dtype == "string" else "0")
        pattern = VALUE_PATTERNS.get(dtype)
        if pattern and not re.fullmatch(pattern, default):
            kind = DatasetConfig.FieldType.Name(item.input_type)
            problems.add(f"{place}.default_val", f"'{default}' is not a valid {kind}; give a number or remove it")
            default = "0"
        fields[item.input_name] = Field(item.input_name, dtype, default, item.HasField("default_val"))
    return list(fields.values())


def _only(kind: int, named: Named, why: str, problems: Problems) -> tuple[str, str, FeatureConfig] | None:
    """Return name, config path and settings of the only feature of a type; None if no feature has this type."""
    matches = [(name, *item) for name, item in named.items() if item[1].feature_type == kind]
    type_name = FeatureConfig.FeatureType.Name(kind)
    if not matches:
        problems.add("feature_config.features", f"has no {type_name}; add one: {why}")
        return None
    name, place, feature = matches[0]
    for _, other, _ in matches[1:]:
        problems.add(other, f"a second {type_name}; a group has one")
    if len(feature.input_names) != 1:
        problems.add(f"{place}.input_names", f"{type_name} reads one field, not {len(feature.input_names)}")
    return name, place, feature


def _image(config: EasyRecConfig, named: Named, problems: Problems) -> tuple[str, Image]:
    data = config.data_config
    if all(feature.feature_type != FeatureConfig.ImgFeature for _, feature in named.values()):
        return "", NO_IMAGE
    image_feature = _only(FeatureConfig.ImgFeature, named, "it names the field of the image path", problems)
    if image_feature is None:
        return "", NO_IMAGE
    name, place, feature = image_feature
    if not feature.HasField("img_shape"):
        problems.add(f"{place}.img_shape", "is missing; give width and height in pixels")
    shape = feature.img_shape
    if shape.channel not in (1, 3):
        problems.add(f"{place}.img_shape.channel", f"{shape.channel} is not supported; choose 3 (RGB) or 1 (grey)")
    method = FeatureConfig.ResizeMethod.Name(feature.resize_method)
    pixels = data.max_image_pixels
    tower = config.model_config.e2e_mm_dbmtl.img_model
    resize = ImgModel.Resize.Name(tower.resize)
    field, sides = feature.input_names[0], (shape.height, shape.width, shape.channel)
    background = _colour(tower.transparent_background, problems)
    return name, Image(field, *sides, method, feature.antialias, pixels, resize, background)


def _colour(text: str, problems: Problems) -> tuple[int, int, int]:
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        place = "model_config.e2e_mm_dbmtl.img_model.transparent_background"
        problems.add(place, f"'{text}' is not a colour; give a name, such as white, or #rrggbb")
        return (0, 0, 0)


def _group_size_field(data: DatasetConfig, named: Named, problems: Problems) -> str:
    kinds = [feature.feature_type for _, feature in named.values()]
    if data.input_type not in GROUP_RTP and FeatureConfig.SampleNumFeature not in kinds:
        return ""  # in tables the length of a list is the group size
    size_feature = _only(FeatureConfig.SampleNumFeature, named, "it names the field of the group size", problems)
    return size_feature[2].input_names[0] if size_feature else ""


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


def _sample_weight(
    data: DatasetConfig, fields: Sequence[Field], layout: RowLayout, labels: tuple[str, ...], problems: Problems
) -> str | None:
    name = data.sample_weight
    if not name:
        return None
    names = {*layout.sample_fields, *labels}
    if name not in names:
        problems.unknown("data_config.sample_weight", "input field", name, names)
    elif next(f for f in fields if f.name == name).dtype == "string":
        problems.add("data_config.sample_weight", f"'{name}' is a STRING field; a weight is a number, make it FLOAT")
    return name


def _image_features(
    config: EasyRecConfig,
    named: Named,
    deep: list[str],
    problems: Problems,
) -> list[tuple[str, FeatureConfig]]:
    """Return the features that are read once per picture, with config paths; `deep` names those of DEEP groups."""
    tower = config.model_config.e2e_mm_dbmtl.img_model
    references = [(f"{PLACE}.category_feature", tower.category_feature)] if tower.category_feature else []
    for i, loss in enumerate(tower.image_losses):
        if loss.WhichOneof("loss") == "contrastive":
            place = f"{PLACE}.image_losses[{i}].contrastive.item_feature"
            references.append((place, loss.contrastive.item_feature))
            if loss.contrastive.item_feature in named and loss.contrastive.item_feature not in deep:
                problems.add(place, f"'{loss.contrastive.item_feature}' is in no DEEP feature group; add it to one")
    kinds = (FeatureConfig.IdFeature, FeatureConfig.ComboFeature)
    by_name: Named = {}
    for place, name in references:
        if name not in named:
            problems.unknown(place, "feature", name, [n for n, (_, f) in named.items() if f.feature_type in kinds])
        elif named[name][1].feature_type not in kinds:
            kind = FeatureConfig.FeatureType.Name(named[name][1].feature_type)
            problems.add(place, f"'{name}' is a {kind}; name an IdFeature or ComboFeature")
        elif not named[name][1].per_group:
            problems.add(place, f"'{name}' may differ within a group; set per_group: true on it")
        else:
            by_name[name] = named[name]
    return list(by_name.values())


def _attentions(
    config: EasyRecConfig,
    features: tuple[Feature, ...],
    image_name: str,
    groups: FeatureGroups,
    named: Named,
    problems: Problems,
) -> tuple[Attention, ...]:
    model = config.model_config
    width = item_vector_width(model.e2e_mm_dbmtl, bool(groups.image_group), bool(groups.text), named)
    return derive_attentions(model, features, _item_name(image_name, groups), width, problems)


def _item_name(image_name: str, groups: FeatureGroups) -> str:
    """Return the name of the feature that stands for the item vector: the ImgFeature, or else another content."""
    if groups.image_group or not groups.has_item_vector:
        return image_name
    return groups.text or groups.vectors[0]


def _text(
    data: DatasetConfig,
    named: Named,
    name: str,
    fields: Sequence[Field],
    layout: RowLayout,
    problems: Problems,
) -> TextFeature | None:
    """Return the TextFeature that has a feature group; None if none has."""
    texts = [item for item in named.values() if item[1].feature_type == FeatureConfig.TextFeature]
    for place, _ in texts[1:]:
        problems.add(place, "a second TextFeature; name all fields of the text in the first one's input_names")
    if not name:
        return None
    derived, _ = derive_features([named[name]], data, layout, {f.name: f for f in fields}, None, problems)
    return next((feature for feature in derived if isinstance(feature, TextFeature)), None)


def _item_vectors(
    data: DatasetConfig,
    named: Named,
    names: Sequence[str],
    fields: Sequence[Field],
    layout: RowLayout,
    problems: Problems,
) -> tuple[Feature, ...]:
    used = [named[name] for name in names]
    return derive_features(used, data, layout, {f.name: f for f in fields}, None, problems)[0]


def _group_fields(config: EasyRecConfig, named: Named) -> tuple[str, ...]:
    """Return the fields with one value per group: of per_group features and texts, labels of image losses."""
    of_groups = (f for _, f in named.values() if f.per_group or f.feature_type == FeatureConfig.TextFeature)
    fields = [name for feature in of_groups for name in feature.input_names]
    labels = [loss.label_name for loss in image_losses(config.model_config.e2e_mm_dbmtl.img_model) if loss.label_name]
    return tuple(dict.fromkeys([*fields, *labels]))
