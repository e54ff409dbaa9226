"""Decides whether a column holds free text of items: titles and descriptions, whose words say what an item is."""

from __future__ import annotations

import re

import pyarrow as pa

from easyrec_mm.features.text_feature import MOST_FIELDS
from easyrec_mm.grouping.column_stats import ColumnStats
from easyrec_mm.grouping.feature_plans import MAX_VOCABULARY

# Usual names of columns of free text.
_NAME = re.compile(
    r"(\w+_)?(title|subtitle|headline|caption|description|desc|summary|abstract|text)"
    r"|((item|goods|product|sku|video|article|news|ad)_?)?name"
)
# A word, or a letter of Chinese and Japanese, which put no spaces between words. A code such as ab-12-c is one word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
# Words of a text on average, in columns with a usual name and in others, and texts of these per item at least.
_LEAST_WORDS, _MANY_WORDS, _TEXTS_PER_ITEM = 2.0, 3.0, 0.5


def mean_words(values: pa.Array) -> float:
    """Return the mean number of words of the distinct texts of a sample."""
    texts = values.unique().to_pylist()
    return sum(len(_WORD.findall(text)) for text in texts) / max(1, len(texts))


def is_item_text(name: str, column: ColumnStats, values: pa.Array, num_items: int, num_before: int) -> bool:
    """Return whether a column that has one value per item is free text.

    Args:
      name: its name.
      column: its statistics.
      values: its texts in a sample of the rows.
      num_items: number of items.
      num_before: number of columns that are part of the text already.
    """
    if column.num_distinct <= MAX_VOCABULARY or num_before >= MOST_FIELDS:
        return False
    if _NAME.fullmatch(name.lower()):
        return mean_words(values) >= _LEAST_WORDS
    # What many items have in common is a kind of item, however many words name it.
    return column.num_distinct >= _TEXTS_PER_ITEM * num_items and mean_words(values) >= _MANY_WORDS
