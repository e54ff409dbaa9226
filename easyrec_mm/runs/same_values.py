"""Workers that train or evaluate together begin with the same values of what all of them hold.

A training would otherwise go on with several models, each with the mean gradient of all, and nothing would tell.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.errors import UserError
from easyrec_mm.runs.checkpoint_parts import pieces_of


def require_same_values(variables: Mapping[str, tf.Variable], replicas: Replicas) -> None:
    """Check that all workers have the same values of these variables; parts of divided tables are left out.

    Raises:
      UserError: if a worker has others than the first one; all workers raise it.
    """
    if replicas.num == 1:
        return
    own = {name: _checksum(variable) for name, variable in variables.items() if shard_of(variable) is None}
    first, *others = (json.loads(text) for text in replicas.texts(json.dumps(own)))
    for number, checksums in enumerate(others, 1):
        names = [name for name in {**first, **checksums} if first.get(name) != checksums.get(name)]
        if names:
            more = f" and {len(names) - 1} more variables" if len(names) > 1 else ""
            raise UserError(
                f"worker {number} begins with other values than worker 0 of {names[0]}{more}; give all workers the "
                "same model_dir, fine_tune_checkpoint, pretrained weights and vector stores"
            )


def _checksum(variable: tf.Variable) -> int:
    """Return a checksum of the values, of which only a slice is copied at a time."""
    checksum = 0
    for piece in pieces_of({"": variable}):
        checksum = zlib.crc32(piece.value().numpy().tobytes(), checksum)
    return checksum
