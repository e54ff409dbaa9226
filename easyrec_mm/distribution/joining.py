"""Starts TensorFlow's servers of the workers, through which replicas exchange tensors."""

from __future__ import annotations

import json
import os

import tensorflow as tf

from easyrec_mm.distribution.cluster import VARIABLE, Cluster
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import UserError, first_line

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
