"""A step whose numbers are not finite: it changes nothing, and the training ends or goes on without it."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from far_helpers import CHANGES, SECOND_BATCH, far_training, write_far
from flow_helpers import run
from training_helpers import EACH_STEP, Training, assert_same_values, optimizer

from easyrec_mm.errors import UserError
from easyrec_mm.schema import IMAGE
from easyrec_mm.training.finite import squares_are_finite
from easyrec_mm.training.not_finite import KEPT, MOST_IN_A_ROW

SKIP = "nan_policy: SKIP"
AVERAGE = optimizer(more="use_moving_average: true moving_average_decay: 0.9")
DROPOUT = "dnn { hidden_units: [4] use_bn: false }", "dnn { hidden_units: [4] use_bn: true dropout_ratio: 0.5 }"
pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


@pytest.fixture(scope="module")
def far(data, tmp_path_factory):
    """Data with a far price in the second of three batches, in the second sample of row 6, and without that batch."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("far") / "data")
    write_far(folder, "far.txt", {6: 1})
    write_far(folder, "without.txt", {}, left_out=SECOND_BATCH)
    write_far(folder, "all_far.txt", dict.fromkeys(range(1, 13), 0))
    return folder


@pytest.fixture(scope="module")
def skipped(far, tmp_path_factory):
    """A training that leaves out its second batch."""
    folder = tmp_path_factory.mktemp("skipped")
    train = f"num_epochs: 2 {SKIP} {EACH_STEP} save_summary_steps: 2"
    return far_training(far, folder, train, optimizers=AVERAGE, changes=dict([DROPOUT])).run()


def test_a_skipped_step_leaves_everything_as_it_was(skipped):
    before, after = skipped.checkpoint(1), skipped.checkpoint(2)
    assert {name for name, value in after.items() if not np.array_equal(value, before[name])} == {
        "progress/step", "progress/groups_read",
        # Rows count the steps since their last use, so that their average stays.
        *(name for name in after if name.endswith("/last_used")),
    }  # fmt: skip
    for name in (name for name in after if name.endswith("/last_used")):
        np.testing.assert_array_equal(after[name], before[name] + 1)


def test_a_training_that_skips_a_batch_equals_one_without_it(far, skipped, tmp_path):
    train = f"num_epochs: 2 {EACH_STEP}"
    without = far_training(far, tmp_path, train, "without.txt", optimizers=AVERAGE, changes=dict([DROPOUT])).run()
    values, expected = skipped.checkpoint(6), without.checkpoint(4)
    for name in [name for name in values if name.startswith("progress/")]:
        del values[name], expected[name]
    num_steps = {name: 6 - values.pop(name) for name in list(values) if name.endswith("/last_used")}
    for name, since in num_steps.items():
        is_used = expected[name] > 0
        np.testing.assert_array_equal(since[is_used], 4 - expected.pop(name)[is_used], err_msg=name)
    assert_same_values(values, expected)


def test_skipped_steps_are_counted(skipped):
    assert [line.get("skipped_steps") for line in skipped.log] == [None, 1, 1, 1, 2, 2]
    assert ["loss" in line for line in skipped.log] == [True, False, True, True, False, True]
    events = [
        (event.step, value.tag)
        for path in skipped.model_dir.glob("events.*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    assert (2, "train/skipped_steps") in events
    assert (5, "train/skipped_steps") in events


@pytest.mark.slow
def test_the_count_goes_on_after_a_restart(far, tmp_path, capsys):
    far_training(far, tmp_path, f"num_steps: 2 {SKIP} {EACH_STEP}").run()
    going_on = far_training(far, tmp_path, f"num_steps: 5 {SKIP} {EACH_STEP}").run()
    assert [line.get("skipped_steps") for line in going_on.log] == [None, 1, 1, 1, 2]
    assert "2 steps were skipped because of NaN or infinity" in capsys.readouterr().out


def test_the_training_stops_at_a_step_that_is_not_finite(far, tmp_path):
    training = far_training(far, tmp_path, "num_epochs: 2")
    with pytest.raises(UserError, match=r"at step 2; 'easyrec-mm replay --model_dir .* --step 2' names the cause"):
        training.run()
    assert not list(training.model_dir.glob("*.index"))
    assert training.values().keys() == training.history[1].keys()
    assert_same_values(training.values(), training.history[1])
    assert sorted(path.name for path in (training.model_dir / "replay").iterdir()) == ["step-2"]


@pytest.mark.slow
def test_the_last_good_checkpoint_stays_and_the_training_goes_on_from_it_with_other_settings(far, tmp_path):
    training = far_training(far, tmp_path, f"num_epochs: 1 {EACH_STEP}")
    with pytest.raises(UserError, match=r"the last good checkpoint is .*model.ckpt-1\."):
        training.run()
    good = training.checkpoint(1)
    going_on = far_training(far, tmp_path, f"num_epochs: 1 {EACH_STEP} {SKIP}").run()
    assert_same_values(going_on.history[0], {name: good[name] for name in going_on.history[0]})
    assert [line["step"] for line in going_on.log] == [1, 2, 3]


def test_a_command_that_stops_has_status_1(far, tmp_path, capsys):
    config = far_training(far, tmp_path, "num_epochs: 1").pipeline.path
    run("train", "--pipeline_config", config, expect=1)
    assert (
        "error: the loss is finite, but the gradients or the statistics of batch norm overflow or are NaN at step 2"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_too_many_steps_in_a_row_end_the_training(far, tmp_path, capsys):
    training = far_training(far, tmp_path, f"num_epochs: 9 {SKIP}", "all_far.txt")
    with pytest.raises(UserError, match=f"and in the {MOST_IN_A_ROW - 1} steps before it"):
        training.run()
    assert int(training.trainer.steps.number) == MOST_IN_A_ROW
    steps = sorted(path.name for path in (training.model_dir / "replay").iterdir())
    assert steps == [f"step-{i}" for i in range(1, KEPT + 1)]
    assert capsys.readouterr().out.count("warning: ") == MOST_IN_A_ROW - 1


@pytest.mark.slow
def test_a_row_of_skipped_steps_goes_on_over_a_restart(far, tmp_path):
    first = far_training(far, tmp_path, f"num_steps: 6 {SKIP} {EACH_STEP}", "all_far.txt")
    first.run()
    second = far_training(far, tmp_path, f"num_steps: 99 {SKIP} {EACH_STEP}", "all_far.txt")
    with pytest.raises(UserError, match="in the 9 steps before it"):
        second.run()
    assert int(second.trainer.steps.number) == MOST_IN_A_ROW


@pytest.mark.slow
def test_old_replays_are_removed(far, tmp_path):
    for step in range(1, 8):
        (tmp_path / "m" / "replay" / f"step-10{step}").mkdir(parents=True)
    far_training(far, tmp_path, f"num_steps: 2 {SKIP}").run()
    left = {path.name for path in (tmp_path / "m" / "replay").iterdir()}
    assert left == {f"step-10{step}" for step in range(3, 8)}


@pytest.mark.slow
def test_a_finite_loss_with_a_gradient_that_overflows(data, tmp_path):
    """Of sqrt at 0: the loss is 0, its gradient infinite."""
    training = Training(data, tmp_path, train=f"num_steps: 2 {SKIP}", changes=dict([list(CHANGES.items())[2]]))
    losses = training.model.losses

    def with_root(batch, **settings):
        kernel = training.model.named_variables()["rec/tower_click/output/kernel"].value
        return {**losses(batch, **settings), "root": tf.sqrt(tf.reduce_sum(tf.square(kernel * 0.0)))}

    training.model.losses = with_root
    training.run()
    assert training.changed() == set()
    assert training.trainer.steps.was_finite is False


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1.0, 2.0]], True),
        ([[1e18, 1e18]], True),
        ([[1e20], [1.0]], False),  # whose square overflows
        ([[1.0, float("nan")]], False),
        ([[1.0], [float("-inf")]], False),
        ([[]], True),
    ],
)
def test_squares_are_finite(values, expected):
    tensors = [tf.constant(value, tf.float32) for value in values]
    rows = tf.IndexedSlices(tensors[-1], tf.range(len(tensors[-1])), tf.constant([9]))
    assert bool(tf.function(lambda: squares_are_finite([*tensors[:-1], None, rows]))()) == expected


@pytest.mark.slow
def test_float16_lowers_its_scale_before_a_step_counts_as_not_finite(data, tmp_path):
    """At the first scale, a loss with a weight of 1000 overflows in the gradients; the loss itself is finite."""
    changes = {"precision: FLOAT32": "precision: FLOAT16", 'label_name: "click"': 'label_name: "click" weight: 1000'}
    training = Training(data, tmp_path, train="num_steps: 3", changes=changes).run()
    scales = [line["loss_scale"] for line in training.log]
    assert scales == sorted(scales, reverse=True)
    assert scales[0] < 2.0**15


@pytest.mark.slow
def test_the_bank_forgets_vectors_that_are_not_finite(data, tmp_path):
    """A weight of the tower is infinite for one step: the vectors of that step are zeros, and encoded again."""
    image = "img_model { num_classes: 4 encode_ratio: 0.5 max_staleness_steps: 100 }"
    changes = {"img_model { num_classes: 4  }": image}
    training = Training(data, tmp_path, train=f"num_epochs: 4 {SKIP}", changes=changes)
    step, bad = training.trainer.run_step, []

    def spoiled(item):
        kernel = training.model.named_variables()["image/projection/kernel"].value
        value = kernel.numpy()
        if item and item.step == 2:
            kernel.assign(np.full_like(value, np.inf))
        losses = step(item)
        if item and item.step == 2:
            bad.append(losses)
            kernel.assign(value)
        return losses

    training.trainer.run_step = spoiled
    training.trainer.train()
    assert bad == [{}]
    (bank,) = {phase.banks[IMAGE] for phase in training.trainer.steps.phases}
    assert np.isfinite(bank.vectors.numpy()).all()
    assert [line for line in training.log if line.get("loss", 0) is None] == []
    assert json.loads((training.model_dir / "replay" / "step-3" / "step.json").read_text())["step"] == 3
