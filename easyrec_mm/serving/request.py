"""Requests -> typed values of the candidates, by column; an error names the instance and the field that are wrong.

A candidate's fields are those that the features read. What all candidates have in common, such as the user, may be
given once ("shared"). A candidate names its picture by key, or brings the vector.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.manifest import IMAGE_TEXT
from easyrec_mm.schema import Field, Schema
from easyrec_mm.serving.transform import Values
from easyrec_mm.text_patterns import text_patterns

_INT64_LIMIT = 2**63
# Kinds of JSON values that a field may have; True is no number, though Python has it as one.
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int64": (int,),
    "bool": (bool, int),
    "float32": (int, float),
}


class RequestError(UserError):
    """A request that cannot be answered: says which instance and which field."""


@dataclass(frozen=True)
class Candidates:
    """S candidates, by column.

    fields    field -> values as NumpyTransform takes them: S of them, or one for all
    number    S
    keys      keys of pictures `[S]`; "" where the request brings the vector
    vectors   candidate -> vector of the request, float32 `[D]`
    """

    fields: dict[str, Values]
    number: int
    keys: list[str]
    vectors: dict[int, NDArray[Any]]


class RequestReader:
    """Reads requests for one rec model.

    Args:
      schema: its fields and features.
      image_width: D.
      key_field: field that holds a picture's key; "" means the schema's image field.
      max_instances: candidates of a request.
    """

    def __init__(self, schema: Schema, image_width: int, key_field: str = "", max_instances: int = 10_000) -> None:
        self.key_field = key_field or schema.image.field
        self._width = image_width
        self._max_instances = max_instances
        self._fields = {name: schema.field(name) for name in schema.feature_fields()}
        # Other fields of the data may be there, and are not looked at.
        self._known = {field.name for field in schema.fields} | {self.key_field, IMAGE_TEXT}
        self._patterns = {
            name: [re.compile(pattern) for pattern in patterns]
            for name, patterns in text_patterns(schema).items()
            if name in self._fields and self._fields[name].dtype == "string"
        }

    def read(self, body: object) -> Candidates:
        """Read `{"instances": [{field: value, ...}, ...], "shared": {field: value, ...}}`.

        Raises:
          RequestError: for anything else, and for fields that are unknown, missing or of another type.
        """
        if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
            raise RequestError('the body must be {"instances": [{...}, ...], "shared": {...}}')
        if unknown := set(body) - {"instances", "shared"}:
            raise RequestError(f"unknown part '{min(map(str, unknown))}'; the body has 'instances' and 'shared'")
        instances, shared = body["instances"], body.get("shared") or {}
        self._check_shapes(instances, shared)
        fields = {
            name: self._values(field, [shared[name]], "shared")
            if shared.get(name) is not None
            else self._values(field, [instance.get(name) for instance in instances], "instance")
            for name, field in self._fields.items()
        }
        keys, vectors = self._pictures(instances, shared)
        return Candidates(fields, len(instances), keys, vectors)

    def _check_shapes(self, instances: list[Any], shared: Any) -> None:
        if not instances:
            raise RequestError("'instances' is empty; give at least one")
        if len(instances) > self._max_instances:
            raise RequestError(f"{len(instances)} instances; at most {self._max_instances} are answered at a time")
        if not isinstance(shared, dict):
            raise RequestError(f"'shared' is {_shown(shared)}, not an object of fields")
        self._require_known(shared, "shared")
        for i, instance in enumerate(instances):
            if not isinstance(instance, dict):
                raise RequestError(f"instance {i} is {_shown(instance)}, not an object of fields")
            if not instance.keys() <= self._known:
                self._require_known(instance, f"instance {i}")
            if shared and not shared.keys().isdisjoint(instance):
                name = min(set(shared) & set(instance))
                raise RequestError(f"instance {i}: '{name}' is in 'shared', too; give it once")

    def _require_known(self, values: Mapping[str, Any], place: str) -> None:
        for name in values:
            if name not in self._known:
                raise RequestError(f"{place}: no field '{name}'; {did_you_mean(name, self._known)}")

    def _values(self, field: Field, values: list[Any], place: str) -> Values:
        """One field's values, checked, empty ones replaced by the default."""

        def fail(index: int, problem: str) -> RequestError:
            where = place if place == "shared" else f"{place} {index}"
            return RequestError(f"{where}: {field.name}: {problem}")

        allowed = _TYPES[field.dtype]
        if not all(type(value) in allowed for value in values):
            for i, value in enumerate(values):
                if value is None and not field.optional:
                    raise fail(i, f"is missing; give a {field.dtype}")
                if value is not None and type(value) not in allowed:
                    raise fail(i, f"is {_shown(value)}, not a {field.dtype}")
            values = [field.default_value if value is None else value for value in values]
        if field.dtype == "string":
            if field.default:
                values = [value or field.default for value in values]
            for pattern in self._patterns.get(field.name, ()):
                for i, value in enumerate(values):
                    if value and not pattern.fullmatch(value):
                        raise fail(i, f"{_shown(value)} is not of the form that its feature needs")
            return values
        if field.dtype == "float32":
            with np.errstate(over="ignore"):
                numbers = np.array(values, np.float64).astype(np.float32)
            if not np.isfinite(numbers).all():
                i = int(np.flatnonzero(~np.isfinite(numbers))[0])
                raise fail(i, f"{_shown(values[i])} is not a finite float32")
            return numbers
        low, high = (0, 1) if field.dtype == "bool" else (-_INT64_LIMIT, _INT64_LIMIT - 1)
        for i, value in enumerate(values):
            if not low <= value <= high:
                raise fail(i, f"{_shown(value)} is not a {field.dtype}")
        return np.array(values, np.int64)

    def _pictures(
        self, instances: list[dict[str, Any]], shared: dict[str, Any]
    ) -> tuple[list[str], dict[int, NDArray[Any]]]:
        keys: list[str] = []
        vectors: dict[int, NDArray[Any]] = {}
        shared_vector = self._vector(shared[IMAGE_TEXT], "shared") if shared.get(IMAGE_TEXT) is not None else None
        for i, instance in enumerate(instances):
            if instance.get(IMAGE_TEXT) is not None:
                vectors[i] = self._vector(instance[IMAGE_TEXT], f"instance {i}")
                keys.append("")
                continue
            key = instance.get(self.key_field)
            if key is None and shared_vector is not None:
                vectors[i] = shared_vector
                keys.append("")
                continue
            key = shared.get(self.key_field) if key is None else key
            if not isinstance(key, str):
                problem = "is missing" if key is None else f"is {_shown(key)}, not a string"
                raise RequestError(
                    f"instance {i}: {self.key_field}: {problem}; give the picture's key, or {IMAGE_TEXT}"
                )
            keys.append(key)
        return keys, vectors

    def _vector(self, value: object, place: str) -> NDArray[Any]:
        """A vector given as text, as the image model writes it, or as a list of numbers."""
        parts: Sequence[Any] = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else ()
        try:
            numbers = np.array([_number(part) for part in parts], np.float64)
        except (TypeError, ValueError):
            numbers = np.array([math.nan])
        with np.errstate(over="ignore"):
            vector = numbers.astype(np.float32)
        if vector.shape != (self._width,) or not np.isfinite(vector).all():
            raise RequestError(f"{place}: {IMAGE_TEXT}: {_shown(value)} is not {self._width} finite numbers")
        return vector


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return float(value)


def _shown(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
