"""Workers that are killed while they write checkpoints beside their steps go on as if they never were."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from flat_helpers import make_log
from test_shard_tables import EMBEDDING_PARALLEL
from test_workers import CONFIG, Workers, size

from easyrec_mm.exit_status import LOST_WORKER
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_reader import CheckpointReader, bases_of

pytestmark = pytest.mark.slow

ARGUMENTS = [
    *size(24), "--set", "train_config.num_epochs=2", "--set", "train_config.save_checkpoints_steps=5",
    "--set", "train_config.log_step_count_steps=1", "--set", "eval_config.eval_interval_secs=100000",
    "--set", "train_config.optimizer_config[0].use_moving_average=true",
]  # fmt: skip
INCREMENTS = ["--set", "train_config.increments_per_full_checkpoint=3"]
LAST_STEP = 42
# All tables are large, and written in many slices: so slowly that one is being written most of the time.
CONSTANTS = {
    "easyrec_mm.training.changed_rows.LARGE_TABLE_BYTES": 0,
    "easyrec_mm.training.changed_rows.LARGE_TABLES_BYTES": 0,
    "easyrec_mm.runs.checkpoint_parts.SLICE_BYTES": 100,
    "easyrec_mm.runs.snapshot.WAITING_BYTES": 400,
    "easyrec_mm.runs.snapshot.KEPT_SHARE": 1e6,
    "easyrec_mm.runs.snapshot.SHARE": 0.1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    make_log(folder, CONFIG.replace("hash_bucket_size: 50", "hash_bucket_size: 500"), num_rows=1003)
    return folder


def started(folder, model_dir, arguments, constants=()):
    return Workers(folder, 2, "--model_dir", model_dir, *ARGUMENTS, *arguments, constants=constants)


def values(path):
    """All values of a checkpoint, each of which is verified, but those that name settings."""
    reader = CheckpointReader(str(path))
    names = [name for name in reader.shapes if not name.startswith(("config/", "progress/unreported"))]
    variables = {name: tf_variable(reader, name) for name in names}
    return {name: variable.numpy() for name, variable in variables.items()}
