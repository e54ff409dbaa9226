"""Checkpoints that are written while the training goes on hold the values of their step, and nothing else."""

import shutil
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import tensorflow as tf
from full_disk import files_limited_to
from increment_helpers import Tables, assert_equal
from training_helpers import EACH_STEP, Training, optimizer

from easyrec_mm.errors import CheckpointError, DataError
from easyrec_mm.runs import checkpoint_parts, snapshot
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_index import read_index
from easyrec_mm.runs.checkpoint_parts import Increment, Piece, Table, pieces_of
from easyrec_mm.runs.checkpoint_reader import bases_of, restore
from easyrec_mm.runs.snapshot import Snapshot, Target
from easyrec_mm.training import changed_rows
from easyrec_mm.training.changed_rows import ChangedRows
from easyrec_mm.training.saving import Saver
from easyrec_mm.training.step_log import StepLog


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 300)
    monkeypatch.setattr(snapshot, "WAITING_BYTES", 1000)
    monkeypatch.setattr(snapshot, "KEPT_SHARE", 10.0)


def started(tables, folder, step=1, increment=None):
    """Return a snapshot that is being written, and the values of its step."""
    pieces = pieces_of(tables.variables, tables.tables, increment)
    writing = Checkpoints(str(folder)).snapshot(step, pieces, streamed=tables.tables)
    values = tables.values()
    writing.start()
    return writing, values


@pytest.mark.parametrize("num_changed", [1, 20, 60])
@pytest.mark.parametrize("num_steps", [0, 3, None])
def test_holds_the_values_of_its_step(tmp_path, num_changed, num_steps):
    """Whatever changes while it is written, to its end or until it is to be finished."""
    tables = Tables(seed=num_changed)
    writing, values = started(tables, tmp_path)
    num_done = 0
    while not writing.is_done and num_done != num_steps:
        writing.after_step(tables.change(num_changed))
        num_done += 1
    assert num_steps is not None or num_done > 0
    path = writing.finish()
    assert_equal(tables.restored(path), values)
    assert Checkpoints(str(tmp_path)).all() == [path]
    assert not list(tmp_path.glob(".*"))


def test_an_increment_holds_the_values_of_its_step(tmp_path):
    tables, checkpoints = Tables(), Checkpoints(str(tmp_path))
    base = tables.save(checkpoints, 1)
    changed = tables.change(20)
    rows = {name: np.sort(rows.numpy()) for name, (rows, _) in changed.items()}
    writing, values = started(tables, tmp_path, 2, Increment("model.ckpt-1", read_index(base).digest, rows))
    while not writing.is_done:
        writing.after_step(tables.change(30))
    assert_equal(tables.restored(writing.finish()), values)
    assert bases_of(writing.path) == [base]


def test_is_finished_when_too_many_rows_have_changed(tmp_path, monkeypatch):
    """A step waits for the copies, but not for the disk."""
    monkeypatch.setattr(snapshot, "SHARE", 0.0)
    monkeypatch.setattr(snapshot, "KEPT_SHARE", 1.0)
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 10_000)
    tables = Tables(num_rows=4000)
    writing, values = started(tables, tmp_path)
    writing.after_step(tables.change(10))
    assert not writing.is_done
    for _ in range(9):
        writing.after_step(tables.change(800))
    assert not writing.num_left
    assert_equal(tables.restored(writing.finish()), values)


def test_copies_no_more_than_its_share_of_the_time(tmp_path, monkeypatch):
    """With a clock by which a step takes 100 ms and a slice 4 ms; writing takes little."""
    monkeypatch.setattr(snapshot, "WAITING_BYTES", 1 << 30)
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 200)
    now_s = 0.0
    tables = Tables(num_rows=200)
    value = Piece.value

    def slow_value(piece):
        nonlocal now_s
        now_s += 0.004
        return value(piece)

    monkeypatch.setattr(Piece, "value", slow_value)
    target = Target(str(tmp_path / "model.ckpt-1"), tmp_path, lambda parts: None, nullcontext, CheckpointError)
    writing = Snapshot(target, list(pieces_of(tables.variables, tables.tables)), tables.tables, lambda: now_s)
    writing.start()
    num = writing.num_left
    for _ in range(50):
        now_s += 0.1
        writing.after_step(tables.change(3))
    num_copied, most = num - writing.num_left, 50 * 0.1 * snapshot.SHARE / 0.004
    writing.finish()
    assert num > most
    assert most / 2 < num_copied <= most + 1


def train_to_the_end(tables, writing):
    while not writing.is_done:
        writing.after_step(tables.change(1))
    writing.finish()


def test_a_full_disk(tmp_path, monkeypatch):
    """Is the error of a later step, and the checkpoint before stays."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 100_000)
    tables = Tables(num_rows=4000)
    good = tables.save(Checkpoints(str(tmp_path)), 1)
    values = tables.values()
    writing, _ = started(tables, tmp_path, 2)
    with files_limited_to(50_000), pytest.raises(CheckpointError, match=f"cannot be written: .+ good one is {good}"):
        train_to_the_end(tables, writing)
    assert Checkpoints(str(tmp_path)).all() == [good]
    assert not list(tmp_path.glob("*-2.*")) + list(tmp_path.glob(".*"))
    assert_equal(tables.restored(good), values)


def test_numbers_with_which_no_model_works(tmp_path):
    tables = Tables()
    tables.variables["embedding/user"].scatter_update(tf.IndexedSlices(tf.fill([1, 4], np.nan), [33]))
    writing, _ = started(tables, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"model.ckpt-1: cannot be written: embedding/user holds .+none before it"
    ):
        writing.finish()


def test_an_unknown_error_is_not_hidden(tmp_path, monkeypatch):
    tables = Tables()
    monkeypatch.setattr(checkpoint_parts.PartWriter, "flush", lambda self: 1 / 0)
    writing, _ = started(tables, tmp_path)
    with pytest.raises(ZeroDivisionError):
        writing.finish()


def test_a_snapshot_that_is_abandoned(tmp_path):
    tables = Tables()
    good = tables.save(Checkpoints(str(tmp_path)), 1)
    writing, _ = started(tables, tmp_path, 2)
    writing.after_step(tables.change(3))
    writing.abandon()
    assert Checkpoints(str(tmp_path)).all() == [good]
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    assert tables.save(Checkpoints(str(tmp_path)), 2)


def test_the_old_values_of_a_row_are_recorded_once():
    variable = tf.Variable(tf.range(10.0)[:, None])
    table = Table("user", {"embedding/user": variable})
    rows = ChangedRows([table], False, [table])

    def step(*ids):
        """Add 1 to these rows; the rows that are recorded, and their values before."""
        gradient = tf.IndexedSlices(tf.ones([len(ids), 1]), tf.constant(ids, tf.int64))
        recorded, values = rows.before_update({"user": gradient})["user"]
        variable.scatter_add(gradient)
        return recorded.numpy().tolist(), values["embedding/user"][:, 0].numpy().tolist()

    assert step(1, 2) == ([], [])
    rows.record()
    assert step(2, 5) == ([2, 5], [3.0, 5.0])
    assert step(5, 6) == ([6], [6.0])
    assert step(5, 6) == ([], [])
    rows.record()
    assert step(5) == ([5], [8.0])
    rows.record_no_more()
    assert step(1) == ([], [])


# Trainings

SETTINGS = {
    "optimizers": optimizer(more="use_moving_average: true moving_average_decay: 0.9"),
    "changes": {"feature_type: IdFeature hash_bucket_size: 12": "feature_type: IdFeature hash_bucket_size: 300"},
}


def all_values(path, training):
    variables = {name: tf.Variable(tf.zeros_like(v)) for name, v in training.trainer.state.variables().items()}
    restore(path, variables)
    return {name: np.array(variable) for name, variable in variables.items()}


@pytest.fixture(scope="module")
def at_once(data, tmp_path_factory, backbone_of_three_stages):
    folder = tmp_path_factory.mktemp("at_once")
    return Training(data, folder, train=f"num_steps: 6 {EACH_STEP}", **SETTINGS).run()


@pytest.fixture
def _streamed(monkeypatch):
    monkeypatch.setattr(changed_rows, "LARGE_TABLE_BYTES", 0)
    monkeypatch.setattr(changed_rows, "LARGE_TABLES_BYTES", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("_streamed", "backbone_of_three_stages")
@pytest.mark.parametrize("increments", [0, 2])
def test_a_training_whose_checkpoints_are_written_meanwhile(at_once, data, tmp_path, increments):
    """They hold the same; also after a start from one of them."""
    for num_steps, every in ((3, 2), (6, 3)):
        train = f"num_steps: {num_steps} save_checkpoints_steps: {every} increments_per_full_checkpoint: {increments}"
        training = Training(data, tmp_path, train=train, **SETTINGS)
        assert training.trainer.steps.changed_rows.streamed
        training.run()
        assert not training.trainer.steps.changed_rows.is_recording
    paths = Checkpoints(str(training.model_dir)).all()
    assert [path.rpartition("-")[2] for path in paths] == ["2", "3", "6"]
    for path in paths:
        expected = all_values(f"{at_once.model_dir}/{path.rpartition('/')[2]}", at_once)
        assert_equal(all_values(path, at_once), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("_streamed", "backbone_of_three_stages")
@pytest.mark.parametrize("is_in_step", [False, True])
def test_a_training_that_fails_meanwhile(at_once, data, tmp_path, monkeypatch, is_in_step):
    """An error between steps lets the checkpoint be finished; one within a step does not, which may be half done."""
    monkeypatch.setattr(snapshot, "SHARE", 0.0)
    training = Training(data, tmp_path, train="num_steps: 6 save_checkpoints_steps: 3", **SETTINGS)
    owner, name = (training.trainer.steps, "run") if is_in_step else (StepLog, "add")
    original = getattr(owner, name)

    def fail(*arguments):
        if int(training.trainer.steps.number) >= 5:
            raise DataError("an error of a test")
        return original(*arguments)

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(DataError, match="an error of a test"):
        training.run()
    paths = Checkpoints(str(training.model_dir)).all()
    assert len(paths) == (0 if is_in_step else 1)
    for path in paths:
        assert_equal(all_values(path, at_once), all_values(f"{at_once.model_dir}/model.ckpt-3", at_once))


@pytest.mark.slow
@pytest.mark.usefixtures("_streamed", "backbone_of_three_stages")
def test_a_training_that_is_killed_meanwhile(at_once, data, tmp_path, monkeypatch):
    """Goes on from the checkpoint before, with the same results."""
    train = "num_steps: {} save_checkpoints_steps: 2"
    training = Training(data, tmp_path, train=train.format(6), **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "SHARE", 0.0)
        copy = tmp_path / "killed"
        after_step = Saver.after_step

        def copied(self, changed):
            after_step(self, changed)
            if int(training.trainer.steps.number) == 5:
                # What a kill leaves, without a file that TensorFlow is about to rename.
                shutil.copytree(training.model_dir, copy / "m", ignore=shutil.ignore_patterns("*.tempstate*"))

        patch.setattr(Saver, "after_step", copied)
        training.run()
    assert list(copy.glob("m/.model.ckpt.tmp"))
    assert [path.rpartition("-")[2] for path in Checkpoints(str(copy / "m")).all()] == ["2"]
    again = Training(data, copy, train=train.format(6), **SETTINGS).run()
    assert_equal(again.values(), at_once.values())
