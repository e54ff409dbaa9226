"""Trains the model of a config: in this process, or in a process for each GPU of this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from easyrec_mm.api.loading import require_path
from easyrec_mm.api.workers import cluster_of, join_workers, workers_to_start
from easyrec_mm.console import say, warn
from easyrec_mm.exit_status import after_signal
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline


@dataclass(frozen=True)
class Workers:
    """The workers that train or evaluate together, where TF_CONFIG does not name them.

    addresses    host:port of each, in the order of their numbers
    index        number of this one
    wait_s       seconds to wait until all have started
    """

    addresses: tuple[str, ...] = ()
    index: int | None = None
    wait_s: float = 300.0


@dataclass(frozen=True)
class Ended:
    """How a training ended.

    status      exit status for the process
    step        steps done in total; None if other processes trained
    checkpoint  the last checkpoint
    has_others  whether other workers trained with this one
    """

    status: int
    step: int | None = None
    checkpoint: str | None = None
    has_others: bool = False


def train(
    pipeline: Pipeline, arguments: Sequence[str], workers: Workers = Workers(), tells_notes: bool = True
) -> Ended:
    """Train until the end or a signal; continue from the last checkpoint in model_dir.

    Args:
      pipeline: the config.
      arguments: those of the command that trains it, which further processes of this machine run.
      workers: the workers.
      tells_notes: whether to print the notes of the config.

    Raises:
      UserError: if the config, the data, the checkpoints or the other workers do not let it train.
    """
    require_path(pipeline.config.train_input_path, pipeline, "train_input_path", "the training data")
    cluster = cluster_of(pipeline, workers.addresses, workers.index)
    if (local := workers_to_start(pipeline, cluster, arguments)) is not None:
        from easyrec_mm.distribution.local_workers import run_workers

        return Ended(run_workers(local, sys.stdout, sys.stderr))
    import_tensorflow()
    if pipeline.config.HasField("pretrain_config"):
        from easyrec_mm.pretraining.tables import prepared

        # Before the workers meet, after which all of them read the tables.
        pipeline = prepared(pipeline, writes=cluster is None or cluster.number == 0)
    for note in pipeline.notes if tells_notes else ():
        warn(f"note: {note}")
    replicas = join_workers(cluster, pipeline, workers.wait_s)
    from easyrec_mm.distribution.joining import lost_workers_named
    from easyrec_mm.files.lock import locked
    from easyrec_mm.training.trainer import Trainer

    is_first = cluster is None or cluster.number == 0
    lock = locked(pipeline.config.model_dir, "model_dir", tell=say) if is_first else nullcontext()
    with lock as model_dir_lock, lost_workers_named(cluster):
        result = Trainer(pipeline, model_dir_lock, replicas).train()
    status = 0 if result.signal is None else after_signal(result.signal)
    return Ended(status, result.step, result.checkpoint, cluster is not None)
