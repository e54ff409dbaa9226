"""A feature: how fields of a sample become what the network takes. Each type of feature is a file of its own.

A type's file holds what a config may say of it, the texts that it takes, and its values, which are defined once for
TensorFlow and NumPy (back_end.py). `feature_types.py` lists the types.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.reading import FeatureSettings


@dataclass(frozen=True)
class Table:
    """An embedding table `[rows, dim]`. `initializer` is a name and its parameters."""

    name: str
    rows: int
    dim: int
    initializer: tuple[str, tuple[float, ...]]


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of `dim` numbers that a store holds under keys, of which it may lack a share."""

    uri: str
    dim: int
    max_missing_share: float = 1.0

    def without_password(self) -> StoredVectors:
        """The same, with the URI as others may see it."""
        parts = urlsplit(self.uri)
        if parts.password is None:
            return self
        host = parts.netloc.rpartition("@")[2]
        netloc = f"{parts.username}@{host}" if parts.username else host
        return replace(self, uri=urlunsplit(parts._replace(netloc=netloc)))


@dataclass(frozen=True, kw_only=True)
class Feature(ABC):
    """What all types of features have; a type adds its own settings and sets those of the parts that it has.

    name        of the feature
    inputs      names of the fields that it reads
    width       its numbers in the network
    table       name of its table; None without one
    categories  how its values become rows of the table
    numbers     what is done to its values, which are numbers; those of a vector and a table are multiplied
    stored      where the vectors lie whose keys are its values
    is_joined   whether its vector joins those of the others; else attentions read it, or it goes to the logits
    is_wide     whether it holds what is added to the logits, a number each
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

    # Whether a sample has any number of values.
    is_list: ClassVar[bool] = False
    # How the vectors of a list become one; "" for a feature that is not a list.
    combiner: str = ""

    @classmethod
    @abstractmethod
    def of_config(cls, settings: FeatureSettings) -> Feature:
        """Check the settings of a feature of this type; its problems go to `settings.problems`."""

    @abstractmethod
    def patterns(self) -> list[tuple[str, str]]:
        """(field, what its text must match), for fields of text. An empty text is always good."""

    @abstractmethod
    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        """What the network takes of S samples: under `name` ids, numbers or buckets, and weights under `weight_key`.

        int64 `[S]`, float32 `[S, dim]`, or lists of these. Not defined where a store holds the vectors.

        Args:
          fields: field -> its values, `[S]`; texts match `patterns`.
          back_end: which operates on them.
        """

    def keys(self, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
        """The values by which rows of its table, or vectors of its store, are looked up: `[S]`, or lists."""
        return fields[self.inputs[0]]

    def without_password(self) -> Feature:
        """The same, with the URI of its store as others may see it."""
        return self if self.stored is None else replace(self, stored=self.stored.without_password())

    @property
    def num_rows(self) -> int:
        """Rows of its table; 0 without one."""
        if self.table is None:
            return 0
        if self.categories is not None:
            return self.categories.num_ids
        return (self.numbers.num_buckets or self.numbers.dim) if self.numbers is not None else 0

    @property
    def num_numbers(self) -> int:
        """Numbers of a value; 0 if it is an id or a bucket."""
        if self.stored is not None:
            return self.stored.dim
        return self.numbers.dim if self.numbers is not None and not self.numbers.boundaries else 0

    @property
    def separators(self) -> tuple[str, ...]:
        """What splits a text of several values, the outer one first; () for a text of one value."""
        return ()

    @property
    def store_uri(self) -> str:
        """The store that holds its vectors; "" if none does."""
        return self.stored.uri if self.stored else ""

    @property
    def multiplies_rows(self) -> bool:
        """Whether the feature is numbers times the rows of its table, one row a number."""
        return self.num_numbers > 0 and self.table is not None

    @property
    def vector_key(self) -> str:
        """Input of the exported models for the vectors of a store."""
        return f"{self.name}_vector"

    @property
    def length_key(self) -> str:
        """Input of the exported models for how many vectors a sample has, of a list."""
        return f"{self.name}_length"

    @property
    def weight_key(self) -> str:
        """Key under which the weights of a list stand beside it among the feature values.

        Where lists are padded, the weights of every list stand there, 0 for what is not a value.
        """
        return f"{self.name}:weight"


def text_keys(feature: Feature, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
    """Texts by which the vectors of a feature are looked up in its store: `[S]`, or lists."""
    keys = feature.keys(fields, back_end)
    return keys if feature.is_list else back_end.texts(keys)


def vocabularies(features: Iterable[Feature]) -> dict[str, tuple[str, ...]]:
    """Feature -> its vocabulary, of those that have one."""
    categories = {feature.name: feature.categories for feature in features}
    return {name: one.vocabulary for name, one in categories.items() if one and one.encoding == "vocabulary"}
