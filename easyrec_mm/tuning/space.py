"""The space of a search: which settings of the config take which values. A YAML file, or one that is built in.

    train_config.optimizer_config[0].adam_optimizer.learning_rate.constant_learning_rate.learning_rate:
      {low: 1e-4, high: 1e-2, log: true}
    model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units: {choices: [[128, 64], [256, 128]]}

Names are those of --set. Everything that can be wrong is told before the first trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from easyrec_mm.config.overrides import Override, setting_at
from easyrec_mm.config.pipeline import Pipeline, changed_pipeline
from easyrec_mm.config.scanner import is_repeated
from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.files import StorageError, read
from easyrec_mm.files.yaml_settings import yaml_settings

Value: TypeAlias = str | int | float | bool
_RANGE, _CHOICES = ("low", "high", "log", "step"), ("choices",)
_EXAMPLE = "{low: 0.001, high: 0.1, log: true} or {choices: [64, 128]}"
_INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64,
             FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)  # fmt: skip
_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)
# What the search sets itself, and what its trials are compared by.
_NOT_SEARCHED = {
    "model_dir": "each trial has a folder of its own",
    "eval_input_path": "trials on other data cannot be compared",
    "eval_config": "trials that are evaluated otherwise cannot be compared",
}


@dataclass(frozen=True)
class Entry:
    """A setting and the values that it may take: either choices, or numbers from low to high.

    place     where it stands, for messages: "space.yaml:3: data_config.batch_size"
    name      path of the setting, as in --set
    choices   the choices; () for a range
    is_whole  whether the numbers of a range are whole
    is_log    whether small and large numbers are equally likely by their logarithms
    step      distance of the numbers; None for any
    """

    place: str
    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_whole: bool = False
    is_log: bool = False
    step: float | None = None

    def ends(self) -> tuple[Value, ...]:
        """Return the values to try before the search: the limits of a range, or all choices."""
        return self.choices or (self.low, self.high)

    def describe(self) -> str:
        """Return the name and the values as text."""
        if self.choices:
            return f"{self.name}: {', '.join(map(as_text, self.choices))}"
        scale = ", by logarithm" if self.is_log else ""
        return f"{self.name}: {self.low:g} to {self.high:g}{scale}" + (
            f" in steps of {self.step:g}" if self.step else ""
        )

    def override(self, value: Value) -> Override:
        """Return the change of the config that gives the setting a value."""
        return Override(f"{self.place}: {as_text(value)}", self.name, as_text(value))

    def has(self, value: Value) -> bool:
        """Return whether it may take a value."""
        if self.choices:
            return value in self.choices
        if isinstance(value, str) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-6)


class _MistakeError(Exception):
    """What is wrong with an entry; the message completes its place."""


def as_text(value: Value) -> str:
    """Return a value as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return name -> as much of its end as tells it from the others."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-num:]) for num in range(1, len(parts) + 1))
        short[name] = next(end for end in ends if sum(n == end or n.endswith(f".{end}") for n in names) == 1)
    return short


def shown(value: Value) -> str:
    """Return a value for people, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def overrides_of(entries: Sequence[Entry], values: Mapping[str, Value]) -> list[Override]:
    """Return the changes of the config that give the settings of a space their values, by name."""
    return [entry.override(values[entry.name]) for entry in entries]


def read_space(path: str, pipeline: Pipeline) -> list[Entry]:
    """Read a space and check that it fits a config.

    Raises:
      ConfigError: naming every mistake with its line.
    """
    try:
        text = read(path).decode()
    except (OSError, StorageError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--space {path}: cannot be read: {reason}; give a YAML file, or: pictures") from error
    entries, problems = [], []
    for place, name, content in yaml_settings(text, path, f"data_config.batch_size: {_EXAMPLE}"):
        try:
            entries.append(_entry(place, name, content, pipeline))
        except _MistakeError as error:
            problems.append(f"{place}: {error}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    require_valid(entries, pipeline)
    return entries


def require_valid(entries: Sequence[Entry], pipeline: Pipeline) -> None:
    """Check that each end of each entry gives a valid config, and so do all low and all high ends together.

    Raises:
      ConfigError: naming every end that does not.
    """
    ends = [(entry, value) for entry in entries for value in entry.ends()]
    problems = [text for entry, value in ends if (text := problem_of(entry, value, entries, pipeline))]
    for index in () if problems else (0, -1):
        values = {entry.name: entry.ends()[index] for entry in entries}
        try:
            changed_pipeline(pipeline, overrides_of(entries, values))
        except ConfigError as error:
            together = ", ".join(f"{name}={as_text(value)}" for name, value in values.items())
            problems.append(f"--space: {together}: give an invalid config together; change the space: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def problem_of(entry: Entry, value: Value, entries: Sequence[Entry], pipeline: Pipeline) -> str:
    """Return why a value of a setting is invalid; "" if it is valid alone, or beside the first values of all others."""
    change = entry.override(value)
    others = [other.override(other.ends()[0]) for other in entries if other != entry]
    problem = ""
    for changes in ([change], [*others, change]):
        try:
            changed_pipeline(pipeline, changes)
            return ""
        except ConfigError as error:
            problem = problem or str(error)
    return problem if problem.startswith(change.place) else f"{change.place}: gives an invalid config: {problem}"


def own_values(entries: Sequence[Entry], pipeline: Pipeline) -> dict[str, Value]:
    """Return the values that the config itself has, of the settings whose space contains them."""
    values: dict[str, Value] = {}
    for entry in entries:
        field, found = setting_at(pipeline.config, entry.place, entry.name)
        plain = {_own_value(field, value) for value in found}
        if len(plain) == 1 and entry.has(value := plain.pop()):
            values[entry.name] = value
    return values


def _own_value(field: FieldDescriptor, value: Any) -> Value:
    if field.enum_type and isinstance(value, int):
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, float):
        return float(f"{value:.7g}")  # 0.1 instead of protobuf's float32 0.100000001
    return value if isinstance(value, str | int) else as_text_of_list(value)


def as_text_of_list(value: Any) -> str:
    """Return a repeated field as choices have it, such as "[128, 64]"; "" for a message."""
    try:
        return json.dumps(list(value))
    except TypeError:
        return ""


def _entry(place: str, name: str, content: Any, pipeline: Pipeline) -> Entry:
    section = name.split(".")[0].split("[")[0].strip()
    if section in _NOT_SEARCHED:
        raise _MistakeError(f"cannot be searched: {_NOT_SEARCHED[section]}; remove it")
    if not isinstance(content, dict):
        raise _MistakeError(f"{content!r} does not say which values to try; write {_EXAMPLE}")
    unknown = [key for key in content if key not in (*_RANGE, *_CHOICES)]
    if unknown:
        raise _MistakeError(f"no key named '{unknown[0]}'; {did_you_mean(str(unknown[0]), (*_RANGE, *_CHOICES))}")
    field, _ = setting_at(pipeline.config, place, name)
    is_list = is_repeated(field) and not name.strip().endswith("]")
    if "choices" in content:
        if len(content) > 1:
            raise _MistakeError("has choices and a range; keep one of the two")
        return Entry(place, name, _choices(content["choices"]))
    if field.cpp_type not in (*_INTEGERS, *_FLOATS) or is_list:
        kind = (
            "a list" if is_list else "a message" if field.message_type else "text" if not field.enum_type else "a name"
        )
        kind = "true or false" if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else kind
        raise _MistakeError(f"is {kind}, which has no range; write {{choices: [...]}}")
    return _range(place, name, content, field.cpp_type in _INTEGERS)


def _choices(content: Any) -> tuple[Value, ...]:
    if not isinstance(content, list) or not content:
        raise _MistakeError(f"choices: {content!r} is not a list of values; write [64, 128]")
    choices: list[Value] = []
    for choice in content:
        value = choice if isinstance(choice, str | int | float | bool) else json.dumps(choice)
        if choice is None or isinstance(choice, dict):
            raise _MistakeError(f"choices: {choice!r} is not a value; write a number, a text or a list")
        if value in choices:
            raise _MistakeError(f"choices: {as_text(value)} occurs twice; keep one of them")
        choices.append(value)
    return tuple(choices)


def _range(place: str, name: str, content: dict[str, Any], is_whole: bool) -> Entry:
    missing = [key for key in ("low", "high") if key not in content]
    if missing:
        raise _MistakeError(f"{missing[0]} is missing; write {_EXAMPLE}")
    low, high = (_number(content, key, is_whole) for key in ("low", "high"))
    is_log = content.get("log", False)
    step = _number(content, "step", is_whole) if "step" in content else None
    if not isinstance(is_log, bool):
        raise _MistakeError(f"log: {is_log!r} is not true or false")
    if low >= high:
        raise _MistakeError(f"low {low:g} is not below high {high:g}; exchange them, or give {{choices: [...]}}")
    if is_log and low <= 0:
        raise _MistakeError(f"low {low:g} has no logarithm; give a number above 0, or leave out log")
    if is_log and step is not None:
        raise _MistakeError("has log and step, which exclude each other; keep one of the two")
    if step is not None and not 0 < step <= high - low:
        raise _MistakeError(f"step {step:g} is not above 0 and at most high - low ({high - low:g}); change it")
    steps = (high - low) / step if step else 0.0
    if step and not math.isclose(steps, round(steps), abs_tol=1e-6):
        nearest = low + math.floor(steps) * step
        raise _MistakeError(f"high {high:g} is not low plus a number of steps; give {nearest:g} or {nearest + step:g}")
    return Entry(place, name, (), low, high, is_whole, is_log, step)


def _number(content: dict[str, Any], key: str, is_whole: bool) -> float:
    """Return a number; YAML takes 1e-4, without a point, for text."""
    value = content[key]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _MistakeError(f"{key}: {value!r} is not a number; give one")
    if is_whole and number != round(number):
        raise _MistakeError(f"{key}: {value!r} is not a whole number, which this setting takes; give one")
    return int(number) if is_whole else number
