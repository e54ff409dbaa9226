"""Converts requests to typed columns of the candidates' values; an error names the invalid instance and field.

A candidate has the fields that the features read. Values that all candidates have in common, such as the user, may be
given once ("shared"). For its picture, a candidate gives the key or the vector.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.features.field import Field
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.manifest import IMAGE_TEXT
from easyrec_mm.schema import Schema

_INT64_LIMIT = 2**63
# Types of JSON values that a field may have; True is not a number, although Python treats it as one.
_TYPES: dict[str, frozenset[type]] = {
    "string": frozenset({str}),
    "int64": frozenset({int}),
    "bool": frozenset({bool, int}),
    "float32": frozenset({int, float}),
}
# Types for the JSON decoder; it accepts integers that are too large, so that the check can report them.
_TYPE_OF_JSON: dict[str, Any] = {"string": str, "int64": int, "bool": bool | int, "float32": float}
_BLANK: dict[str, Any] = {"string": "", "int64": 0, "bool": 0, "float32": 0.0}


class RequestError(UserError):
    """An invalid request; the message names the instance and the field."""


@dataclass(frozen=True)
class Candidates:
    """S candidates, by column.

    fields    field -> values as NumpyTransform takes them: S of them, or one for all
    number    S
    keys      keys of pictures `[S]`; "" where the request gives the vector, or a candidate has no picture
    vectors   index of a candidate -> vector given in the request, float32 `[D]`
    """

    fields: dict[str, Values]
    number: int
    keys: list[str]
    vectors: dict[int, NDArray[Any]]


class _Columns(NamedTuple):
    """A request's values by field: those of each candidate `[S]`, None where missing; and the shared values."""

    number: int
    own: dict[str, Sequence[Any]]
    shared: dict[str, Any]


class RequestReader:
    """Reads requests for one rec model.

    A body of bytes is parsed into structs of the schema's types, at a third of the cost of dicts; only a body that does
    not fit is parsed again, into dicts, to find out what is wrong with it.

    Args:
      schema: the model's fields and features.
      image_width: D, the numbers per image vector.
      key_field: field that contains a picture's key; "" means the schema's image field.
      max_instances: maximum number of candidates per request.
      key_optional: whether the key may be missing; such a candidate has no picture, and its key is "".
    """

    def __init__(
        self,
        schema: Schema,
        image_width: int,
        key_field: str = "",
        max_instances: int = 10_000,
        key_optional: bool = False,
    ) -> None:
        self.key_field = key_field or schema.image.field
        self._width = image_width
        self._max_instances = max_instances
        self._key_optional = key_optional
        self._fields = {name: schema.field(name) for name in schema.feature_fields()}
        self._read_names = list(dict.fromkeys([*self._fields, self.key_field, IMAGE_TEXT]))
        # A request may contain other fields of the data, which are ignored.
        self._known_names = {field.name for field in schema.fields}.union(self._read_names)
        # A key field that is not in the data may contain text or integers.
        key_dtypes = [field.dtype for field in schema.fields if field.name == self.key_field] or ["string", "int64"]
        self._key_types = frozenset[type]().union(*(_TYPES[dtype] for dtype in key_dtypes))
        self._aligned = schema.aligned_lists()
        self._decoder = self._make_decoder()
        self._patterns = {
            name: [re.compile(pattern) for pattern in patterns]
            for name, patterns in schema.text_patterns().items()
            if name in self._fields and self._fields[name].dtype == "string"
        }

    @property
    def names(self) -> frozenset[str]:
        """The names of the fields that a request may contain."""
        return frozenset(self._known_names)

    def ignore(self, names: frozenset[str]) -> None:
        """Ignore further fields in requests from now on, as those that only a newer model reads."""
        self._known_names = self._known_names.union(names)
        self._decoder = self._make_decoder()

    def read(self, body: object) -> Candidates:
        """Read `{"instances": [{field: value, ...}, ...], "shared": {field: value, ...}}`, as JSON or as objects.

        Raises:
          RequestError: if the body has another form, or a field is unknown, missing or of another type.
        """
        columns = self._parse(body) if isinstance(body, bytes) else self._columns(body)
        for name in columns.shared:
            instances = [i for i, value in enumerate(columns.own[name]) if value is not None]
            if instances:
                raise RequestError(f"instance {instances[0]}: '{name}' is in 'shared', too; give it once")
        fields = {
            name: self._values(field, [columns.shared[name]], "shared")
            if name in columns.shared
            else self._values(field, columns.own[name], "instance")
            for name, field in self._fields.items()
        }
        for lists in self._aligned:
            self._require_aligned(lists, fields)
        return Candidates(fields, columns.number, *self._pictures(columns))

    def blank_fields(self) -> dict[str, Values]:
        """Return the fields of a candidate without data, one value for all: the default, or an empty value or 0."""
        return {
            name: self._values(field, [field.default_value if field.optional else _BLANK[field.dtype]], "blank")
            for name, field in self._fields.items()
        }

    def _make_decoder(self) -> msgspec.json.Decoder[Any]:
        types: dict[str, Any] = {name: _TYPE_OF_JSON[field.dtype] for name, field in self._fields.items()}
        types.setdefault(self.key_field, functools.reduce(operator.or_, self._key_types))
        other_names = self._known_names.difference(self._read_names)
        names = [*self._read_names, *sorted(other_names)]
        # Names are numbered, because the name of a field need not be a Python identifier.
        fields = [(f"f{i}", types[name] | None if name in types else Any, None) for i, name in enumerate(names)]
        renamed = {f"f{i}": name for i, name in enumerate(names)}
        candidate = msgspec.defstruct("candidate", fields, rename=renamed, forbid_unknown_fields=True, gc=False)
        # The type is in a variable, which a type checker cannot follow.
        parts: list[Any] = [("instances", list[candidate]), ("shared", candidate | None, None)]  # type: ignore[valid-type]
        return msgspec.json.Decoder(msgspec.defstruct("body", parts, forbid_unknown_fields=True, gc=False))

    def _parse(self, body: bytes) -> _Columns:
        """Parse a body of JSON into columns."""
        try:
            try:
                decoded = self._decoder.decode(body)
            except msgspec.ValidationError:
                return self._columns(msgspec.json.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(f"the body is not JSON: {error}") from error
        self._check_number(len(decoded.instances))
        own = zip(*map(msgspec.structs.astuple, decoded.instances), strict=True)
        shared = msgspec.structs.astuple(decoded.shared) if decoded.shared else ()
        return _Columns(
            len(decoded.instances),
            dict(zip(self._read_names, own, strict=False)),
            {name: value for name, value in zip(self._read_names, shared, strict=False) if value is not None},
        )

    def _columns(self, body: object) -> _Columns:
        """Convert a body of objects to columns."""
        if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
            raise RequestError('the body must be {"instances": [{...}, ...], "shared": {...}}')
        if unknown := set(body) - {"instances", "shared"}:
            raise RequestError(f"unknown part '{min(map(str, unknown))}'; the body has 'instances' and 'shared'")
        instances, shared = body["instances"], body.get("shared")
        self._check_number(len(instances))
        shared = self._object({} if shared is None else shared, "shared")
        for i, instance in enumerate(instances):
            self._object(instance, f"instance {i}")
        return _Columns(
            len(instances),
            {name: [instance.get(name) for instance in instances] for name in self._read_names},
            {name: shared[name] for name in self._read_names if shared.get(name) is not None},
        )

    def _check_number(self, number: int) -> None:
        if not number:
            raise RequestError("'instances' is empty; give at least one")
        if number > self._max_instances:
            raise RequestError(f"{number} instances; at most {self._max_instances} are answered at a time")

    def _object(self, values: Any, place: str) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise RequestError(f"{place} is {_shown(values)}, not an object of fields")
        for name in values:
            if name not in self._known_names:
                raise RequestError(f"{place}: no field '{name}'; {did_you_mean(name, self._known_names)}")
        return values

    def _values(self, field: Field, values: Sequence[Any], place: str) -> Values:
        """Check one field's values, and replace missing or empty ones by the default."""

        def fail(index: int, problem: str) -> RequestError:
            where = place if place == "shared" else f"{place} {index}"
            return RequestError(f"{where}: {field.name}: {problem}")

        allowed = _TYPES[field.dtype]
        if not allowed.issuperset(map(type, values)):
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
                        raise fail(i, f"{_shown(value)} does not have the form that its feature needs")
            return values
        if field.dtype == "float32":
            with np.errstate(over="ignore"):
                numbers = np.array(values, np.float64).astype(np.float32)
            if not np.isfinite(numbers).all():
                i = int(np.flatnonzero(~np.isfinite(numbers))[0])
                raise fail(i, f"{_shown(values[i])} is not a finite float32")
            return numbers
        low, high = (0, 1) if field.dtype == "bool" else (-_INT64_LIMIT, _INT64_LIMIT - 1)
        try:
            integers = np.array(values, np.int64)
        except OverflowError:
            integers = None
        if integers is None or (field.dtype == "bool" and not ((integers >= 0) & (integers <= 1)).all()):
            i = next(i for i, value in enumerate(values) if not low <= value <= high)
            raise fail(i, f"{_shown(values[i])} is not a {field.dtype}")
        return integers

    @staticmethod
    def _require_aligned(lists: dict[str, str], fields: dict[str, Values]) -> None:
        """Check that the lists in the texts of fields (field -> separator) have equal numbers of values."""
        counts = {
            name: np.array([sum(map(bool, text.split(separator))) for text in fields[name]])
            for name, separator in lists.items()
        }
        first = next(iter(counts))
        for name, count in counts.items():
            differ = np.flatnonzero(np.not_equal(*np.broadcast_arrays(counts[first], count)))
            if len(differ):
                i = int(differ[0])
                number, other = (int(counted[i if len(counted) > 1 else 0]) for counted in (counts[first], count))
                raise RequestError(
                    f"instance {i}: '{first}' has {number} values, but '{name}' has {other}; give both the same number"
                )

    def _pictures(self, columns: _Columns) -> tuple[list[str], dict[int, NDArray[Any]]]:
        """Return the keys `[S]`, and the vectors that the request gives, by index of the candidate."""
        keys = columns.own[self.key_field]
        texts = columns.own[IMAGE_TEXT]
        has_vectors = IMAGE_TEXT in columns.shared or any(text is not None for text in texts)
        if not has_vectors and _TYPES["string"].issuperset(map(type, keys)):
            return list(keys), {}
        vectors: dict[int, NDArray[Any]] = {}
        shared_key, shared_vector = columns.shared.get(self.key_field), None
        if IMAGE_TEXT in columns.shared:
            shared_vector = self._vector(columns.shared[IMAGE_TEXT], "shared")
        picture_keys: list[str] = []
        for i, (text, key) in enumerate(zip(texts, keys, strict=True)):
            if text is not None:
                vectors[i] = self._vector(text, f"instance {i}")
            elif key is None and shared_vector is not None:
                vectors[i] = shared_vector
            key = shared_key if key is None else key
            if key is None and self._key_optional:
                key = ""
                picture_keys.append(key)
                continue
            if i not in vectors and type(key) not in self._key_types:
                problem = "is missing" if key is None else f"is {_shown(key)}, not a key"
                raise RequestError(
                    f"instance {i}: {self.key_field}: {problem}; give the picture's key, or {IMAGE_TEXT}"
                )
            picture_keys.append("" if i in vectors else str(key))
        return picture_keys, vectors

    def _vector(self, value: object, place: str) -> NDArray[Any]:
        """Parse a vector given as text (as the image model writes it), as a list of numbers, or as an array."""
        numbers: NDArray[Any]
        if isinstance(value, np.ndarray):
            numbers = value
        else:
            parts: Sequence[Any] = value.split(",") if isinstance(value, str) else value  # type: ignore[assignment]
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
    """Format a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
