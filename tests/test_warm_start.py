"""Trainings that start from another one: what is taken over, by name or by a map of names."""

import pytest
import tensorflow as tf
from checkpoint_helpers import variables

from easyrec_mm.errors import CheckpointError
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.warm_start import warm_start


def test_warm_start(tmp_path):
    """What agrees in name and shape is restored, or in shape under a mapped name; the report says it line by line."""
    source = {
        "same": tf.Variable([1.0, 2.0]),
        "old/name": tf.Variable([3.0]),
        "other_shape": tf.Variable([4.0, 5.0]),
        "unused": tf.Variable(tf.fill([2, 2], 6.0)),
        "optimizer_0/same/m": tf.Variable([7.0, 7.0]),
        "average/same": tf.Variable([7.0, 7.0]),
        "progress/step": tf.Variable(7),
    }
    path = Checkpoints(str(tmp_path)).save(1, source)
    target = {
        "same": tf.Variable([0.0, 0.0]),
        "new/name": tf.Variable([0.0]),
        "other_shape": tf.Variable([0.5]),
        "new": tf.Variable([0.5]),
    }
    report = warm_start(path, target, {"new/name": "old/name"}).report
    assert {name: v.numpy().tolist() for name, v in target.items()} == {
        "same": [1, 2], "new/name": [3], "other_shape": [0.5], "new": [0.5]
    }  # fmt: skip
    assert report.split("\n") == [
        f"fine_tune_checkpoint {path}: 2 of 4 variables restored",
        "  restored: same [2]",
        "  restored: new/name [1] from old/name",
        "  not restored: other_shape [1]: the checkpoint's other_shape is [2]",
        "  not restored: new [1]: not in the checkpoint",
        "  not used: unused [2, 2]",
    ]


def test_warm_start_from_a_checkpoint_of_tensorflow(tmp_path):
    """Of another project: tf.train.Checkpoint's names, by a map."""
    path = tf.train.Checkpoint(weight=tf.Variable([1.0, 2.0])).save(str(tmp_path / "ckpt"))
    variable = tf.Variable([0.0, 0.0])
    warm_start(path, {"rec/weight": variable}, {"rec/weight": "weight/.ATTRIBUTES/VARIABLE_VALUE"})
    assert variable.numpy().tolist() == [1, 2]


@pytest.mark.parametrize(("names", "message"), [
    ({"rec/bais": "rec/bias"}, r"fine_tune_ckpt_var_map: no variable 'rec/bais'; did you mean 'rec/bias'\?"),
    ({"rec/bias": "rec/bais"}, r"fine_tune_ckpt_var_map: .*model.ckpt-1 has no 'rec/bais'; did you mean 'rec/bias'\?"),
])  # fmt: skip
def test_warm_start_with_a_wrong_map(tmp_path, names, message):
    path = Checkpoints(str(tmp_path)).save(1, variables(1))
    with pytest.raises(CheckpointError, match=message):
        warm_start(path, variables(2), names)


def test_warm_start_with_nothing_in_common(tmp_path):
    path = Checkpoints(str(tmp_path)).save(1, {"a": tf.Variable(1.0), "b": tf.Variable(1.0)})
    with pytest.raises(
        CheckpointError, match=r"has no variable of this model; it has, for example, a, b; map the names"
    ):
        warm_start(path, {"c": tf.Variable(1.0), "a": tf.Variable([1.0])}, {})
