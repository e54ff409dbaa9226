"""easyrec-mm replay: it names the first tensor that is not finite, and the file and row that it comes from."""

import math
import shutil
from io import BytesIO

import numpy as np
import pytest
import tensorflow as tf
from every_feature import write_data
from far_helpers import FAR_ROW, far_training, log_training, write_far
from flow_helpers import run
from training_helpers import EACH_STEP, Training, optimizer

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.data.vector_bank import NO_BANKS
from easyrec_mm.errors import UserError
from easyrec_mm.protos.train_pb2 import MultiWorkerMirroredStrategy
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.training import not_finite
from easyrec_mm.training.replay import open_step, run_part
from easyrec_mm.training.replay_folder import WEIGHTS, Step, WorkerPart, read_step, weights_of, write_step
from easyrec_mm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")
FIRST = "first tensor that is not finite: "


def report(model_dir, *flags, expect=0, capsys=None):
    capsys.readouterr()
    run("replay", "--model_dir", model_dir, *flags, expect=expect)
    return capsys.readouterr().out


def stopped(training, spoil=None):
    """The folder of a training after its second step was not finite, whose variables `spoil` changes before."""
    step = training.trainer.run_step

    def spoiled(item):
        if spoil is not None and item.step == 1:
            spoil({name: v.value for name, v in training.model.named_variables().items()})
        return step(item)

    training.trainer.run_step = spoiled
    with pytest.raises(UserError, match="at step 2"):
        training.trainer.train()
    return training.model_dir


def huge(name, value=3e38):
    """Set the first number of a variable."""

    def spoil(variables):
        numbers = variables[name].numpy()
        numbers.flat[0] = value
        variables[name].assign(numbers)

    return spoil


def spoil_table(variables):
    table = variables["embedding/user"]
    table.assign(np.where(np.arange(12)[:, None] == 8, np.nan, table.numpy()))


def spoil_backward(variables):
    """Two units whose large outputs cancel out, so that only the gradients overflow."""
    kernel = np.zeros((11, 4), np.float32)
    kernel[:7, :2] = 1000
    variables["rec/features_bn/gamma"].assign(np.full(7, 1e-6))
    variables["rec/features_bn/beta"].assign(np.zeros(7))
    variables["rec/tower_click/dnn/dense_0/bias"].assign([0.5, 0.5, 0, 0])
    variables["rec/tower_click/dnn/dense_0/kernel"].assign(kernel)
    variables["rec/tower_click/output/kernel"].assign([[1e38], [-1e38], [0], [0]])


L2 = {
    'label_name: "click" dnn': 'label_name: "click" weight: 1e4 loss_type: L2_LOSS dnn',
    "l2_regularization: 0": "l2_regularization: 0 use_feature_bn: false",
    '["user", "item", "price", "square"]': '["user", "item", "price"]',
}
DENSE = "rec/tower_click/dnn/dense_0"
CASES = {
    "weights": (huge(f"{DENSE}/kernel", np.inf), [f"{FIRST}weights {DENSE}/kernel, before the step"]),
    "table": (
        spoil_table,
        [f"{FIRST}weights embedding/user, before the step", "rows of the table: 8", "feature 'user' reads the table"],
    ),
    "layer": (
        huge(f"{DENSE}/kernel"),
        [f"{FIRST}output of {DENSE} (MatMul, forward pass): ",
         f"computed from weights {DENSE}/kernel: largest number 3e+38",
         "not finite because of it: loss click"],
    ),
    "tower": (
        huge("image/backbone/conv1/kernel"),
        [f"{FIRST}output of image/backbone/conv1 (Conv2D, forward pass): ", "weights image/backbone/conv1/kernel"],
    ),
    "backward": (spoil_backward, [f"{FIRST}gradient in {DENSE} (MatMul, backward pass): "]),
    "squares": (
        huge("rec/tower_click/output/kernel", 1e38),
        [f"{FIRST}the sum of the squares of the gradients", f"gradient of {DENSE}/bias: largest number",
         "weights rec/tower_click/output/kernel: largest number 1e+38"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoiled(data, tmp_path_factory):
    """A training whose variables each test spoils for a step, which changes nothing else."""
    training = Training(data, tmp_path_factory.mktemp("spoiled"), train="nan_policy: SKIP num_steps: 9")
    batches = training.trainer.batches(1)
    training.trainer.run_step(next(batches))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(not_finite, "MOST_WRITTEN", len(CASES))
        yield training, next(batches)
    batches.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_causes_in_the_weights(spoiled, capsys, name):
    training, item = spoiled
    spoil, expected = CASES[name]
    variables = {name: v.value for name, v in training.model.named_variables().items()}
    before = training.values()
    spoil(variables)
    assert training.trainer.run_step(item) == {}
    for variable in variables:
        variables[variable].assign(before[variable])
    text = report(training.model_dir, capsys=capsys)
    for line in expected:
        assert line in text


@pytest.mark.slow
def test_rows_of_a_table_lead_to_their_samples(data, tmp_path, capsys):
    """The samples are those of the users whose hash is the row."""
    training = Training(data, tmp_path, changes={"batch_size: 4": "batch_size: 4 shuffle: false"})
    text = report(stopped(training, spoil_table), capsys=capsys)
    expected = []
    for row, line in enumerate((data / "one.txt").read_text().splitlines(), 1):
        users = [sample.split("\x02")[0] for sample in line.split("|")[2].split("\x01")]
        rows = tf.strings.to_hash_bucket_fast(users, 12).numpy()
        if 5 <= row <= 8:
            expected += [f"one.txt:{row}, sample {i} of {len(users)}" for i, r in enumerate(rows, 1) if r == 8]
    assert expected
    assert text.count("one.txt:") == len(expected)
    assert all(line in text for line in expected)


@pytest.fixture(scope="module")
def far(data, tmp_path_factory):
    folder = shutil.copytree(data, tmp_path_factory.mktemp("far") / "data")
    write_far(folder, "far.txt", {6: 1})
    return folder


@pytest.mark.slow
def test_a_far_number_in_batch_norm_and_what_a_replay_holds(far, tmp_path, capsys):
    model_dir = stopped(far_training(far, tmp_path, "num_epochs: 1"))
    text = report(model_dir, "--step", 2, capsys=capsys)
    assert f"{FIRST}output of rec/features_bn (SquaredDifference, forward pass)" in text
    assert f"feature 'square': 8.1e+37 in {far}/far.txt:6, sample 2 of 3 (0.png)" in text
    files = {path.name for path in (model_dir / "replay" / "step-2").iterdir()}
    assert files == {"step.json", "weights.npz", "worker-0.npz", "pipeline.config"}
    step = read_step(ModelDir(str(model_dir)), 2)
    assert 0 < len(step.rows["embedding/user"]) < 12
    assert len(step.weights["embedding/user"]) == len(step.rows["embedding/user"])
    run("replay", "--model_dir", model_dir, "--step", 1, expect=1)
    assert f"--step 1: is not in {model_dir}/replay; there are 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_far_number_in_a_loss(far, tmp_path, capsys):
    training = far_training(far, tmp_path, "num_epochs: 1", changes=L2)
    text = report(stopped(training), capsys=capsys)
    assert f"{FIRST}output of loss click (Mul, forward pass): 8; 1 of 8 rows" in text
    assert f"samples:\n  {far}/far.txt:6, sample 2 of 3 (0.png)" in text


@pytest.mark.slow
def test_a_learning_rate_that_is_far_too_high(data, tmp_path, capsys):
    text = report(stopped(Training(data, tmp_path, optimizers=optimizer("sgd", 1e30))), capsys=capsys)
    assert f"{FIRST}output of image/backbone/conv1 (Conv2D, forward pass)" in text
    assert "numbers far beyond the usual ones:\n  weights " in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CSVInput", "ParquetInput", "GroupTFRecordInput"])
def test_the_file_and_row_are_right_in_each_format_with_shuffling(tmp_path, capsys, kind):
    config = log_training(tmp_path, kind, "num_epochs: 2")
    run("train", "--pipeline_config", config, expect=1)
    text = report(tmp_path / "m", capsys=capsys)
    row = FAR_ROW - 20 + (kind == "CSVInput")  # in the second file; the header is row 1
    assert f"feature 'square': 8.1e+37 in {tmp_path}/part-1:{row}, sample 1 of 1" in text


@pytest.mark.slow
def test_a_step_with_dropout_and_a_bank_runs_again_exactly(far, tmp_path):
    """It computes the loss that it had computed, so that its weights, batch and random numbers are the same."""
    changes = {
        "dnn { hidden_units: [4] use_bn: false }": "dnn { hidden_units: [4] dropout_ratio: 0.5 }",
        "img_model { num_classes: 4  }": "img_model { num_classes: 4 encode_ratio: 0.5 max_staleness_steps: 99 }",
    }
    training = far_training(far, tmp_path, f"num_epochs: 3 nan_policy: SKIP {EACH_STEP}", changes=changes).run()
    for number in (2, 5, 8):
        model, phase, step = open_step(str(training.model_dir), number)
        _, losses, _ = run_part(model, phase, step, step.parts[0])
        assert np.isfinite(step.values["loss_click"])
        np.testing.assert_allclose(float(losses["click"]), step.values["loss_click"], rtol=1e-5)


@pytest.mark.slow
def test_parts_of_workers_that_share_pictures_run_by_themselves(far, tmp_path, capsys):
    """Each encodes all pictures that it shows; one without groups has none."""
    training = far_training(far, tmp_path, "num_epochs: 1 sync_batch_norm: true share_pictures: true")
    config, trainer = training.pipeline.config, training.trainer
    config.data_config.batch_size, config.train_config.train_distribute = 12, MultiWorkerMirroredStrategy
    parts = []
    for number in (1, 0):  # the second of two workers has no groups, and is to run first
        inputs = Input(
            config.data_config, training.pipeline.schema, config.train_input_path, "train_input_path",
            BadRecords(None, 1.0), training=True, worker=(number, 2),
        )  # fmt: skip
        parts.append(WorkerPart.of(next(inputs.batches()), inputs.source.files, trainer.model, NO_BANKS))
    assert [part.batch.num_encoded for part in parts] == [0, 5]
    step = Step(2, "float32", 1.0, {"loss": math.nan}, parts, *weights_of(trainer.model, parts), "")
    write_step(training.model_dir / "replay" / "step-2", step, config)
    text = report(training.model_dir, capsys=capsys)
    assert f"worker 1 of 2:\n{FIRST}output of rec/features_bn (SquaredDifference, forward pass)" in text
    assert f"feature 'square': 8.1e+37 in {far}/far.txt:6, sample 2 of 3 (0.png)" in text


@pytest.mark.slow
def test_a_part_is_read_as_it_was_written(tmp_path):
    """With every kind of feature, lists among them; of a table, exactly the rows of the batch are kept."""
    write_data(tmp_path)
    trainer = Trainer(load_pipeline(str(tmp_path / "x.config")))
    item = next(trainer.batches(1))
    part = WorkerPart.of(item, trainer.input.source.files, trainer.model, NO_BANKS)
    again = WorkerPart.read(BytesIO(part.content()))
    tf.nest.assert_same_structure(part.batch, again.batch, expand_composites=True)
    values = [tf.nest.flatten(p.batch, expand_composites=True) for p in (again, part)]
    for value, expected in zip(*values, strict=True):
        np.testing.assert_array_equal(value, expected)
        assert value.dtype == expected.dtype
    weights, rows = weights_of(trainer.model, [again])
    before = float(trainer.model.losses(again.batch, training=False)["click"])
    for name, variable in trainer.model.weights().items():
        kept = np.zeros(variable.shape, bool)
        kept[rows.get(name, slice(None))] = True
        variable.assign(np.where(kept, variable, np.nan))
        np.testing.assert_array_equal(weights[name], variable.numpy()[rows.get(name, slice(None))])
    assert float(trainer.model.losses(again.batch, training=False)["click"]) == before


@pytest.mark.slow
def test_a_remote_model_dir(far, tmp_path, bucket, capsys):
    changes = {f'model_dir: "{tmp_path}/m"': f'model_dir: "{bucket}/m"'}
    training = far_training(far, tmp_path, "num_epochs: 3 nan_policy: SKIP", changes=changes).run()
    assert training.pipeline.config.model_dir == f"{bucket}/m"
    text = report(f"{bucket}/m", "--step", 5, capsys=capsys)
    assert "far.txt:6, sample 2 of 3" in text


@pytest.mark.slow
def test_a_step_that_is_finite_when_it_runs_again(far, tmp_path, capsys):
    model_dir = stopped(far_training(far, tmp_path, "num_epochs: 1"))
    folder = model_dir / "replay" / "step-2"
    with np.load(folder / "worker-0.npz") as file:
        arrays = dict(file)
    arrays["features/all/square"] = np.zeros_like(arrays["features/all/square"])
    np.savez(folder / "worker-0.npz", **arrays)
    run("replay", "--model_dir", model_dir, expect=1)
    assert "step 2: all its numbers are finite when it runs again" in capsys.readouterr().err
    (folder / WEIGHTS).write_bytes(b"damaged")
    run("replay", "--model_dir", model_dir, expect=1)
    assert "step-2: cannot be read" in capsys.readouterr().err
    shutil.rmtree(folder)
    run("replay", "--model_dir", model_dir, expect=1)
    assert "has no replay/step-<n>" in capsys.readouterr().err
