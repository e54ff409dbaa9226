"""CodeFeature: the semantic ID of an item, in the row or in a store under a key in the row.

Similar items have the same codes on the first levels, so that an item that training has not seen has rows that it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from easyrec_mm.features.categories import Categories
from easyrec_mm.features.numbers import Numbers
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import literal
from easyrec_mm.features.vector_feature import VectorFeature, read_stored_vectors

# Between the codes of a semantic ID, as in 12_200_3_77.
_SEPARATOR = "_"
# The pattern of a code; a list of floats becomes a text with points.
_CODE = r"[0-9]{1,5}(?:\.0+)?"
# More would not stay exact in the sum of prefix_ids.
_MAX_LEVELS = 16
# Hash of a prefix: a polynomial of its codes modulo a prime (Carter and Wegman, "Universal classes of hash functions",
# 1979). All products and their sum stay below 2^63 for codes below 2^24, which a float32 holds.
PRIME = 2**31 - 1
_BASE = 1_220_703_125


@dataclass(frozen=True, kw_only=True)
class CodeFeature(VectorFeature):
    """The codes of an item -> rows of the table for the prefixes of all levels, concatenated.

    A prefix is the code of level 1, those of levels 1 and 2, and so on; a hash of it is its row. Codes count from 1; an
    item without a semantic ID has 0 on all levels, whose rows are trained like the others.
    """

    table: str = field()
    categories: Categories = field()

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> CodeFeature:
        item = settings.item
        if not 1 <= item.vector_dim <= _MAX_LEVELS:
            settings.add(
                "vector_dim", f"is {item.vector_dim}; give the number of levels of the codes, 1 to {_MAX_LEVELS}"
            )
        if not item.embedding_dim:
            settings.add("embedding_dim", f"is 0; give the width of the embedding of each level of '{settings.name}'")
        if not item.hash_bucket_size:
            settings.add("hash_bucket_size", "is 0; give the number of rows that the prefixes of all levels share")
        has_input = settings.require_inputs(1, 1)
        is_stored = item.HasField("vector_store")
        separator = item.separator if item.HasField("separator") else _SEPARATOR
        if is_stored and has_input and settings.fields[settings.inputs[0]].dtype == "float32":
            settings.add("input_names", f"'{settings.inputs[0]}' is a FLOAT; a key is text or a whole number")
        if not is_stored:
            if item.HasField("max_missing_share"):
                settings.add("max_missing_share", "has no effect without vector_store; set it or remove this")
            if has_input:
                settings.require_string(settings.inputs[0], "a semantic ID; or set vector_store, if it holds a key")
            if item.HasField("separator"):
                settings.require_separator("separator")
        return cls(
            name=settings.name,
            inputs=settings.inputs,
            width=item.vector_dim * item.embedding_dim,
            table=settings.table,
            categories=Categories("hash", max(item.hash_bucket_size, 1)),
            numbers=None if is_stored else Numbers(item.vector_dim),
            stored=read_stored_vectors(settings) if is_stored else None,
            separator="" if is_stored or item.vector_dim <= 1 else separator,
        )

    def patterns(self) -> list[tuple[str, str]]:
        if self.numbers is None:
            return []
        following = f"(?:{literal(self.separator)}{_CODE}){{{self.num_levels - 1}}}" if self.separator else ""
        return [(self.inputs[0], _CODE + following)]

    @property
    def multiplies_rows(self) -> bool:
        return False

    @property
    def num_levels(self) -> int:
        """Return the number of levels of the codes."""
        return self.num_numbers

    def prefix_ids(self, codes: Any) -> list[Any]:
        """Return the row of the prefix of each level, int64 `[N]`, for codes int64 `[N, levels]` of either back end."""
        ids = []
        total = codes[:, 0] * 0
        for level, (weight, offset) in enumerate(zip(*self.hash_constants(), strict=True)):
            total = total + codes[:, level] * weight
            ids.append((total + offset) % PRIME % self.num_rows)
        return ids

    def hash_constants(self) -> tuple[list[int], list[int]]:
        """Return the weight of the code of each level, and what is added to the sum of each level."""
        weights = [pow(_BASE, level + 1, PRIME) for level in range(self.num_levels)]
        offsets = [pow(_BASE, _MAX_LEVELS + level + 1, PRIME) for level in range(self.num_levels)]
        return weights, offsets
