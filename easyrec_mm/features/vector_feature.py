"""VectorFeature: a vector that another model computed, in the row or in a store under a key in the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easyrec_mm.errors import did_you_mean
from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.feature import Feature, StoredVectors
from easyrec_mm.features.numbers import Numbers, read_vectors
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import few_digits, vector

# The schemes of store.SCHEMES, repeated because features may not import easyrec_mm.store.
STORE_SCHEMES = ("lmdb", "redis", "rediss", "postgresql", "postgres")
# Inputs of exported models other than fields and vectors of features.
_IMAGE_NAMES = ("img_emb_vector",)


@dataclass(frozen=True, kw_only=True)
class VectorFeature(Feature):
    """The numbers of a vector, which is not trained; a VectorFeature has either `numbers` or `stored`.

    separator  between the numbers of a vector in the row
    """

    separator: str = ""

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> VectorFeature:
        item = settings.item
        if not item.vector_dim:
            settings.add("vector_dim", "is 0; give the number of elements of a vector")
        if item.embedding_dim:
            settings.add("embedding_dim", "has no effect on a vector, which stays as it is; remove it")
        has_input = settings.require_inputs(1, 1)
        if item.HasField("vector_store"):
            if has_input and settings.fields[settings.inputs[0]].dtype == "float32":
                settings.add("input_names", f"'{settings.inputs[0]}' is a FLOAT; a key is text or a whole number")
            stored = read_stored_vectors(settings)
            return cls(name=settings.name, inputs=settings.inputs, width=item.vector_dim, stored=stored)
        if item.HasField("max_missing_share"):
            settings.add("max_missing_share", "has no effect without vector_store; set it or remove this")
        if has_input:
            settings.require_string(settings.inputs[0], "a vector; or set vector_store, if it holds a key")
        if item.vector_dim > 1:
            settings.require_separator("separator")
        return cls(
            name=settings.name,
            inputs=settings.inputs,
            width=item.vector_dim,
            numbers=Numbers(item.vector_dim),
            separator=item.separator if item.vector_dim > 1 else "",
        )

    @property
    def separators(self) -> tuple[str, ...]:
        return (self.separator,) if self.separator else ()

    def patterns(self) -> list[tuple[str, str]]:
        if self.numbers is None:
            return []
        patterns = vector(self.separator, self.separator, self.numbers.dim), few_digits(self.separator)
        return [(self.inputs[0], pattern) for pattern in patterns]

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        return {self.name: read_vectors(fields[self.inputs[0]], self.separator, self.num_numbers, back_end)}


def read_stored_vectors(settings: FeatureSettings) -> StoredVectors:
    """Read the settings of the store with the vectors whose keys the feature reads."""
    item = settings.item
    scheme = item.vector_store.partition("://")[0].lower() if "://" in item.vector_store else ""
    if scheme not in STORE_SCHEMES:
        choices = did_you_mean(scheme, STORE_SCHEMES)
        settings.add("vector_store", f"'{item.vector_store}': no store has the scheme '{scheme}://'; {choices}")
    for key in (f"{settings.name}_vector", f"{settings.name}_length"):
        if key in settings.fields or key in _IMAGE_NAMES:
            conflict = f"'{settings.name}' needs the name '{key}' for an input, but this name is already used"
            settings.add("feature_name", f"{conflict}; rename the feature")
    return StoredVectors(item.vector_store, item.vector_dim, item.max_missing_share)
