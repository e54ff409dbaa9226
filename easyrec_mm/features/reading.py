"""The settings of one feature of a config, and the checks that the feature types have in common."""

from __future__ import annotations

from dataclasses import dataclass

from easyrec_mm.errors import Problems
from easyrec_mm.features.field import Field
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig


@dataclass(frozen=True)
class FeatureSettings:
    """The settings of a feature, and what is needed to check them.

    name      name of the feature
    place     its config path
    item      its settings
    fields    input fields by name
    data      the config's data section
    problems  collects the mistakes
    """

    name: str
    place: str
    item: FeatureConfig
    fields: dict[str, Field]
    data: DatasetConfig
    problems: Problems

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the fields that the feature reads."""
        return tuple(self.item.input_names)

    @property
    def table(self) -> str:
        """Return the name of the feature's table, if it has one."""
        return self.item.embedding_name or self.name

    def add(self, setting: str, message: str) -> None:
        """Add a problem of a setting."""
        self.problems.add(f"{self.place}.{setting}", message)

    def require_inputs(self, least: int, most: int) -> bool:
        """Check the number of input fields, and return whether it is valid."""
        if least <= len(self.inputs) <= most:
            return True
        kind = FeatureConfig.FeatureType.Name(self.item.feature_type)
        number = "one field" if most == 1 else f"{least} fields" if least == most else f"{least} to {most} fields"
        self.add("input_names", f"{kind} reads {number}, not {len(self.inputs)}")
        return False

    def require_string(self, name: str, why: str) -> None:
        """Check that a field holds text."""
        if self.fields[name].dtype != "string":
            self.add("input_names", f"'{name}' must be a STRING field to hold {why}")

    def require_combiner(self, choices: tuple[str, ...]) -> None:
        """Check the name of the method that combines several values into one."""
        combiner = self.item.combiner
        if combiner not in choices:
            self.add("combiner", f"'{combiner}' is unknown; choose {', '.join(choices[:-1])} or {choices[-1]}")

    def require_separator(self, setting: str) -> None:
        """Check that a separator within a value is given, and differs from those that split the line before."""
        separator, data = getattr(self.item, setting), self.data
        if not separator:
            self.add(setting, "is empty; give the character between values")
        if data.input_type != DatasetConfig.GroupRTPInput:
            return
        for name in ("rtp_separator", "group_sample_separator", "separator"):
            if separator and separator == getattr(data, name):
                conflict = f"{separator!r} is also used as data_config.{name}, which splits the line first"
                self.add(setting, f"{conflict}; choose another character")

    def require_pair_separators(self) -> None:
        """Check the separators between values, and within values that are pairs."""
        self.require_separator("separator")
        if self.item.HasField("kv_separator"):
            self.require_separator("kv_separator")
            if self.item.kv_separator == self.item.separator:
                self.add("kv_separator", f"{self.item.kv_separator!r} is also used as separator; change one of them")
