"""Items with a text: what a step encodes, what is trained, and that the three-way split holds."""

import json
from contextlib import closing

import numpy as np
import pytest
import tensorflow as tf
from flow_helpers import run
from text_helpers import text_training, title_of, write_titles
from training_helpers import NUM_GROUPS, make_training_data, optimizer, use_backbone_of_three_stages

import easyrec_mm as er
from easyrec_mm.store import open_store
from easyrec_mm.store.records import State

GATED = "item_fusion { gated { dim: 6 } }"


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_training_data(tmp_path_factory.mktemp("data"))
    for file in ("one.txt", "none.txt"):
        write_titles(folder, file)
    (folder / "by_title").mkdir()
    for path in folder.glob("*.png"):
        (folder / "by_title" / path.name).write_bytes(path.read_bytes())
    (folder / "by_title" / "one.txt").write_bytes((folder / "one.txt").read_bytes())
    write_titles(folder / "by_title", clicks_follow_titles=True)
    return folder


def batches(training):
    return [item.batch for item in training.trainer.input.batches()]


def test_a_batch_has_each_text_once(data, tmp_path):
    training = text_training(data, tmp_path, changes={"batch_size: 4": "batch_size: 4 shuffle: false"})
    groups = iter(range(NUM_GROUPS))
    for batch in batches(training):
        texts = batch.contents["text"]
        shown = texts.values.numpy()[texts.of_image.numpy()][batch.sample_image.numpy()]
        expected = [title_of(group) for group in [next(groups) for _ in range(4)] for _ in range(1 + group % 3)]
        assert [text.decode() for text in shown] == expected
        assert len(set(texts.values.numpy().tolist())) == len(texts.values)
        assert texts.is_there.numpy().tolist() == [text != b"" for text in texts.values.numpy()]


def test_texts_alone_are_learned(data, tmp_path):
    training = text_training(
        data / "by_title", tmp_path, "embedding_dim: 8 dim: 4", image=False, train="num_epochs: 30",
        optimizers=optimizer(rate=0.05), changes={"batch_size: 4": "batch_size: 12"},
    ).run()  # fmt: skip
    losses = [line["loss_click"] for line in training.log]
    assert losses[-1] < 0.2 * losses[0]
    changed = training.changed()
    assert {
        "image/text/tower/words/table",
        "image/text/tower/projection/kernel",
        "image/text/no_text/vector",
    } <= changed


def test_a_frozen_text_tower_encodes_each_text_once_in_all_epochs(data, tmp_path):
    encoded = []
    training = text_training(data, tmp_path, "trainable: HEAD dim: 4", train="num_epochs: 3")
    step = training.trainer.run_step

    def spied(item):
        if item is not None:
            encoded.append(len(item.batch.contents["text"].values))
        return step(item)

    training.trainer.run_step = spied
    training.trainer.train()
    assert sum(encoded) == len({title_of(group) for group in range(NUM_GROUPS)})
    assert encoded[3:] == [0] * 6


def test_the_bank_changes_no_result(data, tmp_path):
    first = text_training(data, tmp_path / "a", "trainable: HEAD dim: 4 embedding_dim: 8", train="num_epochs: 2").run()
    (tmp_path / "b").mkdir()
    second = text_training(data, tmp_path / "b", "trainable: HEAD dim: 4 embedding_dim: 8", train="num_epochs: 2")
    second.trainer.steps.phases[0] = second.trainer.steps.phases[0]._replace(banks={
        name: bank for name, bank in second.trainer.steps.phases[0].banks.items() if name != "text"
    })  # fmt: skip
    second.run()
    assert [line["loss"] for line in first.log] == pytest.approx([line["loss"] for line in second.log], rel=1e-6)


@pytest.mark.parametrize(
    ("trainable", "trained"),
    [
        ("ALL", {"words/table", "projection/kernel", "projection/bias"}),
        ("HEAD", {"projection/kernel", "projection/bias"}),
        ("NONE", set()),
    ],
)
def test_what_is_trained(data, tmp_path, trainable, trained):
    training = text_training(data, tmp_path, f"trainable: {trainable} dim: 4", GATED)
    names = {name.removeprefix("image/text/tower/") for name in training.model.trained_variables() if "/tower/" in name}
    assert {name for name in names if not name.startswith("image/")} == trained
    assert "image/fusion/gate/kernel" in training.model.trained_variables()


def test_modality_dropout_replaces_texts_in_training_only(data, tmp_path):
    model = text_training(data, tmp_path, "dim: 4 modality_dropout: 0.5").model
    nothing = np.full(4, 7, np.float32)
    or_nothing = model.parts.contents["text"].or_nothing
    or_nothing.nothing.assign(nothing)
    vectors = tf.random.normal([1000, 4], seed=1)
    there = tf.ones([1000], tf.bool)
    share = np.mean((or_nothing(vectors, there, training=True).numpy() == nothing).all(1))
    assert 0.4 < share < 0.6
    np.testing.assert_array_equal(or_nothing(vectors, there), vectors)


def test_the_contrastive_loss_of_pictures_and_texts(data, tmp_path):
    loss = "image_losses { weight: 2 text_contrastive { temperature: 0.5 } }"
    training = text_training(data, tmp_path, "dim: 3", img_model=loss)
    model, batch = training.model, batches(training)[0]
    value = model.losses(batch, training=False)["image_loss_0"].numpy()
    texts = model.parts.encoded(batch.contents, False, {})["text"]
    images, is_counted = model.image_vectors(batch).numpy(), texts.is_there.numpy()
    (projection,) = model.named_variables()["image_loss_0/projection/kernel"].numpy()[None]
    first, second = (images @ projection)[is_counted], texts.vectors.numpy()[is_counted]
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    logits = np.exp(first @ second.T / 0.5)
    key = texts.key.numpy()[is_counted]
    # Another item with the same text is no wrong answer.
    logits[(key[:, None] == key) & ~np.eye(len(key), dtype=bool)] = 0
    right = np.diag(logits)
    expected = -0.5 * np.mean(np.log(right / logits.sum(1)) + np.log(right / logits.sum(0)))
    assert value == pytest.approx(2 * expected, rel=1e-4)


SPLITS = {
    "concat": ("one", "dim: 4 embedding_dim: 8", "", {}),
    "gated, transformer": ("one", "embedding_dim: 8 transformer { num_heads: 2 }", GATED, {}),
    "no picture in most groups": ("none", "dim: 4", GATED, {"img_model": "no_image_vector: true"}),
    "text alone": ("one", "dim: 4 embedding_dim: 8", "", {"image": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_equal_and_its_vectors_are_stored(data, tmp_path, split):
    file, text_model, fusion, settings = SPLITS[split]
    training = text_training(data, tmp_path, text_model, fusion, file=f"titles_{file}.txt", **settings).run()
    model_dir, out = training.model_dir, tmp_path / "out"
    folders = [f"--{kind}_model_export_dir={out / kind}" for kind in ("img", "rec", "total")]
    run("export", "--model_dir", model_dir, "--eval_input_path", f"{data}/titles_{file}.txt", *folders)
    manifest = json.loads((out / "img" / "manifest.json").read_text())
    assert manifest["image_width"] == training.model.item_width
    items = {(picture_of(data, file, g) * (split != "text alone"), title_of(g)) for g in range(NUM_GROUPS)}
    assert manifest["parity"]["num_pictures"] == len(items)
    assert not manifest["parity"]["left_out"]

    table = tmp_path / "items.csv"
    rows = [(f"k{g}", picture_of(data, file, g), title_of(g)) for g in range(NUM_GROUPS)]
    table.write_text("key,path,title\n" + "".join(f'{key},{path},"{title}"\n' for key, path, title in rows))
    by_runtime = {}
    for runtime in ("tensorflow", "onnx"):
        store = f"lmdb://{tmp_path}/{runtime}"
        run("embed", "--img_model_dir", out / "img", "--input", table, "--key_column", "key", "--path_column", "path",
            "--image_root", data, "--store", store, "--bad_pictures", tmp_path / "bad.jsonl", "--runtime", runtime,
            "--max_bad_share", 0.5)  # fmt: skip
        with closing(open_store(store)) as opened:
            by_runtime[runtime] = opened.get_many([key for key, _, _ in rows])
    batch_vectors = vectors_of_groups(training.model, data, file)
    stored = by_runtime["tensorflow"]
    absent = [not rows[g][2] and (split == "text alone" or not rows[g][1]) for g in range(NUM_GROUPS)]
    assert [state != State.PRESENT for state in stored.states] == absent
    expected = np.where(np.array(absent)[:, None], 0, batch_vectors)
    np.testing.assert_allclose(stored.vectors, expected, atol=1e-5)
    np.testing.assert_allclose(by_runtime["onnx"].vectors, expected, atol=1e-5)
    if split == "text alone":
        with er.Index(store, image_model=out / "img", similarity="cosine") as index:
            nearest = index.search(text=title_of(1))
            assert nearest["key"][0] == "k1"
            assert nearest["distance"][0] == pytest.approx(0, abs=1e-5)
            with pytest.raises(er.UserError, match="takes texts alone; leave the picture out, and give --text"):
                index.search(picture=data / picture_of(data, file, 0))


def picture_of(data, file, group):
    return (data / f"titles_{file}.txt").read_text().splitlines()[group].split("|")[3]


def vectors_of_groups(model, data, file):
    """The item vector of each group, which the network computes from data without any exported model."""
    vectors = []
    for group in range(NUM_GROUPS):
        image = None
        if model.image is not None:
            path = picture_of(data, file, group)
            pixels = tf.io.decode_png((data / path).read_bytes())[None] if path else tf.zeros([1, 12, 12, 3], tf.uint8)
            image = model.image(pixels) if path else tf.convert_to_tensor(model.item.nothing)[None]
        title = title_of(group)
        part = model.parts.contents["text"]
        text = part.tower(tf.constant([title])) if title else tf.convert_to_tensor(part.or_nothing.nothing)[None]
        fusion = model.parts.fusion
        vectors.append((text if fusion is None else fusion([image, text])).numpy()[0])
    return vectors
