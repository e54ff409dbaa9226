"""Several workers go on from one checkpoint, the newest that all of them can read, and begin with the same values."""

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import assert_same
from test_divided_tables import part, parts_of_all, save
from thread_replicas import results_of_replicas
from training_helpers import EACH_STEP, Training

from easyrec_mm.errors import DamagedCheckpointError, UserError
from easyrec_mm.runs import checkpoint_parts
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_reader import restore
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.same_values import require_same_values
from easyrec_mm.training.resume import resume
from easyrec_mm.training.state import Restored


class State:
    """The state of a training that consists of some variables, of which a worker holds its part."""

    def __init__(self, replicas):
        self.values = parts_of_all(replicas, seed=99)

    @property
    def step(self):
        return int(self.values["dense"])

    def restore(self, path):
        restore(path, self.values)
        return Restored(True, [], False, [])


@pytest.fixture
def folder(tmp_path):
    """The checkpoints of the steps 5 and 6 of two workers, of which each has written a file."""
    for step in (5, 6):
        results_of_replicas(2, lambda replicas, step=step: save(tmp_path, replicas, step, parts_of_all(replicas, step)))
    assert len(list(tmp_path.glob("model.ckpt-6.data-*"))) == 2
    return tmp_path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def go_on(replicas, folder):
    """The path from which a worker goes on, and its values; or the error that it raises."""
    shared, checkpoints, state = ModelDir(str(folder)).open(), Checkpoints(str(folder)), State(replicas)
    try:
        _, path = resume(checkpoints.listed(), shared, checkpoints, state, replicas)
    except UserError as error:
        return error
    return path, state.values


def test_a_part_that_only_one_worker_reads_is_damaged(folder, capsys):
    flip(folder / "model.ckpt-6.data-00001-of-00002")
    first = results_of_replicas(2, State)[0]
    first.restore(f"{folder}/model.ckpt-6")  # which has nothing of that part
    results = results_of_replicas(2, lambda replicas: go_on(replicas, folder))
    expected = results_of_replicas(2, lambda replicas: parts_of_all(replicas, 5))
    for (path, values), expected_values in zip(results, expected, strict=True):
        assert path == f"{folder}/model.ckpt-5"
        assert_same(values, expected_values)
    said = capsys.readouterr().out
    assert said.count(f"warning: worker 1: {folder}/model.ckpt-6: embedding/user cannot be read: ") == 2
    assert said.count(f"continuing from {folder}/model.ckpt-5 (step 5)\n") == 2
    assert Checkpoints(str(folder)).listed() == [f"{folder}/model.ckpt-5"]
    flip(folder / "model.ckpt-5.data-00000-of-00002")
    (folder / "checkpoint").unlink()
    errors = results_of_replicas(2, lambda replicas: go_on(replicas, folder))
    assert [type(error) for error in errors] == [DamagedCheckpointError] * 2
    assert all(str(error).startswith(f"worker 1: {folder}/model.ckpt-6: ") for error in errors)


def test_a_worker_that_does_not_have_the_checkpoint_of_the_first(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    errors = results_of_replicas(2, lambda replicas: go_on(replicas, [folder, other][replicas.number]))
    told = f"worker 1: model_dir '{other}' has no model.ckpt-6 here, from which worker 0 goes on; give all workers the"
    assert all(str(error).startswith(told) for error in errors)


@pytest.mark.slow
@pytest.mark.usefixtures("backbone_of_three_stages")
def test_nothing_is_left_of_a_checkpoint_that_another_worker_could_not_read(data, tmp_path):
    """Of a training that has done more steps, everything is as in a new one: weights, bad groups, bank, place."""
    lines = (data / "one.txt").read_text().splitlines(keepends=True)
    (tmp_path / "bad.txt").write_text("".join(["no group\n", *lines]))
    changes = {
        f'"{data}/one.txt"': f'"{tmp_path}/bad.txt"',
        "batch_size: 4": "batch_size: 4 max_bad_record_share: 0.5 shuffle: false",
    }
    settings = {"img_model": "encode_ratio: 0.5", "changes": changes}
    trained = Training(data, tmp_path, train=f"num_epochs: 1 {EACH_STEP}", **settings).run()
    fresh = Training(data, tmp_path, train="num_epochs: 2", **settings)
    values = []
    for training in (fresh, trained):
        training.trainer.state.restore(f"{trained.model_dir}/model.ckpt-2")
        values.append(training.trainer.state.values([]))
    assert b"1 columns, not 5" in values[0]["progress/unreported"].numpy()
    assert any(name.startswith("picture_bank/") for name in values[0])
    for state in values:
        del state["progress/config"]
    assert_same(values[1], values[0])


def test_values_that_all_workers_hold_are_the_same(monkeypatch):
    """Parts of divided tables differ in any case; of large tables, each slice counts."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 100)
    table = np.random.default_rng(0).normal(size=(60, 4)).astype("f4")

    def require(replicas, changed=None, by=1):
        values = {"embedding/all": tf.Variable(table), "step": tf.Variable([3], dtype=tf.int64)}
        values |= {"rec/narrow": tf.Variable(table, dtype=tf.bfloat16), "none": tf.Variable(tf.zeros([0, 3]))}
        values["embedding/user"] = part(table, replicas)
        if replicas.number == 1 and changed:
            values[changed].assign(tf.concat([values[changed][:-1], values[changed][-1:] + by], 0))
        try:
            require_same_values(values, replicas)
        except UserError as error:
            return str(error)
        return None

    assert results_of_replicas(3, require) == [None] * 3
    assert results_of_replicas(3, lambda replicas: require(replicas, "embedding/user")) == [None] * 3
    rounded = results_of_replicas(3, lambda replicas: require(replicas, "embedding/all", np.float32(1e-7)))
    assert rounded == [None] * 3
    counted = results_of_replicas(3, lambda replicas: require(replicas, "step"))
    assert counted[0].startswith("worker 1 begins with other values than worker 0 of step; ")
    errors = results_of_replicas(3, lambda replicas: require(replicas, "embedding/all"))
    assert set(errors) == {errors[0]}
    assert errors[0].startswith("worker 1 begins with other values than worker 0 of embedding/all; give all workers ")
