"""Runs that were killed or damaged go on with what is whole, and count and report everything once."""

import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import assert_same, variables
from training_helpers import EACH_STEP, Training, optimizer

from easyrec_mm.data.bad_records import BadRecord, BadRecords
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError, DataError, UserError
from easyrec_mm.files.lock import locked
from easyrec_mm.runs.checkpoint import Checkpoints, newest_whole
from easyrec_mm.runs.checkpoint_reader import restore
from easyrec_mm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = bytes(b ^ 0xFF for b in content[len(content) // 2 :][:8])
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "flipped bytes": (flip, ".data-00000-of-00001"),
    "cut values": (cut, ".data-00000-of-00001"),
    "no values": (lambda path: path.unlink(), ".data-00000-of-00001"),
    "empty values": (lambda path: path.write_bytes(b""), ".data-00000-of-00001"),
    "empty index": (lambda path: path.write_bytes(b""), ".index"),
    "cut index": (cut, ".index"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_read(tmp_path, damage):
    checkpoints = Checkpoints(str(tmp_path))
    saved = variables(1)
    first, second = checkpoints.save(1, saved), checkpoints.save(2, variables(2))
    do, end = DAMAGES[damage]
    (path,) = tmp_path.glob(f"model.ckpt-2{end[:6]}*")
    do(path)
    restored = variables(3)
    _, path, problems = newest_whole(checkpoints.all(), lambda path: restore(path, restored))
    assert path == first
    assert_same(restored, saved)
    (problem,) = problems
    assert problem.startswith(f"{second}: ")
    flip(next(tmp_path.glob("model.ckpt-1.data-*")))
    with pytest.raises(DamagedCheckpointError) as raised:
        newest_whole(checkpoints.all(), lambda path: restore(path, restored))
    of_second, of_first, advice = str(raised.value).splitlines()
    assert of_second == problem
    assert of_first.startswith(f"  {first}: ")
    assert advice.startswith("no whole checkpoint is left: put one back from a copy, or remove the list ")


LISTS = {
    "gone": None,
    "empty": "",
    "no text": b"\xff\xfe\x00garbage",
    "another text": "garbage",
    "zeros after a loss of power": b"\0" * 200,
    "cut in half": 0.5,
    "cut behind its first line": 'model_checkpoint_path: "model.ckpt-20"\n',
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS.keys())
def test_the_list_is_made_anew_from_the_checkpoints_that_lie_there(tmp_path, content, capfd):
    checkpoints = Checkpoints(str(tmp_path))
    paths = [checkpoints.save(step, variables()) for step in (3, 20)]
    (tmp_path / "model.ckpt-30.index").write_bytes(b"its training was killed while it was written")
    path = tmp_path / "checkpoint"
    text = path.read_text()
    path.unlink()
    if isinstance(content, float):
        path.write_text(text[: int(content * len(text))])
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert checkpoints.all() == paths
    assert capfd.readouterr().err == ""  # each look would tell of it; a training does so once
    checkpoints.save(21, variables())
    assert checkpoints.all() == [*paths, str(tmp_path / "model.ckpt-21")]
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-21")


@pytest.mark.parametrize(
    ("name", "value", "is_good"),
    [
        ("rec/kernel", np.inf, False),
        ("rec/kernel", np.nan, False),
        ("rec/kernel", -3e37, False),
        ("rec/kernel", 1e18, True),
        ("rec/bn/moving_variance", 3e37, True),
        ("rec/bn/moving_variance", np.inf, False),
        ("optimizer_0/rec/kernel/velocity", 3e37, True),
        ("optimizer_0/rec/kernel/velocity", np.nan, False),
    ],
)
def test_numbers_with_which_no_model_works(tmp_path, name, value, is_good):
    """They are not saved; where an older version has saved them, the checkpoint counts as damaged."""
    checkpoints = Checkpoints(str(tmp_path))
    good = checkpoints.save(1, {name: tf.Variable([1.0, 2.0])})
    values = {name: tf.Variable([1.0, value])}
    path = str(tmp_path / "model.ckpt-2")
    tf.raw_ops.SaveV2(prefix=path, tensor_names=[name], shape_and_slices=[""], tensors=[values[name]])
    if is_good:
        restore(path, values)
        assert checkpoints.save(2, values) == path
        return
    with pytest.raises(DamagedCheckpointError, match=f": {name} holds .+, with which no model works"):
        restore(path, values)
    with pytest.raises(CheckpointError, match=rf"cannot be written: {name} holds .+; the last good one is {good}"):
        checkpoints.save(2, values)
    assert checkpoints.all() == [good]


def test_a_training_that_diverges_leaves_the_last_good_checkpoint(data, tmp_path):
    training = Training(data, tmp_path, train=f"num_steps: 3 {EACH_STEP}", optimizers=optimizer("sgd", 1e30))
    with pytest.raises(CheckpointError, match=r"model.ckpt-1: cannot be written: .+ there is none before it"):
        training.run()
    assert Checkpoints(str(training.model_dir)).all() == []


@pytest.fixture(scope="module")
def data_with_a_bad_group(data, tmp_path_factory):
    folder = shutil.copytree(data, tmp_path_factory.mktemp("bad") / "data")
    lines = (folder / "one.txt").read_text().splitlines()
    (folder / "one.txt").write_text("\n".join(["bad", *lines, *lines]) + "\n")
    return folder


SETTINGS = {
    "train": f"num_epochs: 1 {EACH_STEP} keep_checkpoint_max: 20",
    "changes": {
        "log_step_count_steps: 1": "log_step_count_steps: 3",
        "batch_size: 4": "batch_size: 4 shuffle: false max_bad_record_share: 0.05",
    },
}


@pytest.fixture(scope="module")
def whole(data_with_a_bad_group, tmp_path_factory, backbone_of_three_stages):
    """A training of seven steps that may leave out one group of 25."""
    return Training(data_with_a_bad_group, tmp_path_factory.mktemp("whole"), **SETTINGS).run()


def test_a_training_that_was_killed_reports_each_step_and_record_once(whole, data_with_a_bad_group, tmp_path, capsys):
    """And with the means and counts of a training that was not killed."""
    shutil.copytree(whole.model_dir, tmp_path / "m")
    for step in (5, 7):
        flip(next((tmp_path / "m").glob(f"model.ckpt-{step}.data-*")))
    Checkpoints(str(tmp_path / "m")).leave_out([str(tmp_path / "m" / f"model.ckpt-{step}") for step in (6, 7)])
    with (tmp_path / "m" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # it was killed while it wrote this
    training = Training(data_with_a_bad_group, tmp_path, **SETTINGS).run()
    said = capsys.readouterr().out
    assert f"warning: {tmp_path}/m/model.ckpt-5: " in said
    assert f"continuing from {tmp_path}/m/model.ckpt-4 (step 4)" in said

    speeds = {"time", "samples_per_second", "images_per_second", "input_wait_share", "samples_per_image"}
    speeds |= {"encoded_per_second", "flops_per_step", "mfu"}
    logs = [[{k: v for k, v in line.items() if k not in speeds} for line in run.log] for run in (whole, training)]
    assert [line["step"] for line in logs[0]] == [3, 6, 7]
    assert logs[1] == logs[0]
    assert [line["step"] for line in training.lines("start")] == [0, 4]
    assert [line["step"] for line in training.lines("end")] == [7]
    assert len((tmp_path / "m" / "bad_records.jsonl").read_text().splitlines()) == 1
    for name, values in whole.values().items():
        np.testing.assert_array_equal(training.values()[name], values, err_msg=name)


def test_a_training_whose_folder_is_removed_writes_it_whole(data, tmp_path):
    training = Training(data, tmp_path, train="num_epochs: 1 save_checkpoints_steps: 3")
    step = training.trainer.run_step

    def remove_first(item):
        if item is not None and item.step == 2:
            shutil.rmtree(training.model_dir)
        return step(item)

    training.trainer.run_step = remove_first
    training.trainer.train()
    names = {path.name for path in training.model_dir.iterdir()}
    assert {"pipeline.config", "checkpoint", "model.ckpt-3.index", "metrics.jsonl"} <= names


def test_a_training_whose_folder_another_one_took_ends(data, tmp_path):
    training = Training(data, tmp_path, train="num_epochs: 1 save_checkpoints_steps: 3")
    folder = str(training.model_dir)
    with ExitStack() as others, locked(folder, "model_dir") as lock:
        trainer = Trainer(training.pipeline, lock)
        step = trainer.run_step

        def lose_folder(item):
            if item is not None and item.step == 2:
                shutil.rmtree(folder)
                others.enter_context(locked(folder, "model_dir"))
            return step(item)

        trainer.run_step = lose_folder
        with pytest.raises(UserError, match=f"model_dir '{folder}': is in use by process"):
            trainer.train()
    assert not [path.name for path in training.model_dir.iterdir() if path.name.startswith("model.ckpt")]


def test_counts_of_bad_records_go_on(tmp_path):
    record = BadRecord("group", "a.txt", 3, "label", "it is ü")
    first = BadRecords(str(tmp_path / "bad.jsonl"), 0.1)
    first.add(90, 10, [record])
    first.add_keys("look", 10, [b"k"], 1, 0.5)
    with (tmp_path / "bad.jsonl").open("a") as file:
        file.write('{"kind": "gro')  # it was killed while it wrote this
    second = BadRecords(str(tmp_path / "bad.jsonl"), 0.1)
    second.restore(json.loads(json.dumps(first.state())))
    second.add(10, 0, [record, record])
    second.add_keys("look", 10, [b"k"], 1, 0.5)
    assert second.counts == {
        "groups": 100, "bad_groups": 3, "pictures": 10, "bad_pictures": 0, "vectors_look": 20, "missing_vectors_look": 2
    }  # fmt: skip
    second.check_all()
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1
    third = BadRecords(None, 0.01)
    third.restore(json.loads(json.dumps(first.state())))
    with pytest.raises(DataError) as error:
        third.check_all()
    assert f"The first:\n  {record}" in str(error.value)
    assert " 1 stood before the checkpoint: once corrected, train in another model_dir." in str(error.value)


def test_an_epoch_of_too_many_bad_records_does_not_end_in_a_checkpoint(data_with_a_bad_group, tmp_path):
    settings = {**SETTINGS, "train": "num_epochs: 2 save_checkpoints_epochs: 1"}
    settings["changes"] = {"batch_size: 4": "batch_size: 4 max_bad_record_share: 0.03"}
    for _ in range(2):
        training = Training(data_with_a_bad_group, tmp_path, **settings)
        with pytest.raises(DataError, match="1 of 28 groups cannot be used"):
            training.run()
        assert not list((tmp_path / "m").glob("model.ckpt*"))
