"""What TensorBoard shows, read back by its own readers."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from flow_helpers import IMAGE_SIZE, demo_flags, make_data, run, use_small_backbone
from google.protobuf import text_format
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.evaluation.evaluator import Evaluator, eval_plan, evaluation_input, load_model
from easyrec_mm.evaluation.shown_items import SMALL_SIDE, Collected, Item, ShownItems, square
from easyrec_mm.evaluation.tensorboard import write_projector
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.runs.shown import code, histogram, picture
from easyrec_mm.training.step_summaries import weight_histograms
from easyrec_mm.training.trainer import Trainer

LAST_STEP = 6


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The flags and the model_dir of a training of 6 steps that ended without warning after 5, and went on from 4."""
    folder = tmp_path_factory.mktemp("tensorboard")
    data = make_data(folder / "data")
    flags = demo_flags(
        data, folder / "m", eval_input_path=f"{data}/eval/*", eval_config__eval_interval_secs=0,
        train_config__save_checkpoints_steps=2, train_config__save_summary_steps=1,
        train_config__summary_model_vars="true", train_config__write_graph="true",
        train_config__projector_fields='["category"]', train_config__num_summary_pictures=5,
        train_config__optimizer_config="[{ adamw_optimizer { learning_rate { exponential_decay_learning_rate {"
        " initial_learning_rate: 0.002 decay_steps: 1 decay_factor: 0.5 } } } embedding_learning_rate_multiplier: 2 }]",
        model_config__e2e_mm_dbmtl__img_model__learning_rate_multiplier=0.25,
    )  # fmt: skip
    run_step = Trainer.run_step

    def killed(trainer, item):
        if item and item.step == 5:
            raise KilledError
        return run_step(trainer, item)

    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        patch.setattr(Trainer, "run_step", killed)
        with pytest.raises(KilledError):
            run("train", *flags)
        patch.setattr(Trainer, "run_step", run_step)
        flags += ["--set", "train_config.keep_checkpoint_max=9"]
        run("train", *flags)
        yield SimpleNamespace(flags=flags, folder=folder, data=data, model_dir=folder / "m")


@pytest.fixture(scope="module")
def shown(trained):
    """Tag -> [(step, value)], and the reader itself."""
    reader = EventAccumulator(str(trained.model_dir), {"tensors": 0})
    reader.Reload()
    tags = {
        tag: [(event.step, tf.make_ndarray(event.tensor_proto)) for event in reader.Tensors(tag)]
        for tag in reader.Tags()["tensors"]
    }
    return tags, reader


@pytest.fixture(scope="module")
def predictions(trained):
    """The rows of the evaluation data with what `predict` says of them."""
    output = trained.folder / "p.parquet"
    run("predict", *trained.flags, "--predict_input_path", f"{trained.data}/eval/*", "--output", output,
        "--precision", "FLOAT32", "--reserved_columns", "img_path,category,click,play_time")  # fmt: skip
    return pq.read_table(output).to_pylist()


def by_picture(rows, column):
    """Picture -> the values of its rows, in the order of the data."""
    values = {}
    for row in rows:
        values.setdefault(row["img_path"], []).append(row[column])
    return values


@pytest.mark.slow
def test_each_step_is_shown_once_after_a_restart(shown):
    tags, reader = shown
    every, evaluated = list(range(1, LAST_STEP + 1)), [2, 4, 6]
    assert [step for step, _ in tags["pipeline.config"]] == [1, 5]  # it has changed
    of_steps = [tag for tag in tags if tag.startswith(("learning_rate/", "weights/", "embedding/"))]
    assert {"train/loss", *of_steps} <= set(tags)
    for tag in ("train/loss", *of_steps):
        assert [step for step, _ in tags[tag]] == every, tag
    of_evaluations = [tag for tag in tags if tag.startswith(("eval/", "outputs/", "pictures/"))]
    assert {"outputs/probs_click", "outputs/image_vector", "pictures/click", "pictures/play_time"} <= set(
        of_evaluations
    )
    for tag in of_evaluations:
        assert [step for step, _ in tags[tag]] == evaluated, tag
    plugins = {"histograms": "weights/image/projection/kernel", "images": "pictures/click", "text": "pipeline.config"}
    for plugin, tag in plugins.items():
        assert tag in reader.PluginTagToContent(plugin)


@pytest.mark.slow
def test_learning_rates_are_those_of_all_groups_of_variables(shown):
    tags, _ = shown
    own = [float(value) for _, value in tags["train/learning_rate"]]  # as the graph of the step has it
    np.testing.assert_allclose(own, [0.002 * 0.5**step for step in range(LAST_STEP)], rtol=1e-6)
    for tag, factor in (("", 1), ("/embedding_x2", 2), ("/image_x0.25", 0.25)):
        values = [float(value) for _, value in tags[f"learning_rate/optimizer_0{tag}"]]
        np.testing.assert_allclose(values, np.multiply(own, factor), rtol=1e-6)


@pytest.mark.slow
def test_weights_config_and_graph_are_those_of_the_training(trained, shown, tmp_path):
    tags, reader = shown
    weights = tf.train.load_checkpoint(str(trained.model_dir / f"model.ckpt-{LAST_STEP}"))
    for tag, name in (
        ("weights/image/projection/kernel", "image/projection/kernel"),
        ("embedding/user_city", "embedding/user_city"),
    ):
        buckets = tags[tag][-1][1]
        expected, edges = np.histogram(weights.get_tensor(name).astype(np.float64), 30)
        np.testing.assert_allclose([*buckets[:, 0], buckets[-1, 1]], edges, atol=1e-9)
        np.testing.assert_array_equal(buckets[:, 2], expected)
    text = tags["pipeline.config"][-1][1].item().decode()
    written = tmp_path / "pipeline.config"
    written.write_text(text.replace("\n    ", "\n").removeprefix("    "))
    assert load_pipeline(str(written)).config == load_pipeline(str(trained.model_dir / "pipeline.config")).config
    assert len(reader.Graph().node) > 100


@pytest.mark.slow
def test_the_projector_shows_what_predict_says(trained, predictions):
    config = text_format.Parse((trained.model_dir / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    names, *lines = [
        line.split("\t") for line in (trained.model_dir / embedding.metadata_path).read_text().splitlines()
    ]
    assert names == [
        "path", "category", "num_samples", "label_click", "predicted_click", "label_play_time", "predicted_play_time"
    ]  # fmt: skip
    table = {name: list(column) for name, column in zip(names, zip(*lines, strict=True), strict=True)}
    paths = table["path"]
    assert paths == list(by_picture(predictions, "click"))
    assert table["category"] == [values[0] for values in by_picture(predictions, "category").values()]
    assert table["num_samples"] == [str(len(values)) for values in by_picture(predictions, "click").values()]
    for name, column in (
        ("label_click", "click"), ("predicted_click", "probs_click"), ("label_play_time", "play_time"),
        ("predicted_play_time", "y_play_time"),
    ):  # fmt: skip
        expected = [np.mean(values) for values in by_picture(predictions, column).values()]
        np.testing.assert_allclose(np.array(table[name], float), expected, rtol=1e-4)
    sprite = PIL.Image.open(trained.model_dir / embedding.sprite.image_path)
    side = int(np.ceil(np.sqrt(len(paths)))) * SMALL_SIDE
    assert (sprite.size, list(embedding.sprite.single_image_dim)) == ((side, side), [SMALL_SIDE, SMALL_SIDE])
    # JPEGs of 16 x 16, which the thumbnails enlarge: their mean colours stay.
    for place, path in enumerate(paths):
        x, y = place % (side // SMALL_SIDE) * SMALL_SIDE, place // (side // SMALL_SIDE) * SMALL_SIDE
        cell = np.asarray(sprite.crop((x, y, x + SMALL_SIDE, y + SMALL_SIDE)), float)
        original = np.asarray(PIL.Image.open(trained.data / path).convert("RGB"), float)
        assert original.shape[:2] == (IMAGE_SIZE, IMAGE_SIZE)
        np.testing.assert_allclose(cell.mean((0, 1)), original.mean((0, 1)), atol=4)


@pytest.mark.slow
def test_tensorboards_own_plugin_serves_the_vectors_of_the_tower(trained):
    config = load_pipeline(str(trained.model_dir / "pipeline.config"))
    model, _ = load_model(config.config, config.schema, str(trained.model_dir / f"model.ckpt-{LAST_STEP}"))
    plan, records = eval_plan(config.config, config.schema, confidence=False), BadRecords(None, 1.0)
    inputs = evaluation_input(model, config.config, plan, config.config.eval_input_path, "eval_input_path", records)
    expected = {}
    for item in inputs.batches():
        vectors = model.image(item.batch.pixels, item.batch.images.category).numpy()
        expected |= dict(zip(item.picture_path, vectors, strict=True))

    apps = ProjectorPlugin(SimpleNamespace(data_provider=None, logdir=str(trained.model_dir))).get_plugin_apps()

    def served(route, **query):
        answer = Client(apps[route]).get(route, query_string={"run": ".", **query})
        assert answer.status_code == 200, answer.text
        return answer

    embeddings = {part["tensorName"]: part for part in served("/info").json["embeddings"]}
    assert embeddings["items"]["tensorShape"] == [len(expected), model.image_width]
    assert "embedding/user_city" in embeddings  # TensorBoard shows the tables of the newest checkpoint as well
    vectors = np.frombuffer(served("/tensor", name="items").data, np.float32).reshape(len(expected), -1)
    np.testing.assert_allclose(vectors, list(expected.values()), rtol=1e-4, atol=1e-5)
    lines = served("/metadata", name="items").text.splitlines()
    assert [line.split("\t")[0].encode() for line in lines[1:]] == list(expected)
    assert served("/sprite_image", name="items").data.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_frozen_tower_shows_the_same_in_each_evaluation(trained):
    """It has loaded the pixels in the first, and keeps what the head computes vectors from."""
    path = str(trained.model_dir / "pipeline.config")
    config = load_pipeline(path, ["model_config.e2e_mm_dbmtl.img_model.trainable=HEAD"])
    model = MultimodalModel(config.config, config.schema)
    model.train_part("HEAD")
    shown = ShownItems(config.config, config.schema)
    path, records = config.config.eval_input_path, BadRecords(None, 1.0)
    evaluator = Evaluator(model, config.config, path, "eval_input_path", records, shown=shown)
    evaluator.run()
    first = shown.collected
    evaluator.run()
    second = shown.collected
    pixels, vectors = [], []
    plan = eval_plan(config.config, config.schema, confidence=False)
    for item in evaluation_input(model, config.config, plan, path, "eval_input_path", records).batches():
        pixels += list(item.batch.pixels.numpy())
        vectors += list(model.image(item.batch.pixels, item.batch.images.category).numpy())
    for collected in (first, second):
        np.testing.assert_allclose(collected.vectors, vectors, rtol=1e-4, atol=1e-5)
        for place, item in enumerate(collected.items):
            side = item.thumbnail.width
            np.testing.assert_array_equal(item.thumbnail, square(pixels[place], side))


@pytest.mark.slow
def test_pictures_are_drawn_with_their_labels(trained, shown):
    width, height, content = shown[0]["pictures/click"][-1][1]
    drawn = PIL.Image.open(io.BytesIO(content))
    assert drawn.size == (int(width), int(height))
    pixels = np.asarray(drawn.convert("L"))
    # Five pictures in rows of three: the sixth place is empty, and below each of the others stands text.
    rows, columns = np.array_split(np.arange(drawn.height), 2), np.array_split(np.arange(drawn.width), 3)
    is_dark = [[bool((pixels[np.ix_(row, column)] < 64).any()) for column in columns] for row in rows]
    assert is_dark == [[True, True, True], [True, True, False]]


# --- Without a training


def test_a_histogram_is_that_of_numpy_without_what_is_not_finite():
    values = np.random.default_rng(0).normal(size=1000)
    (value,) = histogram("w", np.array([*values, np.nan, np.inf])).value
    buckets = tf.make_ndarray(value.tensor)
    expected, edges = np.histogram(values, 30)
    np.testing.assert_array_equal(buckets[:, 2], expected)
    np.testing.assert_allclose(buckets[:, 0], edges[:-1])
    assert tf.make_ndarray(histogram("w", np.array([np.nan])).value[0].tensor)[:, 2].sum() == 0


def test_a_text_and_a_picture_come_back():
    (text,) = code("c", "a {\n  b: 1\n}\n").value
    assert tf.make_ndarray(text.tensor).item() == b"    a {\n      b: 1\n    }\n"
    drawn = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8))
    width, height, content = tf.make_ndarray(picture("p", drawn).value[0].tensor)
    assert (width, height) == (b"7", b"5")
    np.testing.assert_array_equal(tf.io.decode_png(content), np.asarray(drawn))


def test_large_tables_are_sampled_over_all_their_rows():
    rows = 100_003
    table = tf.Variable(np.arange(rows, dtype=np.float32)[:, None] + np.zeros(8, np.float32))
    model = SimpleNamespace(tables=lambda: {"embedding/a": None})
    steps = SimpleNamespace(trained={"embedding/a": SimpleNamespace(value=table)})
    (summary,) = weight_histograms(model, steps)
    buckets = tf.make_ndarray(summary.value[0].tensor)
    assert (summary.value[0].tag, buckets[0, 0], buckets[-1, 1]) == ("embedding/a", 0, rows - 1)
    assert 5000 <= buckets[:, 2].sum() <= 10_000
    np.testing.assert_allclose(buckets[:, 2], buckets[:, 2].mean(), rtol=0.05)


def test_a_projector_of_more_items_than_fit_into_a_row(tmp_path):
    colours = [(10 * i, 0, 255 - 10 * i) for i in range(11)]
    items = [
        Item(f"{i}.jpg", {"shop": f"s{i}"}, np.array([i]), square(np.full((8, 4, 3), colour, np.uint8), SMALL_SIDE))
        for i, colour in enumerate(colours)
    ]
    means = {"click": np.linspace(0, 1, 11)}
    vectors = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    write_projector(tmp_path, Collected(items, np.arange(11), means, means, vectors, {}), 10)
    lines = (tmp_path / "projector/metadata.tsv").read_text().splitlines()
    assert lines[0] == "path\tshop\tnum_samples\tlabel_click\tpredicted_click"
    assert lines[10] == "9.jpg\ts9\t9\t0.9\t0.9"
    assert len(lines) == 11
    np.testing.assert_allclose(np.loadtxt(tmp_path / "projector/vectors.tsv"), vectors[:10], rtol=1e-5)
    sprite = np.asarray(PIL.Image.open(tmp_path / "projector/sprite.png"))
    assert sprite.shape == (4 * SMALL_SIDE, 4 * SMALL_SIDE, 3)
    centres = sprite[SMALL_SIDE // 2 :: SMALL_SIDE, SMALL_SIDE // 2 :: SMALL_SIDE].reshape(-1, 3)[:10]
    np.testing.assert_array_equal(centres, colours[:10])


def test_fields_of_the_projector_exist(problem_lines):
    (line,) = problem_lines(overrides=["train_config.projector_fields=usr_id"])
    assert line.startswith("train_config.projector_fields[0]: no input field named 'usr_id'; ")
