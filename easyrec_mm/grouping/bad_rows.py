"""Unusable rows, items, pictures and groups: counted, listed in bad_rows.jsonl, and an error if too many are bad."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import NamedTuple

from easyrec_mm.errors import DataError
from easyrec_mm.files import is_remote, join
from easyrec_mm.grouping.output_folder import written
from easyrec_mm.safe_text import hide_secrets

BAD_ROWS = "bad_rows.jsonl"
NUM_SHOWN = 10

_PROBLEMS = {
    "rows": "cannot be used",
    "items": "have two values where one is expected",
    "pictures": "cannot be packed",
    "groups": "cannot be used",
}


class BadRow(NamedTuple):
    """An unusable row, item, picture or group: the file and row (from 1) where it occurs, and the problem."""

    kind: str
    file: str
    row: int
    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.where}: {self.problem}"


class BadRows:
    """Collects unusable rows, items, pictures and groups.

    Args:
      output: folder in which the list will be written.
      max_share: maximum share of the rows, items, pictures or groups that may be bad.
      command_output: output folder of the command, `output` by default; if it fails, the list is written next to this.
    """

    def __init__(self, output: str, max_share: float, command_output: str = "") -> None:
        self._output = output
        self._max_share = max_share
        self._command_output = (command_output or output).rstrip("/")
        self._rows: list[BadRow] = []
        self._counts: list[str] = []
        self._num_unlisted = 0

    def add(self, num_bad: int, num_all: int, kind: str, rows: Iterable[BadRow]) -> None:
        """Record that `num_bad` of `num_all` rows, items, pictures or groups are bad; `rows` are the ones to list.

        Raises:
          DataError: if they exceed the maximum share; the message contains the first of them.
        """
        listed_rows = list(rows)
        self._rows += listed_rows
        self._num_unlisted += num_bad - len(listed_rows)
        if not num_bad:
            return
        count = f"{num_bad:,} of {num_all:,} {kind} {_PROBLEMS[kind]}"
        self._counts.append(count)
        if num_bad > self._max_share * num_all:
            path = f"{self._command_output}.{BAD_ROWS}"
            if not is_remote(path):
                os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self.write(path)
            shown = "\n".join(f"  {row}" for row in listed_rows[:NUM_SHOWN])
            raise DataError(
                f"{count}, more than --max_bad_share ({self._max_share:g}). The first:\n{shown}\nAll are listed in "
                f"{path}. Correct the data or raise the share."
            )

    def write(self, path: str) -> None:
        """Write the list, one JSON line per entry, and the number of bad ones that are not listed."""
        with written(path) as here, open(here, "w", encoding="utf-8") as file:
            for row in self._rows:
                file.write(hide_secrets(json.dumps(row._asdict(), ensure_ascii=False)) + "\n")
            if self._num_unlisted:
                file.write(json.dumps({"kind": "more", "number": self._num_unlisted}) + "\n")

    @property
    def first(self) -> BadRow | None:
        """Return the first entry of the list, if there is one."""
        return self._rows[0] if self._rows else None

    def lines(self) -> list[str]:
        """Return the counts as lines for the user."""
        return [f"{count}; see {join(self._output, BAD_ROWS)}" for count in self._counts]
