"""Trainings that go on from yesterday's model with today's vocabularies: what is known keeps its rows."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from training_helpers import Training, assert_same_values, optimizer

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import write_config
from easyrec_mm.runs import checkpoint_parts
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.training.warm_start import start_from_checkpoint

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")

USER = '"user" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 3'
ITEM = '"item" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 3 per_group: true'
CAT = '"cat" feature_type: IdFeature num_buckets: 2 embedding_dim: 3 per_group: true'
GROUP = 'feature_names: ["user", "item", "price"] }'
WIDE = ' feature_groups { group_name: "wide" feature_names: "user" wide_deep: WIDE }'
CATEGORY = 'category_feature: "cat"'
AVERAGED = optimizer(more="use_moving_average: true moving_average_decay: 0.9")

YESTERDAY = ["u1", "u2", "u3", "u4"], ["i0", "i1", "i2", "i3", "i4"], 2
# u2 and i3 are gone, u5 and i6 are new, and what stays has moved.
TODAY = ["u5", "u3", "u1", "u4"], ["i6", "i4", "i0", "i1", "i2"], 4
STEP = 50


def listed(words):
    return f"vocab_list: {json.dumps(words)}"


def training(data, folder, words, train="num_epochs: 1", user="", optimizers=AVERAGED):
    """Of an id with numbers for the logits, a table that an id and tags share, and a category in the image tower."""
    users, items, num_cats = words
    of_items = f'{listed(items)} embedding_dim: 3 embedding_name: "items"'
    changes = {
        USER: f'"user" feature_type: IdFeature {user or listed(users)} embedding_dim: 3',
        ITEM: f'"item" feature_type: IdFeature {of_items} per_group: true }} '
        f'features {{ feature_name: "tags" input_names: "item" feature_type: TagFeature separator: ";" {of_items}',
        CAT: CAT.replace("num_buckets: 2", f"num_buckets: {num_cats}"),
        GROUP: f'feature_names: ["user", "item", "price", "tags", "cat"] }}{WIDE}',
    }
    return Training(data, folder, CATEGORY, train=train, optimizers=optimizers, changes=changes)


def save(training, step):
    return Checkpoints(str(training.model_dir)).save(step, training.trainer.state.values([]))


def fill(training):
    """Random weights and averages, rows that were used some time ago, and a checkpoint of them."""
    rng = np.random.default_rng(0)
    for name, variable in training.trainer.steps.variables().items():
        if name.endswith("last_used"):
            variable.assign(rng.integers(0, STEP, variable.shape))
        elif variable.dtype.is_floating:
            variable.assign(0.3 * np.abs(rng.normal(size=variable.shape)))
    training.trainer.steps.number.assign(STEP)
    save(training, STEP)
    write_config(training.pipeline.config, str(training.model_dir / "pipeline.config"))


@pytest.fixture(scope="module")
def yesterday(data, tmp_path_factory, backbone_of_three_stages):
    made = training(data, tmp_path_factory.mktemp("yesterday"), YESTERDAY)
    fill(made)
    return made


def started(yesterday, data, folder, words=TODAY, source=None, **settings):
    """Today's training before its first step, and what it says of its start."""
    source = source or yesterday.model_dir
    today = training(data, folder, words, f'num_epochs: 1 fine_tune_checkpoint: "{source}"', **settings)
    initial = today.values()
    config = today.pipeline.config.train_config
    report = start_from_checkpoint(today.model, config, today.trainer.steps.average)
    return today, initial, report.splitlines()


def predicted(training, data, step, folder):
    """(user, item) and logit of a click of each sample, by the checkpoint of that step."""
    arguments = ["--predict_input_path", f"{data}/one.txt", "--output", f"{folder}/{step}.csv"]
    arguments += ["--checkpoint_path", f"{training.model_dir}/model.ckpt-{step}", "--reserved_columns", "user,item,cat"]
    assert main(["predict", "--pipeline_config", training.pipeline.path, *arguments]) == 0
    with open(f"{folder}/{step}.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [((row["user"], row["item"]), float(row["logits_click"])) for row in rows]


def rows_of(words, before, initial, source):
    """The rows of a vocabulary, and of unknown values: those of the same text, else the initial ones."""
    taken = [source[before.index(word)] if word in before else initial[i] for i, word in enumerate(words)]
    return [*taken, source[-1]]


@pytest.mark.parametrize("slice_bytes", [checkpoint_parts.SLICE_BYTES, 24])
def test_known_values_keep_their_rows(yesterday, data, tmp_path, slice_bytes, monkeypatch):
    """Also if tables are read two rows at a time."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", slice_bytes)
    today, initial, report = started(yesterday, data, tmp_path)
    source = yesterday.values()
    expected = {**source}
    of_users, of_items = ("embedding/user", "embedding/user_wide"), ("embedding/items",)
    categories = {name for name in source if name.startswith("image/category/")} | {"embedding/cat"}
    for name in source:
        if name in of_users:
            expected[name] = rows_of(TODAY[0], YESTERDAY[0], initial[name], source[name])
        elif name in of_items:
            expected[name] = rows_of(TODAY[1], YESTERDAY[1], initial[name], source[name])
        elif name in categories:
            expected[name] = np.concatenate([source[name], initial[name][2:]])
    names = {name for name in source if "seed_generator" not in name}
    assert_same_values({n: today.values()[n] for n in names}, {n: expected[n] for n in names})
    assert len(categories) == 3
    assert {*of_users, *of_items} <= names
    assert {
        "  restored: embedding/user [5, 3]: 4 of 5 rows restored, 1 new, 1 of the checkpoint's 5 dropped",
        "  restored: embedding/items [6, 3]: 5 of 6 rows restored, 1 new, 1 of the checkpoint's 6 dropped",
        "  restored: embedding/cat [4, 3]: 2 of 4 rows restored, 2 new, 0 of the checkpoint's 2 dropped",
        "  restored: image/projection/bias [4]",
    } <= set(report)
    assert not [line for line in report if "not restored" in line or "not used" in line]


@pytest.mark.slow
def test_predictions_before_the_first_step_are_yesterdays(yesterday, data, tmp_path):
    """By the moving averages, which go on: of samples whose values are all known, or all unknown, on both days."""
    today, _, report = started(yesterday, data, tmp_path)
    number = len(today.trainer.steps.average)
    assert report[-1] == f"  moving averages that go on: {number} of {number}; the others start at the weights"
    save(today, 0)
    before, after = predicted(yesterday, data, STEP, tmp_path), predicted(today, data, 0, tmp_path)
    moved = {"u2", "u5", "i3", "i6"}
    kept = [i for i, (ids, _) in enumerate(before) if not moved & set(ids)]
    assert 5 < len(kept) < len(before)
    assert {before[i][0][0] for i in kept} >= {"u1", "u3", "u8"}
    assert [after[i] for i in kept] == [before[i] for i in kept]
    assert all(after[i] != before[i] for i in range(len(before)) if i not in kept)


def test_new_rows_have_their_weights_as_averages(yesterday, data, tmp_path):
    today, initial, _ = started(yesterday, data, tmp_path)
    today.trainer.steps.average.assign_to_variables(tf.constant(7, tf.int64))
    np.testing.assert_array_equal(today.values()["embedding/user"][0], initial["embedding/user"][0])
    np.testing.assert_array_equal(today.values()["embedding/cat"][2:], initial["embedding/cat"][2:])


@pytest.mark.slow
def test_another_number_of_hash_buckets_keeps_no_row(yesterday, data, tmp_path):
    hashed = training(data, tmp_path / "hashed", YESTERDAY, user="hash_bucket_size: 12")
    fill(hashed)
    today, initial, report = started(hashed, data, tmp_path / "today", user="hash_bucket_size: 20")
    np.testing.assert_array_equal(today.values()["embedding/user"], initial["embedding/user"])
    reason = "hash_bucket_size was 12, is 20: values have other rows with it"
    assert f"  not restored: embedding/user [20, 3]: {reason}" in report
    today, initial, report = started(hashed, data, tmp_path / "words", user='vocab_list: ["u1"]')
    assert "its rows are chosen by a vocabulary, were chosen by hash_bucket_size" in "\n".join(report)


# --- Checkpoints of earlier versions, which do not contain their vocabularies


@pytest.fixture
def earlier(yesterday, tmp_path):
    """A model_dir of an earlier version."""
    folder = tmp_path / "earlier"
    values = yesterday.trainer.state.values([])
    del values["progress/tables"]
    Checkpoints(str(folder)).save(STEP, values)
    return folder


def test_an_earlier_checkpoint_has_the_vocabularies_of_its_config(earlier, yesterday, data, tmp_path):
    today, _, report = started(yesterday, data, tmp_path / "today", source=earlier)
    expected, _, _ = started(yesterday, data, tmp_path / "expected")
    assert_same_values(today.values(), expected.values())
    assert any("1 new, 1 of the checkpoint's 5 dropped" in line for line in report)


@pytest.mark.slow
def test_an_earlier_checkpoint_with_a_vocabulary_file(data, tmp_path):
    """It holds a checksum of the values: the file that its config names must still have them."""
    words, file = ["u1", "u2", "u3", "u4"], tmp_path / "users.txt"
    file.write_text("\n".join(words))
    before = training(data, tmp_path / "before", YESTERDAY, user=f'vocab_file: "{file}"')
    fill(before)
    values = before.trainer.state.values([])
    del values["progress/tables"]
    Checkpoints(str(before.model_dir)).save(STEP, values)
    other = tmp_path / "today.txt"
    other.write_text("\n".join(TODAY[0]))
    today, initial, report = started(before, data, tmp_path / "found", user=f'vocab_file: "{other}"')
    source = before.values()["embedding/user"]
    expected = rows_of(TODAY[0], words, initial["embedding/user"], source)
    np.testing.assert_array_equal(today.values()["embedding/user"], expected)
    # Overwritten since: rows of a table of the same size are taken by position, and the report says so.
    file.write_text("\n".join(TODAY[0]))
    today, _, report = started(before, data, tmp_path / "lost", user=f'vocab_file: "{other}"')
    np.testing.assert_array_equal(today.values()["embedding/user"], source)
    unknown = "by position, because the vocabulary of the checkpoint is unknown"
    assert f"  restored: embedding/user [5, 3]: {unknown}" in report
    assert "  not restored: embedding/cat [4, 3]: the checkpoint's embedding/cat is [2, 3]" in report


@pytest.mark.slow
def test_a_vocabulary_file_that_is_overwritten_each_day(data, tmp_path, capsys):
    """Two whole trainings: the checkpoint of the first contains its vocabulary, and so does that of the second."""
    file = tmp_path / "users.txt"
    file.write_text("\n".join(YESTERDAY[0]))
    first = training(data, tmp_path / "first", YESTERDAY, user=f'vocab_file: "{file}"').run()
    file.write_text("\n".join(TODAY[0]))
    start = f'num_epochs: 1 fine_tune_checkpoint: "{first.model_dir}"'
    second = training(data, tmp_path / "second", TODAY, start, user=f'vocab_file: "{file}"').run()
    assert "restored: embedding/user [5, 3]: 4 of 5 rows restored, 1 new, 1 of" in capsys.readouterr().out
    source, begun = first.values()["embedding/user"], second.history[0]["embedding/user"]
    np.testing.assert_array_equal(begun[1:], source[[2, 0, 3, 4]])
    # It is a training of its own from there on, which can be stopped and evaluated.
    assert main(["eval", "--pipeline_config", second.pipeline.path, "--eval_input_path", f"{data}/one.txt"]) == 0
