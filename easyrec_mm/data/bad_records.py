"""Counts and logs every group and picture that cannot be used, and stops the run when there are too many of them.

Keys without a vector are counted as well; they are not errors, unless nearly all keys lack a vector.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from easyrec_mm.errors import DataError
from easyrec_mm.files import naming
from easyrec_mm.safe_text import hide_secrets

# Number of groups or pictures from which on their share is meaningful; fewer are checked only at the end of the data.
MIN_COUNT = 1000
NUM_SHOWN = 10
# Number of distinct records that are remembered, so that each is written only once in all epochs.
MAX_REMEMBERED = 100_000


@dataclass
class _Keys:
    """Counts and examples of the keys by which a feature names vectors."""

    max_share: float
    num: int = 0
    num_missing: int = 0
    examples: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRecord:
    """One group or picture: the file and row (from 1) that contain it, the place in the row, and the problem."""

    kind: Literal["group", "picture"]
    file: str
    row: int
    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.where}: {self.problem}"


class BadRecords:
    """The bad records of one run.

    Args:
      path: jsonl file to which the records are appended; None writes nothing.
      max_share: share of the groups, and of the pictures, that may be bad.
      names: path of a file -> the name that records have for it.
    """

    def __init__(self, path: str | None, max_share: float, names: Mapping[str, str] = MappingProxyType({})) -> None:
        self._names = names
        self._path = path
        self._max_share = max_share
        self._read = {"group": 0, "picture": 0}
        self._bad = {"group": 0, "picture": 0}
        self._bad_before = {"group": 0, "picture": 0}  # counted before this start of the run
        self.shown: dict[str, list[BadRecord]] = {"group": [], "picture": []}
        self._remembered_records: set[BadRecord] | None = None  # until the file is read
        self._vectors: dict[str, _Keys] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Return how many groups, pictures and keys were read, and how many of them were bad; repetitions count."""
        return {
            "groups": self._read["group"],
            "bad_groups": self._bad["group"],
            "pictures": self._read["picture"],
            "bad_pictures": self._bad["picture"],
            **{f"vectors_{name}": keys.num for name, keys in self._vectors.items()},
            **{f"missing_vectors_{name}": keys.num_missing for name, keys in self._vectors.items()},
        }

    def state(self) -> dict[str, Any]:
        """Return the counts and the first records as JSON values, from which `restore` goes on counting."""
        keys = {name: [keys.num, keys.num_missing] for name, keys in self._vectors.items()}
        shown = [asdict(_without_secrets(record)) for records in self.shown.values() for record in records]
        return {"read": dict(self._read), "bad": dict(self._bad), "keys": keys, "shown": shown}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting from what `state` returned."""
        self._read |= state["read"]
        self._bad |= state["bad"]
        self._bad_before = dict(state["bad"])
        self._vectors = {name: _Keys(1.0, *counts) for name, counts in state["keys"].items()}
        for values in state.get("shown", []):
            record = BadRecord(**values)
            self.shown[record.kind].append(record)

    def start_over(self) -> None:
        """Reset the counts because the same data are read again; records that were written are not written again."""
        self._read = dict.fromkeys(self._read, 0)
        self._bad = dict.fromkeys(self._bad, 0)
        self._bad_before = dict(self._bad)
        self.shown = {kind: [] for kind in self.shown}
        self._vectors = {}

    def add(self, num_groups: int, num_pictures: int, records: list[BadRecord]) -> None:
        """Count the groups and pictures that a batch read, and the bad ones among them.

        Raises:
          DataError: if more of them are bad than the share allows; the message shows the first bad ones.
        """
        self._read["group"] += num_groups
        self._read["picture"] += num_pictures
        records = [replace(record, file=self._names.get(record.file, record.file)) for record in records]
        for record in records:
            self._bad[record.kind] += 1
            shown = self.shown[record.kind]
            if len(shown) < NUM_SHOWN and record not in shown:
                shown.append(record)
        if records and self._path:
            self._write_new(records, Path(self._path))
        self._check(MIN_COUNT)

    def add_keys(self, feature: str, num: int, missing: Sequence[bytes], num_missing: int, max_share: float) -> None:
        """Count the keys of a batch, and those whose vector is missing.

        Args:
          feature: name of the feature that reads the keys.
          num: number of keys.
          missing: each key whose vector is missing, once.
          num_missing: number of keys whose vector is missing.
          max_share: largest share of missing vectors that is allowed.

        Raises:
          DataError: if a larger share than `max_share` has no vector.
        """
        keys = self._vectors.setdefault(feature, _Keys(max_share))
        keys.max_share = max_share
        keys.num += num
        keys.num_missing += num_missing
        for key in missing[: NUM_SHOWN - len(keys.examples)]:
            keys.examples.setdefault(key.decode("utf-8", "replace"))
        self._check_keys(MIN_COUNT)

    def check_all(self) -> None:
        """Raise DataError if a share is exceeded, however few were read; for the end of the data or of an epoch."""
        self._check(1)
        self._check_keys(1)

    def summary(self) -> str:
        """Return lines for the user about bad records and features with missing vectors; empty if nothing was bad."""
        parts = [f"{self._bad[kind]} of {self._read[kind]} {kind}s" for kind in ("group", "picture") if self._bad[kind]]
        where = f"; see {self._path}" if self._path else ""
        lines = [f"bad records: {' and '.join(parts)}{where}"] if parts else []
        lines += [
            f"feature '{name}': {keys.num_missing} of {keys.num} keys have no vector, such as '{min(keys.examples)}'"
            for name, keys in self._vectors.items()
            if keys.num_missing
        ]
        return "\n".join(lines)

    def _check(self, min_count: int) -> None:
        for kind in ("group", "picture"):
            read, bad = self._read[kind], self._bad[kind]
            if read >= min_count and bad > self._max_share * read:
                shown = "\n".join(f"  {record}" for record in self.shown[kind])
                before = self._bad_before[kind]
                raise DataError(
                    f"{bad} of {read} {kind}s cannot be used, more than data_config.max_bad_record_share "
                    f"({self._max_share:g}). The first:\n{shown}"
                    + (f"\nAll are listed in {self._path}. Correct the data or raise the share." if self._path else "")
                    + (
                        f" {before} stood before the checkpoint: once corrected, train in another model_dir."
                        if before
                        else ""
                    )
                )

    def _check_keys(self, min_count: int) -> None:
        for name, keys in self._vectors.items():
            if keys.num >= min_count and keys.num_missing > keys.max_share * keys.num:
                shown = ", ".join(f"'{key}'" for key in keys.examples)
                raise DataError(
                    f"feature '{name}': the store has no vector of {keys.num_missing} of {keys.num} keys, more than "
                    f"max_missing_share ({keys.max_share:g}), such as {shown}; load the vectors or raise the share"
                )

    def _write_new(self, records: list[BadRecord], path: Path) -> None:
        """Write the records that the file does not contain yet, be it from an earlier start of the same run."""
        if self._remembered_records is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._remembered_records = set(_records_in(path))
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        with naming(path), path.open("a", encoding="utf-8") as file:
            for record in records:
                record = _without_secrets(record)
                if record not in self._remembered_records and len(self._remembered_records) < MAX_REMEMBERED:
                    self._remembered_records.add(record)
                    file.write(json.dumps({**asdict(record), "time": now}, ensure_ascii=False) + "\n")


def _without_secrets(record: BadRecord) -> BadRecord:
    file, where, problem = map(hide_secrets, (record.file, record.where, record.problem))
    return replace(record, file=file, where=where, problem=problem)


def _records_in(path: Path) -> Iterator[BadRecord]:
    """Yield the first records of a file that earlier runs wrote; remove a line that a killed run left incomplete."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                file.seek(-len(line), os.SEEK_END)
                file.truncate()
                return
            if number < MAX_REMEMBERED:
                with suppress(ValueError, TypeError, KeyError):
                    values = json.loads(line)
                    yield BadRecord(*(values[name] for name in BadRecord.__dataclass_fields__))
