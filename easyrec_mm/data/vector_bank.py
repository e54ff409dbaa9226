"""Keeps the vectors of pictures or of texts during training, so that not each of every batch must be encoded.

A picture whose vector is in the bank and not too old is encoded again only if it is drawn at random (`encode_ratio`);
with a frozen tower it is never encoded again. The plan is made when a batch is read, some steps ahead of its training,
so that pictures that are not needed are not even read from disk. Batches are numbered by the step that trains them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.runs.checkpoint_reader import CheckpointReader

FIRST_ROWS = 1024
# Keys are identified by this many bytes of a hash: only with 2^60 pictures would one collision be likely.
_DIGEST_BYTES = 16
_STATE = "picture_bank/"
# The step of a vector that was planned but never computed.
_NEVER = -1


class Plan(NamedTuple):
    """The plan for the P pictures of a batch.

    rows       int32 [P]: row of each picture's vector in the bank
    encoded    int32 [E]: indices of the pictures to encode, ascending
    """

    rows: NDArray[np.int32]
    encoded: NDArray[np.int32]


class VectorBank:
    """Vectors by picture, or by another content of items.

    Args:
      width: width of a vector.
      encode_ratio: share of the known pictures of a batch that are encoded nevertheless.
      max_staleness_steps: a vector that was computed more steps ago is not used; 0 means that vectors never expire.
      seed: seed for the choice of pictures.
    """

    def __init__(self, width: int, encode_ratio: float = 0.0, max_staleness_steps: int = 0, seed: int = 0) -> None:
        self._encode_ratio, self._max_staleness_steps, self._seed = encode_ratio, max_staleness_steps, seed
        # Digest of a picture's key -> its row; row -> the step whose batch computes its vector, or has computed it.
        self._rows: dict[bytes, int] = {}
        self._planned: list[int] = []
        self._bad: set[int] = set()
        # Rows are added some thousand at a time; a graph accepts the variable at any size.
        self.vectors = tf.Variable(
            tf.zeros([FIRST_ROWS, width]), shape=[None, width], trainable=False, name="picture_bank"
        )
        # Row -> step of the vectors that trained steps have written: the state of a checkpoint. Plans run ahead of it.
        self._written: dict[int, int] = {}

    def plan(self, keys: list[bytes], step: int) -> Plan:
        """Decide which pictures of a batch to encode; must be called for the batches of a training in their order."""
        digests = [hashlib.blake2b(key, digest_size=_DIGEST_BYTES).digest() for key in keys]
        rows = np.array([self._rows.setdefault(digest, len(self._rows)) for digest in digests], np.int32)
        num_known = len(self._planned)
        is_fresh = np.array([row < num_known and self._is_fresh(self._planned[row], step) for row in rows], bool)
        encoded = ~is_fresh
        if self._encode_ratio:
            fresh = np.flatnonzero(is_fresh)
            random = np.random.default_rng([self._seed, step])
            number = int(self._encode_ratio * len(fresh) + random.random())
            encoded[random.permutation(fresh)[:number]] = True
        self._planned += [step] * (len(self._rows) - num_known)
        for row in rows[encoded]:
            self._planned[row] = step
        return Plan(rows, np.flatnonzero(encoded).astype(np.int32))

    def mark_bad(self, rows: NDArray[np.int32], is_bad: NDArray[np.bool_]) -> None:
        """Remember which of these pictures could not be loaded when they were read."""
        self._bad.difference_update(rows.tolist())
        self._bad.update(rows[is_bad].tolist())

    def are_bad(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which pictures could not be loaded when they were last read."""
        return np.array([row in self._bad for row in rows.tolist()], bool)

    def before_step(self, rows: tf.Tensor, encoded: tf.Tensor, step: int) -> None:
        """Make room for the vectors of a batch, and note that this step computes those of the encoded pictures."""
        rows = rows.numpy()
        size = int(tf.shape(self.vectors)[0])
        needed = int(rows.max(initial=-1)) + 1
        if needed > size:
            added = max(needed, 2 * size) - size
            self.vectors.assign(tf.pad(self.vectors, [[0, added], [0, 0]]))
        self._written.update(dict.fromkeys(rows[encoded.numpy()].tolist(), step))

    def encode_again(self, rows: tf.Tensor, encoded: tf.Tensor) -> None:
        """Forget that a step has computed the vectors of the encoded pictures; plans made from now on encode them."""
        for row in tf.gather(rows, encoded).numpy().tolist():
            self._written.pop(row, None)
            self._planned[row] = _NEVER

    def forget(self, everything: bool) -> None:
        """Forget vectors that were planned but never computed, as when reading stopped early; or forget everything."""
        if everything:
            self._rows, self._planned, self._bad, self._written = {}, [], set(), {}
        for row in range(len(self._planned)):
            if row not in self._written:
                self._planned[row] = _NEVER

    def state(self) -> dict[str, tf.Tensor]:
        """Return the state for a checkpoint, so that a resumed training decides and computes as if it never stopped."""
        digests = list(self._rows)
        rows = sorted(self._written)
        keys = np.frombuffer(b"".join(digests[row] for row in rows), np.int64).reshape(-1, 2)
        return {
            f"{_STATE}keys": tf.constant(keys),
            f"{_STATE}written": tf.constant([self._written[row] for row in rows], tf.int64),
            f"{_STATE}is_bad": tf.constant([row in self._bad for row in rows], tf.bool),
            f"{_STATE}vectors": tf.gather(self.vectors, tf.constant(rows, tf.int32)),
        }

    def restore(self, path: str) -> None:
        """Restore the state of a checkpoint; forget everything if the checkpoint has no such state."""
        self.forget(everything=True)
        reader = CheckpointReader(path)
        if f"{_STATE}keys" not in reader.shapes:
            return
        keys, written, is_bad, vectors = (
            reader.read(f"{_STATE}{name}").numpy() for name in ("keys", "written", "is_bad", "vectors")
        )
        self._rows = {key.tobytes(): row for row, key in enumerate(keys)}
        self._planned = written.tolist()
        self._written = dict(enumerate(self._planned))
        self._bad = set(np.flatnonzero(is_bad).tolist())
        self.vectors.assign(tf.pad(vectors, [[0, FIRST_ROWS], [0, 0]]))

    def _is_fresh(self, written: int, step: int) -> bool:
        return written != _NEVER and (not self._max_staleness_steps or step - written <= self._max_staleness_steps)


# Kind of content, see batch.py -> the bank of its vectors; kinds without a bank are left out.
Banks = Mapping[str, VectorBank]
NO_BANKS: Banks = {}
