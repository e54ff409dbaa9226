"""RawFeature: one number, or several numbers in a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.numbers import Numbers, number_attributes, read_vectors
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import few_digits, vector


@dataclass(frozen=True, kw_only=True)
class RawFeature(Feature):
    """Numbers as they are, their bucket, a row of the table for the bucket, or numbers times the rows of the table.

    separator  between several numbers; "" for one
    """

    numbers: Numbers = field()
    separator: str = ""

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> RawFeature:
        item = settings.item
        if item.HasField("seq_multi_sep"):
            other = "read them as a SequenceFeature with sub_feature_type: RawFeature, which combiner pools"
            settings.add("seq_multi_sep", f"several numbers or vectors in a RawFeature are not supported; {other}")
        if settings.require_inputs(1, 1) and item.raw_input_dim > 1:
            settings.require_separator("separator")
            if settings.fields[settings.inputs[0]].dtype != "string":
                problem = f"more than one number needs a STRING field, '{settings.name}' is not"
                settings.add("raw_input_dim", problem)
        return cls(**number_attributes(settings), separator=item.separator if item.raw_input_dim > 1 else "")

    @property
    def separators(self) -> tuple[str, ...]:
        return (self.separator,) if self.separator else ()

    def patterns(self) -> list[tuple[str, str]]:
        patterns = vector(self.separator, self.separator, self.numbers.dim), few_digits(self.separator)
        return [(self.inputs[0], pattern) for pattern in patterns]

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        numbers = read_vectors(fields[self.inputs[0]], self.separator, self.numbers.dim, back_end)
        return {self.name: self.numbers.values(numbers, back_end)}
