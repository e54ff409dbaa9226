"""Determines which processes train: the workers in TF_CONFIG or flags, and those that `train` starts, one per GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from easyrec_mm.console import say
from easyrec_mm.errors import ConfigError
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.distribution.cluster import Cluster
    from easyrec_mm.distribution.local_workers import LocalWorkers
    from easyrec_mm.distribution.replicas import Replicas


def strategy_flags(pipeline: Pipeline) -> tuple[str, ...]:
    """Return the flags of `train` that let workers on several addresses train together, if the config does not."""
    from easyrec_mm.protos.train_pb2 import MirroredStrategy, NoStrategy

    if pipeline.config.train_config.train_distribute not in (NoStrategy, MirroredStrategy):
        return ()
    return ("--set", "train_config.train_distribute=MultiWorkerMirroredStrategy")


def cluster_of(pipeline: Pipeline, workers: Sequence[str] = (), index: int | None = None) -> Cluster | None:
    """Return the workers of TF_CONFIG, or of flags, that train together; None if they name only one, or none.

    Args:
      pipeline: what they do.
      workers: --workers, if it is given.
      index: --worker_index, if it is given.

    Raises:
      ConfigError: if one of them is malformed, they contradict each other, or they name several workers and
        train_distribute is that of one machine.
    """
    from easyrec_mm.distribution.cluster import agreed_cluster, cluster_of_flags, read_cluster
    from easyrec_mm.protos.train_pb2 import DistributionStrategy, MirroredStrategy, NoStrategy

    cluster = agreed_cluster(read_cluster(), cluster_of_flags(workers, index))
    if cluster is None or len(cluster.workers) == 1:
        return None
    strategy = pipeline.config.train_config.train_distribute
    if strategy == NoStrategy or (strategy == MirroredStrategy and not cluster.is_expanded):
        raise ConfigError(
            f"{pipeline.path}: train_config.train_distribute: is {DistributionStrategy.Name(strategy)}, but "
            f"{cluster.source} names {len(cluster.workers)} workers; set MultiWorkerMirroredStrategy, or leave out "
            f"{cluster.source}"
        )
    return cluster


def join_workers(cluster: Cluster | None, pipeline: Pipeline, limit_s: float) -> Replicas | None:
    """Wait for the other workers, and join them; return None for a single process.

    Args:
      cluster: the workers.
      pipeline: what they all do.
      limit_s: seconds to wait for them.

    Raises:
      UserError: if a worker does not arrive in time, or differs from the first.
    """
    if cluster is None:
        return None
    from easyrec_mm.distribution.cluster import meet

    import_tensorflow()  # which takes longer on some machines than on others
    say(f"{cluster.name(cluster.number)} of {len(cluster.workers)}: waiting for the others")
    meet(cluster, facts_of(pipeline), limit_s)
    from easyrec_mm.distribution.joining import join

    return join(cluster)


def facts_of(pipeline: Pipeline) -> dict[str, str]:
    """Return what must be equal on all workers, by name: versions, the values of vocabularies, and the config."""
    from importlib.metadata import version

    from easyrec_mm import __version__
    from easyrec_mm.config.changes import described_vocabularies, record_of

    versions = [f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy")]
    return {
        "the versions": "\n".join([f"easyrec-mm {__version__}", *versions]),
        "the vocabularies": "\n".join(described_vocabularies(pipeline.config)),
        "the config": record_of(pipeline.config),
    }


def workers_to_start(pipeline: Pipeline, cluster: Cluster | None, arguments: Sequence[str]) -> LocalWorkers | None:
    """Return the workers of this machine, if they are several, each with its GPU; None if this process trains.

    This process then uses one GPU, if it is told which.

    Args:
      pipeline: the config of the training.
      cluster: the machines of TF_CONFIG or of flags.
      arguments: those of this command, which the workers run as well.

    Raises:
      ConfigError: if the config asks for more GPUs than there are, or the ports of the workers overlap.
    """
    from easyrec_mm.distribution.cluster import expanded
    from easyrec_mm.distribution.gpus import VISIBLE, visible_gpus
    from easyrec_mm.distribution.local_workers import LocalWorkers, free_addresses
    from easyrec_mm.protos.train_pb2 import MirroredStrategy, NoStrategy

    settings = pipeline.config.train_config
    strategy, num = settings.train_distribute, settings.num_gpus_per_worker
    is_mirrored = strategy == MirroredStrategy
    if strategy == NoStrategy or (cluster is not None and cluster.is_expanded) or not (is_mirrored or num):
        return None
    gpus = visible_gpus()
    if num > max(len(gpus), 1):
        there = f"this machine has {len(gpus)} ({', '.join(gpus)})" if gpus else "this machine has none"
        raise ConfigError(
            f"{pipeline.path}: train_config.num_gpus_per_worker: {num} GPUs, but {there}; set at most that many, or "
            f"correct {VISIBLE}, which says which of them may be used"
        )
    gpus = gpus[: num or None]
    if len(gpus) > 1:
        command = (sys.executable, "-m", "easyrec_mm", *arguments)
        if cluster is None:
            return LocalWorkers(command, free_addresses(len(gpus)), 0, len(gpus), gpus)
        addresses = expanded(cluster.workers, len(gpus), cluster.source)
        return LocalWorkers(command, addresses, cluster.number * len(gpus), len(gpus), gpus)
    if gpus:
        os.environ[VISIBLE] = gpus[0]
    return None
