"""What every stage agrees on: fields, features, tables, the picture and the tasks, as plain values.

A Schema is derived once from a pipeline config (config/schema.py) and needs no TensorFlow, so that reading, training,
export and serving share one definition. It knows nothing of files, layers or optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from easyrec_mm.features.feature import Feature, Table
from easyrec_mm.features.feature_types import feature_from_dict, feature_to_dict
from easyrec_mm.features.field import Field
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.features.tag_feature import TagFeature
from easyrec_mm.features.text_patterns import VALUE_PATTERNS

# The image vector among the keys of an attention; no feature has such a name.
IMAGE_KEY = "\x1dimage"

Activation = Literal["binary", "multiclass", "value", "sigmoid_value"]


@dataclass(frozen=True)
class Attention:
    """What a key finds in sequences of one sample (layers/target_attention.py); it joins the features.

    keys       names of features, or IMAGE_KEY for the image vector, side by side
    sequences  names of features, side by side: they have as many elements in every sample
    width      numbers of the key, and of an element
    joins_key  whether the key stands behind what it finds
    """

    name: str
    keys: tuple[str, ...]
    sequences: tuple[str, ...]
    width: int
    joins_key: bool


@dataclass(frozen=True)
class Image:
    """The picture of a group: its field, "" for data without pictures, and how bytes become the pixels of the network.

    `resize` is what becomes of a picture of another shape: STRETCH, CENTER_CROP or PAD (data/decode.py).
    """

    field: str
    height: int
    width: int
    channels: int
    resize_method: str
    antialias: bool
    max_pixels: int
    resize: str = "STRETCH"  # manifests written before there was a choice do not say


# Of a config without an ImgFeature.
NO_IMAGE = Image("", 1, 1, 3, "BILINEAR", True, 1)


@dataclass(frozen=True)
class Task:
    """What a task tower predicts, and the names under which its outputs leave the model."""

    name: str
    label: str
    activation: Activation
    num_class: int

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names as in EasyRec: logits_, probs_ for classes; y_ for values and for the most probable of several."""
        if self.activation == "binary":
            return (f"logits_{self.name}", f"probs_{self.name}")
        if self.activation == "multiclass":
            return (f"logits_{self.name}", f"probs_{self.name}", f"y_{self.name}")
        return (f"y_{self.name}",)

    @property
    def score_name(self) -> str:
        """The output that metrics compare with the label."""
        return self.output_names[1] if self.activation in ("binary", "multiclass") else self.output_names[0]


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of a GroupRTP line stand: column indices, separators and the order of a sample's values.

    Other inputs name their columns, and have `sample_fields` alone; indices are -1, as is that of an image that the
    data do not have.
    """

    label_columns: tuple[int, ...]
    features_column: int
    image_column: int
    size_column: int
    sample_fields: tuple[str, ...]
    column_separator: str
    sample_separator: str
    value_separator: str


@dataclass(frozen=True)
class Schema:
    """Everything about the data and the outputs that more than one stage needs."""

    fields: tuple[Field, ...]
    labels: tuple[str, ...]
    sample_weight: str | None
    features: tuple[Feature, ...]
    tables: tuple[Table, ...]
    image: Image
    uses_image: bool
    group_size_field: str
    layout: RowLayout
    tasks: tuple[Task, ...]
    # Fields that are the same for all samples of a group.
    group_fields: tuple[str, ...] = ()
    # Features read once a picture: the category that the image tower sees, the item of a contrastive loss.
    image_features: tuple[Feature, ...] = ()
    # Name of the one among them that the image tower sees; "" for none.
    category_feature: str = ""
    # Labels of losses on image vectors -> their classes.
    image_labels: tuple[tuple[str, int], ...] = ()
    # Between the paths of an item's pictures; "" for one path.
    image_separator: str = ""
    # Whether an item may be without a picture: a trained vector then takes its place.
    has_no_image_vector: bool = False
    # What joins the features, behind them.
    attentions: tuple[Attention, ...] = ()

    @property
    def width(self) -> int:
        """Numbers of a sample that the network takes, beside the image vector and what goes to the logits."""
        return sum(self.joined_widths())

    def joined_widths(self) -> list[int]:
        """Numbers of each vector that joins the others: the features', then what attentions find and their keys."""
        found = [attention.width for attention in self.attentions for _ in range(1 + attention.joins_key)]
        return [feature.width for feature in self.features if feature.is_joined] + found

    @property
    def wide_width(self) -> int:
        """Numbers of a sample that are added to the logits."""
        return sum(feature.width for feature in self.features if feature.is_wide)

    def aligned_lists(self) -> list[dict[str, str]]:
        """Field -> separator, of lists that have as many values as each other in every sample."""
        tags = [feature for feature in self.features if isinstance(feature, TagFeature)]
        sequences = {feature.name: feature for feature in self.features if isinstance(feature, SequenceFeature)}
        lists = [dict.fromkeys(feature.inputs, feature.separator) for feature in tags]
        for attention in self.attentions:
            lists.append({sequences[name].inputs[0]: sequences[name].separator for name in attention.sequences})
        return [fields for fields in lists if len(fields) > 1]

    def text_patterns(self) -> dict[str, list[str]]:
        """Field -> the patterns that its text, if it is not empty, must match in full."""
        patterns = {f.name: [VALUE_PATTERNS[f.dtype]] for f in self.fields if f.dtype in VALUE_PATTERNS}
        string_fields = {field.name for field in self.fields if field.dtype == "string"}
        for feature in self.features:
            for name, pattern in feature.patterns():
                if name in string_fields:
                    patterns.setdefault(name, []).append(pattern)
        return patterns

    @property
    def category(self) -> Feature | None:
        """The feature that the image tower sees beside the picture."""
        return next((feature for feature in self.image_features if feature.name == self.category_feature), None)

    def field(self, name: str) -> Field:
        """The field of that name."""
        return next(field for field in self.fields if field.name == name)

    def feature_fields(self) -> Iterator[str]:
        """Names of the fields that the model's features read, each once, in the order of the row."""
        used = {name for feature in self.features for name in feature.inputs}
        return (name for name in self.layout.sample_fields if name in used)

    def fields_read(self) -> tuple[str, ...]:
        """Names of all fields of samples that the model needs, in the order of the row; labels are not among them."""
        of_images = {name for feature in self.image_features for name in feature.inputs}
        used = {*self.feature_fields(), *of_images, *self.group_fields, self.sample_weight}
        return tuple(name for name in self.layout.sample_fields if name in used)

    def model_fields(self) -> Iterator[str]:
        """As `feature_fields`, without what is read for keys alone: exported models take the vectors themselves."""
        used = {name for feature in self.features if feature.stored is None for name in feature.inputs}
        return (name for name in self.layout.sample_fields if name in used)

    def stored_features(self) -> list[Feature]:
        """The features whose vectors lie in a store."""
        return [feature for feature in self.features if feature.stored is not None]

    def label_range(self, label: str) -> tuple[float, float, bool]:
        """Least and greatest value of a label, and whether it must be a whole number."""
        classes = dict(self.image_labels) | {t.label: t.num_class for t in self.tasks if t.activation == "multiclass"}
        if label in classes:
            return 0.0, classes[label] - 1.0, True
        if any(task.label == label and task.activation == "binary" for task in self.tasks):
            return 0.0, 1.0, False
        return -math.inf, math.inf, False

    def image_fields(self) -> tuple[str, ...]:
        """Names of the fields that the image model reads beside the picture."""
        return self.category.inputs if self.category else ()

    def without_passwords(self) -> Schema:
        """The same, with the URIs of stores as others may see them."""
        return replace(self, features=tuple(feature.without_password() for feature in self.features))

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON has."""
        features = [feature_to_dict(feature) for feature in self.features]
        image_features = [feature_to_dict(feature) for feature in self.image_features]
        return {**asdict(self), "features": features, "image_features": image_features}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Schema:
        """The Schema of which `values` is the `to_dict`, also after a passage through JSON.

        Raises:
          KeyError, TypeError, ValueError: if `values` is not a Schema.
        """
        parts = {
            **values,
            "fields": [Field(**field) for field in values["fields"]],
            "features": [feature_from_dict(feature) for feature in values["features"]],
            "tables": [
                Table(**{**table, "initializer": (table["initializer"][0], tuple(table["initializer"][1]))})
                for table in values["tables"]
            ],
            "image": Image(**values["image"]),
            "layout": RowLayout(**_with_tuples(values["layout"])),
            "tasks": [Task(**task) for task in values["tasks"]],
            "image_features": [feature_from_dict(feature) for feature in values.get("image_features", ())],
            "attentions": [Attention(**_with_tuples(attention)) for attention in values.get("attentions", ())],
            "image_labels": [tuple(label) for label in values.get("image_labels", ())],
        }
        return Schema(**_with_tuples(parts))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
