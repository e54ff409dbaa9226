"""Starts TensorFlow's servers of the workers, through which replicas exchange tensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from easyrec_mm.distribution.cluster import VARIABLE, Cluster
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import LostWorkerError, UserError, first_line

# What exchanges raise when another worker has gone.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
_ABORTED = "Collective ops is aborted"
# A strategy keeps its servers running and looks whether those of others do.
_strategies: list[tf.distribute.Strategy] = []


def join(cluster: Cluster) -> Replicas:
    """Join the other workers, which have met; TensorFlow must not have computed anything yet.

    Raises:
      UserError: if the servers cannot be started.
    """
    task = {"type": "worker", "index": cluster.number}
    os.environ[VARIABLE] = json.dumps({"cluster": {"worker": list(cluster.workers)}, "task": task})
    try:
        _strategies.append(tf.distribute.MultiWorkerMirroredStrategy())
    except (tf.errors.OpError, RuntimeError) as error:
        name, reason = cluster.name(cluster.number), first_line(error)
        raise UserError(f"{name}: TensorFlow's server cannot be started: {reason}") from error
    return Replicas(cluster.number, len(cluster.workers))


@contextmanager
def lost_workers_named(cluster: Cluster | None) -> Iterator[None]:
    """Raise a LostWorkerError that names the worker, if an exchange fails because another worker has gone."""
    try:
        yield
    except tf.errors.OpError as error:
        # Whatever the network answers in place of the other worker ends an exchange with this text.
        if not isinstance(error, _LOST) and _ABORTED not in str(error):
            raise
        tasks = {int(number) for number in re.findall(r"/task:(\d+)", str(error))}
        if cluster is None:
            raise
        lost = sorted(number for number in tasks if number != cluster.number and number < len(cluster.workers))
        names = ", ".join(map(cluster.name, lost)) or "another worker"
        raise LostWorkerError(
            f"{names} cannot be reached any more; look at its log. Start all workers again: they go on from the last "
            "checkpoint"
        ) from error
