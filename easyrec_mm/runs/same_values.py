"""Workers that train or evaluate together begin with the same values of what all of them hold.

A training would otherwise go on with several models, each with the mean gradient of all, and nothing would tell.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.errors import UserError
from easyrec_mm.runs.checkpoint_parts import pieces_of

# Processors of another kind may round initial values otherwise: by up to this share of a value.
_ROUNDING = 1e-5
# Multiples of it fill the interval from 0 to 1 evenly and without order.
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def require_same_values(variables: Mapping[str, tf.Variable], replicas: Replicas) -> None:
    """Check that all workers have the same values of these variables; parts of divided tables are left out.

    Raises:
      UserError: if a worker has others than the first one; all workers raise it.
    """
    if replicas.num == 1:
        return
    own = {name: _summary(variable) for name, variable in variables.items() if shard_of(variable) is None}
    first, *others = (json.loads(text) for text in replicas.texts(json.dumps(own)))
    for number, summaries in enumerate(others, 1):
        names = [name for name in {**first, **summaries} if not _is_same(first.get(name), summaries.get(name))]
        if names:
            more = f" and {len(names) - 1} more variables" if len(names) > 1 else ""
            raise UserError(
                f"worker {number} begins with other values than worker 0 of {names[0]}{more}; give all workers the "
                "same model_dir, fine_tune_checkpoint, pretrained weights and vector stores"
            )


def _summary(variable: tf.Variable) -> list[float]:
    """Return what stands for the values, of which only a slice is copied at a time.

    Of floats, this is a sum with weights from 0 to 1 by their places, and the largest that rounding can change it by;
    of others a checksum, and 0.
    """
    is_float, place = variable.dtype.is_floating, 0
    total, absolute, checksum = 0.0, 0.0, 0
    for piece in pieces_of({"": variable}):
        values = piece.value().numpy().ravel()
        if is_float:
            weights = _GOLDEN_RATIO * np.arange(place, place + len(values)) % 1.0
            total += float(weights @ values.astype(np.float64))
            absolute += float(weights @ np.abs(values.astype(np.float64)))
            place += len(values)
        else:
            checksum = zlib.crc32(values.tobytes(), checksum)
    return [total, _ROUNDING * absolute] if is_float else [checksum, 0.0]


def _is_same(first: list[float] | None, other: list[float] | None) -> bool:
    if first is None or other is None:
        return first is other
    (value, rounding), (other_value, _) = first, other
    if math.isnan(value) and math.isnan(other_value):
        return True
    return value == other_value or abs(value - other_value) <= rounding
