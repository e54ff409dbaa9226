"""Converts requests to typed columns of the candidates' values; an error names the invalid instance and field.

A candidate has the fields that the features read. Values that all candidates have in common, such as the user, may be
given once ("shared"). For its picture, a candidate gives the key or the vector.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import did_you_mean
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.manifest import IMAGE_TEXT
from easyrec_mm.schema import Schema
from easyrec_mm.serving.field_values import INT64_LIMIT, MAX_CHARACTERS, TYPES, RequestError, field_values, shown
from easyrec_mm.serving.list_sizes import Ints, ListCounter, ListSizes

# Types for the JSON decoder; it accepts integers that are too large, and lists, so that the check can report them.
_TYPE_OF_JSON: dict[str, Any] = {"string": str | list[Any], "int64": int, "bool": bool | int, "float32": float}
_BLANK: dict[str, Any] = {"string": "", "int64": 0, "bool": 0, "float32": 0.0}
# A text of JSON, which may be cut off.
_JSON_TEXT = re.compile(rb'"[^"\\]*(?:\\(?:.|\Z)[^"\\]*)*(?:"|\Z)', re.DOTALL)
# Bytes of a body, times fields, of which any number of objects takes little memory.
_PARSED_AT_ONCE = 8 << 20
# Objects and lists that a body may have besides those of the instances.
_MORE = 1000
# The largest body, candidates and values of lists that are computed between two turns of the event loop.
_SMALL_BYTES, _SMALL_NUMBER, _SMALL_VALUES = 256 << 10, 500, 1 << 16


@dataclass(frozen=True)
class Limits:
    """The limits of a request.

    max_instances    maximum number of candidates
    max_list_values  maximum number of values in all lists together, see list_sizes.py
    """

    max_instances: int = 10_000
    max_list_values: int = 2_000_000


@dataclass(frozen=True)
class Candidates:
    """S candidates, by column.

    fields    field -> values as NumpyTransform takes them: S of them, or one for all
    sizes     the sizes of their lists
    keys      keys of pictures `[S]`; "" where the request gives the vector, or a candidate has no picture
    vectors   index of a candidate -> vector given in the request, float32 `[D]`
    """

    fields: dict[str, Values]
    sizes: ListSizes
    keys: list[str]
    vectors: dict[int, NDArray[Any]]

    @property
    def number(self) -> int:
        """Return S."""
        return self.sizes.number

    @property
    def is_small(self) -> bool:
        """Return whether they are answered within milliseconds."""
        return self.number <= _SMALL_NUMBER and self.sizes.total <= _SMALL_VALUES

    def fields_of(self, indices: Ints) -> dict[str, Values]:
        """Return the fields of some candidates."""

        def chosen(column: Values) -> Values:
            if len(column) != self.number or self.number == 1:
                return column
            return column[indices] if isinstance(column, np.ndarray) else [column[i] for i in indices]

        return {name: chosen(column) for name, column in self.fields.items()}


class Columns(NamedTuple):
    """A request's values by field: those of each candidate `[number]`, and the shared values; None where missing."""

    number: int
    own: Mapping[str, Sequence[Any]]
    shared: Mapping[str, Any]


def is_small_size(num_bytes: int) -> bool:
    """Return whether a request of that size is read within milliseconds."""
    return num_bytes <= _SMALL_BYTES


class RequestReader:
    """Reads requests for one rec model.

    A body of bytes is parsed into structs of the schema's types, at a third of the cost of dicts; only a body that does
    not fit is parsed again, into dicts, to find out what is wrong with it.

    Args:
      schema: the model's fields and features.
      image_width: D, the numbers per image vector.
      key_field: field that contains a picture's key; "" means the schema's image field.
      limits: limits of a request.
      key_optional: whether the key may be missing; such a candidate has no picture, and its key is "".
      content_fields: fields of the item's contents that may be given, if vectors are computed of them.
    """

    def __init__(
        self,
        schema: Schema,
        image_width: int,
        key_field: str = "",
        limits: Limits = Limits(),
        key_optional: bool = False,
        content_fields: Sequence[str] = (),
    ) -> None:
        self.key_field = key_field or schema.image.field
        self.key_optional, self.limits, self._width = key_optional, limits, image_width
        self._values = field_values(schema, content_fields)
        self.content_fields = tuple(name for name in content_fields if name not in set(schema.request_fields()))
        self.read_names = list(dict.fromkeys([*self._values, self.key_field, IMAGE_TEXT]))
        # A request may contain other fields of the data, which are ignored.
        self.known_names = {field.name for field in schema.fields}.union(self.read_names)
        # A key field that is not in the data may contain text or integers.
        key_dtypes = [field.dtype for field in schema.fields if field.name == self.key_field] or ["string", "int64"]
        self.key_types = frozenset[type]().union(*(TYPES[dtype] for dtype in key_dtypes))
        self._aligned = schema.aligned_lists()
        self._lists = ListCounter(schema.features)
        self._inputs = {feature.name: feature.inputs for feature in schema.features}
        self._decoder = self._make_decoder()

    def ignore(self, names: set[str]) -> None:
        """Ignore further fields in requests from now on, as those that only a newer model reads."""
        self.known_names = self.known_names | names
        self._decoder = self._make_decoder()

    def read(self, body: object) -> Candidates:
        """Read `{"instances": [{field: value, ...}, ...], "shared": {field: value, ...}}`.

        The body is JSON or objects; or it is Columns.

        Raises:
          RequestError: if the body has another form or is too large, or a field is unknown, missing or of another type.
        """
        if isinstance(body, Columns):
            columns = self._complete(body)
        else:
            columns = self._parse(body) if isinstance(body, bytes) else self._columns(body)
        for name in columns.shared:
            instances = [i for i, value in enumerate(columns.own[name]) if value is not None]
            if instances:
                raise RequestError(f"instance {instances[0]}: '{name}' is in 'shared', too; give it once")
        fields = {
            name: values.read([columns.shared[name]], "shared")
            if name in columns.shared
            else values.read(columns.own[name], "instance")
            for name, values in self._values.items()
        }
        if not isinstance(body, bytes) or len(body) > MAX_CHARACTERS:
            for name, column in fields.items():
                self._values[name].require_short(column, "shared" if name in columns.shared else "instance")
        sizes = self._lists.sizes(fields, columns.number)
        if sizes.total > self.limits.max_list_values:
            raise self._too_many_values(sizes)
        for lists in self._aligned:
            self._require_aligned(lists, fields)
        return Candidates(fields, sizes, *self._pictures(columns))

    def blank_fields(self) -> dict[str, Values]:
        """Return the fields of a candidate without data, one value for all: the default, or an empty value or 0."""
        blank = {
            name: values.field.default_value if values.field.optional else _BLANK[values.field.dtype]
            for name, values in self._values.items()
        }
        return {name: self._values[name].read([value], "blank") for name, value in blank.items()}

    def _make_decoder(self) -> msgspec.json.Decoder[Any]:
        types: dict[str, Any] = {name: _TYPE_OF_JSON[values.field.dtype] for name, values in self._values.items()}
        types.setdefault(self.key_field, functools.reduce(operator.or_, self.key_types))
        other_names = self.known_names.difference(self.read_names)
        names = [*self.read_names, *sorted(other_names)]
        # Names are numbered, because the name of a field need not be a Python identifier.
        fields = [(f"f{i}", types[name] | None if name in types else Any, None) for i, name in enumerate(names)]
        renamed = {f"f{i}": name for i, name in enumerate(names)}
        candidate = msgspec.defstruct("candidate", fields, rename=renamed, forbid_unknown_fields=True, gc=False)
        # The type is in a variable, which a type checker cannot follow.
        parts: list[Any] = [("instances", list[candidate]), ("shared", candidate | None, None)]  # type: ignore[valid-type]
        return msgspec.json.Decoder(msgspec.defstruct("body", parts, forbid_unknown_fields=True, gc=False))

    def _parse(self, body: bytes) -> Columns:
        """Parse a body of JSON into columns."""
        self._require_few_parts(body)
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
        return Columns(
            len(decoded.instances),
            dict(zip(self.read_names, own, strict=False)),
            {name: value for name, value in zip(self.read_names, shared, strict=False) if value is not None},
        )

    def _require_few_parts(self, body: bytes) -> None:
        """Refuse far too many objects and lists before they are parsed: each takes a multiple of its size in memory.

        An empty candidate takes as much as a full one, and Python looks through all lists again and again.
        """
        limit = self.limits.max_instances
        if len(body) * len(self.known_names) <= _PARSED_AT_ONCE:
            return
        for sign, name, most in ((b"{", "objects", 2 * limit + _MORE), (b"[", "lists", 10 * limit + _MORE)):
            if body.count(sign) > most and _count_outside_texts(body, sign, most) > most:
                raise RequestError(f"more than {most} {name}; at most {limit} instances are answered at a time")

    def _columns(self, body: object) -> Columns:
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
        return Columns(
            len(instances),
            {name: [instance.get(name) for instance in instances] for name in self.read_names},
            {name: shared[name] for name in self.read_names if shared.get(name) is not None},
        )

    def _complete(self, columns: Columns) -> Columns:
        """Check the names of columns, and add the columns that are missing."""
        self._check_number(columns.number)
        self._check_names([*columns.own, *columns.shared], "instance 0")
        nothing = [None] * columns.number
        shared = {name: columns.shared[name] for name in self.read_names if columns.shared.get(name) is not None}
        return Columns(columns.number, {name: columns.own.get(name, nothing) for name in self.read_names}, shared)

    def _check_number(self, number: int) -> None:
        if not number:
            raise RequestError("'instances' is empty; give at least one")
        if number > self.limits.max_instances:
            raise RequestError(f"{number} instances; at most {self.limits.max_instances} are answered at a time")

    def _object(self, values: Any, place: str) -> dict[str, Any]:
        if not isinstance(values, dict):
            raise RequestError(f"{place} is {shown(values)}, not an object of fields")
        self._check_names(values, place)
        return values

    def _check_names(self, names: Sequence[str] | Mapping[str, Any], place: str) -> None:
        for name in names:
            if name not in self.known_names:
                name = str(name)[:60]
                raise RequestError(f"{place}: no field '{name}'; {did_you_mean(name, self.known_names)}")

    def _too_many_values(self, sizes: ListSizes) -> RequestError:
        name, candidate, size = sizes.largest()
        place = "shared" if candidate is None else f"instance {candidate}"
        total = f"the lists of all {sizes.number} candidates count as {sizes.total}"
        return RequestError(
            f"{place}: {', '.join(self._inputs[name])}: counts as {size} values, and {total}, more than "
            f"{self.limits.max_list_values} (--max_list_values); give shorter lists, or fewer candidates at a time (a "
            "list that they share counts for each of them)"
        )

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

    def _pictures(self, columns: Columns) -> tuple[list[str], dict[int, NDArray[Any]]]:
        """Return the keys `[S]`, and the vectors that the request gives, by index of the candidate."""
        keys = columns.own[self.key_field]
        texts = columns.own[IMAGE_TEXT]
        has_vectors = IMAGE_TEXT in columns.shared or any(text is not None for text in texts)
        if not has_vectors and TYPES["string"].issuperset(map(type, keys)):
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
            if key is None and self.key_optional:
                key = ""
                picture_keys.append(key)
                continue
            if i not in vectors and (type(key) not in self.key_types or _is_huge(key)):
                problem = "is missing" if key is None else f"is {shown(key)}, not a key"
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
            try:
                numbers = np.array([_number(part) for part in self._parts(value)], np.float64)
            except (TypeError, ValueError, OverflowError):
                numbers = np.array([math.nan])
        with np.errstate(over="ignore"):
            vector = numbers.astype(np.float32)
        if vector.shape != (self._width,) or not np.isfinite(vector).all():
            raise RequestError(f"{place}: {IMAGE_TEXT}: {shown(value)} is not {self._width} finite numbers")
        return vector

    def _parts(self, value: object) -> Sequence[Any]:
        """Return the numbers of a vector one by one, or nothing if their number is wrong."""
        if isinstance(value, str):
            return value.split(",") if value.count(",") == self._width - 1 else ()
        return value if isinstance(value, list) and len(value) == self._width else ()


def _count_outside_texts(body: bytes, sign: bytes, most: int) -> int:
    """Return how often a sign occurs in JSON outside of texts; the count ends soon after `most`."""
    number = end = 0
    for text in _JSON_TEXT.finditer(body):
        number += body.count(sign, end, text.start())
        end = text.end()
        if number > most:
            return number
    return number + body.count(sign, end)


def _is_huge(key: object) -> bool:
    return isinstance(key, int) and not -INT64_LIMIT <= key < INT64_LIMIT


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return float(value)
