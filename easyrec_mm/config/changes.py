"""The settings in which two configs differ, and whether the weights of a checkpoint depend on them.

A checkpoint contains the config that it was trained with (`record_of`). Before a training goes on from it, and before
it is evaluated or exported, that config is compared with the present one: weights of equal shapes mean something else
under another vocabulary, other features or another activation, and nothing else would tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from easyrec_mm.config.rules import rule_of
from easyrec_mm.config.scanner import is_repeated
from easyrec_mm.features.categories import read_vocabulary
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.safe_text import without_secrets

# Settings that name the elements of a list, which are compared by their names instead of their places.
_NAMES = ("feature_name", "input_name", "tower_name", "group_name")
_MOST_SHOWN = 80
# Optimizers that keep the same slots, whose meaning is the same too.
_SAME_SLOTS = {"lazy_adam_optimizer": "adam_optimizer", "adamw_optimizer": "adam_optimizer"}


class Change(NamedTuple):
    """A setting with another value than before; `before` or `now` is "" where it is not set."""

    place: str
    before: str
    now: str
    changes_weights: bool

    def __str__(self) -> str:
        # Long values are cut around the first difference.
        start = next((i for i, (a, b) in enumerate(zip(self.before, self.now, strict=False)) if a != b), 0)
        return f"{self.place}: was {_part(self.before, start)}, is {_part(self.now, start)}"


def _part(text: str, start: int) -> str:
    if len(text) <= _MOST_SHOWN:
        return text or "not set"
    first = max(0, start - _MOST_SHOWN // 4)
    part = text[first : first + _MOST_SHOWN]
    return f"{'...' if first else ''}{part}{'...' if first + _MOST_SHOWN < len(text) else ''}"


def record_of(config: EasyRecConfig) -> str:
    """Return the text of a config in which each vocabulary file is replaced by a checksum of its values."""
    record = EasyRecConfig()
    record.CopyFrom(config)
    for feature in _features_of(record):
        if feature.vocab_file:
            feature.vocab_file = _checksum_of(feature.vocab_file)
    leave_out_secrets(record)
    return str(text_format.MessageToString(record, as_utf8=True))


def config_of(record: str, written: EasyRecConfig) -> EasyRecConfig | None:
    """Return the config of a record, with its vocabulary files.

    Args:
      record: result of `record_of`.
      written: a config that names the files, such as the one written into model_dir.

    Returns:
      The config; None if a vocabulary file is missing, or its values are others now.
    """
    config: EasyRecConfig = text_format.Parse(record, EasyRecConfig(), allow_unknown_field=True)
    paths = {_name_of(feature): feature.vocab_file for feature in _features_of(written)}
    for feature in _features_of(config):
        if feature.vocab_file:
            path = paths.get(_name_of(feature), "")
            try:
                if not path or _checksum_of(path) != feature.vocab_file:
                    return None
            except (OSError, UnicodeDecodeError):
                return None
            feature.vocab_file = path
    return config


def described_vocabularies(config: EasyRecConfig) -> list[str]:
    """Return a line for each vocabulary file: its feature, its path, and the checksum of its values."""
    return [
        f"feature '{_name_of(feature)}': {feature.vocab_file}: {_checksum_of(feature.vocab_file)}"
        for feature in _features_of(config)
        if feature.vocab_file
    ]


def _features_of(config: EasyRecConfig) -> list[FeatureConfig]:
    return [*config.feature_config.features, *config.feature_configs]


def _checksum_of(vocab_file: str) -> str:
    values = "\n".join(read_vocabulary(vocab_file))
    return f"values with the checksum {hashlib.sha256(values.encode()).hexdigest()[:16]}"


def leave_out_secrets(message: Message) -> None:
    """Leave the passwords out of the URIs in a config; see errors.without_secrets."""
    for field, value in message.ListFields():
        if field.message_type:
            for inner in value if is_repeated(field) else [value]:
                leave_out_secrets(inner)
        elif field.type == FieldDescriptor.TYPE_STRING and is_repeated(field):
            value[:] = [without_secrets(text) if "://" in text else text for text in value]
        elif field.type == FieldDescriptor.TYPE_STRING and "://" in value:
            setattr(message, field.name, without_secrets(value))


def changes_since(record: str, config: EasyRecConfig) -> list[Change]:
    """Return how a config differs from the one of a record, in the order of its settings."""
    before = text_format.Parse(record, EasyRecConfig(), allow_unknown_field=True)
    now = text_format.Parse(record_of(config), EasyRecConfig())
    old, new = dict(_values_of(before)), dict(_values_of(now))
    changes = []
    elements: list[str] = []
    for key in dict.fromkeys([*new, *old]):
        place, changes_weights = key
        # Of an element that only one of the two has, its settings are not told again.
        if old.get(key, "") != new.get(key, "") and not place.startswith(tuple(elements)):
            changes.append(Change(place, old.get(key, ""), new.get(key, ""), changes_weights))
            if place.endswith("]"):
                elements.append(f"{place}.")
    return changes


def _values_of(config: EasyRecConfig) -> Iterator[tuple[tuple[str, bool], str]]:
    """Yield ((place, whether weights depend on it), value) of each setting that differs from its default."""
    merged = EasyRecConfig()
    merged.CopyFrom(config)
    # The older spelling of the same list.
    merged.feature_config.features.extend(merged.feature_configs)
    del merged.feature_configs[:]
    yield from _settings(merged, "", False)
    for i, optimizer in enumerate(config.train_config.optimizer_config):
        kind = optimizer.WhichOneof("optimizer") or ""
        yield (f"train_config.optimizer_config[{i}].optimizer", True), _SAME_SLOTS.get(kind, kind)


def _settings(message: Message, place: str, defines_weights: bool) -> Iterator[tuple[tuple[str, bool], str]]:
    for field, value in message.ListFields():
        rule = rule_of(field)
        is_weighty = rule.defines_weights if rule.HasField("defines_weights") else defines_weights
        here = f"{place}{field.name}"
        if not field.message_type:
            if value != field.default_value:
                yield (here, is_weighty), _text(field, value)
        elif not is_repeated(field):
            yield from _settings(value, f"{here}.", is_weighty)
        else:
            for i, element in enumerate(value):
                at = f"{here}[{_name_of(element) or i}]"
                # Where a feature or a tower more or less matters, the shapes of weights differ.
                yield (at, False), "given"
                yield from _settings(element, f"{at}.", is_weighty)


def _name_of(message: Message) -> str:
    """Return the name of an element of a list; "" if such elements have no names."""
    names = [getattr(message, name) for name in _NAMES if name in message.DESCRIPTOR.fields_by_name]
    # A feature without a name has that of its first input.
    return str(names[0] or next(iter(getattr(message, "input_names", [])), "")) if names else ""


def _text(field: FieldDescriptor, value: object) -> str:
    values = list(value) if is_repeated(field) else [value]  # type: ignore[call-overload]
    if field.enum_type:
        values = [field.enum_type.values_by_number[number].name for number in values]
    texts = [f"{element:g}" if isinstance(element, float) else str(element) for element in values]
    return f"[{', '.join(texts)}]" if is_repeated(field) else texts[0]
