"""Checkpoints: what is written comes back, and the last good one survives everything."""

import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import assert_same, variables
from full_disk import files_limited_to

from easyrec_mm.errors import CheckpointError
from easyrec_mm.runs import checkpoint_parts
from easyrec_mm.runs.checkpoint import Checkpoints, resolve_checkpoint
from easyrec_mm.runs.checkpoint_reader import checkpoint_shapes, restore


def files(folder):
    return sorted(os.listdir(folder))


def steps(checkpoints):
    return [int(path.rsplit("-")[-1]) for path in checkpoints.all()]


@pytest.mark.parametrize("slice_bytes", [64 << 20, 100, 16, 1])
@pytest.mark.parametrize("name", ["model", "a/b", "größe {1,2} $x"])
def test_round_trip(tmp_path, monkeypatch, slice_bytes, name):
    """Written and read in slices of any size, in a folder of any name; TensorFlow itself reads the same."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", slice_bytes)
    folder = tmp_path / name
    saved = variables()
    path = Checkpoints(str(folder)).save(7, saved)
    assert path == str(folder / "model.ckpt-7")
    assert {re.sub(r"\d{5}-of-\d{5}", "#", file) for file in files(folder)} == {
        "checkpoint", "model.ckpt-7.index", "model.ckpt-7.data-#"
    }  # fmt: skip
    restored = variables(seed=1)
    restore(path, restored)
    assert_same(restored, saved)
    reader = tf.train.load_checkpoint(str(folder))
    assert_same({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}, saved)
    assert checkpoint_shapes(path) == {name: list(v.shape) for name, v in saved.items()}


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "a\\b"])
def test_folder_that_tensorflow_takes_for_a_pattern(tmp_path, name):
    """It would fail when the checkpoint is read, after hours of training, or read and remove those of other folders."""
    with pytest.raises(CheckpointError, match=r"folder '.+': TensorFlow cannot read .+ choose another model_dir"):
        Checkpoints(str(tmp_path / name))


def test_slices_of_another_size_than_when_written(tmp_path, monkeypatch):
    saved, restored = variables(), variables(seed=1)
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 50)
    path = Checkpoints(str(tmp_path)).save(1, saved)
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 70)
    restore(path, restored)
    assert_same(restored, saved)


@pytest.mark.parametrize("rows", [4, 5, 16, 17, 100])
def test_a_large_variable_makes_few_files(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 8)
    monkeypatch.setattr(checkpoint_parts, "MOST_SLICES", 4)
    saved, restored = ({"table": tf.Variable(np.full([rows, 2], value))} for value in (1.5, 0.0))
    path = Checkpoints(str(tmp_path)).save(1, saved)
    assert len(list(tmp_path.glob("*.data-*"))) <= 4
    restore(path, restored)
    assert_same(restored, saved)


def test_large_variable_is_never_copied_whole(tmp_path, monkeypatch):
    """No file written and no tensor read is larger than a slice (of one row at least)."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 64)
    sizes = []

    def spy(op, values):
        def call(**kwargs):
            tensors = op(**kwargs)
            sizes.append(sum(v.dtype.size * int(tf.size(v)) for v in (kwargs.get(values) or tensors)))
            return tensors

        return call

    monkeypatch.setattr(tf.raw_ops, "SaveV2", spy(tf.raw_ops.SaveV2, "tensors"))
    monkeypatch.setattr(tf.raw_ops, "RestoreV2", spy(tf.raw_ops.RestoreV2, ""))
    table = {"table": tf.Variable(np.random.default_rng(0).normal(size=(33, 4)))}
    path = Checkpoints(str(tmp_path)).save(1, table)
    assert sum(sizes) == 33 * 4 * 8
    restore(path, table)
    assert sum(sizes) == 2 * 33 * 4 * 8
    assert max(sizes) == 64


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    assert checkpoints.latest() is None
    assert checkpoints.all() == []
    for step in (10, 20, 100, 9):
        checkpoints.save(step, variables(step))
    assert steps(checkpoints) == [100, 9]
    assert [file for file in files(tmp_path) if file.endswith(".index")] == [
        "model.ckpt-100.index",
        "model.ckpt-9.index",
    ]
    assert len(files(tmp_path)) == 5
    # A later run of the program goes on from the list, with another number to keep.
    later = Checkpoints(str(tmp_path), keep=1)
    assert later.latest() == str(tmp_path / "model.ckpt-9")
    later.save(200, variables(200))
    assert steps(later) == [200]
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("folder", [".", "model", "./model/"])
def test_the_same_step_twice(tmp_path, monkeypatch, folder):
    """The second replaces the first, whatever way the folder is written."""
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(5, variables(1))
    checkpoints.save(5, variables(2))
    assert steps(checkpoints) == [5]
    restored = variables(3)
    restore(checkpoints.latest(), restored)
    assert_same(restored, variables(2))


def test_folder_can_be_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    checkpoints = Checkpoints(str(old))
    for step in (1, 2):
        checkpoints.save(step, variables(step))
    assert str(tmp_path) not in (old / "checkpoint").read_text(encoding="utf-8")
    shutil.move(old, new)
    moved = Checkpoints(str(new))
    assert moved.all() == [str(new / "model.ckpt-1"), str(new / "model.ckpt-2")]
    assert tf.train.latest_checkpoint(str(new)) == moved.latest()
    restored = variables(seed=9)
    restore(moved.latest(), restored)
    assert_same(restored, variables(2))


def test_checkpoints_whose_files_are_gone_do_not_count(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    for step in (1, 2, 3):
        checkpoints.save(step, variables(step))
    for file in tmp_path.glob("model.ckpt-3.*"):
        file.unlink()
    (tmp_path / "model.ckpt-1.index").unlink()
    assert steps(checkpoints) == [2]
    assert checkpoints.latest() == str(tmp_path / "model.ckpt-2")
    checkpoints.save(4, variables(4))
    assert steps(checkpoints) == [2, 4]


def test_files_that_are_not_listed_do_not_count(tmp_path):
    """As when the program was killed before the list was written."""
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, variables(1))
    listed = (tmp_path / "checkpoint").read_bytes()
    checkpoints.save(2, variables(2))
    (tmp_path / "checkpoint").write_bytes(listed)
    assert steps(checkpoints) == [1]


# A write that fails


def assert_last_good_one_stays(tmp_path, checkpoints, error):
    place = re.escape(str(tmp_path))
    advice = "; make room there, and start again" if "No space left on device" in str(error.value) else ""
    failure = rf"{place}/model.ckpt-2: cannot be written: .+; the last good one is {place}/model.ckpt-1{advice}"
    assert re.fullmatch(failure, str(error.value))
    assert steps(checkpoints) == [1]
    assert {re.sub(r"\.data-.*", ".data", file) for file in files(tmp_path)} == {
        "checkpoint", "model.ckpt-1.index", "model.ckpt-1.data"
    }  # fmt: skip
    restored = variables(seed=9)
    restore(checkpoints.latest(), restored)
    assert_same(restored, variables(1))
    checkpoints.save(2, variables(2))
    assert steps(checkpoints) == [1, 2]


def test_full_disk(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, variables(1))
    table = tf.Variable(np.random.default_rng(0).normal(size=(5000, 10)))
    with pytest.raises(CheckpointError) as error, files_limited_to(100_000):
        checkpoints.save(2, variables(2) | {"table": table})
    assert_last_good_one_stays(tmp_path, checkpoints, error)


@pytest.mark.parametrize("op", ["SaveV2", "MergeV2Checkpoints"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_failing_writes(tmp_path, monkeypatch, op, when):
    """Before the operation has written anything, and behind it."""
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, variables(1))
    original = getattr(tf.raw_ops, op)

    def fail(**kwargs):
        if when == "after":
            original(**kwargs)
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device [Op:Some]")

    with monkeypatch.context() as patch:
        patch.setattr(tf.raw_ops, op, fail)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device; the last") as error:
            checkpoints.save(2, variables(2))
    assert_last_good_one_stays(tmp_path, checkpoints, error)


def test_failing_list(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, variables(1))

    def fail(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(CheckpointError, match="No space left on device") as error:
            checkpoints.save(2, variables(2))
    assert_last_good_one_stays(tmp_path, checkpoints, error)


def test_the_first_write_fails(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"file/model.ckpt-1: cannot be written: .+; there is none before it"):
        Checkpoints(str(blocked)).save(1, variables())
    assert blocked.read_text(encoding="utf-8") == "not a folder"


def test_remains_of_a_killed_write_do_not_disturb(tmp_path):
    remains = tmp_path / ".model.ckpt.tmp"
    remains.mkdir()
    (remains / "part-0.index").write_text("rubbish", encoding="utf-8")
    (tmp_path / "checkpoint.tmp").write_text("rubbish", encoding="utf-8")
    path = Checkpoints(str(tmp_path)).save(1, variables(1))
    restored = variables(seed=9)
    restore(path, restored)
    assert_same(restored, variables(1))
    assert not [file for file in files(tmp_path) if file.endswith(".tmp")]


# A checkpoint and a model that do not fit


def test_restore_names_both_sides(tmp_path):
    path = Checkpoints(str(tmp_path)).save(1, variables(1))
    others = variables(2) | {
        "rec/kernal": tf.Variable(tf.zeros([2, 3])),
        "embedding/user": tf.Variable(tf.zeros([60, 4])),
        "scalar": tf.Variable(tf.zeros([1])),
    }
    before = {name: v.numpy() for name, v in others.items()}
    with pytest.raises(CheckpointError) as error:
        restore(path, others)
    assert str(error.value) == (
        f"{path}: does not fit this config:\n"
        "  embedding/user: model [60, 4], checkpoint [50, 4]\n"
        "  scalar: model [1], checkpoint []\n"
        "  rec/kernal: model [2, 3], checkpoint has none; did you mean 'rec/kernel'?\n"
        "Use the config it was trained with (model_dir/pipeline.config), another model_dir or fine_tune_checkpoint."
    )
    assert_same(others, before)


def test_restore_does_not_list_hundreds(tmp_path):
    path = Checkpoints(str(tmp_path)).save(1, variables(1))
    others = {f"other_{i}": tf.Variable(0.0) for i in range(25)}
    with pytest.raises(CheckpointError, match=r"  other_9: [^\n]+\n  and 15 more\nUse the config"):
        restore(path, others)


def test_restore_of_another_dtype(tmp_path):
    path = Checkpoints(str(tmp_path)).save(1, variables(1))
    with pytest.raises(CheckpointError, match=r"model.ckpt-1: rec/bias cannot be read: .*dtype"):
        restore(path, {"rec/bias": tf.Variable(np.zeros(7, np.float64))})


def test_restore_of_damaged_files(tmp_path):
    path = Checkpoints(str(tmp_path)).save(1, variables(1))
    (data,) = tmp_path.glob("model.ckpt-1.data-*")
    content = bytearray(data.read_bytes())
    data.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match=r"model.ckpt-1: is not .+: model.ckpt-1.data-\S+ has 100 of 1,044 bytes"):
        restore(path, variables(2))
    content[500] ^= 1
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.ckpt-1: .+ cannot be read: "):
        restore(path, variables(2))
    index = tmp_path / "model.ckpt-1.index"
    index.write_bytes(index.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"model.ckpt-1: is not a readable checkpoint: "):
        restore(path, variables(2))
    with pytest.raises(CheckpointError, match=r"model.ckpt-3: is not a readable checkpoint: "):
        checkpoint_shapes(str(tmp_path / "model.ckpt-3"))


# Names that a user gives


def test_resolve_checkpoint(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    first, second = checkpoints.save(1, variables(1)), checkpoints.save(2, variables(2))
    (data,) = tmp_path.glob("model.ckpt-1.data-*")
    for given in (first, f"{first}.index", f"{first}.meta", str(data)):
        assert resolve_checkpoint(given, "--checkpoint_path") == first
    for folder in (str(tmp_path), f"{tmp_path}/"):
        assert resolve_checkpoint(folder, "--checkpoint_path") == second


def test_resolve_checkpoint_in_a_folder_that_tensorflow_wrote(tmp_path):
    path = tf.train.Checkpoint(weight=tf.Variable(1.0)).save(str(tmp_path / "ckpt"))
    assert resolve_checkpoint(str(tmp_path), "--checkpoint_path") == path


def test_resolve_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"--checkpoint_path: folder '.+' holds no checkpoint; train first"):
        resolve_checkpoint(str(tmp_path), "--checkpoint_path")
    with pytest.raises(
        CheckpointError, match=r"--checkpoint_path: no checkpoint '.+/model.ckpt-5'; give a path such as"
    ):
        resolve_checkpoint(str(tmp_path / "model.ckpt-5"), "--checkpoint_path")
