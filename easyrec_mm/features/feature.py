"""A feature: how fields of a sample become inputs of the network. Each type of feature has a file of its own.

The file of a type defines the settings that a config may have for it, the texts that it accepts, and its values, which
are defined once for TensorFlow and NumPy (back_end.py). `feature_types.py` lists the types.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.safe_text import without_secrets


@dataclass(frozen=True)
class Table:
    """An embedding table `[rows, dim]`; `initializer` is the name of an initializer, and its parameters."""

    name: str
    rows: int
    dim: int
    initializer: tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of `dim` numbers in a store, looked up by key; at most `max_missing_share` of the keys may be missing."""

    uri: str
    dim: int
    max_missing_share: float = 1.0

    def without_password(self) -> StoredVectors:
        """Return these vectors with the password removed from the URI, so that it can be shown to others."""
        return replace(self, uri=without_secrets(self.uri))


@dataclass(frozen=True, kw_only=True)
class Feature(ABC):
    """The attributes common to all types of features; a type adds its own, and sets those here that apply to it.

    name        name of the feature
    inputs      names of the fields that the feature reads
    width       how many numbers the feature has in the network
    table       name of its table; None if it has no table
    categories  how its values are converted to rows of the table
    numbers     transformation of its numeric values; unless bucketed, they multiply the rows of its table, if any
    stored      the stored vectors whose keys are its values
    is_joined   whether its vector is concatenated with those of other features; else attentions or the logits use it
    is_wide     whether its numbers are added to the logits, one number per logit
    """

    name: str
    inputs: tuple[str, ...]
    width: int
    table: str | None = None
    categories: Categories | None = None
    numbers: Numbers | None = None
    stored: StoredVectors | None = None
    is_joined: bool = True
    is_wide: bool = False

    # Whether a sample may have any number of values.
    is_list: ClassVar[bool] = False
    # How the vectors of a list are combined into one; "" for a feature that is not a list.
    combiner: str = ""

    @classmethod
    @abstractmethod
    def of_config(cls, settings: FeatureSettings) -> Feature:
        """Check the settings of a feature and return the feature; problems are added to `settings.problems`."""

    @abstractmethod
    def patterns(self) -> list[tuple[str, str]]:
        """Return (field, pattern that its text must match) for fields of text; an empty text is always valid."""

    @abstractmethod
    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        """Return the network's inputs for S samples: ids, numbers or buckets under `name`, weights under `weight_key`.

        Values are int64 `[S]`, float32 `[S, dim]`, or lists of these. Not defined if a store holds the vectors.

        Args:
          fields: field -> its values, `[S]`; texts match `patterns`.
          back_end: computes with these values.
        """

    def keys(self, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
        """Return the values by which rows of its table, vectors or contents are looked up: `[S]`, or lists."""
        return fields[self.inputs[0]]

    def without_password(self) -> Feature:
        """Return this feature with the password removed from its store's URI, so that it can be shown to others."""
        return self if self.stored is None else replace(self, stored=self.stored.without_password())

    @property
    def num_rows(self) -> int:
        """Return the number of rows of its table; 0 without a table."""
        if self.table is None:
            return 0
        if self.categories is not None:
            return self.categories.num_ids
        return (self.numbers.num_buckets or self.numbers.dim) if self.numbers is not None else 0

    @property
    def num_numbers(self) -> int:
        """Return how many numbers a value has; 0 if it is an id or a bucket."""
        if self.stored is not None:
            return self.stored.dim
        return self.numbers.dim if self.numbers is not None and not self.numbers.boundaries else 0

    @property
    def separators(self) -> tuple[str, ...]:
        """Return the separators of a text with several values, the outer one first; () for a text of one value."""
        return ()

    @property
    def store_uri(self) -> str:
        """Return the URI of the store that holds its vectors; "" if no store does."""
        return self.stored.uri if self.stored else ""

    @property
    def multiplies_rows(self) -> bool:
        """Return whether the feature multiplies its numbers with the rows of its table, one row per number."""
        return self.num_numbers > 0 and self.table is not None

    @property
    def vector_key(self) -> str:
        """Return the name of the input of the exported models for the vectors from its store."""
        return f"{self.name}_vector"

    @property
    def length_key(self) -> str:
        """Return the name of the input of the exported models for the number of vectors per sample, for a list."""
        return f"{self.name}_length"

    @property
    def weight_key(self) -> str:
        """Return the key of a list's weights among the feature values.

        If lists are padded, every list has weights under this key, which are 0 at padded positions.
        """
        return f"{self.name}:weight"


def text_keys(feature: Feature, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
    """Return the texts by which vectors or contents of items are told apart and looked up: `[S]`, or lists."""
    keys = feature.keys(fields, back_end)
    return keys if feature.is_list else back_end.texts(keys)


def vocabularies(features: Iterable[Feature]) -> dict[str, tuple[str, ...]]:
    """Return feature -> vocabulary, for the features that have one."""
    by_name = {feature.name: feature.categories for feature in features}
    return {
        name: categories.vocabulary
        for name, categories in by_name.items()
        if categories and categories.encoding == "vocabulary"
    }
