"""ComboFeature: the cross of several fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories, category_attributes, check_precision
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.reading import FeatureSettings

# Separates the values of a joined cross; ASCII's "group separator" does not occur in values.
_SEPARATOR = "\x1d"


@dataclass(frozen=True, kw_only=True)
class ComboFeature(Feature):
    """The combination of the values of all `inputs` -> one row of the table.

    `is_crossed` tells that it is the row of TensorFlow's crossed_column, as in EasyRec, so that a table of EasyRec can
    be trained on; older models hash the joined texts.
    """

    table: str = field()
    categories: Categories = field()
    is_crossed: bool = False  # the default is for older manifests, which do not have this setting

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> ComboFeature:
        settings.require_inputs(2, 64)
        feature = cls(**category_attributes(settings), is_crossed=True)
        check_precision(settings, feature.categories)
        return feature

    def patterns(self) -> list[tuple[str, str]]:
        return []

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        texts = [back_end.texts(fields[name], self.categories.precision) for name in self.inputs]
        if self.is_crossed:
            return {self.name: back_end.cross(texts, self.categories.num_ids)}
        return {self.name: self.categories.ids(back_end.join(texts, _SEPARATOR), self.name, back_end)}
