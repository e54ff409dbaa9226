"""Lines of a config for the text of items: its feature, feature group and tower; none without columns of text."""

from __future__ import annotations

from collections.abc import Sequence

from easyrec_mm.grouping.config_text import comment, quoted

# Name of the feature if it has several fields.
_NAME_OF_SEVERAL = "text_of_item"
_FEATURE = "The text of an item, of which the text tower makes a vector; the same for all rows of the item."
_TOWER = (
    "Words and parts of words of the text, learned with everything else. Change preset, a pretrained text backbone "
    "(easyrec-mm weights list), if there are few items."
)


def feature(columns: Sequence[str]) -> list[str]:
    """Return the feature that reads the columns."""
    if not columns:
        return []
    names = ", ".join(map(quoted, columns))
    inputs = f"input_names: {names}"
    if len(columns) > 1:
        inputs = f"feature_name: {quoted(_NAME_OF_SEVERAL)} input_names: [{names}]"
    return [*comment([_FEATURE]), f"features {{ {inputs} feature_type: TextFeature }}"]


def feature_group(columns: Sequence[str]) -> list[str]:
    """Return the feature group of that feature."""
    if not columns:
        return []
    name = columns[0] if len(columns) == 1 else _NAME_OF_SEVERAL
    return [f'feature_groups {{ group_name: "item_text" feature_names: {quoted(name)} }}']


def tower(columns: Sequence[str]) -> list[str]:
    """Return the text tower."""
    return [*comment([_TOWER]), "text_model { dim: 16 }"] if columns else []
