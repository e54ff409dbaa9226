"""The pictures that groups show, once each, against a plain reference, and steps and banks that count them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import group_line, schema
from feature_helpers import id_feature, raw_feature

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import one_picture_each
from easyrec_mm.data.input import Input
from easyrec_mm.data.pictures import PictureLoader, Pictures
from easyrec_mm.data.vector_bank import VectorBank
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import IMAGE

NUM_CATEGORIES, NUM_KINDS = 4, 3
CATEGORY = id_feature("category", ("cat",), 4, "category", "identity", NUM_CATEGORIES)
ITEM = id_feature("item", ("item",), 4, "item", "hash", 50)


def image_schema(category=True, separator="", no_image=False, uses_image=True):
    base_schema = schema(
        {"click": "int64", "kind": "int64"},
        {"cat": "int64", "item": "string", "user": "string"},
        [ITEM, raw_feature("cat", ("cat",), 1)],
        tasks=[("click", "binary", 1)],
        uses_image=uses_image,
    )
    return replace(
        base_schema,
        group_fields=("cat", "item", "kind"),
        image_features=(CATEGORY, ITEM) if category else (ITEM,),
        category_feature="category" if category else "",
        image_labels=(("kind", NUM_KINDS),),
        image_separator=separator,
        has_no_image_vector=no_image,
    )


def random_groups(num_groups=150, separator="", seed=0):
    """(path, category, item, kind, number of samples) of groups that share few pictures; some are bad or missing."""
    rng = np.random.default_rng(seed)
    names = [*(f"{i}.png" for i in range(9)), "bad1", "bad2", ""]
    if separator:
        names += [separator, separator * 2, f"1.png{separator}", f"{separator}3.png", f"3.png{separator}3.png"]
    groups = []
    for _ in range(num_groups):
        count = rng.integers(1, 5) if separator else 1
        path = separator.join(rng.choice(names, count))
        groups.append(
            (path, int(rng.integers(0, NUM_CATEGORIES)), f"i{rng.integers(0, 6)}", int(rng.integers(0, NUM_KINDS)),
             int(rng.integers(1, 4)))
        )  # fmt: skip
    return groups


def write(path, groups):
    lines = [
        group_line([[str(i % 2) for i in range(size)], [str(kind)] * size],
                   [[str(category), item, str(i)] for i in range(size)], img_path)
        for img_path, category, item, kind, size in groups
    ]  # fmt: skip
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def colour(path):
    """Of the picture that the loader below makes of a path; 128 for a bad one."""
    return 20 * int(path[0]) if path[:1].isdigit() else 128


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """In place of files: one colour for each path; "bad..." and "" cannot be read. The paths that were loaded."""
    loaded_paths = []

    def load(loader, paths):
        texts = [path.decode() for path in paths]
        loaded_paths.extend(texts)
        pixels = np.stack([np.full((4, 5, 3), colour(t), np.uint8) for t in texts]) if texts else np.zeros((0, 4, 5, 3))
        problems = {row: "cannot be read" for row, text in enumerate(texts) if not text[:1].isdigit()}
        return Pictures(tf.constant(pixels, tf.uint8), problems)

    monkeypatch.setattr(PictureLoader, "load", load)
    return loaded_paths


def input_of(path, schema, records=None, training=False, labels=None, **changes):
    data = {"input_type": DatasetConfig.GroupRTPInput, "num_parallel_calls": 1, "batch_size": 7, "shuffle": False}
    records = records or BadRecords(None, 1.0)
    return Input(DatasetConfig(**{**data, **changes}), schema, str(path), "train_input_path", records, training, labels)


def item_hash(text):
    return int(tf.strings.to_hash_bucket_fast(text, ITEM.num_rows))


def distinct(items):
    """The distinct ones in the order of their first appearance, and which one each is."""
    order = list(dict.fromkeys(items))
    return order, [order.index(item) for item in items]


def reference_images(groups, schema):
    """What a batch of these groups should hold; `pictures`: (path, category) of each."""
    categories = [c if schema.category_feature else 0 for _, c, *_ in groups]
    images, group_image = distinct([(group[0], c) for group, c in zip(groups, categories, strict=True)])
    first = [group_image.index(u) for u in range(len(images))]
    paths = [
        [p for p in path.split(schema.image_separator) if p] if schema.image_separator else [path] for path, _ in images
    ]
    if schema.has_no_image_vector:
        paths = [[p for p in of_image if p] for of_image in paths]
    else:
        paths = [of_image or [""] for of_image in paths]
    pictures, link_picture = distinct([(p, images[u][1]) for u, of_image in enumerate(paths) for p in of_image])
    link_image = [u for u, of_image in enumerate(paths) for _ in of_image]
    links = list(zip(link_picture, link_image, strict=True))
    has_picture = [True] * len(images)
    if schema.image_separator or schema.has_no_image_vector:
        good = [(p, u) for p, u in links if pictures[p][0][:1].isdigit()]
        has_good = {u for _, u in good}
        if schema.has_no_image_vector:
            has_picture, links = [u in has_good for u in range(len(images))], good
        else:
            links = [(p, u) for p, u in links if (p, u) in good or u not in has_good]
    return {
        "pictures": pictures,
        "links": links,
        "has_picture": has_picture,
        "item": [item_hash(groups[g][2]) for g in first],
        "category": [groups[g][1] for g in first],
        "kind": [groups[g][3] for g in first],
        "sample_image": [u for u, group in zip(group_image, groups, strict=True) for _ in range(group[4])],
    }


def plain(images):
    return tf.nest.map_structure(lambda tensor: tensor.numpy().tolist(), images)


def links_of(images):
    return list(zip(images.link_picture, images.link_image, strict=True))


def chunks(groups, size=7):
    return [groups[i : i + size] for i in range(0, len(groups), size)]


SETTINGS = [
    {"category": category, "separator": separator, "no_image": no_image}
    for category, separator, no_image in (
        # Each pair of values of two of them.
        (False, "", False), (True, "", True), (False, "||", True), (True, "||", False),
    )
]  # fmt: skip


def name_of(settings):
    return "-".join(str(value) for value in settings.values())


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_images_equal_the_reference(tmp_path, settings):
    schema, all_groups = image_schema(**settings), random_groups(separator=settings["separator"])
    records = BadRecords(None, 1.0)
    reader = input_of(write(tmp_path / "a", all_groups), schema, records)
    fits = tf.function(lambda batch: tf.shape(batch.sample_image)[0], input_signature=[reader.spec()])
    num_loaded = num_bad = 0
    for item, groups in zip(reader.batches(), chunks(all_groups), strict=True):
        expected, batch = reference_images(groups, schema), item.batch
        images = plain(batch.images)
        pictures = expected["pictures"]
        assert images.encoded == list(range(len(pictures)))
        assert images.category == [category for _, category in pictures]
        assert batch.pixels.numpy()[:, 0, 0, 0].tolist() == [colour(path) for path, _ in pictures]
        assert [path.decode() for path in item.picture_path] == [path for path, _ in pictures]
        assert links_of(images) == expected["links"]
        assert images.has_picture == expected["has_picture"]
        assert images.features["item"] == expected["item"]
        assert images.features.get("category", expected["category"]) == expected["category"]
        assert ("category" in images.features) == settings["category"]
        assert images.labels == {"kind": expected["kind"]}
        assert batch.sample_image.numpy().tolist() == expected["sample_image"]
        assert images.bank_row == [0] * len(pictures)
        assert int(fits(batch)) == batch.num_samples
        num_loaded += len(pictures)
        num_bad += sum(not path[:1].isdigit() for path, _ in pictures)
    assert records.counts == {
        "groups": len(all_groups), "bad_groups": 0, "pictures": num_loaded, "bad_pictures": num_bad
    }  # fmt: skip
    assert num_bad


def read(tmp_path, groups, schema, records=None, **changes):
    return list(input_of(write(tmp_path / "a", groups), schema, records, **changes).batches())


def test_one_picture_a_group_is_the_plain_case(tmp_path):
    """Without any of the settings: as one_picture_each, whatever is wrong with the pictures."""
    schema = replace(image_schema(category=False), image_features=(), image_labels=(), group_fields=())
    for item in read(tmp_path, random_groups(40), schema):
        # The keys, by which workers know equal images, are hashes.
        images, expected = plain(item.batch.images), plain(one_picture_each(item.batch.num_images))
        assert len(set(images.key)) == len(set(images.picture_key)) == item.batch.num_images
        assert images._replace(key=[], picture_key=[]) == expected._replace(key=[], picture_key=[])
        assert item.batch.pixels.shape[0] == item.batch.num_images


def test_a_model_without_pictures_has_none(tmp_path, loaded):
    schema = replace(image_schema(category=False, uses_image=False), image_features=(), image_labels=())
    for item in read(tmp_path, random_groups(20), schema):
        assert plain(item.batch.images) == plain(one_picture_each(0))
        assert item.batch.pixels.shape == (0, 4, 5, 3)
    assert loaded == []


def test_one_picture_in_two_categories_is_two_to_the_tower(tmp_path, loaded):
    groups = [("1.png", 0, "a", 0, 1), ("1.png", 1, "a", 0, 1), ("1.png", 0, "b", 0, 1), ("2.png", 1, "b", 0, 1)]
    (item,) = read(tmp_path, groups, image_schema())
    assert loaded == ["1.png", "1.png", "2.png"]
    assert plain(item.batch.images.category) == [0, 1, 1]
    assert item.batch.sample_image.numpy().tolist() == [0, 1, 0, 2]
    loaded.clear()
    (item,) = read(tmp_path, groups, image_schema(category=False))
    assert loaded == ["1.png", "2.png"]


def test_several_pictures_of_an_item(tmp_path, loaded):
    """Shared ones are loaded once; one that is named twice counts twice; empty names are none."""
    groups = [("1,2", 0, "a", 0, 2), (",2,,3,", 0, "b", 0, 1), ("1,1", 0, "c", 0, 1), ("1", 0, "d", 0, 1)]
    (item,) = read(tmp_path, groups, image_schema(separator=","))
    assert loaded == ["1", "2", "3"]
    assert links_of(plain(item.batch.images)) == [(0, 0), (1, 0), (1, 1), (2, 1), (0, 2), (0, 2), (0, 3)]
    assert item.batch.sample_image.numpy().tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("no_image", [False, True])
def test_items_that_name_no_picture(tmp_path, loaded, no_image):
    records = BadRecords(str(tmp_path / "bad.jsonl"), 1.0)
    groups = [("", 0, "a", 0, 1), (",", 0, "a", 0, 1), ("1", 0, "b", 0, 1), (",,", 1, "a", 0, 1)]
    (item,) = read(tmp_path, groups, image_schema(separator=",", no_image=no_image), records)
    images = plain(item.batch.images)
    if no_image:
        assert loaded == ["1"]
        assert links_of(images) == [(0, 2)]
        assert images.has_picture == [False, False, True, False]
        assert records.counts["bad_pictures"] == 0
    else:
        assert loaded == ["", "1", ""]
        assert links_of(images) == [(0, 0), (0, 1), (1, 2), (2, 3)]
        assert images.has_picture == [True] * 4
        assert records.counts["bad_pictures"] == 2


def test_bad_pictures_among_several_are_left_out(tmp_path):
    groups = [("bad1,1", 0, "a", 0, 1), ("bad1,bad2", 0, "b", 0, 1), ("2,bad2,1", 0, "c", 0, 1)]
    (item,) = read(tmp_path, groups, image_schema(separator=","))
    # Where all are bad, they stand in blank.
    assert links_of(plain(item.batch.images)) == [(1, 0), (0, 1), (2, 1), (3, 2), (1, 2)]
    assert item.batch.pixels.numpy()[:, 0, 0, 0].tolist() == [128, 20, 128, 40]
    (item,) = read(tmp_path, groups, image_schema(separator=",", no_image=True))
    assert links_of(plain(item.batch.images)) == [(1, 0), (3, 2), (1, 2)]
    assert plain(item.batch.images.has_picture) == [True, False, True]


def test_an_unreadable_picture_is_counted_and_takes_the_no_image_vector(tmp_path):
    records = BadRecords(str(tmp_path / "bad.jsonl"), 1.0)
    groups = [("bad1", 0, "a", 0, 1), ("", 0, "b", 0, 2), ("1", 0, "c", 0, 1), ("bad1", 0, "c", 0, 1)]
    (item,) = read(tmp_path, groups, image_schema(no_image=True), records)
    images = plain(item.batch.images)
    assert images.has_picture == [False, False, True]
    assert links_of(images) == [(1, 2)]
    assert item.batch.sample_image.numpy().tolist() == [0, 1, 1, 2, 0]
    assert records.counts == {"groups": 4, "bad_groups": 0, "pictures": 2, "bad_pictures": 1}


def test_bad_records_name_file_row_and_value(tmp_path):
    output = tmp_path / "bad.jsonl"
    groups = [("1", 0, "a", 0, 2), ("1,bad1", 0, "b", 0, 2), ("bad2,bad1", 1, "b", 1, 2), (",", 0, "a", 2, 1)]
    path = write(tmp_path / "a", groups)
    lines = path.read_bytes().split(b"\n")
    lines[1:1] = [lines[0].replace(b"0\x02a\x021", b"3\x02a\x021"), lines[0].replace(b";0\x010;", b";0\x011;")]
    path.write_bytes(b"\n".join(lines))
    list(input_of(path, image_schema(separator=","), BadRecords(str(output), 1.0)).batches())
    records = [json.loads(text) for text in output.read_text().splitlines()]
    assert {record["file"] for record in records} == {str(path)}
    assert [(r["kind"], r["row"], r["where"], r["problem"]) for r in records] == [
        ("group", 2, "column 'cat'", "sample 1: 3, but sample 0 has 0; the value must be the same in a group"),
        ("group", 3, "column 'kind'", "sample 1: 1, but sample 0 has 0; the value must be the same in a group"),
        ("picture", 4, "bad1", "cannot be read"),
        ("picture", 5, "bad2", "cannot be read"),
        ("picture", 5, "bad1", "cannot be read"),  # in another category than before
        ("picture", 6, "", "cannot be read"),
    ]  # fmt: skip


def test_a_batch_of_bad_groups_has_no_image(tmp_path):
    path = write(tmp_path / "a", [("1,2", 0, "a", 0, 1)] * 3)
    path.write_bytes(b"?\n?\n" + path.read_bytes())
    reader = input_of(path, image_schema(separator=","), batch_size=2)
    batch = next(iter(reader.batches())).batch
    assert batch.num_samples == batch.num_images == batch.pixels.shape[0] == 0
    assert {len(tensor) for tensor in tf.nest.flatten(batch.images)} == {0}


def test_for_prediction_no_label_is_read(tmp_path):
    path = write(tmp_path / "a", [("1", 0, "a", 0, 2)])
    path.write_bytes(path.read_bytes().replace(b"0\x010;", b"0\x01?;"))
    reader = input_of(path, image_schema(), BadRecords(None, 0.0), labels=())
    (item,) = reader.batches()
    assert item.batch.images.labels == reader.spec().images.labels == {}
    assert plain(item.batch.images.features) == {"category": [0], "item": [item_hash("a")]}


# Steps, and pictures that a bank knows.


def test_batches_are_numbered_by_the_steps_that_train_them(tmp_path):
    """A batch of bad groups is not a step: a training that goes on behind it counts as if it had not stopped."""
    path = write(tmp_path / "a", [("1", 0, "a", 0, 1)] * 6)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"?", b"?", *lines[2:]]))
    reader = input_of(path, image_schema(), batch_size=2, prefetch_size=1)
    asked = []
    batches = list(reader.batches(first_step=10, banks_of=lambda step: asked.append(step) or {}))
    assert [(item.batch.num_samples, item.step) for item in batches] == [(2, 10), (0, 11), (2, 11), (2, 12)]
    assert asked == [10, 11, 11, 12]
    rest = list(reader.batches(num_skipped=4, first_step=11))
    assert [(item.batch.num_samples, item.step) for item in rest] == [(2, 11), (2, 12)]


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_batches_of_some_epochs_are_counted(tmp_path, drop_remainder):
    path = write(tmp_path / "a", [("1", 0, "a", 0, 1)] * 10)
    schema = image_schema(uses_image=False)
    reader = input_of(path, schema, training=True, batch_size=4, drop_remainder=drop_remainder)
    assert reader.estimate_groups() == (10, True)
    for num_epochs in (1, 3):
        assert reader.num_batches(10 * num_epochs) == len(list(reader.batches(num_epochs)))


@pytest.mark.parametrize("settings", SETTINGS[2:], ids=name_of)
def test_a_frozen_bank_changes_nothing_but_what_is_encoded(tmp_path, loaded, settings):
    """Each picture is loaded once in three epochs; what is known of the others is what was found then."""
    schema, all_groups = image_schema(**settings), random_groups(60, settings["separator"])
    path = write(tmp_path / "a", all_groups)
    reader = input_of(path, schema, training=True)
    without = [item.batch for item in reader.batches(3)]
    loaded.clear()
    bank = VectorBank(2)
    row_keys, keys = {}, set()
    for item, full, groups in zip(
        reader.batches(3, banks_of=lambda step: {IMAGE: bank}), without, chunks(all_groups * 3), strict=True
    ):
        images, expected = item.batch.images, full.images
        for name in ("category", "link_picture", "link_image", "has_picture", "features", "labels"):
            tf.nest.map_structure(np.testing.assert_array_equal, getattr(images, name), getattr(expected, name))
        np.testing.assert_array_equal(item.batch.sample_image, full.sample_image)
        encoded = images.encoded.numpy()
        np.testing.assert_array_equal(item.batch.pixels, full.pixels.numpy()[encoded])
        pictures = reference_images(groups, schema)["pictures"]
        assert [pictures[i] for i in encoded] == [picture for picture in pictures if picture not in keys]
        keys |= set(pictures)
        for picture, row in zip(pictures, images.bank_row.numpy(), strict=True):
            assert row_keys.setdefault(row, picture) == picture
    assert len(loaded) == len(keys) == len(row_keys)


def test_a_picture_that_can_be_read_again_is_good_again(tmp_path, monkeypatch):
    """As where a storage fails for a moment: what counts is the last time that it was read."""
    path = write(tmp_path / "a", [("1", 0, "a", 0, 1), ("2", 0, "a", 0, 1)])
    reader = input_of(path, image_schema(no_image=True), batch_size=2, training=True, prefetch_size=0)
    is_down = iter([True, False, True])

    def load(loader, paths):
        pixels = tf.zeros([len(paths), 4, 5, 3], tf.uint8)
        return Pictures(pixels, dict.fromkeys(range(len(paths)), "is gone") if paths and next(is_down) else {})

    monkeypatch.setattr(PictureLoader, "load", load)
    bank = VectorBank(2, encode_ratio=1e-9, max_staleness_steps=2)
    batches = [item.batch for item in reader.batches(9, banks_of=lambda step: {IMAGE: bank})]
    outcomes = [(batch.pixels.shape[0], plain(batch.images.has_picture)) for batch in batches]
    bad, good = [False, False], [True, True]
    assert outcomes == [(2, bad), (0, bad), (0, bad), (2, good), (0, good), (0, good), (2, bad), (0, bad), (0, bad)]
