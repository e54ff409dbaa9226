"""Checks `export_config.serve_constants`, the values that exported models take for some fields."""

from __future__ import annotations

import re
from dataclasses import replace

from easyrec_mm.errors import Problems
from easyrec_mm.features.text_patterns import VALUE_PATTERNS
from easyrec_mm.protos.export_pb2 import ExportConfig, ServeConstant
from easyrec_mm.schema import Schema


def with_constants(schema: Schema, export: ExportConfig, problems: Problems) -> Schema:
    """Return the Schema with the constants of its fields; every mistake in them is added to `problems`."""
    constants: dict[str, str] = {}
    for i, item in enumerate(export.serve_constants):
        place = f"export_config.serve_constants[{i}]"
        if item.input_name in constants:
            problems.add(f"{place}.input_name", f"'{item.input_name}' is listed twice; remove one")
        elif _check_field(item.input_name, schema, f"{place}.input_name", problems):
            _check_value(item, schema, f"{place}.value", problems)
            constants[item.input_name] = item.value
    if not constants:
        return schema
    return replace(schema, fields=tuple(replace(field, constant=constants.get(field.name)) for field in schema.fields))


def _check_field(name: str, schema: Schema, place: str, problems: Problems) -> bool:
    """Check that exported models can take a constant for a field, and return whether they can."""
    fields = {field.name for field in schema.fields}
    keys = {name for feature in schema.in_stores() for name in feature.inputs}
    lists = {name: [other for other in names if other != name] for names in schema.aligned_lists() for name in names}
    if name not in fields:
        problems.unknown(place, "input field", name, fields)
    elif name == schema.image.field or name in schema.image_fields():
        problems.add(place, f"'{name}' is an input of the image tower, whose vectors are computed before; remove it")
    elif name in keys:
        problems.add(place, f"'{name}' is the key of vectors in a store, which exported models take instead; remove it")
    elif name not in set(schema.feature_fields()):
        problems.add(place, f"'{name}' has no effect: no feature of the model reads it; remove it")
    elif name in lists:
        problems.add(place, f"'{name}' is a list with as many values as '{lists[name][0]}' in each sample; remove it")
    else:
        return True
    return False


def _check_value(item: ServeConstant, schema: Schema, place: str, problems: Problems) -> None:
    """Check that a constant has the form of the field's values in the data."""
    field = schema.field(item.input_name)
    patterns = schema.text_patterns().get(field.name, [])
    if not item.HasField("value"):
        problems.add(place, f"is missing; give the value that exported models take for '{field.name}'")
    elif field.dtype in VALUE_PATTERNS and not item.value:
        problems.add(place, f"is empty, but '{field.name}' is {field.dtype}; give a value like those of the data")
    elif item.value and not all(re.fullmatch(pattern, item.value) for pattern in patterns):
        kind = (
            field.dtype if field.dtype in VALUE_PATTERNS else f"text of the form that features of '{field.name}' need"
        )
        problems.add(place, f"'{item.value}' is not {kind}; give a value like those of the data")
    elif field.dtype == "float32":
        largest, allowed = schema.largest_number(field.name)
        if not abs(float(item.value)) <= largest:
            problems.add(place, f"'{item.value}' is not {allowed}")
