"""LookupFeature: the values that a map contains for a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from easyrec_mm.features.back_end import BackEnd
from easyrec_mm.features.categories import Categories, category_attributes
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.reading import FeatureSettings
from easyrec_mm.features.tag_feature import COMBINERS
from easyrec_mm.features.text_patterns import list_of, literal, word


@dataclass(frozen=True, kw_only=True)
class LookupFeature(Feature):
    """The values that the map in the second of `inputs` has for the key in the first -> rows of the table, combined.

    separator     between the entries of the map
    kv_separator  between the key and the value of an entry
    max_selected  most values that are used; several entries may have the same key
    """

    is_list: ClassVar[bool] = True
    table: str = field()
    categories: Categories = field()
    combiner: str = field()
    separator: str
    kv_separator: str
    max_selected: int

    @classmethod
    def of_config(cls, settings: FeatureSettings) -> LookupFeature:
        item = settings.item
        if settings.require_inputs(2, 2):
            key, entries = settings.inputs
            if settings.fields[key].dtype == "float32":
                settings.add("input_names", f"'{key}' is a FLOAT; a key is text or a whole number")
            settings.require_string(entries, "a map")
        if not item.HasField("kv_separator"):
            settings.add("kv_separator", 'is missing; give the character between key and value, such as ":"')
        settings.require_pair_separators()
        settings.require_combiner(COMBINERS)
        return cls(
            **category_attributes(settings),
            combiner=item.combiner,
            separator=item.separator,
            kv_separator=item.kv_separator,
            max_selected=item.lookup_max_sel_elem_num,
        )

    @property
    def separators(self) -> tuple[str, ...]:
        return (self.separator,)

    def patterns(self) -> list[tuple[str, str]]:
        separators = self.separator + self.kv_separator
        entry = word(separators) + literal(self.kv_separator) + self.categories.pattern(separators)
        return [(self.inputs[1], list_of(entry, self.separator))]

    def keys(self, fields: Mapping[str, Any], back_end: BackEnd) -> Any:
        key, entries = self.inputs
        lists = back_end.split(fields[entries], self.separator)
        names, values = back_end.pairs(lists.flat_values, self.kv_separator)
        key_texts = back_end.texts(fields[key])
        return back_end.cut(
            back_end.values_for(lists.with_flat_values(names), key_texts, values), self.max_selected, keeps_last=False
        )

    def values(self, fields: Mapping[str, Any], back_end: BackEnd) -> dict[str, Any]:
        keys = self.keys(fields, back_end)
        return {self.name: keys.with_flat_values(self.categories.ids(keys.flat_values, self.name, back_end))}
