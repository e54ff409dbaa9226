"""What an encoder's input is made of, and what becomes of its output, as a small YAML file declares it. No TensorFlow.

The settings travel with the vectors as a part of their origin (origin.py), so that every one of them is in `Settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.files import StorageError, is_remote, read
from easyrec_mm.files.yaml_settings import yaml_settings

Fit = Literal["stretch", "crop", "pad"]
Resize = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
Resampler = Literal["pillow", "keras"]
Channels = Literal["RGB", "BGR", "GREY"]
Layout = Literal["NHWC", "NCHW"]
Pooling = Literal["mean", "max", "cls", "flatten"]
Normalize = Literal["l2", "none"]

# What inputs of networks stand for: pixels or file contents of pictures; tokens or the text itself; samples of sounds
# or their spectrogram.
ROLES = ("pixels", "contents", "token_ids", "padding_mask", "segment_ids", "texts", "samples", "log_mel")
_EXAMPLE = "size: [224, 224]"
# Of a sound, all of which is held in memory as samples.
MOST_SECONDS = 600
_OF_PICTURES = ("size", "fit", "resize_to", "resize", "antialias", "resampler", "mean", "std", "scale", "offset",
                "channels", "layout")  # fmt: skip
# Settings of one kind of content, and what it is called.
_OF_KIND = {
    "image": (_OF_PICTURES, "pictures"),
    "text": (("tokenizer", "max_tokens"), "texts"),
    "audio": (("sample_rate", "max_seconds", "num_mels"), "sounds"),
}


@dataclass(frozen=True)
class Settings:
    """The settings of a preprocessing file; what is None depends on the encoder.

    size        height and width of the pixels
    fit         pictures of another shape: "stretch"; "crop": their middle; "pad": with black around them
    resize_to   for fit: crop, length of the shorter side from whose middle `size` is cut; None: as large as possible
    resize      how pixels are interpolated
    antialias   whether pixels that disappear count as well; Pillow always does so
    resampler   the library that resizes
    mean, std   (pixel / 255 - mean) / std is what the network gets
    scale, offset   or pixel * scale + offset; a number, or one for each channel
    channels    their order
    layout      where the channels are: NHWC last, NCHW first
    tokenizer   a tokenizer.json of Hugging Face's tokenizers, or a text preset
    max_tokens  tokens of a text that count, with special ones
    sample_rate samples of a sound per second
    max_seconds the beginning of a sound that counts
    num_mels    mel bands of a spectrogram
    signature   of a SavedModel
    inputs      role of an input -> its name in the network
    layers      names of the outputs or inner layers
    pooling     how an output of several vectors becomes one
    normalize   "l2": vectors have the length 1
    """

    size: tuple[int, int] | None = None
    fit: Fit | None = None
    resize_to: int | None = None
    resize: Resize | None = None
    antialias: bool | None = None
    resampler: Resampler | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    channels: Channels | None = None
    layout: Layout | None = None
    tokenizer: str | None = None
    max_tokens: int | None = None
    sample_rate: int | None = None
    max_seconds: float | None = None
    num_mels: int | None = None
    signature: str | None = None
    inputs: Mapping[str, str] | None = None
    layers: tuple[str, ...] = ()
    pooling: Pooling | None = None
    normalize: Normalize | None = None

    def over(self, defaults: Settings) -> Settings:
        """Return these settings, and those of `defaults` where these have none."""
        if any(value is not None for value in (self.mean, self.std, self.scale, self.offset)):
            defaults = replace(defaults, mean=None, std=None, scale=None, offset=None)
        own = {name: value for name, value in vars(self).items() if value not in (None, ())}
        return replace(defaults, **own)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are set, as YAML can represent them."""
        values = {}
        for name, value in vars(self).items():
            if value not in (None, ()):
                values[name] = list(value) if isinstance(value, tuple) else value
        return values

    def require_only(self, kind: str, place: str) -> None:
        """Check that no setting is one of another kind of content.

        Raises:
          ConfigError: if one is.
        """
        contents = _OF_KIND[kind][1]
        others = [name for other, (names, _) in _OF_KIND.items() if other != kind for name in names]
        for name in others:
            if getattr(self, name) is not None:
                raise ConfigError(f"{place}: {name} has no effect, because the encoder takes {contents}; remove it")


def read_settings(path: str) -> Settings:
    """Read a preprocessing file.

    Raises:
      ConfigError: if it cannot be read, or a setting or a value does not exist.
    """
    entries = {name: (place, value) for place, name, value in yaml_settings(read_text(path), path, _EXAMPLE)}
    found = settings_of(
        {name: value for name, (_, value) in entries.items()}, places={n: p for n, (p, _) in entries.items()}
    )
    if found.tokenizer and (Path(path).parent / found.tokenizer).exists():
        # A tokenizer lies beside the file that names it.
        found = replace(found, tokenizer=str(Path(path).parent / found.tokenizer))
    return found


def read_text(path: str) -> str:
    """Read the text of a YAML file.

    Raises:
      ConfigError: if it cannot be read.
    """
    try:
        content = read(path) if is_remote(path) else Path(path).read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except StorageError as error:
        raise ConfigError(f"{path}: cannot be read: {error.reason}") from error


def settings_of(values: Mapping[str, Any], place: str = "", places: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of values as YAML has them.

    Args:
      values: name -> value.
      place: what stands before a name in messages.
      places: name -> its place, instead.

    Raises:
      ConfigError: if a setting or a value does not exist.
    """
    names = [field.name for field in fields(Settings)]
    parts: dict[str, Any] = {}
    for name, value in values.items():
        where = places[name] if places else f"{place}: {name}"
        if name not in names:
            raise ConfigError(f"{where}: no such setting; {did_you_mean(str(name), names)}")
        parts[name] = _value(name, value, where)
    settings = Settings(**parts)
    for first, second in (("mean", "scale"), ("mean", "offset"), ("std", "scale"), ("std", "offset")):
        if getattr(settings, first) is not None and getattr(settings, second) is not None:
            where = places[second] if places else f"{place}: {second}"
            raise ConfigError(f"{where}: cannot be combined with {first}; give mean and std, or scale and offset")
    if settings.resize_to is not None and settings.fit not in (None, "crop"):
        where = places["resize_to"] if places else f"{place}: resize_to"
        raise ConfigError(f"{where}: has no effect with fit: {settings.fit}; give fit: crop, or remove it")
    return settings


def _value(name: str, value: Any, place: str) -> Any:
    """Return a value as its setting has it."""
    hint = get_type_hints(Settings)[name]
    choices = [choice for kind in get_args(hint) for choice in get_args(kind) if isinstance(choice, str)]
    if name in ("mean", "std", "scale", "offset"):
        return _numbers(value, place, is_positive=name == "std")
    if name == "size":
        sizes = value if isinstance(value, list) else [value, value]
        if len(sizes) != 2 or not all(_is_count(side) for side in sizes):
            raise ConfigError(f"{place}: is {value!r}; give [height, width]")
        return tuple(sizes)
    if name == "max_seconds":
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MOST_SECONDS:
            raise ConfigError(f"{place}: is {value!r}; give a number of seconds, at most {MOST_SECONDS}")
        return float(value)
    if name in ("resize_to", "max_tokens", "sample_rate", "num_mels"):
        if not _is_count(value):
            raise ConfigError(f"{place}: is {value!r}; give a whole number, 1 or more")
    elif name == "antialias":
        if not isinstance(value, bool):
            raise ConfigError(f"{place}: is {value!r}; give true or false")
    elif name == "inputs":
        return _inputs(value, place)
    elif name == "layers":
        return names_of(value, place)
    elif not isinstance(value, str) or not value:
        raise ConfigError(f"{place}: is {value!r}; give {'one of ' + ', '.join(choices) if choices else 'a text'}")
    elif name not in ("tokenizer", "signature") and value not in choices:
        raise ConfigError(f"{place}: is '{value}'; {did_you_mean(value, choices)}")
    return value


def names_of(value: Any, place: str) -> tuple[str, ...]:
    """Return a name or a list of names as a tuple.

    Raises:
      ConfigError: if it is neither, or a name occurs twice.
    """
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"{place}: is {value!r}; give names, each once")
    return tuple(names)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _numbers(value: Any, place: str, is_positive: bool) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    are_numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not are_numbers or len(numbers) not in (1, 3):
        raise ConfigError(f"{place}: is {value!r}; give a number, or three for the channels")
    if is_positive and min(numbers) <= 0:
        raise ConfigError(f"{place}: is {value!r}; give numbers above 0")
    return tuple(float(number) for number in numbers)


def _inputs(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value.values()):
        raise ConfigError(f"{place}: is {value!r}; write {{pixels: name}}, with names of inputs of the network")
    for role in value:
        if role not in ROLES:
            raise ConfigError(f"{place}: no input stands for '{role}'; {did_you_mean(str(role), ROLES)}")
    return dict(value)
