"""The definitions that all stages share: fields, features, tables, the picture and the tasks, as plain values.

A Schema is derived once from a pipeline config (config/schema.py) and needs no TensorFlow, so that reading, training,
export and serving share one definition. It does not depend on files, layers or optimizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from easyrec_mm.features.feature import Feature, Table
from easyrec_mm.features.feature_types import feature_from_dict, feature_to_dict
from easyrec_mm.features.field import A_NUMBER, AN_ID, LARGEST_ID, LARGEST_NUMBER, Field
from easyrec_mm.features.sequence_feature import SequenceFeature
from easyrec_mm.features.tag_feature import TagFeature
from easyrec_mm.features.text_feature import TextFeature
from easyrec_mm.features.text_patterns import VALUE_PATTERNS

# Stands for the image vector among the keys of an attention; no feature has such a name.
IMAGE_KEY = "\x1dimage"
_WHITE_SPACE = " \t\n\v\f\r"

Activation = Literal["binary", "multiclass", "value", "sigmoid_value"]


@dataclass(frozen=True)
class Attention:
    """Target attention of a key over a sample's sequences (layers/target_attention.py), concatenated to the features.

    keys       names of features, or IMAGE_KEY for the image vector, whose vectors are concatenated
    sequences  names of features whose elements are concatenated: they have equally many elements in every sample
    width      width of the key, and of an element
    joins_key  whether the key is concatenated after the result
    """

    name: str
    keys: tuple[str, ...]
    sequences: tuple[str, ...]
    width: int
    joins_key: bool


@dataclass(frozen=True)
class Image:
    """The picture of an item: its field ("" for data without pictures), and how its bytes are decoded to pixels.

    `resize` is the method for pictures of another aspect ratio: STRETCH, CENTER_CROP or PAD (data/decode.py);
    `background` the colour (red, green, blue) behind transparent parts.
    """

    field: str
    height: int
    width: int
    channels: int
    resize_method: str
    antialias: bool
    max_pixels: int
    # The defaults are for older manifests, which do not have these settings.
    resize: str = "STRETCH"
    background: tuple[int, int, int] = (0, 0, 0)


# For a config without an ImgFeature.
NO_IMAGE = Image("", 1, 1, 3, "BILINEAR", True, 1)


@dataclass(frozen=True)
class Task:
    """The prediction of a task tower, and the names of its outputs in the model."""

    name: str
    label: str
    activation: Activation
    num_class: int

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return EasyRec's output names: logits_, probs_ for classes; y_ for values and the most probable class."""
        if self.activation == "binary":
            return (f"logits_{self.name}", f"probs_{self.name}")
        if self.activation == "multiclass":
            return (f"logits_{self.name}", f"probs_{self.name}", f"y_{self.name}")
        return (f"y_{self.name}",)

    @property
    def score_name(self) -> str:
        """Return the name of the output that metrics compare with the label."""
        return self.output_names[1] if self.activation in ("binary", "multiclass") else self.output_names[0]


# Kinds of contents of items, and names of the banks of their vectors.
IMAGE, TEXT = "image", "text"


def vector_kind(feature_name: str) -> str:
    """Return the kind of content that the vectors of a feature are."""
    return f"vector_{feature_name}"


@dataclass(frozen=True)
class RowLayout:
    """Positions of the parts of a GroupRTP line: column indices, separators and the order of a sample's values.

    Other inputs have named columns and use only `sample_fields`; their indices are -1. The index of the image is also
    -1 if the data have no image.
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
    # Fields that have the same value in all samples of a group.
    group_fields: tuple[str, ...] = ()
    # Features read once per picture: the category input of the image tower, the item of a contrastive loss.
    image_features: tuple[Feature, ...] = ()
    # Name of the image feature that is the category input of the image tower; "" for none.
    category_feature: str = ""
    # Labels of losses on image vectors, with their numbers of classes.
    image_labels: tuple[tuple[str, int], ...] = ()
    # Separator between the paths of an item's pictures; "" if an item has one path.
    image_separator: str = ""
    # Whether an item may have no picture: a trained vector is then used instead of the image vector.
    has_no_image_vector: bool = False
    # Attentions, whose results are concatenated after the features.
    attentions: tuple[Attention, ...] = ()
    # The text of an item; None for data without one.
    text: TextFeature | None = None
    # Vectors that are parts of the item vector.
    item_vectors: tuple[Feature, ...] = ()

    @property
    def has_item_vector(self) -> bool:
        """Return whether items have a vector: of their picture, other contents, or both."""
        return self.uses_image or bool(self.contents)

    @property
    def contents(self) -> dict[str, Feature]:
        """Return the features of the contents of items beside the picture, by kind, in the order of fusion."""
        texts = {} if self.text is None else {TEXT: self.text}
        return {**texts, **{vector_kind(feature.name): feature for feature in self.item_vectors}}

    @property
    def width(self) -> int:
        """Return the input width of the network per sample, without the image vector and numbers added to logits."""
        return sum(self.joined_widths())

    def joined_widths(self) -> list[int]:
        """Return the width of each concatenated vector: the features', then the attentions' results and keys."""
        attention_widths = [attention.width for attention in self.attentions for _ in range(1 + attention.joins_key)]
        return [feature.width for feature in self.features if feature.is_joined] + attention_widths

    @property
    def wide_width(self) -> int:
        """Return how many numbers per sample are added to the logits."""
        return sum(feature.width for feature in self.features if feature.is_wide)

    def aligned_lists(self) -> list[dict[str, str]]:
        """Return field -> separator, for each set of lists that have equally many values in every sample."""
        tags = [feature for feature in self.features if isinstance(feature, TagFeature)]
        sequences = {feature.name: feature for feature in self.features if isinstance(feature, SequenceFeature)}
        lists = [dict.fromkeys(feature.inputs, feature.separator) for feature in tags]
        for attention in self.attentions:
            lists.append({sequences[name].inputs[0]: sequences[name].separator for name in attention.sequences})
        return [fields for fields in lists if len(fields) > 1]

    def text_patterns(self) -> dict[str, list[str]]:
        """Return field -> the patterns that its text, if it is not empty, must match in full."""
        patterns = {f.name: [VALUE_PATTERNS[f.dtype]] for f in self.fields if f.dtype in VALUE_PATTERNS}
        string_fields = {field.name for field in self.fields if field.dtype == "string"}
        for feature in (*self.features, *self.contents.values()):
            for name, pattern in feature.patterns():
                if name in string_fields:
                    patterns.setdefault(name, []).append(pattern)
        return patterns

    @property
    def category(self) -> Feature | None:
        """Return the feature that the image tower takes in addition to the picture; None if no feature is set."""
        return next((feature for feature in self.image_features if feature.name == self.category_feature), None)

    def field(self, name: str) -> Field:
        """Return the field of that name."""
        return next(field for field in self.fields if field.name == name)

    def feature_fields(self) -> Iterator[str]:
        """Return the names of the fields that the model's features read, each once, in the order of the row."""
        used = {name for feature in self.features for name in feature.inputs}
        return (name for name in self.layout.sample_fields if name in used)

    def fields_read(self) -> tuple[str, ...]:
        """Return the names of all fields of samples that the model needs, without labels, in the order of the row."""
        of_images = {name for feature in self.item_features() for name in feature.inputs}
        used = {*self.feature_fields(), *of_images, *self.group_fields, self.sample_weight}
        return tuple(name for name in self.layout.sample_fields if name in used)

    def item_features(self) -> tuple[Feature, ...]:
        """Return the features that are read once per item: image_features and contents."""
        return (*self.image_features, *self.contents.values())

    def all_features(self) -> tuple[Feature, ...]:
        """Return the features of samples, then those of items."""
        return (*self.features, *self.item_features())

    def model_fields(self) -> Iterator[str]:
        """Return the `feature_fields` without those read only as keys of vectors in a store."""
        used = {name for feature in self.features if feature.stored is None for name in feature.inputs}
        return (name for name in self.layout.sample_fields if name in used)

    def input_fields(self) -> Iterator[str]:
        """Return the `model_fields` without those for which exported models take constants: their inputs."""
        return (name for name in self.model_fields() if self.field(name).constant is None)

    def request_fields(self) -> Iterator[str]:
        """Return the `feature_fields` without those for which exported models take constants: requests contain them."""
        return (name for name in self.feature_fields() if self.field(name).constant is None)

    def stored_features(self) -> list[Feature]:
        """Return the features of samples whose vectors are in a store."""
        return [feature for feature in self.features if feature.stored is not None]

    def stored_contents(self) -> dict[str, Feature]:
        """Return the features of contents of items whose vectors are in a store, by kind."""
        return {kind: feature for kind, feature in self.contents.items() if feature.stored is not None}

    def in_stores(self) -> list[Feature]:
        """Return all features, of samples and of items, whose vectors are in a store."""
        return [*self.stored_features(), *self.stored_contents().values()]

    def label_range(self, label: str) -> tuple[float, float, bool]:
        """Return the least and the greatest value of a label, and whether it must be a whole number."""
        classes = dict(self.image_labels) | {t.label: t.num_class for t in self.tasks if t.activation == "multiclass"}
        if label in classes:
            return 0.0, classes[label] - 1.0, True
        if any(task.label == label and task.activation == "binary" for task in self.tasks):
            return 0.0, 1.0, False
        return -LARGEST_NUMBER, LARGEST_NUMBER, False

    def largest_number(self, field: str) -> tuple[float, str]:
        """Return the largest magnitude of a float32 field that is not a label, and the allowed numbers in words."""
        features = (*self.features, *self.image_features)
        is_id = any(field in feature.inputs and feature.categories is not None for feature in features)
        return (LARGEST_ID, AN_ID) if is_id else (LARGEST_NUMBER, A_NUMBER)

    @property
    def has_links(self) -> bool:
        """Return whether the images of a batch may be others than its pictures, one by one."""
        return bool(self.image_separator) or self.has_no_image_vector or bool(self.contents)

    @property
    def has_picture_item(self) -> bool:
        """Return whether exported models take the item of each picture: an item may have several, or none."""
        may_have_none = self.has_no_image_vector and bool(self.contents)
        return self.uses_image and (bool(self.image_separator) or may_have_none)

    def is_without_picture(self, values: Mapping[str, Any]) -> bool:
        """Return whether an item with these values of fields has a vector without a picture: by another content."""
        if self.uses_image and not self.has_no_image_vector:
            return False
        # As TensorFlow strips texts: of white space in ASCII.
        names = (name for feature in self.contents.values() for name in feature.inputs)
        return any(str(values[name]).strip(_WHITE_SPACE) for name in names)

    def image_fields(self) -> tuple[str, ...]:
        """Return the names of the fields of an item of which its vector is computed, in addition to the picture."""
        return self._fields_of_items(with_keys=True)

    def image_input_fields(self) -> tuple[str, ...]:
        """Return the `image_fields` without the keys of vectors in a store: inputs of the image model."""
        return self._fields_of_items(with_keys=False)

    def _fields_of_items(self, with_keys: bool) -> tuple[str, ...]:
        category = () if self.category is None else (self.category,)
        features = [f for f in (*category, *self.contents.values()) if with_keys or f.stored is None]
        return tuple(dict.fromkeys(name for feature in features for name in feature.inputs))

    def without_passwords(self) -> Schema:
        """Return this Schema with the passwords removed from the URIs of stores, so that it can be shown to others."""
        return replace(
            self,
            features=tuple(feature.without_password() for feature in self.features),
            item_vectors=tuple(feature.without_password() for feature in self.item_vectors),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return this Schema as values that JSON can represent."""
        features = [feature_to_dict(feature) for feature in self.features]
        image_features = [feature_to_dict(feature) for feature in self.image_features]
        values = {**asdict(self), "features": features, "image_features": image_features}
        # Only if there are some, so that manifests of models without them stay as they are.
        del values["text"], values["item_vectors"]
        if self.text is not None:
            values["text"] = feature_to_dict(self.text)
        if self.item_vectors:
            values["item_vectors"] = [feature_to_dict(feature) for feature in self.item_vectors]
        return values

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Schema:
        """Return the Schema from the result of `to_dict`, which may have been saved as JSON in between.

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
            "image": Image(**_with_tuples(values["image"])),
            "layout": RowLayout(**_with_tuples(values["layout"])),
            "tasks": [Task(**task) for task in values["tasks"]],
            "image_features": [feature_from_dict(feature) for feature in values.get("image_features", ())],
            "attentions": [Attention(**_with_tuples(attention)) for attention in values.get("attentions", ())],
            "image_labels": [tuple(label) for label in values.get("image_labels", ())],
            "text": feature_from_dict(values["text"]) if values.get("text") else None,
            "item_vectors": [feature_from_dict(feature) for feature in values.get("item_vectors", ())],
        }
        return Schema(**_with_tuples(parts))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
