"""Training with what img_model and the optimizers can be told: what is trained, what is encoded, what is kept."""

import json

import numpy as np
import pytest
from flow_helpers import copy_checkpoint
from training_helpers import (
    NUM_KINDS,
    NUM_PICTURES,
    Training,
    assert_same_values,
    optimizer,
    spy_on_loading,
    use_backbone_of_three_stages,
)

from easyrec_mm import __version__
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.errors import ConfigError
from easyrec_mm.evaluation.evaluator import Evaluator, load_model
from easyrec_mm.network.layers.fast_layers import FusedBatchNorm
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.training.warm_start import start_from_checkpoint


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_backbone_of_three_stages(monkeypatch)


# What is trained.

EVERYTHING = 'category_feature: "cat" pooling: GEM image_separator: ";" image_pooling: ATTENTION no_image_vector: true '
AVERAGES = ("moving_mean", "moving_variance")


def of_stage(name, *numbers):
    return name.startswith(tuple(f"image/backbone/{layer}{i}/" for layer in ("conv", "bn") for i in numbers))


def is_behind_the_backbone(name):
    return name.startswith(("image/projection/", "image/highway_dnn/"))


TRAINED = {
    "LAST_N_STAGES last_n_stages: 1": lambda name: not of_stage(name, 0, 1),
    "HEAD": lambda name: not name.startswith("image/") or is_behind_the_backbone(name) or "image/item/" in name,
    "NONE": lambda name: not name.startswith("image/") or "image/item/" in name,
}


@pytest.mark.parametrize("trainable", TRAINED)
def test_what_is_trained(data, tmp_path, trainable):
    """Exactly these variables change, and the averages of batch norm with them."""
    training = Training(data, tmp_path, EVERYTHING + f"trainable: {trainable}", file="several.txt").run()
    names = training.history[0].keys()
    assert {"image/item/attention_hidden/kernel", "image/item/no_image", "image/gem_power", "image/category/channel",
            "image/attention_1/channel_hidden/kernel", "image/backbone/bn2/moving_mean"} <= names  # fmt: skip
    # Adding a number to all scores changes no weight: only rounding errors move it.
    expected = {name for name in names if TRAINED[trainable](name)} - {"image/item/attention_score/bias"}
    assert training.changed() - {"image/item/attention_score/bias"} == expected
    assert any(name.endswith(AVERAGES) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize(("trainable", "frozen"), [("HEAD", "^image/backbone/"), ("NONE", "^image/")])
def test_a_frozen_tower_encodes_each_picture_once(data, tmp_path, monkeypatch, trainable, frozen):
    """And trains as one whose gradients are left out and whose batch norm has its averages, encoded in each step."""
    loaded = spy_on_loading(monkeypatch)
    settings = {"train": "num_epochs: 3", "optimizers": optimizer("momentum", 0.05)}
    once = Training(data, tmp_path / "once", f"trainable: {trainable}", **settings).run()
    assert sum(once.encoded) == len(loaded) == len(set(loaded)) == NUM_PICTURES
    call = FusedBatchNorm.call
    monkeypatch.setattr(FusedBatchNorm, "call", lambda self, x, training=None, mask=None: call(self, x, False))
    settings["train"] += f' freeze_gradient: "{frozen}"'
    always = Training(data, tmp_path / "always", **settings).run()
    assert sum(always.encoded) > 4 * NUM_PICTURES
    assert_same_values(once.values(), always.values(), tolerance=1e-5)
    assert "rec/tower_click/dnn/dense_0/kernel" in always.changed()


def going_on(whole, step, *args, **settings):
    """A training that goes on from that checkpoint of another, as if that had been stopped there; to its end."""
    data, folder, *rest = args
    copy_checkpoint(whole.model_dir, step, folder / "m")
    return Training(data, folder, *rest, **settings).run()


def images_of_batches(training):
    """Of each batch of two epochs the numbers of its pictures."""
    batches = training.trainer.input.batches(2)
    return [[int(path.decode().split(".")[0]) for path in item.picture_path] for item in batches]


EACH_STEP = "num_epochs: 2 save_checkpoints_steps: 1 keep_checkpoint_max: 9"


@pytest.mark.slow
def test_unfreezing(data, tmp_path):
    """The tower is as it was until that step, and trained from it on; going on from before and at it."""
    settings = {
        "img_model": "trainable: NONE unfreeze_at_step: 2", "train": EACH_STEP,
        "optimizers": optimizer("adam", 0.01) + optimizer("adam", 0.02, 'variables: "image/backbone"'),
    }  # fmt: skip
    whole = Training(data, tmp_path / "whole", **settings).run()
    of_tower = {name for name in whole.history[0] if name.startswith("image/")}
    assert not whole.changed(0, 2) & of_tower
    assert whole.changed(2, 3) >= of_tower
    # The first step of Adam, whenever it is: the rate along each coordinate.
    before, after = whole.history[2:4]
    for name, rate in (("image/projection/kernel", 0.01), ("image/backbone/conv0/kernel", 0.02)):
        np.testing.assert_allclose(np.median(np.abs(after[name] - before[name])), rate, rtol=1e-3)
    assert [whole.checkpoint(6)[f"optimizer_{i}/iterations"] for i in (0, 1)] == [6, 6]
    seen = [line["pictures"] for line in whole.log]
    assert sum(whole.encoded[:2]) <= NUM_PICTURES
    assert whole.encoded[2:] == np.diff(seen).tolist()[1:]
    for step in (1, 2):
        resumed = going_on(whole, step, data, tmp_path / str(step), **settings)
        # The frozen tower encodes the pictures again, beside others: the sums of a convolution may round otherwise.
        assert_same_values(resumed.checkpoint(6), whole.checkpoint(6), 1e-5)


@pytest.mark.slow
def test_a_bank_goes_on(data, tmp_path, monkeypatch):
    """To the last bit, with what it holds and what it draws. Pictures that are not encoded are not read."""
    img_model = "trainable: LAST_N_STAGES last_n_stages: 1 unfreeze_at_step: 4 encode_ratio: 0.4 max_staleness_steps: 3"
    loaded = spy_on_loading(monkeypatch)
    whole = Training(data, tmp_path / "whole", img_model, EACH_STEP).run()
    assert len(loaded) == sum(whole.encoded) < sum(len(batch) for batch in images_of_batches(whole))
    resumed = going_on(whole, 3, data, tmp_path / "resumed", img_model, EACH_STEP)
    assert resumed.encoded == whole.encoded[3:]
    values, expected = resumed.checkpoint(6), whole.checkpoint(6)
    assert expected["picture_bank/vectors"].shape == (NUM_PICTURES, 4)
    assert_same_values(values, expected)


@pytest.mark.slow
def test_a_bank_whose_vectors_are_always_too_old_is_none(data, tmp_path):
    """Each picture stands once in an epoch of three steps."""
    changes = {"batch_size: 4": "batch_size: 4 shuffle: false"}
    runs = [
        Training(data, tmp_path / name, img_model, "num_epochs: 2", file="own.txt", changes=changes).run()
        for name, img_model in (("bank", "encode_ratio: 0.1 max_staleness_steps: 1"), ("none", ""))
    ]
    assert runs[0].encoded == runs[1].encoded
    assert_same_values(runs[0].values(), runs[1].values())


def test_unfreezing_must_be_reached(data, tmp_path):
    """24 groups of two epochs are 5 batches of 5."""
    changes = {"batch_size: 4": "batch_size: 5"}
    late = Training(data, tmp_path / "late", "trainable: HEAD unfreeze_at_step: 5", "num_epochs: 2", changes=changes)
    with pytest.raises(ConfigError, match=r"img_model.unfreeze_at_step: 5 is past the last step \(5 steps, 2 epochs"):
        late.run()
    last = Training(data, tmp_path / "last", "trainable: HEAD unfreeze_at_step: 4", "num_epochs: 2", changes=changes)
    last.run()
    assert {"image/backbone/conv0/kernel"} <= last.changed(4) - last.changed(3, 4)


# Learning rates.


@pytest.fixture(scope="module")
def plain_step(data, tmp_path_factory):
    """What one step of gradient descent at rate 1 adds to each variable."""
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        return added(data, tmp_path_factory.mktemp("plain"), optimizer("sgd", 1.0))


def added(data, folder, optimizers, img_model=""):
    training = Training(data, folder, f'category_feature: "cat" {img_model}', "num_steps: 1", optimizers=optimizers)
    rng = np.random.default_rng(0)
    for name, v in training.model.weights().items():
        # It starts as a constant, whose inputs have no gradient.
        if name.startswith("image/attention_"):
            v.assign(rng.normal(size=v.shape))
    first, last = training.run().history
    return {name: last[name] - first[name] for name in last if not name.endswith(AVERAGES)}


def assert_scaled(differences, plain, factor):
    for name, value in plain.items():
        assert np.abs(value).max() > 1e-6, name
        np.testing.assert_allclose(differences[name], factor(name) * value, rtol=1e-3, atol=3e-7, err_msg=name)


def test_optimizers_for_variables_by_name(data, tmp_path, plain_step):
    """The first that names a variable has it; the embeddings' factor is that of their own optimizer."""
    optimizers = " ".join([
        optimizer("sgd", 1.0, "embedding_learning_rate_multiplier: 3"),
        optimizer("sgd", 0.25, 'variables: "image/backbone/conv1/" variables: "^rec/tower"'),
        optimizer("sgd", 2.0, 'variables: "conv1|embedding/user" embedding_learning_rate_multiplier: 0.5'),
        optimizer("sgd", 0.5, 'variables: "conv"'),
    ])  # fmt: skip

    def factor(name):
        if name.startswith(("image/backbone/conv1/", "rec/tower")):
            return 0.25
        if name == "embedding/user":
            return 1.0
        if "conv" in name:
            return 0.5
        return 3.0 if name.startswith(("embedding/", "image/category/")) else 1.0

    assert_scaled(added(data, tmp_path, optimizers), plain_step, factor)


def test_learning_rates_of_the_image_tower(data, tmp_path, plain_step):
    """A factor for all of it, another one more for each stage of the backbone, and that of embeddings."""
    optimizers = optimizer("sgd", 1.0, "embedding_learning_rate_multiplier: 3")
    differences = added(data, tmp_path, optimizers, "learning_rate_multiplier: 0.5 layer_decay: 0.25")

    def factor(name):
        stage = next((i for i in range(3) if of_stage(name, i)), 3)
        table = 3.0 if name.startswith(("embedding/", "image/category/")) else 1.0
        return table * (0.5 * 0.25 ** (3 - stage) if name.startswith("image/") else 1.0)

    assert_scaled(differences, plain_step, factor)


@pytest.mark.parametrize(("img_model", "optimizers", "message"), [
    ("", optimizer() + optimizer("sgd", 0.1, 'variables: "conv9"'),
     r"optimizer_config\[1\].variables: no variable matches conv9, except those of earlier entries; "
     "variables are, for example, .*image/backbone/conv0/kernel"),
    ("", optimizer() + optimizer("sgd", 0.1, 'variables: "conv1"') + optimizer("sgd", 0.1, 'variables: "conv1/kernel"'),
     r"optimizer_config\[2\].variables: no variable matches conv1/kernel, except"),
    ("trainable: NONE", optimizer() + optimizer("sgd", 0.1, 'variables: "image/backbone"'),
     r"optimizer_config\[1\].variables: no variable matches image/backbone, except"),
    ("", optimizer("sgd", 0.1, 'variables: "image/"'),
     "no optimizer applies to variable embedding/user; add one without `variables`"),
])  # fmt: skip
def test_optimizers_that_do_not_fit_the_variables(data, tmp_path, img_model, optimizers, message):
    with pytest.raises(ConfigError, match=message):
        Training(data, tmp_path, img_model, optimizers=optimizers).run()


# Warm starts.


def test_a_warm_start_without_the_embeddings_of_ids(data, tmp_path):
    changes = {
        'features { input_names: "price"': """
            features {
              feature_name: "cross" input_names: ["user", "item"] feature_type: ComboFeature hash_bucket_size: 5
              embedding_dim: 2
            }
            features { feature_name: "tags" input_names: "user" feature_type: TagFeature hash_bucket_size: 5
                       embedding_dim: 2 embedding_name: "words" separator: "," }
            features { feature_name: "bucket" input_names: "price" feature_type: RawFeature boundaries: [0]
                       embedding_dim: 2 }
            features { input_names: "price" """,
        '"item", "price"]': '"item", "price", "cross", "tags", "bucket"]',
    }
    img_model = 'no_image_vector: true image_losses { label_name: "kind" num_class: 3 softmax {} }'
    first = Training(data, tmp_path / "first", img_model, changes=changes)
    rng = np.random.default_rng(0)
    for v in first.model.weights().values():
        v.assign(rng.normal(size=v.shape))
    Checkpoints(str(first.model_dir)).save(1, first.trainer.state.values([]))
    train = f'num_epochs: 1 fine_tune_checkpoint: "{first.model_dir}" warm_start: ALL_BUT_ID_EMBEDDINGS'
    second = Training(data, tmp_path / "second", img_model, train, changes=changes)
    initial, source = second.values(), first.values()
    start_from_checkpoint(second.model, second.pipeline.config.train_config)
    left_out = {"embedding/user", "embedding/item", "embedding/cross", "embedding/words"}
    assert left_out | {"embedding/bucket", "image/item/no_image", "image_loss_0/kernel"} <= initial.keys()
    assert_same_values(second.values(), {n: (initial if n in left_out else source)[n] for n in source})


# Losses on image vectors.

IMAGE_LOSSES = """
  image_losses { weight: 0.5 label_name: "kind" num_class: 3 softmax {} }
  image_losses { label_name: "kind" num_class: 3 arcface { rarity_power: 0.5 } }
  image_losses { label_name: "kind" num_class: 3 cosface {} }
  image_losses { label_name: "kind" num_class: 3 multi_similarity {} }
  image_losses { contrastive { item_feature: "item" } }
"""


def test_losses_on_image_vectors(data, tmp_path):
    """With a head that is trained alone; those that are trained with the backbone are in test_all_at_once.

    Modality dropout trains the vector that stands for no picture, though every group has one, and changes none of this.
    """
    img_model = f"trainable: HEAD no_image_vector: true modality_dropout: 0.5 {IMAGE_LOSSES}"
    training = Training(data, tmp_path, img_model, "num_epochs: 2").run()
    for line in training.log:
        parts = {name: value for name, value in line.items() if name.startswith("loss_")}
        assert parts.keys() == {"loss_click", *(f"loss_image_loss_{i}" for i in range(5))}
        assert line["loss"] == pytest.approx(sum(parts.values()), rel=1e-5)
        assert all(np.isfinite(value) and value >= 0 for value in parts.values())
    assert all(any(line[f"loss_image_loss_{i}"] > 0.01 for line in training.log) for i in range(5))
    names = {name for name in training.values() if name.startswith("image_loss_")}
    assert names == {
        *(f"image_loss_0/{name}" for name in ("kernel", "bias")),
        *(f"image_loss_1/{name}" for name in ("kernel", "class_counts")), "image_loss_2/kernel",
        "image_loss_4/projection/kernel",
    }  # fmt: skip
    assert training.changed() >= names | {"embedding/item", "image/projection/kernel", "image/item/no_image"}
    assert training.log[-1]["bad_pictures"] == 0
    assert not any(name.startswith("image/backbone/") for name in training.changed())
    # Each image of each batch is counted once, though each is encoded once in all.
    kinds = [picture % NUM_KINDS for batch in images_of_batches(training) for picture in batch]
    assert training.values()["image_loss_1/class_counts"].tolist() == np.bincount(kinds).tolist()
    assert sum(training.encoded) == NUM_PICTURES < len(kinds)


# No picture.


@pytest.mark.parametrize("img_model", ["", "encode_ratio: 0.5", "trainable: HEAD"])
def test_batches_without_a_picture(data, tmp_path, img_model):
    """Batch norm behind the backbone sees nothing, and keeps its averages."""
    training = Training(
        data, tmp_path, f"no_image_vector: true {img_model}", "num_epochs: 2", "img_dnn { hidden_units: [3] }",
        file="none.txt", changes={"batch_size: 4": "batch_size: 4 shuffle: false"},
    ).run()  # fmt: skip
    assert training.encoded[0] == training.encoded[3] == 0
    assert {name for name in training.changed(0, 1) if name.startswith("image/")} == {"image/item/no_image"}
    assert "image/img_dnn/bn_0/moving_mean" in training.changed(1, 3)
    assert all(np.isfinite(value).all() for value in training.values().values())


# Together.

AVERAGED = "use_moving_average: true moving_average_decay: 0.7"
ALL_AT_ONCE = f"""
  {EVERYTHING} encode_ratio: 0.5 max_staleness_steps: 4 image_micro_batch: 2 rematerialize: true
  modality_dropout: 0.3 layer_decay: 0.8 learning_rate_multiplier: 0.5 resize: PAD
  trainable: LAST_N_STAGES last_n_stages: 2
  augmentation {{ random_resized_crop_min_area: 0.5 horizontal_flip: true brightness: 0.2 random_erasing: 0.5 }}
  image_losses {{ label_name: "kind" num_class: 3 arcface {{ rarity_power: 1 }} }}
  image_losses {{ contrastive {{ item_feature: "item" }} }}
"""


@pytest.mark.slow
def test_all_at_once_goes_on_as_if_it_had_not_stopped(data, tmp_path):
    settings = {
        "head": "img_dnn { hidden_units: [5, 3] dropout_ratio: [0.3, 0] }", "file": "several.txt",
        "optimizers": optimizer(more=AVERAGED) + optimizer("momentum", 0.02, f'variables: "image/backbone" {AVERAGED}'),
    }  # fmt: skip
    whole = Training(data, tmp_path / "whole", ALL_AT_ONCE, EACH_STEP, **settings).run()
    assert all(np.isfinite(value).all() for value in whole.values().values())
    resumed = going_on(whole, 2, data, tmp_path / "resumed", ALL_AT_ONCE, EACH_STEP, **settings)
    assert_same_values(resumed.checkpoint(6), whole.checkpoint(6))


@pytest.mark.slow
def test_the_average_of_a_tower_of_which_the_head_is_trained_is_what_is_evaluated(data, tmp_path):
    """In the middle of a training that goes on with the weights themselves; what is frozen is its own average."""
    evaluated = f'eval_input_path: "{data}/own.txt" eval_config {{ eval_interval_secs: 0 }}'
    training = Training(
        data, tmp_path, "trainable: HEAD", "num_steps: 5 save_checkpoints_steps: 3",
        optimizers=optimizer(more=AVERAGED), changes={"train_config {": f"{evaluated} train_config {{"},
    ).run()  # fmt: skip
    assert_same_values(training.values(), training.history[-1])
    last = training.checkpoint(5)
    averages = {name: last[f"{name}/average"] for name in last if f"{name}/average" in last}
    assert averages.keys() == training.model.all_trainable()
    for name, average in averages.items():
        assert np.array_equal(average, last[name]) == name.startswith("image/backbone/"), name
    model, step = load_model(
        training.pipeline.config, training.pipeline.schema, str(training.model_dir / "model.ckpt-5")
    )
    assert step == 5
    results = Evaluator(
        model, training.pipeline.config, f"{data}/own.txt", "eval_input_path", BadRecords(None, 0.0)
    ).run()
    written = json.loads((training.model_dir / "eval_result.json").read_text())
    assert written.pop("easyrec_mm") == __version__
    assert results == pytest.approx(written, abs=1e-6)
    assert [line["step"] for line in training.lines("eval")] == [3, 5]
