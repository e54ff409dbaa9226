"""Values that are the same for a whole group, and the pictures that groups show: both against plain Python."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import COLUMNS, SAMPLES, VALUES, group_line, schema
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import one_picture_each
from easyrec_mm.data.group_rtp import GroupRtpParser
from easyrec_mm.data.input import Input
from easyrec_mm.data.pictures import PictureLoader, Pictures
from easyrec_mm.picture_bank import PictureBank
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Feature

# Values per group.

GROUP_VALUES = {"city": "string", "age": "int64", "vip": "bool", "price": "float32", "user": "string"}
PER_GROUP = schema(
    labels={"kind": "int64", "fresh": "bool", "share": "float32", "click": "int64"},
    values=GROUP_VALUES,
    defaults={"city": "x", "age": "7", "vip": "true", "price": "-1.5", "kind": "2", "fresh": "1", "share": "0.5"},
    tasks=[("click", "binary", 1)],
)
PER_GROUP = replace(
    PER_GROUP, group_fields=("city", "age", "vip", "price", "kind", "fresh", "share"), image_labels=(("kind", 5),)
)
# Of each field or label: texts of one value after texts of another.
TEXTS = {
    "city": [["", "x"], ["y"], ["X"], ["x "], ["é"], ["\udcff"]],
    "age": [["", "7", "+7", " 7", "07"], ["8", "8 "], ["0", "-0"], ["9007199254740993"], ["9007199254740992"]],
    "vip": [["", "1", "true", "TRUE"], ["0", "false", "False"]],
    # Equal as float32: the last pair only there.
    "price": [["", "-1.5", "-15e-1", "-1.50"], ["0", "-0", "0.0", "1e-60"], ["16777216", "16777217"]],
    "kind": [["", "2", "2.0"], ["3"], ["0", "-0"]],
    "fresh": [["", "1", "true"], ["0", "false"]],
    "share": [["", "0.5", "5e-1"], ["0.25"], ["0.1", "0.100000001"]],
    "click": [["0"], ["1"]],
    "user": [["a"], ["b"], [""]],
}
LABELS = PER_GROUP.labels


def parser_of(one, labels=None, fields=None):
    labels = one.labels if labels is None else labels
    parser = GroupRtpParser(one, labels, fields or one.layout.sample_fields, len(one.labels) + 3)
    function = tf.function(parser, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def parse(lines):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), function(tf.constant(lines, tf.string)))

    parse.explain = parser.explain
    return parse


PARSE = parser_of(PER_GROUP)


def class_of(name, text):
    return next(number for number, texts in enumerate(TEXTS[name]) if text in texts)


def line_of(group):
    """A line of name -> texts of the samples."""
    samples = [[group[name][i] for name in GROUP_VALUES] for i in range(len(group["click"]))]
    return group_line([group[name] for name in LABELS], samples)


def disagreement(group):
    """(field, sample, its text, the text of sample 0) of the first value that differs; None if all agree."""
    for name in (*LABELS, *GROUP_VALUES):
        if name in PER_GROUP.group_fields:
            for number, text in enumerate(group[name]):
                if class_of(name, text) != class_of(name, group[name][0]):
                    return name, number, text, group[name][0]
    return None


@st.composite
def groups(draw):
    """Mostly of one value each, written in several ways."""
    size = draw(st.integers(1, 4))
    group = {}
    for name, classes in TEXTS.items():
        usual = draw(st.sampled_from(classes))
        group[name] = [draw(st.sampled_from(usual)) for _ in range(size)]
        if not draw(st.integers(0, 11)):
            group[name][draw(st.integers(0, size - 1))] = draw(st.sampled_from(draw(st.sampled_from(classes))))
    return group


@given(st.lists(groups(), max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_group_whose_samples_disagree_is_refused(some):
    lines = [line_of(group) for group in some]
    expected = [disagreement(group) for group in some]
    rows = PARSE(lines)
    assert rows.kept.tolist() == [i for i, problem in enumerate(expected) if problem is None]
    assert sorted(rows.refused) == [i for i, problem in enumerate(expected) if problem is not None]
    for line, problem in zip(lines, expected, strict=True):
        found = PARSE.explain(line)
        if problem is None:
            assert found is None
            continue
        name, sample, text, first = problem
        text, first = (t.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for t in (text, first))
        said = f"sample {sample}: {text!r}, but {first!r} in sample 0 of the group; it must be the same for all"
        if name in LABELS:
            assert found == (f"column {LABELS.index(name)} ({name})", said)
        else:
            assert found == (f"column {len(LABELS)} (features)", f"{name}: {said}")


@pytest.mark.parametrize("name", PER_GROUP.group_fields)
def test_each_pair_of_texts_of_each_field(name):
    def line(*texts):
        return line_of({other: [values[0][0]] * 2 for other, values in TEXTS.items()} | {name: list(texts)})

    texts = [text for texts in TEXTS[name] for text in texts]
    pairs = [(first, second) for first in texts for second in texts]
    agree = [class_of(name, first) == class_of(name, second) for first, second in pairs]
    assert PARSE([line(*pair) for pair in pairs]).kept.tolist() == np.flatnonzero(agree).tolist()
    assert [PARSE.explain(line(*pair)) is None for pair in pairs] == agree


def test_other_fields_may_differ():
    group = {name: [texts[0][0]] * 3 for name, texts in TEXTS.items()}
    group |= {"user": ["a", "b", "c"], "click": ["0", "1", "0"]}
    assert PARSE([line_of(group)]).fields["user"].tolist() == [b"a", b"b", b"c"]


def test_a_disagreement_in_one_group_is_none_in_the_next():
    """The values of a batch stand in one row: samples are compared with the first of their own group."""
    some = [{name: [texts[i][0]] * (i + 1) for name, texts in TEXTS.items()} for i in (0, 1, 0)]
    assert PARSE([line_of(group) for group in some]).kept.tolist() == [0, 1, 2]


def test_labels_that_are_not_read_need_not_agree():
    parse = parser_of(PER_GROUP, labels=(), fields=("city",))
    group = {name: [texts[0][0]] * 2 for name, texts in TEXTS.items()} | {"kind": ["0", "1"], "age": ["7", "8"]}
    assert parse([line_of(group)]).kept.tolist() == [0]
    assert parse.explain(line_of(group)) is None


def test_a_value_that_cannot_be_read_is_named_before_a_disagreement():
    group = {name: [texts[0][0]] * 2 for name, texts in TEXTS.items()} | {"age": ["7", "x"]}
    assert PARSE.explain(line_of(group)) == ("column 4 (features)", "sample 1: age: 'x' is no number")
    assert PARSE([line_of(group)]).refused.tolist() == [0]
    group |= {"kind": ["1", "5"], "age": ["7", "7"]}
    assert PARSE.explain(line_of(group)) == ("column 0 (kind)", "sample 1: label 5 is not a class from 0 to 4")


# Images.

NUM_CATEGORIES, NUM_KINDS = 4, 3
CATEGORY = Feature("category", "id", ("cat",), 4, "category", "identity", NUM_CATEGORIES)
ITEM = Feature("item", "id", ("item",), 4, "item", "hash", 50)


def image_schema(category=True, separator="", no_image=False, uses_image=True):
    one = schema(
        {"click": "int64", "kind": "int64"},
        {"cat": "int64", "item": "string", "user": "string"},
        [ITEM, Feature("cat", "raw", ("cat",), 1)],
        tasks=[("click", "binary", 1)],
        uses_image=uses_image,
    )
    return replace(
        one,
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
    found = []
    for _ in range(num_groups):
        count = rng.integers(1, 5) if separator else 1
        path = separator.join(rng.choice(names, count))
        found.append(
            (path, int(rng.integers(0, NUM_CATEGORIES)), f"i{rng.integers(0, 6)}", int(rng.integers(0, NUM_KINDS)),
             int(rng.integers(1, 4)))
        )  # fmt: skip
    return found


def write(path, some):
    lines = [
        group_line([[str(i % 2) for i in range(size)], [str(kind)] * size],
                   [[str(category), item, str(i)] for i in range(size)], img_path)
        for img_path, category, item, kind, size in some
    ]  # fmt: skip
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def colour(path):
    """Of the picture that the loader below makes of a path; 128 for a bad one."""
    return 20 * int(path[0]) if path[:1].isdigit() else 128


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """In place of files: one colour for each path; "bad..." and "" cannot be read. The paths that were loaded."""
    found = []

    def load(loader, paths):
        texts = [path.decode() for path in paths]
        found.extend(texts)
        pixels = np.stack([np.full((4, 5, 3), colour(t), np.uint8) for t in texts]) if texts else np.zeros((0, 4, 5, 3))
        problems = {row: "cannot be read" for row, text in enumerate(texts) if not text[:1].isdigit()}
        return Pictures(tf.constant(pixels, tf.uint8), problems)

    monkeypatch.setattr(PictureLoader, "load", load)
    return found


def input_of(path, one, records=None, **changes):
    data = {"input_type": DatasetConfig.GroupRTPInput, "num_parallel_calls": 1, "batch_size": 7, **changes}
    return Input(DatasetConfig(**data), one, str(path), "train_input_path", records or BadRecords(None, 1.0))


def item_hash(text):
    return int(tf.strings.to_hash_bucket_fast(text, ITEM.num_ids))


def distinct(items):
    """The distinct ones in the order of their first appearance, and which one each is."""
    order = list(dict.fromkeys(items))
    return order, [order.index(item) for item in items]


def reference_images(some, one):
    """What a batch of these groups should hold; `pictures`: (path, category) of each."""
    categories = [c if one.category_feature else 0 for _, c, *_ in some]
    images, group_image = distinct([(group[0], c) for group, c in zip(some, categories, strict=True)])
    first = [group_image.index(u) for u in range(len(images))]
    paths = [[p for p in path.split(one.image_separator) if p] if one.image_separator else [path] for path, _ in images]
    if one.has_no_image_vector:
        paths = [[p for p in of_image if p] for of_image in paths]
    else:
        paths = [of_image or [""] for of_image in paths]
    pictures, link_picture = distinct([(p, images[u][1]) for u, of_image in enumerate(paths) for p in of_image])
    link_image = [u for u, of_image in enumerate(paths) for _ in of_image]
    links = list(zip(link_picture, link_image, strict=True))
    has_picture = [True] * len(images)
    if one.image_separator or one.has_no_image_vector:
        good = [(p, u) for p, u in links if pictures[p][0][:1].isdigit()]
        has_good = {u for _, u in good}
        if one.has_no_image_vector:
            has_picture, links = [u in has_good for u in range(len(images))], good
        else:
            links = [(p, u) for p, u in links if (p, u) in good or u not in has_good]
    return {
        "pictures": pictures,
        "links": links,
        "has_picture": has_picture,
        "item": [item_hash(some[g][2]) for g in first],
        "category": [some[g][1] for g in first],
        "kind": [some[g][3] for g in first],
        "sample_image": [u for u, group in zip(group_image, some, strict=True) for _ in range(group[4])],
        "bad": {
            (p, some[next(g for g, u in enumerate(group_image) if u == images_of[0])][0]): images_of
            for p, images_of in (
                (p, [u for u, of_image in enumerate(paths) if p in of_image]) for p, _ in pictures
            )
            if not p[:1].isdigit()
        },
    }


def plain(images):
    return tf.nest.map_structure(lambda tensor: tensor.numpy().tolist(), images)


def links_of(images):
    return list(zip(images.link_picture, images.link_image, strict=True))


def chunks(some, size=7):
    return [some[i : i + size] for i in range(0, len(some), size)]


SETTINGS = [
    dict(category=category, separator=separator, no_image=no_image)
    for category in (False, True)
    for separator in ("", ",", "||")
    for no_image in (False, True)
]


@pytest.mark.parametrize("wanted", SETTINGS, ids=lambda s: f"{s['category']}-{s['separator']}-{s['no_image']}")
def test_images_equal_the_reference(tmp_path, wanted):
    one, some = image_schema(**wanted), random_groups(separator=wanted["separator"])
    records = BadRecords(None, 1.0)
    reader = input_of(write(tmp_path / "a", some), one, records)
    fits = tf.function(lambda batch: tf.shape(batch.sample_image)[0], input_signature=[reader.spec()])
    num_loaded = num_bad = 0
    for item, groups in zip(reader.batches(), chunks(some), strict=True):
        expected, batch = reference_images(groups, one), item.batch
        images = plain(batch.images)
        pictures = expected["pictures"]
        assert images.encoded == list(range(len(pictures)))
        assert images.category == [category for _, category in pictures]
        assert batch.pixels.numpy()[:, 0, 0, 0].tolist() == [colour(path) for path, _ in pictures]
        assert item.picture_path.numpy().astype(str).tolist() == [path for path, _ in pictures]
        assert links_of(images) == expected["links"]
        assert images.has_picture == expected["has_picture"]
        assert images.features["item"] == expected["item"]
        assert images.features.get("category", expected["category"]) == expected["category"]
        assert ("category" in images.features) == wanted["category"]
        assert images.labels == {"kind": expected["kind"]}
        assert batch.sample_image.numpy().tolist() == expected["sample_image"]
        assert images.bank_row == [0] * len(pictures)
        assert int(fits(batch)) == batch.num_samples
        num_loaded += len(pictures)
        num_bad += sum(not path[:1].isdigit() for path, _ in pictures)
    assert records.counts == {
        "groups": len(some), "bad_groups": 0, "pictures": num_loaded, "bad_pictures": num_bad
    }  # fmt: skip
    assert num_bad
