"""ComboFeature: the cross of several fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories, category_attributes, check_precision
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.reading import FeatureSettings

# Separates the values of a cross before it is hashed; ASCII's "group separator" does not occur in values.
_SEPARATOR = "\x1d"


@dataclass(frozen=True, kw_only=True)
class ComboFeature(Feature):
    """The combination of the values of all `inputs` -> one row of the table."""

    table: str = field()
    categories: Categories = field()

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> ComboFeature:
        settings.require_inputs(2, 64)
        feature = cls(**category_attributes(settings))
        check_precision(settings, feature.categories)
        return feature

    def patterns(self) -> list[tuple[str, str]]:
        return []

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        texts = [back_end.texts(fields[name], self.categories.precision) for name in self.inputs]
        return {self.name: self.categories.ids(back_end.join(texts, _SEPARATOR), self.name, back_end)}
