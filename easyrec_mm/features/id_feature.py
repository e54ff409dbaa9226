"""IdFeature: one category per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories, category_attributes, check_precision
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import INTEGER_PATTERN


@dataclass(frozen=True, kw_only=True)
class IdFeature(Feature):
    """One category per sample -> its row of the table."""

    table: str = field()
    categories: Categories = field()

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> IdFeature:
        settings.require_inputs(1, 1)
        feature = cls(**category_attributes(settings))
        check_precision(settings, feature.categories)
        return feature

    def patterns(self) -> list[tuple[str, str]]:
        return [(self.inputs[0], INTEGER_PATTERN)] if self.categories.encoding == "identity" else []

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        return {self.name: self.categories.ids(fields[self.inputs[0]], self.name, back_end)}
