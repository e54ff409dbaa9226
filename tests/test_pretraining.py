"""Pre-training: the tower learns classes, goes on after a crash, and is carried into a ranking."""

import json

import numpy as np
import pytest
import tensorflow as tf
from pretraining_helpers import LABELLED, TOWER, config_of, make_pictures, pipeline_of
from training_helpers import Training, assert_same_values, make_training_data, use_backbone_of_three_stages

from easyrec_mm.cli.main import main
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.evaluation.evaluator import Evaluator
from easyrec_mm.network.item_tower import build_model
from easyrec_mm.training.trainer import Trainer
from easyrec_mm.training.warm_start import start_from_checkpoint

LOSSES = "losses { weight: 0.5 arcface { rarity_power: 0.25 } } losses { multi_similarity {} }"


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("tints"))


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """A pre-training by the command; its folder."""
    folder = tmp_path_factory.mktemp("pretrained")
    assert main(["pretrain", "--pipeline_config", config_of(data, folder, more=LOSSES)]) == 0
    return folder


def evaluated(pipeline, model):
    config = pipeline.config
    return Evaluator(model, config, config.eval_input_path, "eval_input_path", BadRecords(None, 1.0)).run()


def numbers(folder, step):
    reader = tf.train.load_checkpoint(str(folder / "m" / f"model.ckpt-{step}"))
    dtypes = reader.get_variable_to_dtype_map()
    # The path of the table is a part of the fingerprints, and it is in model_dir.
    names = [name for name, dtype in dtypes.items() if dtype != tf.string and not name.endswith("_fingerprint")]
    return {name: reader.get_tensor(name) for name in names}


def test_a_tower_learns_classes_that_it_does_not_see_at_first(data, pretrained, tmp_path, capsys):
    pipeline = pipeline_of(data, tmp_path, more=LOSSES)
    before = evaluated(pipeline, build_model(pipeline.config, pipeline.schema))
    after = json.loads((pretrained / "m" / "eval_result.json").read_text())
    assert before["knn_accuracy_tints"] < 0.8
    assert after["knn_accuracy_tints"] > 0.95
    assert after["mmp_at_5_tints"] > 0.95
    assert after["recall_at_1_tints"] > 0.95
    assert after["accuracy_tints"] > 0.95
    assert after["num_samples"] < 40
    assert main(["eval", "--pipeline_config", str(pretrained / "m" / "pipeline.config")]) == 0
    assert f"knn_accuracy_tints  {after['knn_accuracy_tints']:.6f}" in capsys.readouterr().out


def test_a_crashed_pretraining_goes_on_as_if_it_had_not(data, tmp_path):
    train = "num_steps: 6 save_checkpoints_steps: 2"
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    Trainer(pipeline_of(data, whole, train=train, more=LOSSES)).train()
    trainer = Trainer(pipeline_of(data, crashed, train=train, more=LOSSES))
    step = trainer.run_step

    def failing(item):
        if int(trainer.steps.number) == 3:
            raise RuntimeError("power is gone")
        return step(item)

    trainer.run_step = failing
    with pytest.raises(RuntimeError, match="power is gone"):
        trainer.train()
    assert not (crashed / "m" / "model.ckpt-6.index").exists()
    Trainer(pipeline_of(data, crashed, train=train, more=LOSSES)).train()
    assert_same_values(numbers(crashed, 6), numbers(whole, 6))


def test_a_ranking_takes_the_tower_over(pretrained, tmp_path_factory, tmp_path):
    clicks = make_training_data(tmp_path_factory.mktemp("clicks"))
    changes = {"img_model { num_classes: 4 ": "img_model { num_classes: 8 "}
    head = 'highway_dnn { input: "img" emb_size: 8 }'
    training = Training(clicks, tmp_path, head=head, train=f'fine_tune_checkpoint: "{pretrained}/m" num_steps: 1',
                        changes=changes)  # fmt: skip
    report = start_from_checkpoint(training.model, training.pipeline.config.train_config)
    towers = {name: value for name, value in training.values().items() if name.startswith("image/")}
    of_pretraining = numbers(pretrained, 60)
    assert towers
    for name, value in towers.items():
        np.testing.assert_array_equal(value, of_pretraining[name], err_msg=name)
        assert f"  restored: {name} " in report
    assert "  not used: pretrain/tints_0/kernel" in report


def test_a_linear_probe_leaves_the_tower_as_it_is(data, tmp_path):
    tower = "img_model { num_classes: 0 trainable: NONE }"
    pipeline = pipeline_of(data, tmp_path, tower=tower, train="num_steps: 12")
    trainer = Trainer(pipeline)
    before = {name: v.numpy() for name, v in trainer.model.named_variables().items()}
    first = evaluated(pipeline, trainer.model)
    trainer.train()
    after = {name: v.numpy() for name, v in trainer.model.named_variables().items()}
    changed = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert changed == {"pretrain/tints_0/kernel", "pretrain/tints_0/bias"}
    last = evaluated(pipeline, trainer.model)
    assert last["knn_accuracy_tints"] == first["knn_accuracy_tints"]
    assert last["accuracy_tints"] != first["accuracy_tints"]


@pytest.mark.parametrize("pairs", ["PICTURE_TEXT", "VIEWS"])
def test_pairs_are_learned_without_labels(data, tmp_path, pairs):
    has_text = pairs == "PICTURE_TEXT"
    augmentation = "augmentation { horizontal_flip: true random_resized_crop_min_area: 0.5 }"
    tower = TOWER if has_text else TOWER.replace("num_classes: 8", f"num_classes: 8 {augmentation}")
    pretrain = LABELLED.replace(' label: "tint"', "") + f"contrastive {{ pairs: {pairs} temperature: 0.2 }}"
    Trainer(pipeline_of(data, tmp_path, pretrain, train="num_steps: 40", tower=tower, has_text=has_text)).train()
    lines = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_contrastive"] for line in lines if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_data_sets_have_their_own_heads_in_one_batch(data, tmp_path):
    second = LABELLED.replace('"tints"', '"numbers"').replace('"tint"', '"number"').replace("%(more)s", "weight: 2")
    Trainer(pipeline_of(data, tmp_path, LABELLED + second, train="num_steps: 3")).train()
    results = json.loads((tmp_path / "m" / "eval_result.json").read_text())
    assert {"knn_accuracy_tints", "knn_accuracy_numbers", "accuracy_numbers"} <= results.keys()
    line = json.loads((tmp_path / "m" / "metrics.jsonl").read_text().splitlines()[1])
    assert {"loss_tints", "loss_numbers"} <= line.keys()
