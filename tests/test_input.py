"""From files to batches: order, position, pictures, what is left out and what is said of it."""

import gzip
import json
import os
import threading
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import group_line, schema
from feature_helpers import raw_feature
from PIL import Image as Pillow

from easyrec_mm.data import bad_records as bad_records_module
from easyrec_mm.data.bad_records import MIN_COUNT, NUM_SHOWN, BadRecord, BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.errors import DataError
from easyrec_mm.formats.data_files import find_files
from easyrec_mm.formats.gzip_files import first_truncated
from easyrec_mm.formats.typed_groups import TextGroup
from easyrec_mm.protos.data_pb2 import DatasetConfig

VALUES = {"user": "string", "age": "int64", "weight": "float32"}
FEATURES = [raw_feature("age", ("age",), 1)]


def small_schema(uses_image=False, sample_weight=None):
    return schema(
        {"click": "int64", "seconds": "float32"},
        VALUES,
        FEATURES,
        tasks=[("click", "binary", 1), ("seconds", "value", 1)],
        uses_image=uses_image,
        sample_weight=sample_weight,
    )


def line(users, picture="", clicks=None, size=None):
    """A group of these users, whose ages, weights and seconds are their numbers within the group."""
    count = len(users)
    clicks = clicks or [str(i % 2) for i in range(count)]
    return group_line(
        [clicks, [f"{i}.5" for i in range(count)]], [[u, str(i), f"{i}.25"] for i, u in enumerate(users)], picture, size
    )


def write(path, lines, compress=False):
    content = b"".join(one + b"\n" for one in lines)
    path.write_bytes(gzip.compress(content) if compress else content)
    return path


def input_of(path, records=None, schema=None, training=False, labels=None, kept=("user",), **settings):
    data = DatasetConfig(**{"input_type": DatasetConfig.GroupRTPInput, "num_parallel_calls": 2, **settings})
    records = records or BadRecords(None, 1.0)
    return Input(data, schema or small_schema(), str(path), "train_input_path", records, training, labels, kept)


def users(batches):
    """Of each batch, the users in the order of its samples."""
    return [[user.decode() for user in batch.kept_fields["user"].numpy()] for batch in batches]


def flat(batches):
    return [user for batch in batches for user in batch]


# Order. The user of a group of one sample says file and row.

LENGTHS = {"a": 5, "b": 0, "c": 1, "d": 7, "e": 2, "f": 4}
IN_ORDER = [f"{name}{row}" for name, length in LENGTHS.items() for row in range(1, length + 1)]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Files of different lengths, one empty, one compressed and not named so."""
    folder = tmp_path_factory.mktemp("several")
    for name, length in LENGTHS.items():
        write(folder / name, [line([f"{name}{row}"]) for row in range(1, length + 1)], compress=name == "d")
    return folder


@pytest.mark.parametrize("training", [False, True])
def test_without_shuffling_the_order_is_that_of_the_files(several, training):
    one = input_of(several / "*", training=training, shuffle=not training, batch_size=4)
    batches = list(one.batches(num_epochs=2))
    expected = IN_ORDER * 2
    assert users(batches) == [expected[i : i + 4] for i in range(0, len(expected), 4)]
    assert [batch.num_groups for batch in batches] == [4] * 9 + [2]
    # The epoch of a batch is that of its last group.
    assert [batch.epoch for batch in batches] == [0] * 4 + [1] * 6


def test_texts_are_given_with_their_file_and_row(several):
    found = list(input_of(several / "*").source.texts())
    assert [f"{os.path.basename(file)}{row}" for file, row, _ in found] == IN_ORDER
    for name, (_, _, group) in zip(IN_ORDER, found, strict=True):
        values = {"click": ["0"], "seconds": ["0.5"], "user": [name], "age": ["0"], "weight": ["0.25"]}
        assert group == TextGroup(1, b"", values)


@pytest.fixture(scope="module")
def shuffled(several):
    return input_of(several / "*", training=True, shuffle=True, shuffle_buffer_size=6, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def three_epochs(shuffled):
    """Their 15 batches, of which the last is smaller."""
    return list(shuffled.batches(num_epochs=3))


def test_shuffling_is_a_permutation_in_each_epoch_and_differs_between_epochs(three_epochs):
    order = flat(users(three_epochs))
    epochs = [order[i : i + len(IN_ORDER)] for i in range(0, len(order), len(IN_ORDER))]
    assert [sorted(epoch) for epoch in epochs] == [IN_ORDER] * 3
    assert len({tuple(epoch) for epoch in [IN_ORDER, *epochs]}) == 4
    # Files are shuffled as well, not only the lines within the buffer.
    assert len({epoch[0][0] for epoch in epochs}) > 1


def test_shuffling_is_a_function_of_the_seed(several, shuffled, three_epochs):
    order = users(three_epochs)
    assert users(shuffled.batches(num_epochs=3)) == order

    def with_seed(seed):
        settings = {"shuffle_buffer_size": 6, "batch_size": 4, "seed": seed}
        return users(input_of(several / "*", training=True, shuffle=True, **settings).batches(num_epochs=3))

    assert with_seed(3) == order
    assert with_seed(4) != order


def test_one_epoch_and_no_end_begin_like_several(shuffled, three_epochs):
    order = users(three_epochs)
    first = users(shuffled.batches(num_epochs=1))
    assert flat(first) == flat(order)[: len(IN_ORDER)]
    assert users(islice(shuffled.batches(num_epochs=0), 14)) == order[:14]


@pytest.mark.parametrize(("num_epochs", "skips"), [(3, (1, 5, 14)), (0, (9,))])
def test_skipping_goes_on_as_if_it_had_never_stopped(shuffled, three_epochs, num_epochs, skips):
    whole = three_epochs if num_epochs else three_epochs[:14]  # without end the last one is no smaller
    for num_skipped in skips:
        rest = list(islice(shuffled.batches(num_epochs, num_skipped), len(whole) - num_skipped))
        assert users(rest) == users(whole[num_skipped:])
        assert [batch.epoch for batch in rest] == [batch.epoch for batch in whole[num_skipped:]]
    if num_epochs:
        assert list(shuffled.batches(num_epochs, len(whole))) == []


def test_drop_remainder_drops_the_last_smaller_batch_of_all_epochs(several):
    settings = {"drop_remainder": True, "shuffle": True, "batch_size": 4}
    training = input_of(several / "*", training=True, **settings)
    # 2 x 19 groups: the remainder is of both epochs together, and only it is dropped.
    batches = users(training.batches(num_epochs=2))
    assert [len(batch) for batch in batches] == [4] * 9
    assert users(training.batches(num_epochs=2, num_skipped=3)) == batches[3:]
    evaluation = input_of(several / "*", training=False, **settings)
    assert flat(users(evaluation.batches())) == IN_ORDER


def test_evaluation_has_its_own_batch_size(several):
    settings = {"batch_size": 4, "eval_batch_size": 7}
    assert input_of(several / "*", training=True, **settings).batch_size == 4
    evaluation = input_of(several / "*", **settings)
    assert evaluation.batch_size == 7
    assert [batch.num_groups for batch in evaluation.batches()] == [7, 7, 5]


def test_nothing_is_read_ahead_where_prefetch_size_is_0(several):
    assert flat(users(input_of(several / "*", prefetch_size=0, batch_size=2).batches())) == IN_ORDER


def test_the_fingerprint_changes_with_files_and_settings(tmp_path):
    first, second = (write(tmp_path / name, [line(["x"])]) for name in "ab")
    settings = {"batch_size": 4, "shuffle": True, "shuffle_buffer_size": 8, "seed": 1}

    def fingerprint(path, **changes):
        return input_of(path, training=True, **{**settings, **changes}).fingerprint()

    start = fingerprint(first)
    assert fingerprint(first) == start
    assert fingerprint(first, prefetch_size=9, num_parallel_calls=1) == start  # these change no batch
    changed = [
        fingerprint(second),
        fingerprint(f"{first},{second}"),
        fingerprint(f"{second},{first}"),
        *(fingerprint(first, **{name: value + 1}) for name, value in settings.items() if name != "shuffle"),
        fingerprint(first, shuffle=False),
    ]
    write(first, [line(["xy"])])
    changed.append(fingerprint(first))
    assert len({start, *changed}) == len(changed) + 1


# Finding and reading files.


def test_globs_and_lists(several, tmp_path):
    def names(path):
        return [os.path.basename(file) for file in find_files(path, "train_input_path")]

    assert names(f"{several}/*") == list("abcdef")
    assert names(f"{several}/[bd]") == ["b", "d"]
    # In the order given, each file once.
    assert names(f" {several}/e , {several}/[ac],,{several}/*") == list("eacbdf")


@pytest.mark.parametrize("path", ["", " ", ",", " , "])
def test_no_path(path):
    with pytest.raises(DataError, match=r"^eval_input_path: is not set; give the files to read$"):
        find_files(path, "eval_input_path")


@pytest.mark.parametrize("missing", ["missing", "none*", "no/folder/*"])
def test_a_path_that_matches_nothing(several, missing):
    path = f"{several}/{missing}"
    with pytest.raises(DataError) as caught:
        find_files(f"{several}/a,{path}", "train_input_path")
    assert str(caught.value) == f"train_input_path: '{path}' matches no file; check the path"


def test_a_folder(several):
    with pytest.raises(DataError) as caught:
        find_files(f"{several}/", "train_input_path")
    assert str(caught.value).endswith(f"is a folder; name its files, as in '{several}/*'")
    assert str(caught.value).startswith(f"train_input_path: '{several}")


def test_a_folder_among_the_files_of_a_glob(tmp_path):
    write(tmp_path / "a", [line(["x"])])
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match=r"train_input_path: '.*/inner' is a folder; name its files"):
        find_files(f"{tmp_path}/*", "train_input_path")


def test_a_storage_that_nobody_knows():
    with pytest.raises(DataError, match="train_input_path: 'storage://bucket/part' "):
        find_files("storage://bucket/part", "train_input_path")


def test_a_file_that_cannot_be_opened(tmp_path):
    write(tmp_path / "a", [line(["x"])])
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"/b: cannot be read: .*No such file") as caught:
        input_of(tmp_path / "*")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    write(tmp_path / "a", [line(["x"])]).chmod(0)
    with pytest.raises(DataError, match=r"/a: cannot be read: .*[Pp]ermission denied"):
        input_of(tmp_path / "a")


def test_only_empty_files(tmp_path):
    paths = [write(tmp_path / name, [], compress=name == "b") for name in "ab"]
    with pytest.raises(DataError) as caught:
        input_of(f"{paths[0]},{paths[1]}")
    assert str(caught.value) == f"{paths[0]}, {paths[1]}: no line of data; give files that hold groups"


def test_too_few_columns_for_selected_cols(tmp_path):
    path = write(tmp_path / "a", [b"0|0.5|features|picture|1"] * 3)
    with pytest.raises(DataError) as caught:
        input_of(path)
    assert str(caught.value) == (
        f"{path}: lines have 1 column(s), and data_config.selected_cols reads column 4; "
        "check selected_cols and rtp_separator ';'"
    )


def test_the_number_of_columns_is_that_of_most_lines(tmp_path):
    records = BadRecords(None, 1.0)
    path = write(tmp_path / "a", [b"#;a;header;of;six;columns", line(["x"]), line(["y"]), line(["z"])])
    one = input_of(path, records)
    assert users(one.batches()) == [["x", "y", "z"]]
    assert records.counts["bad_groups"] == 1


def random_lines(count):
    rng = np.random.default_rng(0)
    return [line([rng.bytes(8).hex()]) for _ in range(count)]


@pytest.mark.parametrize("num_lines", [50, 3000])
def test_a_truncated_gzip_is_named(tmp_path, num_lines):
    # TensorFlow takes such a file for one that ends there.
    path = write(tmp_path / "b", random_lines(num_lines), compress=True)
    path.write_bytes(path.read_bytes()[:-200])
    write(tmp_path / "a", random_lines(10))
    with pytest.raises(DataError) as caught:
        list(input_of(f"{tmp_path}/*", batch_size=500).batches())
    expected = f"{path}: cannot be read to its end: the gzip file is truncated; write it again"
    assert str(caught.value) == expected


def test_training_without_end_stops_at_a_truncated_gzip(tmp_path):
    path = write(tmp_path / "a", random_lines(50), compress=True)
    path.write_bytes(path.read_bytes()[:-9])
    batches = input_of(path, training=True, batch_size=5).batches(num_epochs=0)
    with pytest.raises(DataError, match=r"/a: .*truncated"):
        for _ in islice(batches, 100_000):
            pass


def test_a_damaged_gzip_is_named(tmp_path):
    # At its start, where columns are counted, and behind, where batches are read.
    for position in (20, -5000):
        path = write(tmp_path / "a", random_lines(3000), compress=True)
        content = bytearray(path.read_bytes())
        content[position] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"/a: cannot be read to its end: inflate\(\) failed") as caught:
            list(input_of(path, batch_size=500).batches())
        assert "}}" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_which_gzip_file_breaks_off(tmp_path):
    whole = gzip.compress(random_lines(1)[0] * 5000)
    contents = {
        "whole": whole,
        "several parts": whole + gzip.compress(b"") + whole,
        "damaged": whole[:50] + b"\xff\xff" + whole[52:],
        "something behind": whole + b"something",
        "without its end": whole[:-1],
        "only a start": whole[:5],
        "without the end of its second part": whole + whole[:-8],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    def find(*names, stop=False):
        event = threading.Event()
        if stop:
            event.set()
        return first_truncated([str(tmp_path / name) for name in names], event)

    found = {name: find(name) for name in contents}
    assert {name for name, file in found.items() if file} == {
        "without its end", "only a start", "without the end of its second part"
    }  # fmt: skip
    assert find("missing", "whole", "only a start", "without its end") == str(tmp_path / "only a start")
    assert find("only a start", stop=True) is None


def test_a_file_that_vanishes_is_named(tmp_path):
    paths = [write(tmp_path / name, [line(["x"])] * 200) for name in "ab"]
    one = input_of(f"{paths[0]},{paths[1]}", batch_size=10, prefetch_size=1)
    paths[1].unlink()
    with pytest.raises(DataError, match=r"/b: cannot be read to its end: .*No such file"):
        list(one.batches())


# What a batch holds.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files 0 to 4 of one colour each, which is ten times their number."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        Pillow.new("RGB", (5, 4), (10 * i,) * 3).save(folder / f"{i}.png")
    return folder


def colours(batch):
    """Of each picture of the batch its colour."""
    pixels = batch.pixels.numpy()
    assert pixels.shape[1:] == (4, 5, 3)
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return pixels[:, 0, 0, 0].tolist()


def test_each_picture_stands_once_in_a_batch_and_every_sample_sees_its_own(tmp_path, pictures, monkeypatch):
    shown = [3, 1, 3, 0, 3, 1, 2, 2, 4]
    sizes = [2, 1, 3, 1, 2, 2, 1, 3, 1]
    groups = [[f"{i}:{n}"] * size for i, (n, size) in enumerate(zip(shown, sizes, strict=True))]
    path = write(tmp_path / "a", [line(users, f"{n}.png") for users, n in zip(groups, shown, strict=True)])
    loaded = []
    load = PictureLoader.load
    monkeypatch.setattr(PictureLoader, "load", lambda self, paths: loaded.append(list(paths)) or load(self, paths))
    one = input_of(path, schema=small_schema(uses_image=True), batch_size=6, image_root=str(pictures))
    batches = list(one.batches())
    # Rows of pixels in the order in which the pictures first appear.
    assert sorted(loaded) == sorted([[b"3.png", b"1.png", b"0.png"], [b"2.png", b"4.png"]])
    assert [colours(batch.batch) for batch in batches] == [[30, 10, 0], [20, 40]]
    for batch in batches:
        of_sample = [colours(batch.batch)[row] for row in batch.batch.sample_image.numpy()]
        assert of_sample == [10 * int(user.split(":")[1]) for user in flat(users([batch]))]
        assert batch.batch.sample_image.dtype == tf.int32
    assert [batch.batch.num_images for batch in batches] == [3, 2]
    assert [batch.batch.num_samples for batch in batches] == [11, 5]


def test_without_pictures_none_is_loaded(tmp_path):
    path = write(tmp_path / "a", [line(["x", "y"], "missing.png"), line(["z"], "missing.png")])
    records = BadRecords(None, 0.0)
    (batch,) = input_of(path, records).batches()
    assert batch.batch.pixels.shape == (0, 4, 5, 3)
    assert batch.batch.sample_image.numpy().tolist() == [0, 0, 0]
    assert records.counts["pictures"] == 0


def test_features_labels_weights_and_kept_fields_stand_side_by_side(tmp_path):
    bad = line(["bad"], clicks=["2"])
    lines = [line(["a", "b"], "p"), bad, line(["c"], "q", ["1"]), line(["d", "e", "f"], "p")]
    kept = ("group_size", "user", "img_path", "age", "seconds", "weight")
    one = input_of(write(tmp_path / "a", lines), schema=small_schema(sample_weight="weight"), kept=kept)
    (item,) = one.batches()
    batch = item.batch
    within = [0, 1, 0, 0, 1, 2]  # number of the sample in its group
    assert batch.features["age"].numpy()[:, 0].tolist() == within
    assert batch.labels["click"].numpy().tolist() == [0, 1, 1, 0, 1, 0]
    assert batch.labels["seconds"].numpy().tolist() == [i + 0.5 for i in within]
    assert batch.sample_weight.numpy().tolist() == [i + 0.25 for i in within]
    assert {name: value.numpy().tolist() for name, value in item.kept_fields.items()} == {
        "group_size": [2, 2, 1, 3, 3, 3],
        "user": [b"a", b"b", b"c", b"d", b"e", b"f"],
        "img_path": [b"p", b"p", b"q", b"p", b"p", b"p"],
        "age": within,
        "seconds": [i + 0.5 for i in within],
        "weight": [i + 0.25 for i in within],
    }
    assert list(item.kept_fields) == list(kept)
    assert item.num_groups == 4
    assert {batch.features["age"].dtype, batch.labels["click"].dtype, batch.sample_weight.dtype} == {tf.float32}


def test_a_label_can_be_the_weight(tmp_path):
    path = write(tmp_path / "a", [line(["a", "b", "c"])])
    (item,) = input_of(path, schema=small_schema(sample_weight="seconds")).batches()
    assert item.batch.sample_weight.numpy().tolist() == [0.5, 1.5, 2.5]


def test_for_prediction_label_columns_may_hold_anything(tmp_path):
    lines = [line(["a", "b"], clicks=["?"]), line(["c"], clicks=["9"] * 7), line(["d"], clicks=[""])]
    records = BadRecords(None, 0.0)
    (item,) = input_of(write(tmp_path / "a", lines), records, labels=()).batches()
    assert users([item]) == [["a", "b", "c", "d"]]
    assert item.batch.labels == {}
    assert item.batch.sample_weight.numpy().tolist() == [1.0] * 4
    assert records.counts["bad_groups"] == 0


def test_for_prediction_a_label_can_be_kept_and_is_then_checked(tmp_path):
    lines = [line(["a", "b"], clicks=["1", "0"]), line(["c"], clicks=["?"])]
    records = BadRecords(None, 1.0)
    (item,) = input_of(write(tmp_path / "a", lines), records, labels=(), kept=("click", "user")).batches()
    assert item.kept_fields["click"].numpy().tolist() == [1, 0]
    assert item.batch.labels == {}
    assert records.counts["bad_groups"] == 1


def test_batches_fit_their_spec(tmp_path, pictures):
    path = write(tmp_path / "a", [line(["a", "b"], "1.png"), line(["c"], "2.png"), line(["d"], size=5)])
    one = input_of(path, schema=small_schema(uses_image=True), batch_size=1, image_root=str(pictures))
    count = tf.function(lambda batch: tf.shape(batch.sample_image)[0], input_signature=[one.spec()])
    # The last batch has no sample at all.
    assert [int(count(batch.batch)) for batch in one.batches()] == [2, 1, 0]


def test_reading_can_be_left_early(tmp_path, pictures):
    path = write(tmp_path / "a", [line([f"u{i}"], f"{i % 5}.png") for i in range(200)])
    settings = {"batch_size": 2, "prefetch_size": 3, "image_root": str(pictures)}
    batches = input_of(path, schema=small_schema(uses_image=True), **settings).batches(num_epochs=0)
    assert users(islice(batches, 2)) == [["u0", "u1"], ["u2", "u3"]]
    batches.close()


# Bad groups and pictures.


def read_records(path):
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def test_bad_groups_and_pictures_are_written_once_with_file_and_row(tmp_path, pictures):
    first = [line(["a"], "1.png"), line(["b"], "1.png", size=2), line(["c", "d"], "missing.png"), b"", line(["e"], "é")]
    second = [line(["f"], "2.png"), line(["g", "h"], "missing.png", ["1", "x"]), line(["i"], "missing.png")]
    write(tmp_path / "first", first)
    write(tmp_path / "second", second, compress=True)
    output = tmp_path / "model" / "bad_records.jsonl"
    records = BadRecords(str(output), 1.0)
    settings = {"batch_size": 3, "shuffle": False, "image_root": str(pictures)}
    one = input_of(
        f"{tmp_path}/first,{tmp_path}/second", records, small_schema(uses_image=True), training=True, **settings
    )
    batches = list(one.batches(num_epochs=3))
    # The batches go on without the bad groups, and with grey in place of the bad pictures.
    assert flat(users(batches)) == ["a", "c", "d", "e", "f", "i"] * 3
    assert [colours(batch.batch) for batch in batches[:3]] == [[10, 128], [128, 20], [128, 10]]
    assert [batch.num_groups for batch in batches] == [3] * 8
    first, second = f"{tmp_path}/first", f"{tmp_path}/second"
    no_file = "cannot be read: No such file or directory"
    expected = {
        ("group", first, 2, "column 'click'", "1 entries, group size 2"),
        ("group", first, 4, "line", "1 columns, not 5"),
        ("group", second, 2, "column 'click'", "sample 1: 'x' is not a number"),
        ("picture", first, 3, "missing.png", no_file),
        ("picture", first, 5, "é", no_file),
        ("picture", second, 3, "missing.png", no_file),
    }
    written = [
        tuple(record[key] for key in ("kind", "file", "row", "where", "problem")) for record in read_records(output)
    ]
    assert Counter(written) == Counter(expected)
    # Counted each time they were met: per epoch 3 of 8 groups; pictures once a batch.
    assert records.counts == {"groups": 24, "bad_groups": 9, "pictures": 15, "bad_pictures": 9}


def test_a_bad_picture_of_several_groups_is_named_where_it_first_stands(tmp_path):
    lines = [line(["a"], "p", size=3), line(["b"], "q"), line(["c"], "p"), line(["d"], "p"), line(["e"], "q")]
    output = tmp_path / "bad_records.jsonl"
    one = input_of(write(tmp_path / "a", lines), BadRecords(str(output), 1.0), small_schema(uses_image=True))
    list(one.batches())
    # The group of row 1 is bad itself; what it names is not looked at.
    assert [(r["kind"], r["row"], r["where"]) for r in read_records(output)] == [
        ("group", 1, "column 'click'"), ("picture", 2, "q"), ("picture", 3, "p")
    ]  # fmt: skip


def test_a_picture_path_that_is_no_utf_8_is_written_readably(tmp_path):
    output = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(output), 1.0)
    path = write(tmp_path / "a", [line(["a"], "\udcff\udce9.png"), line(["b"], "a\x00b")])
    list(input_of(path, records, small_schema(uses_image=True)).batches())
    assert [record["where"] for record in read_records(output)] == ["\\xff\\xe9.png", "a\x00b"]
    records.summary().encode()


def test_a_batch_of_bad_groups_has_no_sample_and_the_next_goes_on(tmp_path, pictures):
    lines = [line(["a"], size=2), b"?", line(["b"], "3.png")]
    records = BadRecords(None, 1.0)
    one = input_of(
        write(tmp_path / "a", lines), records, small_schema(uses_image=True), batch_size=2, image_root=str(pictures)
    )
    batches = list(one.batches())
    assert users(batches) == [[], ["b"]]
    assert [colours(batch.batch) for batch in batches] == [[], [30]]
    assert [batch.num_groups for batch in batches] == [2, 1]
    assert records.counts == {"groups": 3, "bad_groups": 2, "pictures": 1, "bad_pictures": 0}


@pytest.mark.parametrize(("num_bad", "stops"), [(2, False), (3, True)])
def test_more_bad_groups_than_allowed_stop_at_the_end_of_the_data(tmp_path, num_bad, stops):
    path = write(tmp_path / "a", [b"?"] * num_bad + [line(["x"])] * (20 - num_bad))
    batches = input_of(path, BadRecords(None, 0.1), batch_size=4).batches()
    read = list(islice(batches, 5))  # all of them: before the end, so few are no share
    assert [batch.num_groups for batch in read] == [4] * 5
    if not stops:
        assert list(batches) == []
        return
    with pytest.raises(DataError, match=r"^3 of 20 groups cannot be used, more than data_config.max_bad_record_share"):
        next(batches)


def test_the_share_is_looked_at_when_an_epoch_ends(tmp_path):
    path = write(tmp_path / "a", [b"?"] + [line(["x"])] * 9)
    settings = {"batch_size": 2, "prefetch_size": 0, "shuffle": False}
    batches = input_of(path, BadRecords(None, 0.05), training=True, **settings).batches(num_epochs=0)
    assert [batch.num_groups for batch in islice(batches, 5)] == [2] * 5
    with pytest.raises(DataError, match=r"^2 of 12 groups cannot be used"):
        next(batches)


def test_going_on_within_a_later_epoch_is_no_end_of_an_epoch(tmp_path):
    path = write(tmp_path / "a", [b"?"] + [line(["x"])] * 9)
    settings = {"batch_size": 2, "prefetch_size": 0, "shuffle": False}
    batches = input_of(path, BadRecords(None, 0.2), training=True, **settings).batches(num_epochs=0, num_skipped=10)
    # The first batch read is the first of the third epoch, and half bad; the whole epoch is not.
    assert [batch.epoch for batch in islice(batches, 6)] == [2] * 5 + [3]


# BadRecords alone.


def record(row, kind="group", problem="is bad"):
    return BadRecord(kind, "part-0", row, "column 'click'", problem)


def test_the_share_counts_from_a_thousand_on():
    records = BadRecords(None, 0.01)
    records.add(MIN_COUNT - 1, 0, [record(row) for row in range(500)])
    with pytest.raises(DataError, match=f"^500 of {MIN_COUNT} groups cannot be used"):
        records.add(1, 0, [])


@pytest.mark.parametrize(
    ("share", "num_bad", "stops"), [(0.01, 10, False), (0.01, 11, True), (0.0, 1, True), (1.0, 1000, False)]
)
def test_the_share_itself_is_allowed(share, num_bad, stops):
    records = BadRecords(None, share)

    def add():
        records.add(1000, 0, [record(row) for row in range(num_bad)])

    if not stops:
        add()
        records.check_all()
        return
    with pytest.raises(DataError, match=rf"{num_bad} of 1000 groups .*max_bad_record_share \({share:g}\)"):
        add()


def test_groups_and_pictures_are_two_counts():
    records = BadRecords(None, 0.1)
    records.add(5000, 50, [record(row, "picture", "is missing") for row in range(20)])
    with pytest.raises(DataError, match=r"^20 of 50 pictures cannot be used"):
        records.check_all()
    assert records.counts == {"groups": 5000, "bad_groups": 0, "pictures": 50, "bad_pictures": 20}


def test_the_message_shows_the_first_ten_and_where_the_others_are(tmp_path):
    path = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(path), 0.1)
    records.add(10, 10, [record(100, "picture")])
    records.add(100, 0, [record(row) for row in range(30, 0, -1)])
    with pytest.raises(DataError) as caught:
        records.check_all()
    head, *shown, end = str(caught.value).split("\n")
    assert head == ("30 of 110 groups cannot be used, more than data_config.max_bad_record_share (0.1). The first:")
    assert shown == [f"  part-0:{row}: column 'click': is bad" for row in range(30, 30 - NUM_SHOWN, -1)]
    assert end == f"All are listed in {path}. Correct the data or raise the share."


def test_records_are_written_once_however_often_they_are_met(tmp_path):
    path = tmp_path / "folder" / "bad_records.jsonl"
    records = BadRecords(str(path), 1.0)
    assert not path.exists()
    for _ in range(3):
        records.add(10, 0, [record(1), record(2), record(1)])
    records.add(10, 0, [record(2, problem="is 'bad' — \"quoted\"\n")])
    written = read_records(path)
    assert [(r["row"], r["problem"]) for r in written] == [(1, "is bad"), (2, "is bad"), (2, "is 'bad' — \"quoted\"\n")]
    assert set(written[0]) == {"kind", "file", "row", "where", "problem", "time"}
    assert records.counts["bad_groups"] == 10


def test_only_so_many_are_remembered_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_records_module, "MAX_REMEMBERED", 3)
    path = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(path), 1.0)
    records.add(10, 0, [record(row) for row in range(5)])
    assert len(read_records(path)) == 3
    assert records.counts["bad_groups"] == 5


def test_the_summary(tmp_path):
    path = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(path), 1.0)
    assert records.summary() == ""
    records.add(10, 7, [record(1)])
    assert records.summary() == f"bad records: 1 of 10 groups; see {path}"
    records.add(10, 7, [record(1), record(2, "picture")])
    assert records.summary() == f"bad records: 2 of 20 groups and 1 of 14 pictures; see {path}"


def test_nothing_read_is_nothing_bad():
    BadRecords(None, 0.0).check_all()
