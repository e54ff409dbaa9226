"""TagFeature: any number of categories, weighted or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories, category_attributes
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.text_patterns import list_of, literal, number

COMBINERS = ("mean", "sum", "sqrtn")


@dataclass(frozen=True, kw_only=True)
class TagFeature(Feature):
    """The tags of a text -> rows of the table, combined.

    separator     between the tags
    kv_separator  between a tag and its weight; "" if the text has no weights
    """

    is_list: ClassVar[bool] = True
    table: str = field()
    categories: Categories = field()
    combiner: str = field()
    separator: str
    kv_separator: str = ""

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> TagFeature:
        item = settings.item
        settings.require_inputs(1, 2)
        for name, contents in zip(settings.inputs, ("several tags", "several weights"), strict=False):
            settings.require_string(name, contents)
        if item.HasField("kv_separator") and len(settings.inputs) == 2:
            settings.add("kv_separator", "the second input name holds the weights already; remove one")
        settings.require_pair_separators()
        settings.require_combiner(COMBINERS)
        return cls(
            **category_attributes(settings),
            combiner=item.combiner,
            separator=item.separator,
            kv_separator=item.kv_separator,
        )

    @property
    def weight_input(self) -> str | None:
        """Return the field that holds the weights, if they have a field of their own."""
        return self.inputs[1] if len(self.inputs) == 2 else None

    @property
    def separators(self) -> tuple[str, ...]:
        return (self.separator,)

    def patterns(self) -> list[tuple[str, str]]:
        separators = self.separator + self.kv_separator
        tag, weight = self.categories.pattern(separators), number(separators)
        patterns = []
        if self.kv_separator:
            patterns.append((self.inputs[0], list_of(tag + literal(self.kv_separator) + weight, self.separator)))
        elif self.categories.encoding == "identity":
            patterns.append((self.inputs[0], list_of(tag, self.separator)))
        if self.weight_input:
            patterns.append((self.weight_input, list_of(weight, self.separator)))
        return patterns

    def keys(self, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
        tags = back_end.split(fields[self.inputs[0]], self.separator)
        if not self.kv_separator:
            return tags
        return tags.with_flat_values(back_end.pairs(tags.flat_values, self.kv_separator)[0])

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        tags = back_end.split(fields[self.inputs[0]], self.separator)
        weights = None
        if self.kv_separator:
            names, numbers = back_end.pairs(tags.flat_values, self.kv_separator)
            tags, weights = tags.with_flat_values(names), tags.with_flat_values(back_end.floats(numbers))
        elif self.weight_input:
            texts = back_end.with_values_of(tags, back_end.split(fields[self.weight_input], self.separator))
            weights = texts.with_flat_values(back_end.floats(texts.flat_values))
        ids = tags.with_flat_values(self.categories.ids(tags.flat_values, self.name, back_end))
        return {self.name: ids} if weights is None else {self.name: ids, self.weight_key: weights}
