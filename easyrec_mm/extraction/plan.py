"""What is to be extracted: one extraction from flags, or several from a config in YAML. No TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from easyrec_mm.errors import ConfigError, UserError, did_you_mean
from easyrec_mm.extraction.preprocessing import Settings, names_of, read_settings, read_text, settings_of
from easyrec_mm.files.yaml_settings import yaml_settings
from easyrec_mm.store.generations import VectorDtype

ENCODERS = ("preset", "saved_model", "onnx")
_EXAMPLE = "extractions: [{preset: efficientnet_lite0, input: pictures/, store: lmdb://vectors}]"
_LIST = "extractions"
_NO_SETTINGS = Settings()
# Characters of a layer that stay in the name of a file or a store.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Extraction:
    """One encoder, what it encodes, and where the vectors go. In a place, {name} and {layer} stand for these.

    name           name of the encoder; by default that of its file or folder
    preset         a preset of keras-hub, saved_model a folder, onnx a file: exactly one of them
    preprocessing  see preprocessing.py
    input          pictures or sounds, or tables and lists with paths or texts, as `embed` takes them
    image_root     folder to which paths of pictures or sounds are relative
    key_column     column of the keys
    path_column    column of the paths of pictures or sounds
    text_column    columns of the texts, which are joined by a space
    store          URI of a store, output a file .parquet or .npy: exactly one of them
    dtype          number format of stored vectors
    batch_size     items per batch; 0: 64, or more for small pictures
    """

    input: str
    name: str = ""
    preset: str = ""
    saved_model: str = ""
    onnx: str = ""
    preprocessing: Settings = _NO_SETTINGS
    image_root: str = ""
    key_column: str = ""
    path_column: str = ""
    text_column: tuple[str, ...] = ()
    store: str = ""
    output: str = ""
    dtype: VectorDtype = "float32"
    batch_size: int = 0

    @property
    def encoder(self) -> str:
        """Return the preset, folder or file of the encoder."""
        return self.preset or self.saved_model or self.onnx

    @property
    def encoder_name(self) -> str:
        """Return the name of the encoder."""
        return self.name or Path(self.encoder.rstrip("/")).stem

    def place(self, layer: str) -> str:
        """Return the store or file of a layer."""
        text = self.store or self.output
        for key, value in (("name", self.encoder_name), ("layer", layer)):
            text = text.replace(f"{{{key}}}", _NOT_IN_NAMES.sub("_", value).strip("_"))
        return text


def checked(extraction: Extraction, place: str = "") -> Extraction:
    """Return an extraction if its settings go together; `place` stands before flags in messages.

    Raises:
      UserError: if they do not.
    """
    dash = place + ": " if place else "--"
    for names in (ENCODERS, ("store", "output")):
        given = [name for name in names if getattr(extraction, name)]
        if len(given) != 1:
            problem = f"{' and '.join(given)} exclude each other" if given else f"{', '.join(names)}: none is given"
            raise UserError(f"{dash}{problem}; give one of {', '.join(names)}")
    if not extraction.input:
        raise UserError(f"{dash}input: is missing; give pictures, or a table or list with paths or texts")
    if extraction.output and not extraction.output.endswith((".parquet", ".npy")):
        raise UserError(f"{dash}output: '{extraction.output}' is neither .parquet nor .npy; write one of these")
    if extraction.dtype not in ("float32", "float16"):
        raise UserError(f"{dash}dtype: is {extraction.dtype!r}; choose one of float32, float16")
    return extraction


def with_layers(extraction: Extraction, layers: tuple[str, ...]) -> Extraction:
    """Return an extraction of these layers; those of its preprocessing if there are none."""
    settings = extraction.preprocessing
    return replace(extraction, preprocessing=replace(settings, layers=layers or settings.layers))


def read_plan(path: str) -> list[Extraction]:
    """Read a config: settings of Extraction, which hold for each item of the list `extractions` that has no other one.

    Raises:
      UserError: if the config cannot be read, or a setting does not exist or does not go with another.
    """
    common: dict[str, Any] = {}
    entries: Any = None
    for place, name, value in yaml_settings(read_text(path), path, _EXAMPLE):
        if name == _LIST:
            entries = value
            if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
                raise ConfigError(f"{place}: is not a list of extractions; write {_EXAMPLE}")
        else:
            common[name] = _value(name, value, place, path)
    if entries is None:
        return [checked(_extraction(common), path)]
    plan = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}: {_LIST}[{number}]"
        own = {name: _value(name, value, f"{where}: {name}", path) for name, value in entry.items()}
        # One of a pair that exclude each other replaces the other one of all.
        alternatives = [names for names in (ENCODERS, ("store", "output")) if any(name in own for name in names)]
        left_out = {name for names in alternatives for name in names}
        plan.append(checked(_extraction({k: v for k, v in common.items() if k not in left_out} | own), where))
    return plan


def _extraction(values: Mapping[str, Any]) -> Extraction:
    values = {"input": "", **values}
    layers = values.pop("layers", ())
    return with_layers(Extraction(**values), layers)


def _value(name: str, value: Any, place: str, path: str) -> Any:
    names = [*(field.name for field in fields(Extraction)), "layers", _LIST]
    if name not in names:
        raise ConfigError(f"{place}: no such setting; {did_you_mean(str(name), names)}")
    if name == "preprocessing":
        if isinstance(value, dict):
            return settings_of(value, place)
        if not isinstance(value, str):
            raise ConfigError(f"{place}: is {value!r}; give settings, or the path of a file with them")
        return read_settings(value if Path(value).exists() else str(Path(path).parent / value))
    if name in ("layers", "text_column"):
        return names_of(value, place)
    if name == "batch_size":
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{place}: is {value!r}; give a whole number, 0 or more")
    elif not isinstance(value, str):
        raise ConfigError(f"{place}: is {value!r}; give a text")
    return value
