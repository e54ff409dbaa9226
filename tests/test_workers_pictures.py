"""Trainings of several workers with pictures: the weights, losses and averages of one process."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from exported_helpers import exported_outputs
from picture_group_helpers import BATCH, NUM_EPOCHS, NUM_STEPS, OWN, SHARED, make_picture_groups, picture_training
from test_workers import Workers, assert_same_weights, size, train, values
from training_helpers import use_backbone_of_three_stages_alone

from easyrec_mm.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("backbone_of_three_stages")]

CLIPPING = 0.5
DIVIDED = ["--set", "train_config.train_distribute=EmbeddingParallelStrategy"]
SHARING = ["--set", "train_config.share_pictures=true"]
AGAIN = ["--set", "model_config.e2e_mm_dbmtl.img_model.rematerialize=true"]
IMG_MODEL = 'normalize_features: true category_feature: "cat"'
# Batch norm counts a picture once for each worker that shows it, unless they share it: in own.txt, no two show one.
TRAININGS = {
    "own-divided": (OWN, DIVIDED),
    "shared": (SHARED, [*SHARING, *AGAIN]),
}
EVALUATION = """
eval_config { eval_interval_secs: 100000 metrics_set { auc {} } metrics_set { log_loss {} } }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data and the config x.config; trainings come into folders beside them."""
    folder = make_picture_groups(tmp_path_factory.mktemp("pictures"))
    often = f"num_epochs: {NUM_EPOCHS} sync_batch_norm: true save_checkpoints_steps: 1 keep_checkpoint_max: 30"
    training = picture_training(folder, folder / "config", OWN, IMG_MODEL, often)
    (training.model_dir.parent / "test.config").rename(folder / "x.config")
    with (folder / "x.config").open("a") as file:
        file.write(EVALUATION)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Trains in a model_dir with that many workers, unless it is done, and returns it."""

    def model_dir_of(name, num):
        file, settings = TRAININGS[name] if num > 1 else (name.removeprefix("one-"), [])
        flags = ["--model_dir", name, "--train_input_path", file, "--eval_input_path", file]
        if (folder / name).exists():
            return folder / name
        if num == 1:
            train(folder, *flags, *size(BATCH), prepare=use_backbone_of_three_stages_alone)
        else:
            arguments = [*flags, *size(BATCH // num), *settings]
            statuses, outputs = Workers(folder, num, *arguments, prepare=use_backbone_of_three_stages_alone).end()
            assert set(statuses) == {0}, outputs
        return folder / name

    return model_dir_of


def lines(model_dir, kind):
    every = [json.loads(line) for line in (model_dir / "metrics.jsonl").open()]
    return [line for line in every if line["kind"] == kind]


@pytest.mark.parametrize("name", TRAININGS)
def test_two_workers_train_the_weights_of_one(trained, name):
    alone, together = trained(f"one-{TRAININGS[name][0]}", 1), trained(name, 2)
    assert_same_weights(alone, together, NUM_STEPS)
    assert_same_gradients(alone, together)
    steps = [lines(model_dir, "train") for model_dir in (alone, together)]
    assert [len(of_one) for of_one in steps] == [NUM_STEPS, NUM_STEPS]
    for line, expected in zip(*steps, strict=True):
        losses = {name: value for name, value in expected.items() if name.startswith(("loss", "gradient_norm"))}
        assert len(losses) == 9  # of the task, four of images, two of regularisation, their sum, the norm
        for name, value in losses.items():
            rel = 1e-4 if name == "gradient_norm" else 1e-5
            assert line[name] == pytest.approx(value, rel=rel, abs=1e-5), (line["step"], name)
    image_losses = np.array([[line[f"loss_image_loss_{i}"] for i in range(4)] for line in steps[0]])
    assert image_losses.any(axis=0).all()
    assert not image_losses[2].any()  # no pictures
    (evaluated,), (expected,) = (lines(model_dir, "eval") for model_dir in (together, alone))
    for name in ("auc_click", "log_loss_click"):
        assert evaluated[name] == pytest.approx(expected[name], abs=1e-5)


def assert_same_gradients(alone, together):
    """What the first step adds to the velocities of momentum is its gradient, whose common norm is that of clipping."""
    gradients, others = (
        {n: v for n, v in values(m, 1).items() if n.endswith("/accumulator")} for m in (alone, together)
    )
    assert gradients.keys() == others.keys()
    assert np.sqrt(sum(np.sum(np.square(v)) for v in gradients.values())) == pytest.approx(CLIPPING, rel=1e-4)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(others[name], gradient, rtol=0, atol=2e-6, err_msg=name)


def test_one_process_exports_and_predicts_what_workers_with_divided_tables_trained(folder, trained, monkeypatch):
    """Their config says that they are several."""
    monkeypatch.chdir(folder)
    outputs, predictions = [], []
    for name, num in ((f"one-{OWN}", 1), ("own-divided", 2)):
        model_dir = trained(name, num)
        config = str(model_dir / "pipeline.config")
        assert ("EmbeddingParallelStrategy" in (model_dir / "pipeline.config").read_text()) == (num == 2)
        exports = {kind: folder / "export" / name / kind for kind in ("img", "rec", "total")}
        places = [text for kind, path in exports.items() for text in (f"--{kind}_model_export_dir", str(path))]
        assert main(["export", "--pipeline_config", config, *places]) == 0
        outputs.append(exported_outputs(config, [], OWN, exports["rec"], exports["img"]))
        predicted = folder / f"{name}.parquet"
        assert (
            main(["predict", "--pipeline_config", config, "--predict_input_path", OWN, "--output", str(predicted)]) == 0
        )
        predictions.append({name: np.array(v) for name, v in pq.read_table(predicted).to_pydict().items()})
    for of_one, of_workers in (outputs, predictions):
        assert of_one.keys() == of_workers.keys()
        for name, value in of_one.items():
            np.testing.assert_allclose(of_workers[name], value, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(outputs[1]["probs_click"], predictions[1]["probs_click"], rtol=0, atol=1e-5)
