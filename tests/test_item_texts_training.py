"""How texts of items are trained: rates, rows of the table, several workers, restarts, and starts from a checkpoint."""

import numpy as np
import pytest
from flow_helpers import run
from text_helpers import text_training, write_titles
from thread_replicas import trained_by_replicas
from training_helpers import NUM_GROUPS, make_training_data, optimizer, use_backbone_of_three_stages

from easyrec_mm.errors import UserError

GATED = "item_fusion { gated { dim: 6 } }"
TABLE = "image/text/tower/words/table"
SMALL = "dim: 4 embedding_dim: 8 hash_bucket_size: 500"


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_training_data(tmp_path_factory.mktemp("data"))
    write_titles(folder)
    return folder


def test_each_tower_has_its_own_learning_rate_multiplier(data, tmp_path):
    steps = text_training(
        data, tmp_path, f"{SMALL} learning_rate_multiplier: 0.5", GATED, img_model="learning_rate_multiplier: 3"
    ).trainer.steps
    ((optimizer_, names),) = steps.optimizers
    factors = dict(zip(names, optimizer_.rate_factors([steps.trained[name] for name in names]), strict=True))
    assert {factors[name] for name in names if name.startswith("image/text/")} == {0.5}
    assert {factors[name] for name in names if name.startswith("image/fusion/")} == {1.0}
    assert factors["image/backbone/conv0/kernel"] == 3
    assert factors["rec/tower_click/output/kernel"] == 1


def test_a_step_changes_the_rows_of_its_words_alone(data, tmp_path):
    """Adam would move all rows that earlier steps have used if the gradient of the table were not one of rows."""
    one_group = {"batch_size: 4": "batch_size: 1 shuffle: false"}
    training = text_training(data, tmp_path, SMALL, image=False, changes=one_group, train="num_steps: 4").run()
    encoder = training.model.parts.contents["text"].tower.encoder
    (tower,) = {id(encoder): encoder}.values()
    for step, item in enumerate(training.trainer.input.batches()):
        if step == 4:
            break
        tokens = tower.prepare(item.batch.contents["text"].values).numpy()
        before, after = (training.history[step + i][TABLE] for i in (0, 1))
        changed = np.flatnonzero((before != after).any(1))
        assert set(changed.tolist()) == set(tokens[tokens >= 0].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["ALL", "HEAD"])
def test_two_workers_train_the_weights_of_one(data, tmp_path, trainable):
    changes = {"batch_size: 4": "batch_size: 4 shuffle: false"}
    train = "num_epochs: 1 sync_batch_norm: true share_pictures: true"
    pipeline = text_training(
        data,
        tmp_path,
        f"{SMALL} trainable: {trainable}",
        GATED,
        train=train,
        optimizers=optimizer("sgd"),
        changes=changes,
    ).pipeline
    ((_, expected),) = trained_by_replicas(pipeline, 1, 4)
    for losses, values in trained_by_replicas(pipeline, 2, 4):
        assert len(losses) == NUM_GROUPS // 4
        for name, value in expected.items():
            np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_restart_from_increments_continues_bit_by_bit(data, tmp_path):
    def training(folder):
        train = "num_epochs: 1 save_checkpoints_steps: 1 increments_per_full_checkpoint: 3 keep_checkpoint_max: 9"
        return text_training(data, folder, SMALL, GATED, train=train)

    whole = training(tmp_path / "whole").run()
    killed = training(tmp_path / "killed")
    step = killed.trainer.run_step

    def run_step(item):
        if item is not None and item.step == 2:
            raise KeyboardInterrupt
        return step(item)

    killed.trainer.run_step = run_step
    with pytest.raises(KeyboardInterrupt):
        killed.trainer.train()
    again = training(tmp_path / "killed").run()
    assert len(again.log) == len(whole.log) == 3
    for name, value in whole.values().items():
        np.testing.assert_array_equal(again.values()[name], value, err_msg=name)

    # Another training takes over the text tower, of which the table is matched by rows.
    (tmp_path / "tuned").mkdir()
    start = f'num_epochs: 1 fine_tune_checkpoint: "{whole.model_dir}"'
    tuned = text_training(data, tmp_path / "tuned", SMALL, GATED, train=start).run()
    of_items = [name for name in whole.values() if name.startswith(("image/text/", "image/fusion/"))]
    assert TABLE in of_items
    for name in of_items:
        np.testing.assert_array_equal(tuned.history[0][name], whole.values()[name], err_msg=name)


def test_a_step_with_texts_that_is_not_finite_runs_again(data, tmp_path, capsys):
    training = text_training(data, tmp_path, SMALL, GATED, optimizers=optimizer())
    step = training.trainer.run_step

    def spoiled(item):
        if item is not None and item.step == 1:
            table = training.model.named_variables()[TABLE].value
            table.assign(np.where(np.arange(500)[:, None] >= 0, np.nan, table.numpy()))
        return step(item)

    training.trainer.run_step = spoiled
    with pytest.raises(UserError, match="at step 2"):
        training.trainer.train()
    capsys.readouterr()
    run("replay", "--model_dir", training.model_dir)
    assert f"first tensor that is not finite: weights {TABLE}, before the step" in capsys.readouterr().out
