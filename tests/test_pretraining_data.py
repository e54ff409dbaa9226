"""Data sets of pre-training: tables, classes, what is held out, and what is refused."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from pretraining_helpers import LABELLED, config_of, make_pictures, pipeline_of
from sklearn.neighbors import KNeighborsClassifier

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError, DataError
from easyrec_mm.evaluation.neighbours import knn_accuracy, mean_precision_at, nearest, recall_at
from easyrec_mm.pretraining.tables import prepared


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("tints"))


def tables(pipeline):
    config = pipeline.config
    return [pq.read_table(path).to_pylist() for path in (config.train_input_path, config.eval_input_path)]


def rows_of(data):
    return [line.split(",") for line in (data / "tints.csv").read_text().splitlines()[1:]]


def test_texts_are_numbered_and_items_are_held_out_by_their_pictures(data, tmp_path):
    pipeline = pipeline_of(data, tmp_path / "a")
    assert pipeline.config.pretrain_config.data_sets[0].num_class == 3
    train, held_out = tables(pipeline)
    rank = {"blue": 1, "green": 2, "red": 3}
    expected = {f"{data}/{path}": rank[tint] for path, _, tint, _ in rows_of(data)}
    assert {row["path"]: row["class_of_tints"] for row in train + held_out} == expected
    assert not {row["path"] for row in train} & {row["path"] for row in held_out}
    assert 0.15 < len(held_out) / 90 < 0.45
    (data / "reversed.csv").write_text("\n".join([*(data / "tints.csv").read_text().splitlines()[:1],
                                       *(data / "tints.csv").read_text().splitlines()[:0:-1]]) + "\n")  # fmt: skip
    other = pipeline_of(data, tmp_path / "b", LABELLED.replace("tints.csv", "reversed.csv"))
    assert {row["path"] for row in tables(other)[1]} == {row["path"] for row in held_out}


def test_tables_are_not_written_again(data, tmp_path):
    pipeline = pipeline_of(data, tmp_path)
    path = tmp_path / "m" / "pretrain_data" / "train.parquet"
    status = path.stat()
    written = load_pipeline(config_of(data, tmp_path))
    assert prepared(written).config == pipeline.config
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert path.stat().st_ino == status.st_ino


def test_weights_repeat_the_items_of_a_data_set(data, tmp_path):
    second = LABELLED.replace('"tints"', '"numbers"').replace('"tint"', '"number"')
    pretrain = LABELLED.replace("%(more)s", "weight: 2") + second.replace("%(more)s", "weight: 5")
    train, _ = tables(pipeline_of(data, tmp_path, pretrain))
    counts = {name: sum(row[f"class_of_{name}"] > 0 for row in train) for name in ("tints", "numbers")}
    assert counts["numbers"] == round(2.5 * counts["tints"])
    assert all((row["class_of_tints"] > 0) != (row["class_of_numbers"] > 0) for row in train)


def test_a_file_of_held_out_items(data, tmp_path):
    lines = (data / "tints.csv").read_text().splitlines()
    (data / "some.csv").write_text("\n".join([lines[0], *lines[1:31]]) + "\n")
    more = f'eval_input_path: "{data}/some.csv"'
    train, held_out = tables(pipeline_of(data, tmp_path, more=more))
    assert (len(train), len(held_out)) == (90, 30)


def changed(data, name, change):
    lines = (data / "tints.csv").read_text().splitlines()
    (data / name).write_text("\n".join(change(lines)) + "\n")
    return LABELLED.replace("tints.csv", name)


BY_NUMBER = LABELLED.replace('"tint"', '"number"')
SECOND = LABELLED.replace('"tints"', '"other"')
REFUSED = {
    "range": (
        lambda d: BY_NUMBER.replace("%(more)s", "num_class: 2"),
        r"data_sets\[0\].label: column 'number' is 2 in row 3 of the data, which is not between 0 and 1",
    ),
    "number of texts": (
        lambda d: LABELLED.replace("%(more)s", "num_class: 4"),
        r"data_sets\[0\].num_class: 4, but column 'tint' has 3 different texts",
    ),
    "no such column": (
        lambda d: LABELLED.replace('"tint"', '"tnit"'),
        r"data_sets\[0\].input_path: .*tints.csv has no column 'tnit'; did you mean 'tint'\?",
    ),
    "no label in a row": (
        lambda d: changed(d, "empty.csv", lambda lines: [*lines, "1.png,x,,1"]),
        r"column 'tint' is empty in 1 rows, first in row 91 of the data",
    ),
    "one class": (
        lambda d: changed(d, "one.csv", lambda lines: [lines[0], *[line for line in lines if ",red," in line]]),
        r"all items have the class 'red' in column 'tint', which teaches nothing",
    ),
    "sizes under one head": (
        lambda d: BY_NUMBER + changed(d, "less.csv", lambda lines: [x for x in lines if not x.endswith(",2")])
        .replace('"tints"', '"other"').replace('"tint"', '"number"').replace("%(more)s", 'head: "tints"'),
        r"data_sets\[1\].head: label spaces of different sizes under one head: 'tints' has 3 classes, 'other' has 2",
    ),
    "texts under one head": (
        lambda d: LABELLED + changed(d, "less.csv", lambda lines: [x for x in lines if ",red," not in x])
        .replace('"tints"', '"other"').replace("%(more)s", 'head: "tints"'),
        r"label spaces of different sizes under one head: 'other' has 2 classes, 'tints' 3; only one of them has 'red'",
    ),
    "few held out": (
        lambda d: changed(d, "few.csv", lambda lines: lines[:7]),
        r"held-out items of 'tints' are too few for 5 neighbours each; give 6 or more",
    ),
    "no file": (lambda d: LABELLED.replace("tints.csv", "nothing.csv"), r"'.*nothing.csv' matches no file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_data(data, tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        pipeline_of(data, tmp_path, make(data))


REFUSED_CONFIGS = {
    "no label": (LABELLED.replace(' label: "tint"', ""), r"data_sets\[0\].label: is missing"),
    "head": (LABELLED + SECOND.replace("%(more)s", 'head: "tins"'), r"head: no data set with a head of its own named"),
    "sizes": (
        LABELLED.replace("%(more)s", "num_class: 3") + SECOND.replace("%(more)s", 'head: "tints" num_class: 4'),
        r"data_sets\[1\].num_class: 4, but 'tints', whose head it shares, has 3 classes",
    ),
    "twice": (LABELLED + LABELLED, "a second data set named 'tints'"),
    "loss": (LABELLED.replace("%(more)s", "losses { weight: 2 }"), r"losses\[0\]: does not set a loss; choose one of"),
    "text": (LABELLED + "contrastive {}", "PICTURE_TEXT needs a feature group of an ImgFeature and one of a TextF"),
    "views": (LABELLED + "contrastive { pairs: VIEWS }", "VIEWS needs an ImgFeature and img_model.augmentation"),
}


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_refused_configs(data, tmp_path, case):
    pretrain, message = REFUSED_CONFIGS[case]
    with pytest.raises(ConfigError, match=message):
        load_pipeline(config_of(data, tmp_path, pretrain))


def test_classes_of_one_item_are_noted(data, tmp_path):
    pretrain = changed(data, "single.csv", lambda lines: [*lines, "1.png,x,white,1"])
    (note,) = [note for note in pipeline_of(data, tmp_path, pretrain).notes if "one item" in note]
    assert note.endswith("'white'")


def test_commands_of_rankings_refuse_the_config(data, tmp_path, capsys):
    assert main(["train", "--pipeline_config", config_of(data, tmp_path)]) == 1
    assert re.search(r"pretrain_config: train takes the config of a ranking", capsys.readouterr().err)


def test_pictures_that_vanished_stop_the_training(data, tmp_path, capsys):
    pretrain = LABELLED.replace('pictures: "%(data)s"', 'pictures: "%(data)s/gone"')
    assert main(["pretrain", "--pipeline_config", config_of(data, tmp_path, pretrain)]) == 1
    assert re.search(r"of the first \d+ pictures cannot be read", capsys.readouterr().err)


def test_metrics_of_neighbours():
    rng = np.random.default_rng(0)
    vectors, classes = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 6, 39)
    classes = np.append(classes, 99)  # alone in its class
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    recalls, precisions, votes = [], [], []
    for i in range(40):
        order = [j for j in np.argsort(-(unit @ unit[i]), kind="stable") if j != i]
        others = np.delete(np.arange(40), i)
        same = [classes[j] == classes[i] for j in order]
        if sum(same):
            recalls.append(any(same[:2]))
            n = min(sum(same), 5)
            precisions.append(sum(same[:n]) / n)
        model = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(vectors[others], classes[others])
        votes.append(model.predict(vectors[i : i + 1])[0] == classes[i])
    neighbours = nearest(vectors, 7)
    assert recall_at(classes, neighbours, 2) == pytest.approx(np.mean(recalls))
    assert mean_precision_at(classes, neighbours, 5) == pytest.approx(np.mean(precisions))
    assert knn_accuracy(classes, neighbours, 1) == pytest.approx(np.mean(votes))


def test_most_votes_win_and_the_nearest_of_equal_ones():
    classes = np.array([0, 1, 1, 0, 2])
    assert knn_accuracy(classes, np.array([[1, 2, 3], [3, 2, 4], [1, 3, 0], [4, 0, 1], [0, 1, 2]]), 3) == 0.0
    assert knn_accuracy(np.array([0, 0, 1]), np.array([[1, 2], [0, 2], [0, 1]]), 2) == pytest.approx(2 / 3)
