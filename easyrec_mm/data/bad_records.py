"""Counts and writes down every group and picture that could not be used, and stops when they are too many.

So it does with keys that have no vector, which are no mistake, unless nearly all of them have none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from easyrec_mm.errors import DataError

# Groups or pictures from which on the share is a share rather than chance; before, only at the end of the data.
MIN_COUNT = 1000
NUM_SHOWN = 10
# Distinct records remembered, so that each is written once however many epochs meet it.
MAX_REMEMBERED = 100_000


@dataclass
class _Keys:
    """Keys of the vectors of a feature."""

    max_share: float
    num: int = 0
    num_missing: int = 0
    examples: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRecord:
    """One group or picture: the file and row (from 1) that hold it, where in the row, and what is wrong."""

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
      path: jsonl file that they are appended to; None writes nothing.
      max_share: share of the groups, and of the pictures, that may be bad.
    """

    def __init__(self, path: str | None, max_share: float) -> None:
        self._path = path
        self._max_share = max_share
        self._read = {"group": 0, "picture": 0}
        self._bad = {"group": 0, "picture": 0}
        self._shown: dict[str, list[BadRecord]] = {"group": [], "picture": []}
        self._seen: set[BadRecord] = set()
        self._vectors: dict[str, _Keys] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Groups and pictures read and bad, each time they were met."""
        return {
            "groups": self._read["group"],
            "bad_groups": self._bad["group"],
            "pictures": self._read["picture"],
            "bad_pictures": self._bad["picture"],
            **{f"vectors_{name}": keys.num for name, keys in self._vectors.items()},
            **{f"missing_vectors_{name}": keys.num_missing for name, keys in self._vectors.items()},
        }

    def start_over(self) -> None:
        """Count anew, as the same data are read once more; what is written down already is not written again."""
        self._read = dict.fromkeys(self._read, 0)
        self._bad = dict.fromkeys(self._bad, 0)
        self._shown = {kind: [] for kind in self._shown}
        self._vectors = {}

    def add(self, num_groups: int, num_pictures: int, records: list[BadRecord]) -> None:
        """Count what a batch read, and what of it was bad.

        Raises:
          DataError: when the bad ones are more than the share, with the first of them.
        """
        self._read["group"] += num_groups
        self._read["picture"] += num_pictures
        new = []
        for record in records:
            self._bad[record.kind] += 1
            if record not in self._seen and len(self._seen) < MAX_REMEMBERED:
                self._seen.add(record)
                new.append(record)
            shown = self._shown[record.kind]
            if len(shown) < NUM_SHOWN and record not in shown:
                shown.append(record)
        if new and self._path:
            self._write(new)
        self._check(MIN_COUNT)

    def add_keys(self, feature: str, num: int, missing: Sequence[bytes], num_missing: int, max_share: float) -> None:
        """Count the keys of a batch: `num` of them, of which `num_missing` have no vector, `missing` being distinct.

        Raises:
          DataError: when a larger share than `max_share` has none.
        """
        keys = self._vectors.setdefault(feature, _Keys(max_share))
        keys.num += num
        keys.num_missing += num_missing
        for key in missing[: NUM_SHOWN - len(keys.examples)]:
            keys.examples.setdefault(key.decode("utf-8", "replace"))
        self._check_keys(MIN_COUNT)

    def check_all(self) -> None:
        """At the end of the data or of an epoch: raise DataError when the share is passed, however few were read."""
        self._check(1)
        self._check_keys(1)

    def summary(self) -> str:
        """One line for the user; empty when nothing was bad."""
        parts = [f"{self._bad[kind]} of {self._read[kind]} {kind}s" for kind in ("group", "picture") if self._bad[kind]]
        lines = [f"bad records: {' and '.join(parts)}; see {self._path}"] if parts else []
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
                shown = "\n".join(f"  {record}" for record in self._shown[kind])
                raise DataError(
                    f"{bad} of {read} {kind}s cannot be used, more than data_config.max_bad_record_share "
                    f"({self._max_share:g}). The first:\n{shown}"
                    + (f"\nAll are in {self._path}. Correct the data or raise the share." if self._path else "")
                )

    def _check_keys(self, min_count: int) -> None:
        for name, keys in self._vectors.items():
            if keys.num >= min_count and keys.num_missing > keys.max_share * keys.num:
                shown = ", ".join(f"'{key}'" for key in keys.examples)
                raise DataError(
                    f"feature '{name}': the store has no vector of {keys.num_missing} of {keys.num} keys, more than "
                    f"max_missing_share ({keys.max_share:g}), such as {shown}; load the vectors or raise the share"
                )

    def _write(self, records: list[BadRecord]) -> None:
        path = Path(self._path or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        with path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps({**asdict(record), "time": now}, ensure_ascii=False) + "\n")
