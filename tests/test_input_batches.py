"""What a batch holds, and what is said of groups and pictures that are left out."""

from collections import Counter
from itertools import islice

import pytest
import tensorflow as tf
from PIL import Image as Pillow
from text_input_helpers import colours, flat, input_of, line, read_records, small_schema, users, write

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.errors import DataError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files 0 to 4 of one colour each, which is ten times their number."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        Pillow.new("RGB", (5, 4), (10 * i,) * 3).save(folder / f"{i}.png")
    return folder


def test_each_picture_stands_once_in_a_batch_and_every_sample_sees_its_own(tmp_path, pictures, monkeypatch):
    shown = [3, 1, 3, 0, 3, 1, 2, 2, 4]
    sizes = [2, 1, 3, 1, 2, 2, 1, 3, 1]
    groups = [[f"{i}:{n}"] * size for i, (n, size) in enumerate(zip(shown, sizes, strict=True))]
    path = write(tmp_path / "a", [line(users, f"{n}.png") for users, n in zip(groups, shown, strict=True)])
    loaded = []
    load = PictureLoader.load
    monkeypatch.setattr(PictureLoader, "load", lambda self, paths: loaded.append(list(paths)) or load(self, paths))
    inputs = input_of(path, schema=small_schema(uses_image=True), batch_size=6, image_root=str(pictures))
    batches = list(inputs.batches())
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
    kept_fields = ("group_size", "user", "img_path", "age", "seconds", "weight")
    inputs = input_of(
        write(tmp_path / "a", lines), schema=small_schema(sample_weight="weight"), kept_fields=kept_fields
    )
    (item,) = inputs.batches()
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
    assert list(item.kept_fields) == list(kept_fields)
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
    (item,) = input_of(write(tmp_path / "a", lines), records, labels=(), kept_fields=("click", "user")).batches()
    assert item.kept_fields["click"].numpy().tolist() == [1, 0]
    assert item.batch.labels == {}
    assert records.counts["bad_groups"] == 1


def test_batches_fit_their_spec(tmp_path, pictures):
    path = write(tmp_path / "a", [line(["a", "b"], "1.png"), line(["c"], "2.png"), line(["d"], size=5)])
    inputs = input_of(path, schema=small_schema(uses_image=True), batch_size=1, image_root=str(pictures))
    count = tf.function(lambda batch: tf.shape(batch.sample_image)[0], input_signature=[inputs.spec()])
    # The last batch has no sample at all.
    assert [int(count(batch.batch)) for batch in inputs.batches()] == [2, 1, 0]


def test_reading_can_be_left_early(tmp_path, pictures):
    path = write(tmp_path / "a", [line([f"u{i}"], f"{i % 5}.png") for i in range(200)])
    settings = {"batch_size": 2, "prefetch_size": 3, "image_root": str(pictures)}
    batches = input_of(path, schema=small_schema(uses_image=True), **settings).batches(num_epochs=0)
    assert users(islice(batches, 2)) == [["u0", "u1"], ["u2", "u3"]]
    batches.close()


# Bad groups and pictures.


def test_bad_groups_and_pictures_are_written_once_with_file_and_row(tmp_path, pictures):
    first = [
        line(["a"], "1.png"),
        line(["b"], "1.png", size=2),
        line(["c", "d"], "missing.png"),
        b"?",
        line(["e"], "é"),
    ]
    second = [line(["f"], "2.png"), line(["g", "h"], "missing.png", ["1", "x"]), line(["i"], "missing.png")]
    write(tmp_path / "first", first)
    write(tmp_path / "second", second, compress=True)
    output = tmp_path / "model" / "bad_records.jsonl"
    records = BadRecords(str(output), 1.0)
    settings = {"batch_size": 3, "shuffle": False, "image_root": str(pictures)}
    inputs = input_of(
        f"{tmp_path}/first,{tmp_path}/second", records, small_schema(uses_image=True), training=True, **settings
    )
    batches = list(inputs.batches(num_epochs=3))
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
    inputs = input_of(write(tmp_path / "a", lines), BadRecords(str(output), 1.0), small_schema(uses_image=True))
    list(inputs.batches())
    # The group of row 1 is bad itself; what it names is not looked at.
    assert [(r["kind"], r["row"], r["where"]) for r in read_records(output)] == [
        ("group", 1, "column 'click'"), ("picture", 2, "q"), ("picture", 3, "p")
    ]  # fmt: skip


def test_a_picture_path_of_odd_letters_is_written_readably(tmp_path):
    output = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(output), 1.0)
    path = write(tmp_path / "a", [line(["a"], "é\U0001f600.png"), line(["b"], "a\x00b")])
    list(input_of(path, records, small_schema(uses_image=True)).batches())
    assert [record["where"] for record in read_records(output)] == ["é\U0001f600.png", "a\x00b"]
    records.summary().encode()


def test_a_batch_of_bad_groups_has_no_sample_and_the_next_goes_on(tmp_path, pictures):
    lines = [line(["a"], size=2), b"?", line(["b"], "3.png")]
    records = BadRecords(None, 1.0)
    inputs = input_of(
        write(tmp_path / "a", lines), records, small_schema(uses_image=True), batch_size=2, image_root=str(pictures)
    )
    batches = list(inputs.batches())
    assert users(batches) == [[], ["b"]]
    assert [colours(batch.batch) for batch in batches] == [[], [30]]
    assert [batch.num_groups for batch in batches] == [2, 1]
    assert records.counts == {"groups": 3, "bad_groups": 2, "pictures": 1, "bad_pictures": 0}


@pytest.mark.parametrize(("num_bad", "stops"), [(2, False), (3, True)])
def test_more_bad_groups_than_allowed_stop_at_the_end_of_the_data(tmp_path, num_bad, stops):
    path = write(tmp_path / "a", [b"?"] * num_bad + [line(["x"])] * (20 - num_bad))
    batches = input_of(path, BadRecords(None, 0.1), batch_size=4).batches()
    read = list(islice(batches, 4))  # before the end, so few are no share
    assert [batch.num_groups for batch in read] == [4] * 4
    if not stops:
        assert [batch.num_groups for batch in batches] == [4]
        return
    with pytest.raises(DataError, match=r"^3 of 20 groups cannot be used, more than data_config.max_bad_record_share"):
        next(batches)


def test_the_share_is_looked_at_when_an_epoch_ends(tmp_path):
    path = write(tmp_path / "a", [b"?"] + [line(["x"])] * 9)
    settings = {"batch_size": 2, "prefetch_size": 0, "shuffle": False}
    batches = input_of(path, BadRecords(None, 0.05), training=True, **settings).batches(num_epochs=0)
    assert [batch.num_groups for batch in islice(batches, 4)] == [2] * 4
    with pytest.raises(DataError, match=r"^1 of 10 groups cannot be used"):
        next(batches)


def test_going_on_within_a_later_epoch_is_no_end_of_an_epoch(tmp_path):
    path = write(tmp_path / "a", [b"?"] + [line(["x"])] * 9)
    settings = {"batch_size": 2, "prefetch_size": 0, "shuffle": False}
    batches = input_of(path, BadRecords(None, 0.2), training=True, **settings).batches(num_epochs=0, num_skipped=20)
    # The first batch read is the first of the third epoch, and half bad; the whole epoch is not.
    assert [batch.epoch for batch in islice(batches, 6)] == [2] * 5 + [3]
