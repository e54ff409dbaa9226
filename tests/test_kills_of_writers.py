"""Workers that are killed while they write checkpoints beside their steps go on as if they never were."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from flat_helpers import make_log
from increment_helpers import SLOWLY_MEANWHILE, values_of
from test_shard_tables import EMBEDDING_PARALLEL
from test_workers import CONFIG, Workers, size

from easyrec_mm.exit_status import LOST_WORKER
from easyrec_mm.runs.best_checkpoint import step_of
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_reader import bases_of

pytestmark = pytest.mark.slow

ARGUMENTS = [
    *size(24), "--set", "train_config.num_epochs=2", "--set", "train_config.save_checkpoints_steps=5",
    "--set", "train_config.log_step_count_steps=1", "--set", "eval_config.eval_interval_secs=100000",
    "--set", "train_config.optimizer_config[0].use_moving_average=true",
]  # fmt: skip
INCREMENTS = ["--set", "train_config.increments_per_full_checkpoint=3"]
LAST_STEP = 42


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    make_log(folder, CONFIG.replace("hash_bucket_size: 50", "hash_bucket_size: 500"), num_rows=1003)
    return folder


def started(folder, model_dir, arguments, constants=()):
    return Workers(folder, 2, "--model_dir", model_dir, *ARGUMENTS, *arguments, constants=constants)


def assert_same(one, other):
    """Divided tables are summed in another order; a row of another step would differ by far more."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def expected(folder):
    """Step -> the values of a training that was never killed, with full checkpoints that are written at once."""
    statuses, outputs = started(folder, "whole", EMBEDDING_PARALLEL).end()
    assert statuses == (0, 0), outputs
    return {step_of(path): values_of(path) for path in Checkpoints(str(folder / "whole")).all()}


@pytest.mark.parametrize("arguments", [INCREMENTS, [*INCREMENTS, *EMBEDDING_PARALLEL]], ids=["whole", "divided"])
def test_workers_that_are_killed_while_they_write(folder, expected, arguments):
    """Either of them, at random moments; whatever is listed then is whole and right."""
    draw, model_dir = random.Random(len(arguments)), folder / f"killed_{len(arguments)}"
    log = model_dir / "metrics.jsonl"
    num_listed, were_writing = [], []
    for lost in (1, 0):
        size_before = log.stat().st_size if log.exists() else 0
        workers = started(folder, model_dir.name, arguments, SLOWLY_MEANWHILE)
        until = size_before + draw.randrange(6000, 10000)
        while not (log.exists() and log.stat().st_size >= until):
            assert all(process.poll() is None for process in workers.processes), workers.end()
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        workers.processes[lost].kill()
        statuses, outputs = workers.end()
        assert statuses == tuple(-9 if number == lost else LOST_WORKER for number in (0, 1)), outputs
        were_writing.append(any(model_dir.glob(".model.ckpt*")))
        paths = Checkpoints(str(model_dir)).all()
        num_listed.append(len(paths))
        for path in paths:
            assert_same(values_of(path), expected[step_of(path)])
    assert any(were_writing)
    assert num_listed[-1]
    statuses, outputs = started(folder, model_dir.name, arguments, SLOWLY_MEANWHILE).end()
    assert statuses == (0, 0), outputs
    paths = Checkpoints(str(model_dir)).all()
    assert any(bases_of(path) for path in paths)
    assert step_of(paths[-1]) == LAST_STEP
    assert_same(values_of(paths[-1]), expected[LAST_STEP])
    assert not list(model_dir.glob(".model*"))
