"""What built-in spaces share: their entries, and the choice of those that fit a config."""

from __future__ import annotations

from collections.abc import Sequence

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.tuning.space import Entry, problem_of, require_valid


def fitting(candidates: Sequence[Entry], pipeline: Pipeline) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries that fit a config, and why others are left out, by setting."""
    entries, left_out = [], {}
    for entry in candidates:
        problems = [text for value in entry.ends() if (text := problem_of(entry, value, list(candidates), pipeline))]
        if problems:
            left_out[entry.name] = problems[0].rpartition(": ")[2]
        else:
            entries.append(entry)
    require_valid(entries, pipeline)
    return entries, left_out


def log_range(source: str, name: str, low: float, high: float) -> Entry:
    """Return an entry of numbers whose logarithms are drawn evenly; `source` is the flag of the space, for messages."""
    return Entry(f"{source}: {name}", name, low=low, high=high, is_log=True)


def number_range(source: str, name: str, low: float, high: float) -> Entry:
    """Return an entry of numbers that are drawn evenly."""
    return Entry(f"{source}: {name}", name, low=low, high=high)


def choices(source: str, name: str, *values: int | str | bool) -> Entry:
    """Return an entry of these values."""
    return Entry(f"{source}: {name}", name, values)
