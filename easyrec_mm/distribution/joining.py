"""Starts TensorFlow's servers of the workers, through which replicas exchange tensors."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

import tensorflow as tf

# TensorFlow has no public way to set the times below, or to end exchanges.
from tensorflow.python.eager import context

from easyrec_mm.distribution.cluster import VARIABLE, Cluster
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.watching import silent, watched
from easyrec_mm.errors import LostWorkerError, UserError, first_line

# A worker whose server has told nothing for so long is lost, in the eyes of TensorFlow's own service; as long as in
# those of `watched`. TensorFlow would otherwise end a training after 10 s in which a machine was busy with swapping.
HEARTBEAT_S = 30
# Workers that have met, with TensorFlow loaded, start their servers within this time. Each needs 0.1 s of a processor,
# so that a machine with many workers and much other work has time enough. With the time that TensorFlow adds to that of
# the others, and that in which `silent` asks, less than a minute.
START_S, ADDED_S = 40, 5
# What exchanges raise when another worker has gone.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
_ABORTED = "Collective ops is aborted"
# The first worker runs the service that all others report to; the answer to a failed report does not name it.
_SERVICE = "/tensorflow.CoordinationService/"
# A strategy keeps its servers running and looks whether those of others do.
_strategies: list[tf.distribute.Strategy] = []


def join(cluster: Cluster) -> Replicas:
    """Join the other workers, which have met; TensorFlow must not have computed anything yet.

    Raises:
      LostWorkerError: if another worker has gone since.
      UserError: if the server of this one cannot be started.
    """
    task = {"type": "worker", "index": cluster.number}
    os.environ[VARIABLE] = json.dumps({"cluster": {"worker": list(cluster.workers)}, "task": task})
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=_task(0),
        coordinated_jobs=[
            context.coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=len(cluster.workers))
        ],
        heartbeat_timeout_in_ms=1000 * HEARTBEAT_S,
        cluster_register_timeout_in_ms=1000 * START_S,
    )
    # Otherwise the first one waits for an hour.
    context.context().coordination_service.cluster_register_with_barrier = True
    try:
        _strategies.append(tf.distribute.MultiWorkerMirroredStrategy())
    except (tf.errors.OpError, RuntimeError) as error:
        # One that was only too slow may answer by now: a restart of all helps then, too.
        if (lost := silent(cluster)) or isinstance(error, _LOST):
            raise LostWorkerError(_lost(cluster, lost)) from error
        name, reason = cluster.name(cluster.number), first_line(error)
        raise UserError(f"{name}: TensorFlow's server cannot be started: {reason}") from error
    finally:
        # TensorFlow has taken the signal, which would then have no effect until the first step.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return Replicas(cluster.number, len(cluster.workers))


@contextmanager
def lost_workers_named(cluster: Cluster | None) -> Iterator[None]:
    """Raise a LostWorkerError that names the worker, if an exchange fails because another worker has gone.

    A worker that does not answer any more has gone, too, whether or not an exchange waits for it; see `watched`.
    """
    if cluster is None:
        yield
        return

    def end_exchanges(number: int) -> None:
        context.context().abort_collective_ops(tf.errors.UNAVAILABLE, f"{_task(number)} does not answer")

    try:
        with watched(cluster, end_exchanges, partial(_lost, cluster)):
            yield
    except tf.errors.OpError as error:
        # Whatever the network answers in place of the other worker ends an exchange with this text.
        if not isinstance(error, _LOST) and _ABORTED not in str(error):
            raise
        named = {int(number) for number in re.findall(r"/task:(\d+)", str(error))}
        if not named and _SERVICE in str(error):
            named = {0}
        lost = named.intersection(cluster.others) or silent(cluster)
        raise LostWorkerError(_lost(cluster, lost)) from error


def _lost(cluster: Cluster, numbers: Collection[int]) -> str:
    """Return the message about lost workers."""
    names = ", ".join(cluster.name(number) for number in sorted(numbers)) or "another worker"
    return (
        f"{names} cannot be reached any more; look at its log. Start all workers again: they go on from the last "
        "checkpoint"
    )


def _task(number: int) -> str:
    return f"/job:worker/replica:0/task:{number}"
