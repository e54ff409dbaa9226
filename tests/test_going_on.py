"""A training that goes on reads on where it stopped, group by group, or says why it does not."""

import shutil

import pytest
import tensorflow as tf
from training_helpers import Training

from easyrec_mm.errors import DataError
from easyrec_mm.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")
NUM_GROUPS = 12


def trained(data, folder, num_epochs, batch_size=4, **changes):
    changes = {"batch_size: 4": f"batch_size: {batch_size}", **changes}
    return Training(data, folder, train=f"num_epochs: {num_epochs}", changes=changes).run()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, 100])
def test_more_epochs_are_trained_whole(data, tmp_path, batch_size):
    """Although the last batch of the first epoch was smaller."""
    assert trained(data, tmp_path, 1, batch_size).log[-1]["groups"] == NUM_GROUPS
    assert trained(data, tmp_path, 2, batch_size).log[-1]["groups"] == 2 * NUM_GROUPS


def test_a_batch_that_is_never_full_is_refused(data, tmp_path):
    with pytest.raises(DataError, match=f"no batch is full: {NUM_GROUPS} groups, and batches of 100; lower"):
        trained(data, tmp_path, 1, 100, num_parallel_calls="drop_remainder: true num_parallel_calls")
    assert not list(tmp_path.rglob("*.index"))


@pytest.mark.slow
def test_other_data_of_the_same_size_are_read_from_their_start(data, tmp_path, capsys):
    own = tmp_path / "data"
    shutil.copytree(data, own)
    trained(own, tmp_path, 1)
    content = (own / "one.txt").read_bytes()
    first, rest = content.split(b"\n", 1)
    (own / "one.txt").write_bytes(rest.rstrip(b"\n") + b"\n" + first + b"\n")
    assert len((own / "one.txt").read_bytes()) == len(content)
    assert trained(own, tmp_path, 1).trainer.steps.number == 6
    assert "the training data or their order have changed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_that_counts_batches_goes_on(data, tmp_path, monkeypatch):
    values = TrainingState.values

    def older(state, *arguments):
        kept = {name: value for name, value in values(state, *arguments).items() if name in state.variables()}
        del kept["progress/groups_read"]
        return kept | {"progress/batches_read": tf.constant(3, tf.int64), "progress/input_fingerprint": fingerprint}

    parts = Training(data, tmp_path / "parts", train="num_epochs: 1")
    fingerprint = tf.constant(parts.trainer.input.fingerprint(with_contents=False), tf.int64)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "values", older)
        parts.run()
    whole = trained(data, tmp_path / "whole", 2)
    parts = trained(data, tmp_path / "parts", 2)
    assert parts.log[-1]["step"] == whole.log[-1]["step"] == 6
    for name, values in whole.values().items():
        tf.debugging.assert_near(values, parts.values()[name], 1e-6, 1e-6)
