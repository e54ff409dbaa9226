"""The start from another model's checkpoint: variables by name, tables by row where it is known what rows stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.distribution.shards import whole_shape
from easyrec_mm.errors import CheckpointError, did_you_mean
from easyrec_mm.runs.checkpoint_parts import is_weight
from easyrec_mm.runs.checkpoint_reader import CheckpointReader


@dataclass(frozen=True)
class TableMatch:
    """How the rows of a table correspond to those of the table in a checkpoint.

    rows     for each row, that of the checkpoint which stands for the same value, -1 for none; None: the same row
    problem  why no row corresponds; "" if some do
    note     what the report says beside the rows
    """

    rows: NDArray[np.int64] | None = None
    problem: str = ""
    note: str = ""


@dataclass(frozen=True)
class WarmStart:
    """What a start from a checkpoint has taken over.

    report    what was and what was not restored, one line per variable
    restored  restored variable -> its name in the checkpoint, and the rows that were taken as in TableMatch
    """

    report: str
    restored: dict[str, tuple[str, NDArray[np.int64] | None]] = field(default_factory=dict)


def warm_start(
    path: str,
    variables: Mapping[str, tf.Variable],
    names: Mapping[str, str],
    left_out: Collection[str] = (),
    matches: Mapping[str, TableMatch] | None = None,
) -> WarmStart:
    """Assign the checkpoint's values to the variables whose names and shapes agree with it.

    Args:
      path: checkpoint, of this project or any other in TensorFlow's format.
      variables: variables by name.
      names: name of a variable -> its name in the checkpoint, where they differ.
      left_out: variables that keep their initial values.
      matches: tables whose rows may be others than in the checkpoint; their numbers of rows may differ.

    Raises:
      CheckpointError: if no variable agrees, or `names` contains a variable that one side does not have.
    """
    reader = CheckpointReader(path)
    shapes = reader.shapes
    for name, source in names.items():
        if name not in variables:
            raise CheckpointError(f"fine_tune_ckpt_var_map: no variable '{name}'; {did_you_mean(name, variables)}")
        if source not in shapes:
            raise CheckpointError(f"fine_tune_ckpt_var_map: {path} has no '{source}'; {did_you_mean(source, shapes)}")
    lines = []
    restored: dict[str, tuple[str, NDArray[np.int64] | None]] = {}
    for name, variable in variables.items():
        source = names.get(name, name)
        match = (matches or {}).get(name, TableMatch())
        problem = "left out" if name in left_out else _problem(variable, source, shapes, match)
        if problem:
            lines.append(f"  not restored: {name} {whole_shape(variable)}: {problem}")
            continue
        rows = None if _is_in_order(match.rows, shapes[source]) else match.rows
        reader.read_into(source, variable, rows)
        restored[name] = source, rows
        lines.append(_line_of(name, variable, source, shapes[source], match))
    if not restored:
        raise CheckpointError(
            f"train_config.fine_tune_checkpoint: {path} has no variable of this model; it has, for example, "
            f"{', '.join(sorted(shapes)[:5])}; map the names with fine_tune_ckpt_var_map"
        )
    unused = set(shapes) - {names.get(name, name) for name in variables}
    lines += [f"  not used: {name} {list(shapes[name])}" for name in sorted(unused) if _is_reported(name)]
    head = f"fine_tune_checkpoint {path}: {len(restored)} of {len(variables)} variables restored"
    return WarmStart("\n".join([head, *lines]), restored)


def _is_reported(name: str) -> bool:
    """Return whether the report lists an entry of the checkpoint that is not used: weights, not their averages."""
    return is_weight(name) and not name.endswith(("/average", "/last_used"))


def _problem(variable: tf.Variable, source: str, shapes: Mapping[str, list[int]], match: TableMatch) -> str:
    """Return why a variable cannot be restored; "" if it can."""
    shape = whole_shape(variable)
    if source not in shapes:
        return "not in the checkpoint"
    if list(shapes[source])[1:] != shape[1:]:
        return f"the checkpoint's {source} is {list(shapes[source])}"
    if match.problem:
        return match.problem
    if match.rows is None:
        return "" if list(shapes[source]) == shape else f"the checkpoint's {source} is {list(shapes[source])}"
    if len(match.rows) != shape[0] or match.rows.max(initial=-1) >= shapes[source][0]:
        return f"the checkpoint's {source} is {list(shapes[source])}, which is not what its config says"
    return ""


def _is_in_order(rows: NDArray[np.int64] | None, shape: list[int]) -> bool:
    """Return whether a table takes all rows of the checkpoint's as they are."""
    return rows is None or (len(rows) == shape[0] and bool(np.all(rows == np.arange(len(rows)))))


def _line_of(name: str, variable: tf.Variable, source: str, shape: list[int], match: TableMatch) -> str:
    """Return the line of a restored variable in the report."""
    line = f"  restored: {name} {whole_shape(variable)}" + (f" from {source}" if source != name else "")
    rows = match.rows
    if rows is not None and not _is_in_order(rows, shape):
        num_restored, num_taken = int(np.sum(rows >= 0)), len(np.unique(rows[rows >= 0]))
        line += f": {num_restored} of {len(rows)} rows restored, {len(rows) - num_restored} new, "
        line += f"{shape[0] - num_taken} of the checkpoint's {shape[0]} dropped"
    return line + (f": {match.note}" if match.note else "")
