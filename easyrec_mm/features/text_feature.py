"""TextFeature: the text of an item, for the text tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.reading import FeatureSettings

MOST_FIELDS = 16


@dataclass(frozen=True, kw_only=True)
class TextFeature(Feature):
    """The texts of `inputs`, joined by spaces: one text per item."""

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> TextFeature:
        settings.require_inputs(1, MOST_FIELDS)
        for name in settings.inputs:
            settings.require_string(name, "a text")
        return cls(name=settings.name, inputs=settings.inputs, width=0, is_joined=False)

    def patterns(self) -> list[tuple[str, str]]:
        return []

    def joined(self, fields: Mapping[str, str]) -> str:
        """Return the text of an item with these values of fields."""
        return " ".join(fields[name] for name in self.inputs)

    def keys(self, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
        return self.values(fields, back_end)[self.name]

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        texts = [fields[name] for name in self.inputs]
        return {self.name: texts[0] if len(texts) == 1 else back_end.join(texts, " ")}
