"""What every stage agrees on: fields, features, tables, the picture and the tasks, as plain values.

A Schema is derived once from a pipeline config (config/schema.py) and needs neither protobuf nor TensorFlow, so that
reading, training, export and serving share one definition. It knows nothing of files, layers or optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

# Between the values of a cross before it is hashed; ASCII's "group separator" does not occur in values.
CROSS_SEPARATOR = "\x1d"

# The image vector among the keys of an attention; no feature has such a name.
IMAGE_KEY = "\x1dimage"

# bool is kept as int64, 0 or 1.
Dtype = Literal["int64", "bool", "float32", "string"]
Encoding = Literal["hash", "identity", "vocabulary"]
FeatureKind = Literal["id", "raw", "tag", "combo", "sequence"]
# Of a sequence.
Elements = Literal["", "id", "raw"]
# When log1p applies: never, or before or after numbers are scaled.
Log1p = Literal["", "before", "after"]
Activation = Literal["binary", "multiclass", "value", "sigmoid_value"]


@dataclass(frozen=True)
class Field:
    """A value of a sample as the input holds it. `default` is the text that stands for an empty value.

    A field that has a `default_val` in the config is optional in requests to exported models.
    """

    name: str
    dtype: Dtype
    default: str
    optional: bool = False

    @property
    def default_value(self) -> int | bool | float | str:
        """The default as a value."""
        return self.value(self.default)

    def value(self, text: str) -> int | bool | float | str:
        """What a text stands for; the default for an empty one.

        Raises:
          ValueError: for a text that is no such value.
        """
        text = text or self.default
        if self.dtype == "bool":
            if text.lower() not in ("true", "false", "1", "0"):
                raise ValueError(f"'{text}' is not a bool")
            return text.lower() in ("true", "1")
        kinds: dict[str, type[int] | type[float] | type[str]] = {"int64": int, "float32": float, "string": str}
        return kinds[self.dtype](text)


@dataclass(frozen=True)
class Table:
    """An embedding table `[rows, dim]`. `initializer` is a name and its parameters."""

    name: str
    rows: int
    dim: int
    initializer: tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class Feature:
    """How input fields become one feature, and how wide it is in the network.

    id        one category a sample -> its row of `table`
    combo     the cross of `inputs` -> one row of `table`
    tag       any number of categories a sample -> rows of `table`, combined; with `max_selected` the values that the
              map in the second of `inputs` has for the key in the first
    raw       `raw_dim` numbers, or the one that `expression` makes of `inputs` -> as they are, or a bucket by
              `boundaries` (one-hot or a row of `table`), or numbers times `table` (one row a number)
    sequence  any number of `elements` a sample, at most `max_length` (0: all), each as a feature of that kind -> their
              vectors, pooled by `combiner`; `number_separator` splits the numbers of an element

    With `store`, the values are keys, text, and the numbers are those of the vector that the store has for each.
    """

    name: str
    kind: FeatureKind
    inputs: tuple[str, ...]
    width: int
    table: str | None = None
    encoding: Encoding | None = None
    num_ids: int = 0
    vocabulary: tuple[str, ...] = ()
    precision: int = -1
    separator: str = ""
    kv_separator: str = ""
    combiner: str = ""
    raw_dim: int = 1
    boundaries: tuple[float, ...] = ()
    min_value: float = 0.0
    max_value: float = 0.0
    log1p: Log1p = ""
    expression: str = ""
    max_selected: int = 0
    elements: Elements = ""
    number_separator: str = ""
    max_length: int = 0
    keeps_last: bool = False
    # URI of the store that holds the vectors whose keys are its values; and the share of the keys that it may lack.
    store: str = ""
    max_missing_share: float = 1.0
    # Whether its vector joins those of the others; else attentions read it, or it goes to the logits.
    is_joined: bool = True
    # Whether it holds what is added to the logits, a number each.
    is_wide: bool = False

    @property
    def weight_input(self) -> str | None:
        """The field that holds a tag feature's weights, when a second input does."""
        return self.inputs[1] if self.kind == "tag" and len(self.inputs) == 2 and not self.max_selected else None

    @property
    def multiplies_rows(self) -> bool:
        """Whether the feature is numbers times the rows of its table, one row a number."""
        return self.has_numbers and self.table is not None

    @property
    def has_numbers(self) -> bool:
        """Whether its values are numbers, and no rows of a table or buckets."""
        return "raw" in (self.kind, self.elements) and not self.boundaries

    @property
    def vector_key(self) -> str:
        """Input of the exported models for the vectors of a store."""
        return f"{self.name}_vector"

    @property
    def length_key(self) -> str:
        """Input of the exported models for how many vectors a sample has, of a sequence."""
        return f"{self.name}_length"

    @property
    def is_list(self) -> bool:
        """Whether a sample has any number of values."""
        return self.kind in ("tag", "sequence")

    @property
    def weight_key(self) -> str:
        """Key under which the weights of a tag feature's ids stand beside them among the feature values.

        Where lists are padded, the weights of every list stand there, 0 for what is not a value.
        """
        return f"{self.name}:weight"


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
        features = {feature.name: feature for feature in self.features}
        found = [dict.fromkeys(f.inputs, f.separator) for f in self.features if f.weight_input]
        for attention in self.attentions:
            sequences = (features[name] for name in attention.sequences)
            found.append({sequence.inputs[0]: sequence.separator for sequence in sequences})
        return [lists for lists in found if len(lists) > 1]

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
        used = {name for feature in self.features if not feature.store for name in feature.inputs}
        return (name for name in self.layout.sample_fields if name in used)

    def stored_features(self) -> list[Feature]:
        """The features whose vectors lie in a store."""
        return [feature for feature in self.features if feature.store]

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
        features = tuple(replace(f, store=_without_password(f.store)) if f.store else f for f in self.features)
        return replace(self, features=features)

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON has."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Schema:
        """The Schema of which `values` is the `to_dict`, also after a passage through JSON.

        Raises:
          KeyError, TypeError, ValueError: if `values` is not a Schema.
        """
        parts = {
            **values,
            "fields": [Field(**field) for field in values["fields"]],
            "features": [Feature(**_with_tuples(feature)) for feature in values["features"]],
            "tables": [
                Table(**{**table, "initializer": (table["initializer"][0], tuple(table["initializer"][1]))})
                for table in values["tables"]
            ],
            "image": Image(**values["image"]),
            "layout": RowLayout(**_with_tuples(values["layout"])),
            "tasks": [Task(**task) for task in values["tasks"]],
            "image_features": [Feature(**_with_tuples(f)) for f in values.get("image_features", ())],
            "attentions": [Attention(**_with_tuples(attention)) for attention in values.get("attentions", ())],
            "image_labels": [tuple(label) for label in values.get("image_labels", ())],
        }
        return Schema(**_with_tuples(parts))


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}" if parts.username else host))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
