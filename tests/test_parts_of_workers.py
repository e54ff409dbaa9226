"""Checkpoints that several workers write while they train, and their increments: those of one process."""

import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from increment_helpers import assert_equal
from thread_replicas import results_of_replicas

from easyrec_mm.distribution.shards import mark, shard_of, shard_of_replica
from easyrec_mm.errors import CheckpointError, DataError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs import checkpoint_parts, snapshot
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_parts import Table
from easyrec_mm.runs.checkpoint_reader import bases_of, checkpoint_shapes, restore
from easyrec_mm.training.changed_rows import ChangedRows
from easyrec_mm.training.saving import Saver

NUM_ROWS, NUM_FEW = 501, 2  # of a table that is divided, and of one with fewer rows than there may be workers
NAMES = ("embedding/user", "optimizer_0/embedding/user/m", "embedding/few", "embedding/all", "rec/kernel")


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 300)
    monkeypatch.setattr(snapshot, "WAITING_BYTES", 1000)
    monkeypatch.setattr(snapshot, "KEPT_SHARE", 100.0)


def values_at(step):
    """All values of the whole model after a step, which changes a hundredth of the rows and everything else."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(NUM_ROWS, 4)).astype("f4") for name in NAMES[:2]}
    values |= {"embedding/few": rng.normal(size=(NUM_FEW, 3)).astype("f4")}
    values |= {"embedding/all": rng.normal(size=(90, 2)).astype("f4"), "rec/kernel": np.zeros([3, 2], "f4")}
    for number in range(1, step + 1):
        for name, rows in changed_at(number).items():
            for changed in [name, *(other for other in values if other.endswith(f"{name}/m"))]:
                values[changed][rows] = number
        values["rec/kernel"] += 1
    return values


def changed_at(step):
    """The rows of each table that a step changes."""
    rng = np.random.default_rng(step)
    rows = {"embedding/user": rng.choice(NUM_ROWS, 5, replace=False), "embedding/all": rng.choice(90, 2, replace=False)}
    return rows | {"embedding/few": np.arange(NUM_FEW)[: step % 2]}


class Worker:
    """A worker that trains a model of divided and of whole tables, and saves as a training does."""

    def __init__(self, folder, replicas, step=0, increments=0, streams=True):
        self.replicas, self.step = replicas, step
        self.values = {name: self._own(name, value) for name, value in values_at(step).items()}
        slot = "optimizer_0/embedding/user/m"
        tables = [
            Table("embedding/user", {name: self.values[name] for name in ("embedding/user", slot)}),
            *(Table(name, {name: self.values[name]}) for name in ("embedding/few", "embedding/all")),
        ]
        self.rows = ChangedRows(tables, bool(increments), tables if streams else (), replicas.number == 0)
        config = EasyRecConfig(model_dir=str(folder))
        config.train_config.increments_per_full_checkpoint = increments
        self.saver = Saver(config, replicas, None)
        self.saver.begin(self.rows, self.saver.checkpoints.latest())

    def _own(self, name, value):
        if name in ("embedding/all", "rec/kernel"):
            return tf.Variable(value)
        shard = shard_of_replica(len(value), self.replicas.number, self.replicas.num)
        variable = tf.Variable(value[shard.first : shard.stop])
        mark(variable, shard)
        return variable

    def train(self):
        """Do a step: change rows, and go on with the checkpoint, as Trainer.run_step."""
        if self.replicas.agree(self.saver.is_waiting)[0] == self.replicas.num:
            self.saver.meet()
        self.step += 1
        gradients, after = {}, values_at(self.step)
        for name, rows in changed_at(self.step).items():
            shard = shard_of(self.values[name])
            own = rows if shard is None else rows[(rows >= shard.first) & (rows < shard.stop)] - shard.first
            gradients[name] = tf.IndexedSlices(tf.zeros([len(own), 1]), tf.constant(own, tf.int64))
        changed = self.rows.before_update(gradients)
        for name, value in after.items():
            self.values[name].assign(self._own(name, value))
        self.saver.after_step(changed)

    def save(self, at_once=False):
        return self.saver.save(self.step, self.values, None, at_once)


def restored(path):
    variables = {name: tf.Variable(np.zeros_like(value)) for name, value in values_at(0).items()}
    restore(path, variables)
    return {name: variable.numpy() for name, variable in variables.items()}


def part_of_user(path, replicas):
    """The rows of a table that a worker reads which goes on."""
    worker = Worker(path.rpartition("/")[0], replicas)
    restore(path, worker.values)
    return worker.values["embedding/user"].numpy()


def train(worker, num_steps):
    for _ in range(num_steps):
        worker.train()


@pytest.mark.parametrize("num", [2, 3, 4])
@pytest.mark.parametrize("increments", [0, 9])
@pytest.mark.parametrize("streams", [False, True])
def test_they_hold_the_values_of_their_steps(tmp_path, monkeypatch, num, increments, streams):
    """Completed while steps go on, by the next one, and at the end; one is written at once, and nothing has changed."""
    monkeypatch.setattr(snapshot, "SHARE", 0.5)

    def run(replicas):
        worker = Worker(tmp_path, replicas, increments=increments, streams=streams)
        train(worker, 3)
        worker.save()
        assert worker.saver.is_writing == streams
        while replicas.agree(worker.saver.is_writing)[0]:
            worker.train()
        worker.save()
        train(worker, 2)
        worker.save(at_once=True)
        assert not worker.saver.is_writing
        train(worker, 4)
        worker.save()
        worker.saver.finish()
        assert not worker.rows.is_recording

    results_of_replicas(num, run)
    paths = Checkpoints(str(tmp_path)).all()
    assert len(paths) == (4 if streams else 3)
    assert not list(tmp_path.glob(".*"))
    for i, path in enumerate(paths):
        expected = values_at(int(path.rpartition("-")[2]))
        assert len(bases_of(path)) == (i if increments else 0)
        assert checkpoint_shapes(path).keys() == set(NAMES)
        assert_equal(restored(path), expected)
        for readers in (2, 5):
            parts = results_of_replicas(readers, lambda replicas, path=path: part_of_user(path, replicas))
            np.testing.assert_array_equal(np.concatenate(parts), expected["embedding/user"])


def test_other_numbers_of_workers_go_on_with_increments(tmp_path):
    """1, 3 and 2 workers, each of which writes what has changed since it started from the one before."""

    def run(replicas, step):
        worker = Worker(tmp_path, replicas, step, increments=9)
        for _ in range(2):
            train(worker, 2)
            worker.save()
        worker.saver.finish()

    for i, num in enumerate((1, 3, 2)):
        results_of_replicas(num, lambda replicas, step=4 * i: run(replicas, step))
    paths = Checkpoints(str(tmp_path)).all()
    assert [len(bases_of(path)) for path in paths] == list(range(6))
    for path in paths:
        assert_equal(restored(path), values_at(int(path.rpartition("-")[2])))
    # The file of an increment has the same contents whoever wrote it.
    names = [{name for name, _ in tf.train.list_variables(path) if "/base/" not in name} for path in paths]
    assert names[1] == names[3] == names[5] > {"increment/rows/0", "increment/values/0/optimizer_0/embedding/user/m"}
    # The rows of a step are a hundredth of the table; the small files around them count, too.
    assert 6 * rows_bytes(paths[-1]) < rows_bytes(paths[0])


def rows_bytes(path):
    """The bytes of the values in a checkpoint's files."""
    return sum(file.stat().st_size for file in Path(path).parent.glob(f"{Path(path).name}.data-*"))


def train_or_finish(worker, goes_on):
    if goes_on:
        train(worker, 1000)
    worker.saver.finish()


def test_what_one_worker_cannot_write_ends_all(tmp_path, monkeypatch):
    """While steps go on, or at the end of the training; the checkpoint before stays."""
    monkeypatch.setattr(snapshot, "SHARE", 0.5)

    def run(replicas, goes_on):
        worker = Worker(tmp_path, replicas)
        worker.save(at_once=True)
        worker.train()
        if replicas.number == 1:
            # A row that the next step changes.
            users = worker.values["embedding/user"]
            row = min(row for row in changed_at(2)["embedding/user"] if row >= shard_of(users).first)
            users.scatter_update(tf.IndexedSlices([[np.nan] * 4], [row - shard_of(users).first]))
        worker.save()
        if not goes_on:
            train(worker, 2)
        with pytest.raises(CheckpointError, match="worker 1: embedding/user holds nan") as caught:
            train_or_finish(worker, goes_on)
        assert not worker.saver.is_writing
        return worker.step, str(caught.value)

    for goes_on in (False, True):
        steps, errors = zip(*results_of_replicas(3, lambda r, goes_on=goes_on: run(r, goes_on)), strict=True)
        assert max(steps) < 1000
        assert f"the last good one is {tmp_path}/model.ckpt-0" in errors[0]
        assert Checkpoints(str(tmp_path)).all() == [f"{tmp_path}/model.ckpt-0"]
        assert_equal(restored(f"{tmp_path}/model.ckpt-0"), values_at(0))
        assert not list(tmp_path.glob("model.ckpt-1*")) + list(tmp_path.glob(".*"))


def test_a_worker_that_ends_with_an_error_waits_for_no_other(tmp_path, monkeypatch):
    """Whether its thread still writes or waits for the others; nothing is listed, and the next start cleans up."""

    def run(replicas, share):
        monkeypatch.setattr(snapshot, "SHARE", share)
        worker = Worker(tmp_path, replicas)
        worker.save()
        while share and not replicas.agree(worker.saver.is_waiting)[0]:
            worker.step -= 1  # the values need not change
            worker.train()
        with pytest.raises(DataError, match="of a test"), worker.saver.finished():
            raise DataError("an error of a test")

    for share in (0.0, 0.5):
        results_of_replicas(2, lambda replicas, share=share: run(replicas, share))
        assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
        assert not Checkpoints(str(tmp_path)).all()
    results_of_replicas(2, lambda replicas: Worker(tmp_path, replicas, 7).save(at_once=True))
    assert not list(tmp_path.glob(".*"))
    assert_equal(restored(f"{tmp_path}/model.ckpt-7"), values_at(7))
