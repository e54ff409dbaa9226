"""Every input type: the same groups make the same batches, the same mistakes are refused, with file and row."""

import csv
import gzip
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from data_helpers import group_line, schema
from feature_helpers import id_feature, id_sequence, raw_feature, raw_sequence, tag_feature
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.errors import DataError
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.source import Order
from easyrec_mm.formats.table_files import InOrder
from easyrec_mm.formats.tfrecord import read_examples
from easyrec_mm.formats.tfrecord_graph import GroupTfRecordSource
from easyrec_mm.formats.typed_groups import TypedGroups
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import NO_IMAGE, Attention

LABELS = {"click": "int64", "seconds": "float32"}
VALUES = {
    "user": "string",
    "age": "int64",
    "weight": "float32",
    "vip": "bool",
    "tags": "string",
    "scores": "string",
    "cate": "string",
}
DEFAULTS = {"user": "nobody", "age": "-1", "weight": "0.5"}
FEATURES = [
    id_feature("user", ("user",), 4, "user", "hash", 1000),
    raw_feature("age", ("age",), 1),
    raw_feature("weight", ("weight",), 1),
    id_feature("vip", ("vip",), 4, "vip", "identity", 2),
    tag_feature("tags", ("tags", "scores"), 4, "tags", "hash", 100, separator="|", combiner="sum"),
    id_feature("cate", ("cate",), 4, "cate", "hash", 50),
]
SCHEMA = replace(
    schema(LABELS, VALUES, FEATURES, DEFAULTS, [("click", "binary", 1), ("seconds", "value", 1)], uses_image=False),
    group_fields=("cate",),
)
GROUPED = ("GroupRTPInput", "GroupParquetInput", "GroupTFRecordInput")
FLAT = ("CSVInput", "ParquetInput")
TYPES = {"int64": pa.int64(), "bool": pa.bool_(), "float32": pa.float32(), "string": pa.string()}


def random_groups(count, seed=0, missing=0.2):
    """Groups as dicts: picture, and field -> one value a sample; None is missing."""
    random = np.random.default_rng(seed)

    def value(name, row):
        if name not in LABELS and name != "cate" and random.random() < missing:
            return None
        return {
            "click": lambda: int(random.integers(2)),
            "seconds": lambda: float(np.float32(random.normal())),
            "user": lambda: f"u{row}.{random.integers(9)} é",
            "age": lambda: int(random.integers(-9, 99)),
            "weight": lambda: float(np.float32(random.normal())),
            "vip": lambda: bool(random.integers(2)),
        }[name]()

    groups = []
    for row in range(count):
        size = int(random.integers(1, 5))
        group = {name: [value(name, row) for _ in range(size)] for name in (*LABELS, "user", "age", "weight", "vip")}
        tags = [int(random.integers(0, 4)) for _ in range(size)]
        group["tags"] = ["|".join(f"t{i}" for i in range(n)) for n in tags]
        group["scores"] = ["|".join(f"{i}.5" for i in range(n)) for n in tags]
        group["cate"] = [f"c{row % 3}"] * size
        group["img_path"] = f"p{row % 7}.jpg"
        groups.append(group)
    return groups


def text(value):
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_rtp(path, groups):
    lines = []
    for group in groups:
        labels = [[text(v) for v in group[name]] for name in LABELS]
        samples = [[text(v) for v in values] for values in zip(*(group[name] for name in VALUES), strict=True)]
        lines.append(group_line(labels, samples, group["img_path"]))
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def grouped_table(groups):
    columns = {
        name: pa.array([g[name] for g in groups], pa.list_(TYPES[kind])) for name, kind in (LABELS | VALUES).items()
    }
    columns["img_path"] = pa.array([group["img_path"] for group in groups])
    columns["group_size"] = pa.array([len(group["click"]) for group in groups])
    return pa.table(columns)


def write_grouped_parquet(path, groups):
    pq.write_table(grouped_table(groups), path, row_group_size=5)


def feature_of(values, kind):
    if kind == "string":
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[v if isinstance(v, bytes) else v.encode() for v in values])
        )
    if kind == "float32":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(v) for v in values]))


def example(group):
    """A group as tf.train.Example; a missing value is written as the field's default."""
    features = {}
    for name, kind in (LABELS | VALUES).items():
        default = SCHEMA.field(name).default_value
        features[name] = feature_of([default if v is None else v for v in group[name]], kind)
    features["cate"] = feature_of(group["cate"][:1], "string")
    features["img_path"] = feature_of([group["img_path"]], "string")
    features["group_size"] = feature_of([len(group["click"])], "int64")
    return tf.train.Example(features=tf.train.Features(feature=features))


def write_records(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())


def write_tfrecord(path, groups):
    write_records(path, [example(group) for group in groups])


def flat_rows(groups):
    names = [*LABELS, *VALUES]
    return [
        {**{name: group[name][i] for name in names}, "img_path": group["img_path"]}
        for group in groups
        for i in range(len(group["click"]))
    ]


def write_csv(path, groups):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_MINIMAL)
        writer.writerow([*LABELS, *VALUES, "img_path", "not read"])
        for row in flat_rows(groups):
            writer.writerow([*map(text, row.values()), 'a "quoted", one'])


def write_parquet(path, groups):
    rows = flat_rows(groups)
    kinds = {**LABELS, **VALUES, "img_path": "string"}
    pq.write_table(pa.table({n: pa.array([row[n] for row in rows], TYPES[k]) for n, k in kinds.items()}), path)


WRITERS = {
    "GroupRTPInput": write_rtp,
    "GroupParquetInput": write_grouped_parquet,
    "GroupTFRecordInput": write_tfrecord,
    "CSVInput": write_csv,
    "ParquetInput": write_parquet,
}


def input_of(kind, path, training=False, records=None, schema=SCHEMA, kept=("user", "img_path"), **settings):
    data = DatasetConfig(
        **{
            "input_type": DatasetConfig.InputType.Value(kind),
            "num_parallel_calls": 2,
            "with_header": kind == "CSVInput",
            "batch_size": 4,
            **settings,
        }
    )
    if kind not in GROUPED:
        schema = replace(schema, group_size_field="")
    records = records or BadRecords(None, 1.0)
    return Input(data, schema, str(path), "train_input_path", records, training, kept_fields=kept)


def values_of(batches):
    """All samples: field -> values, in order."""
    parts = {}
    for batch in batches:
        for name, value in {**batch.batch.features, **batch.batch.labels, **batch.kept_fields}.items():
            parts.setdefault(name, []).extend(value.to_list() if hasattr(value, "to_list") else value.numpy().tolist())
    return parts


def users(batches):
    return [user.decode("utf-8", "replace") for batch in batches for user in batch.kept_fields["user"].numpy()]


@pytest.fixture(scope="module")
def groups():
    return random_groups(600)


@pytest.fixture(scope="module")
def folder(groups, tmp_path_factory):
    """Each format's files: three, of different lengths."""
    folder = tmp_path_factory.mktemp("sources")
    for kind, write in WRITERS.items():
        (folder / kind).mkdir()
        for i, (first, last) in enumerate(((0, 90), (90, 91), (91, 600))):
            write(folder / kind / f"part-{i}", groups[first:last])
    return folder


def expected_values(groups):
    """What the samples are, in plain Python."""
    rows = flat_rows(groups)

    def of(name):
        default = SCHEMA.field(name).default_value
        return [default if row[name] is None else row[name] for row in rows]

    hashed = lambda texts, n: [int(tf.strings.to_hash_bucket_fast(t, n)) for t in texts]  # noqa: E731
    return {
        "user": [user.encode() for user in of("user")],
        "age": [[float(age)] for age in of("age")],
        "weight": [[weight] for weight in of("weight")],
        "vip": [int(vip) for vip in of("vip")],
        "tags:weight": [[float(w) for w in scores.split("|") if w] for scores in of("scores")],
        "tags": [hashed([t for t in tags.split("|") if t], 100) for tags in of("tags")],
        "cate": hashed(of("cate"), 50),
        "click": [float(click) for click in of("click")],
        "seconds": of("seconds"),
        "img_path": [row["img_path"].encode() for row in rows],
    }


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput"])
def test_texts_may_hold_any_character(tmp_path, kind):
    groups = random_groups(30, missing=0)
    strange = ["a\x1fb", "\x1f", "\x1f\x1f", "", "\0", "c\0", "\n", "\x1e\x1f", "  ", "|"]
    for i, group in enumerate(groups):
        group["user"] = [strange[(i + k) % len(strange)] for k in range(len(group["user"]))]
    WRITERS[kind](tmp_path / "data", groups)
    wanted = [user or DEFAULTS["user"] for group in groups for user in group["user"]]
    assert users(input_of(kind, tmp_path / "data").batches()) == wanted


@pytest.mark.parametrize("kind", WRITERS)
def test_every_input_gives_the_samples_in_order(kind, folder, groups):
    one = input_of(kind, folder / kind / "*", batch_size=7)
    next(one.batches())  # what is begun and left changes nothing
    batches = list(one.batches())
    found = values_of(batches)
    assert values_of(one.batches()) == found
    for name, values in expected_values(groups).items():
        assert found[name] == values, name
    in_files = len(groups) if kind in GROUPED else len(found["user"])
    assert sum(batch.num_groups for batch in batches) == in_files == one.source.count(range(len(one.source.files)))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_input_goes_without_a_field_of_pictures(kind, folder, groups):
    layout = replace(SCHEMA.layout, image_column=-1)
    blind = replace(SCHEMA, image=NO_IMAGE, layout=layout)
    source = input_of(kind, folder / kind / "*", schema=blind, kept=("user",), batch_size=16)
    found = values_of(source.batches())
    for name, values in expected_values(groups).items():
        assert name == "img_path" or found[name] == values, name
    assert {group.image for _, _, group in islice(source.source.texts(), 5)} == {b""}
    trained = input_of(kind, folder / kind / "*", training=True, schema=blind, kept=("user",), batch_size=16)
    assert sorted(users(trained.batches(1))) == sorted(value.decode() for value in expected_values(groups)["user"])


@pytest.mark.parametrize("kind", WRITERS)
def test_texts_are_what_stands_in_the_files(kind, folder, groups):
    found = list(islice(input_of(kind, folder / kind / "*").source.texts(), 120))
    assert [row for _, row, _ in found[:90]] == list(range(1, 91)) if kind in GROUPED else True
    texts = [group.values for _, _, group in found]
    read = {name: [v for group in texts for v in group[name]] for name in ("user", "click", "tags")}
    rows = flat_rows(groups)[: len(read["user"])]
    # A TFRecord cannot say that a value is missing.
    nobody = "nobody" if kind == "GroupTFRecordInput" else ""
    assert read["user"] == [nobody if row["user"] is None else row["user"] for row in rows]
    assert read["tags"] == [row["tags"] for row in rows]
    assert [float(click) for click in read["click"]] == [row["click"] for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
def test_shuffling_is_a_permutation_and_a_function_of_the_seed(kind, folder, groups):
    def epochs(num_skipped=0, **settings):
        one = input_of(kind, folder / kind / "*", training=True, shuffle_buffer_size=50, batch_size=16, **settings)
        return list(one.batches(num_epochs=2, num_skipped=num_skipped))

    batches = epochs(seed=1)
    order = users(batches)
    half = len(order) // 2
    in_file_order = [user.decode() for user in expected_values(groups)["user"]]
    assert sorted(order[:half]) == sorted(order[half:]) == sorted(in_file_order)
    assert order[:half] != order[half:] != in_file_order
    assert users(epochs(seed=1)) == order
    assert users(epochs(seed=2)) != order
    begun = len(batches) // 3
    rest = epochs(num_skipped=begun, seed=1)
    assert users(rest) == users(batches[begun:])
    assert [batch.epoch for batch in rest] == [batch.epoch for batch in batches[begun:]]


@pytest.mark.parametrize("kind", FLAT)
def test_samples_of_one_picture_come_side_by_side_when_training(kind, folder):
    def runs(training):
        one = input_of(kind, folder / kind / "*", training=training, shuffle_buffer_size=10_000)
        pictures = [path for batch in one.batches() for path in batch.kept_fields["img_path"].numpy()]
        return 1 + sum(a != b for a, b in pairwise(pictures)), len(set(pictures))

    num_runs, num_pictures = runs(training=True)
    assert num_runs == num_pictures == 7
    assert runs(training=False)[0] > 100


def change(groups, row, **changes):
    return [{**group, **changes} if i == row else group for i, group in enumerate(groups)]


def refused(kind, path, **settings):
    """(row, where, problem) of the bad groups, and the users that are left."""
    records = BadRecords(None, 1.0)
    left = users(input_of(kind, path, records=records, **settings).batches())
    return [(bad.row, bad.where, bad.problem) for bad in records.shown["group"]], left


BAD_VALUES = {
    "label out of range": ({"click": [0, 7, 1]}, "click", "sample 1: label 7"),
    "label that is not finite": ({"seconds": [0.5, 1.0, float("nan")]}, "seconds", "sample 2"),
    "number that is not finite": ({"weight": [float("inf"), 1.0, 2.0]}, "weight", "sample 0"),
    "more tags than scores": ({"tags": ["a", "a|b", ""], "scores": ["1", "1", ""]}, "tags", "2 "),
    "score that is not a number": ({"tags": ["a", "a", ""], "scores": ["1", "x", ""]}, "scores", "'x'"),
    "categories that disagree": ({"cate": ["c", "d", "c"]}, "cate", "sample 1: 'd', but sample 0 has 'c'"),
}


def whole(group):
    """A good group of three samples."""
    return {
        "click": [0, 1, 0],
        "seconds": [0.5, 1.5, 2.5],
        "user": ["a", "b", "c"],
        "age": [1, 2, 3],
        "weight": [1.0, 2.0, 3.0],
        "vip": [True, False, True],
        "tags": ["", "", ""],
        "scores": ["", "", ""],
        "cate": ["c", "c", "c"],
        "img_path": group["img_path"],
    }


@pytest.mark.parametrize("kind", ["GroupParquetInput", "GroupTFRecordInput"])
@pytest.mark.parametrize("mistake", BAD_VALUES)
def test_a_bad_value_refuses_its_group_alone(kind, mistake, tmp_path):
    changes, where, problem = BAD_VALUES[mistake]
    groups = change(random_groups(20, seed=1), 12, **whole({"img_path": "p"}))
    good = users_of(groups[:12] + groups[13:])
    if kind == "GroupTFRecordInput":
        examples = [example(group) for group in groups]
        for name, values in changes.items():
            examples[12].features.feature[name].CopyFrom(feature_of(values, (LABELS | VALUES)[name]))
        write_records(tmp_path / "a", examples)
    else:
        write_grouped_parquet(tmp_path / "a", change(groups, 12, **changes))
    bad, left = refused(kind, tmp_path / "a")
    assert [(row, place) for row, place, _ in bad] == [(13, f"column '{where}'")]
    assert problem in bad[0][2]
    assert left == good


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput"])
def test_ids_of_64_bits_without_a_sign_are_refused_where_they_do_not_fit(kind, tmp_path):
    groups = change(random_groups(20, seed=1, missing=0), 12, **whole({"img_path": "p"}))
    WRITERS[kind](tmp_path / "a", groups)
    table = pq.read_table(tmp_path / "a")
    ages = [list(range(len(group["click"]))) for group in groups]
    ages[12] = [2**63 - 1, 2**63, None]
    unsigned = pa.array(ages, pa.list_(pa.uint64()))
    unsigned = unsigned if kind == "GroupParquetInput" else unsigned.flatten()
    pq.write_table(table.set_column(table.column_names.index("age"), "age", unsigned), tmp_path / "a")
    bad, left = refused(kind, tmp_path / "a")
    row = 13 if kind == "GroupParquetInput" else sum(map(len, ages[:12])) + 2
    what = f"{2**63} is more than 64 bits with a sign can hold; set the field's input_type to STRING"
    assert bad == [(row, "column 'age'", what)]
    assert set(users_of(groups[:12] + groups[13:])) <= set(left)


# What may stand in a list of a TFRecord, good or bad.
LISTS = {
    "click": st.integers(-1, 3),
    "seconds": st.sampled_from([0.5, float("nan"), float("inf")]),
    "user": st.sampled_from([b"a", b"", b"\xff"]),
    "age": st.integers(-(2**63), 2**63 - 1),
    "weight": st.sampled_from([0.5, -1.0, float("nan"), float("-inf")]),
    "vip": st.integers(-1, 2),
    "tags": st.sampled_from([b"", b"t", b"t|u", b"|t"]),
    "scores": st.sampled_from([b"", b"1", b"1|2.5", b"x", b"1|x"]),
    "cate": st.sampled_from([b"c", b"d"]),
    "img_path": st.sampled_from([b"", b"p", b"q"]),
    "group_size": st.integers(-1, 4),
}


@pytest.fixture(scope="module")
def one_record(tmp_path_factory):
    """A source of TFRecords, of which a test passes the records itself, one at a time: a bad one has no good beside."""
    path = tmp_path_factory.mktemp("one") / "a"
    write_tfrecord(path, random_groups(1))
    source = GroupTfRecordSource([str(path)], SCHEMA, tuple(LABELS), tuple(VALUES), Order(False, 0, 1))
    number = tf.TensorSpec([1], tf.int64)
    parse = tf.function(source.parse, input_signature=[number, number, number, tf.TensorSpec([1], tf.string)])
    return parse, TypedGroups(SCHEMA, tuple(LABELS), tuple(VALUES))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 50),
    changes=st.fixed_dictionaries({}, optional={n: st.lists(values, max_size=4) for n, values in LISTS.items()}),
)
def test_the_graph_takes_a_tfrecord_where_the_checks_of_all_formats_do(one_record, seed, changes):
    parse, groups = one_record
    record = example(random_groups(1, seed)[0])
    for name, values in changes.items():
        kind = {"img_path": "string", "group_size": "int64"}.get(name) or (LABELS | VALUES)[name]
        record.features.feature[name].CopyFrom(feature_of(values, kind))
    zero = tf.zeros([1], tf.int64)
    parsed = parse(zero, zero, zero, tf.constant([record.SerializeToString()])).groups
    checked = read_examples([record.SerializeToString()], groups)
    assert [Problem.decode(data) for data in parsed.evidence.numpy()] == list(checked.problems.values())
    assert parsed.kept_groups.numpy().tolist() == checked.kept_groups.tolist()
    assert parsed.group_size.numpy().tolist() == checked.group_size.tolist()
    assert parsed.image_path.numpy().tolist() == checked.image_path.tolist()
    for name, values in checked.fields.items():
        assert parsed.fields[name].numpy().tolist() == values.tolist(), name


def users_of(groups):
    return [user.decode() for user in expected_values(groups)["user"]]


LENGTHS = {
    "a list that is too short": ({"age": [1, 2]}, "age", "2 entries, group size 3"),
    "a list that is too long": ({"user": ["a"] * 4}, "user", "4 entries, group size 3"),
    "an empty list": ({"click": []}, "click", "0 entries, group size 3"),
}


@pytest.mark.parametrize("kind", ["GroupParquetInput", "GroupTFRecordInput"])
@pytest.mark.parametrize("mistake", LENGTHS)
def test_lists_are_as_long_as_the_group_each(kind, mistake, tmp_path):
    changes, where, problem = LENGTHS[mistake]
    groups = change(random_groups(20, seed=1), 12, **whole({"img_path": "p"}))
    # The next group makes up for it: the flat columns would be equally long.
    if kind == "GroupTFRecordInput":
        examples = [example(group) for group in groups]
        for name, values in changes.items():
            examples[12].features.feature[name].CopyFrom(feature_of(values, (LABELS | VALUES)[name]))
        write_records(tmp_path / "a", examples)
    else:
        table = grouped_table(groups)
        for name, values in changes.items():
            column = table[name].to_pylist()
            column[12] = values
            table = table.set_column(table.column_names.index(name), name, pa.array(column, table[name].type))
        pq.write_table(table, tmp_path / "a")
    bad, left = refused(kind, tmp_path / "a")
    assert bad == [(13, f"column '{where}'", problem)]
    assert left == users_of(groups[:12] + groups[13:])


def test_missing_lists_labels_and_sizes_of_a_table(tmp_path):
    groups = random_groups(8, seed=3)
    table = grouped_table(groups)

    def with_row(name, row, value):
        column = table[name].to_pylist()
        column[row] = value
        return table.set_column(table.column_names.index(name), name, pa.array(column, table[name].type))

    table = with_row("age", 1, None)
    table = with_row("click", 3, [None] * len(groups[3]["click"]))
    table = with_row("group_size", 5, 99)
    table = with_row("group_size", 6, None)
    pq.write_table(table, tmp_path / "a")
    bad, left = refused("GroupParquetInput", tmp_path / "a")
    assert sorted(bad) == [
        (2, "column 'age'", "is null"),
        (4, "column 'click'", bad[[row for row, _, _ in bad].index(4)][2]),
        (6, "column 'click'", f"{len(groups[5]['click'])} entries, group size 99"),
        (7, "column 'group_size'", "group size 0 is not 1 or more"),
    ]
    assert "label is missing" in next(problem for row, _, problem in bad if row == 4)
    assert left == users_of([groups[i] for i in (0, 2, 4, 7)])


def test_columns_for_the_whole_group_may_be_one_value_or_a_list(tmp_path):
    groups = random_groups(30, seed=2)
    one = grouped_table(groups)
    cate = pa.array([group["cate"][0] for group in groups])
    pictures = pa.array([[group["img_path"]] * len(group["click"]) for group in groups])
    other = one.set_column(one.column_names.index("cate"), "cate", cate)
    other = other.set_column(other.column_names.index("img_path"), "img_path", pictures).drop_columns("group_size")
    pq.write_table(one, tmp_path / "one")
    pq.write_table(other, tmp_path / "other")
    expected = values_of(input_of("GroupParquetInput", tmp_path / "one").batches())
    assert values_of(input_of("GroupParquetInput", tmp_path / "other").batches()) == expected
    examples = [example(group) for group in groups]
    for record, group in zip(examples, groups, strict=True):
        record.features.feature["cate"].CopyFrom(feature_of(group["cate"], "string"))
        del record.features.feature["group_size"]
    write_records(tmp_path / "records", examples)
    assert values_of(input_of("GroupTFRecordInput", tmp_path / "records").batches()) == expected


def test_pictures_of_a_group_that_disagree(tmp_path):
    groups = [whole({"img_path": "p"}), whole({"img_path": "q"})]
    table = grouped_table(groups)
    pictures = pa.array([["p", "p", "q"], ["q", "q", "q"]])
    pq.write_table(table.set_column(table.column_names.index("img_path"), "img_path", pictures), tmp_path / "a")
    bad, left = refused("GroupParquetInput", tmp_path / "a")
    assert [(row, where) for row, where, _ in bad] == [(1, "column 'img_path'")]
    assert left == ["a", "b", "c"]


def test_types_that_say_the_same(tmp_path):
    """Ids as numbers, whole numbers as floating ones, dictionaries, narrow types; of two files in two types each."""
    groups = random_groups(12, seed=4, missing=0)
    flat = flat_rows(groups)
    columns = {
        "click": pa.array([float(row["click"]) for row in flat]),
        "seconds": pa.array([row["seconds"] for row in flat], pa.float64()),
        "user": pa.array([row["user"] for row in flat]).dictionary_encode(),
        "age": pa.array([row["age"] for row in flat], pa.int8()),
        "weight": pa.array([row["weight"] for row in flat], pa.float64()),
        "vip": pa.array([int(row["vip"]) for row in flat], pa.uint8()),
        "tags": pa.array([[t for t in row["tags"].split("|") if t] for row in flat]),
        "scores": pa.array([row["scores"] for row in flat], pa.large_string()),
        "cate": pa.array([row["cate"] for row in flat]),
        "img_path": pa.array([row["img_path"] for row in flat], pa.binary()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a")
    columns["age"] = pa.array([float(row["age"]) for row in flat])
    pq.write_table(pa.table(columns), tmp_path / "b")
    found = values_of(input_of("ParquetInput", tmp_path / "*", training=True).batches())
    expected = expected_values(groups)
    for name in ("user", "age", "vip", "click"):
        assert sorted(found[name]) == sorted(expected[name] * 2), name
    assert sorted(map(tuple, found["tags"])) == sorted(map(tuple, expected["tags"] * 2))


def test_an_id_told_by_its_number(tmp_path):
    pq.write_table(pa.table({"click": [1], "seconds": [0.5], "user": [123], "img_path": ["p"]}), tmp_path / "a")
    small = schema(LABELS, {"user": "string"}, FEATURES[:1], tasks=[("click", "binary", 1)], uses_image=False)
    assert users(input_of("ParquetInput", tmp_path / "a", schema=small).batches()) == ["123"]


@pytest.mark.parametrize("compress", [False, True])
def test_bad_rows_of_csv_are_named_by_their_line(tmp_path, compress):
    lines = [
        b"img_path,user,age,weight,vip,click,seconds,tags,scores,cate",
        b"p,a,1,1.5,true,0,0.5,,,c",
        b"p,b,one,1.5,true,0,0.5,,,c",
        b"p,c,1,1.5,true,0,0.5,,,c,too many",
        b"p,d,1,1.5,true,2,0.5,,,c",
        b"p,e,1,nan,true,0,0.5,,,c",
        b"p,f,1",
        b"p,g,1,1.5,maybe,0,0.5,,,c",
        b'p,"h, ""i""",+1, 1.5 ,1,1,.5,x,1,c',
        b"p,j,1,1.5,0,,0.5,,,c",
        b"p,\xff,1,1.5,0,1,0.5,,,c",
    ]
    content = b"\r\n".join(lines)
    (tmp_path / "a").write_bytes(gzip.compress(content) if compress else content)
    bad, left = refused("CSVInput", tmp_path / "a")
    assert [(row, where) for row, where, _ in sorted(bad)] == [
        (3, "column 'age'"),
        (4, "row"),
        (5, "column 'click'"),
        (6, "column 'weight'"),
        (7, "row"),
        (8, "column 'vip'"),
        (10, "column 'click'"),
    ]
    problems = {row: problem for row, _, problem in bad}
    assert problems[3] == "'one' is not a whole number"
    assert problems[4] == "11 values, not 10"
    assert problems[5] == "label 2 is not from 0 to 1"
    assert problems[8] == "'maybe' is not a bool"
    assert left == ["a", 'h, "i"', "\ufffd"]


def test_csv_without_a_header_is_in_the_order_of_input_fields(tmp_path):
    (tmp_path / "a").write_text("1;0.5;x;p\n0;1.5;y;q\n")
    small = schema(LABELS, {"user": "string"}, FEATURES[:1], tasks=[("click", "binary", 1)], uses_image=False)
    fields = [{"input_name": name} for name in ("click", "seconds", "user", "img_path")]
    one = input_of("CSVInput", tmp_path / "a", schema=small, with_header=False, separator=";", input_fields=fields)
    found = values_of(one.batches())
    assert found["user"] == [b"x", b"y"]
    assert found["click"] == [1.0, 0.0]
    assert [row for _, row, _ in one.source.texts()] == [1, 2]


def test_a_whole_number_that_is_not_whole(tmp_path):
    table = pa.table(
        {"click": [1.0, 0.0], "seconds": [0.5, 0.5], "age": [1.0, 1.5], "user": ["a", "b"], "img_path": ["p", "p"]}
    )
    pq.write_table(table, tmp_path / "a")
    small = schema(
        LABELS, {"user": "string", "age": "int64"}, FEATURES[:2], tasks=[("click", "binary", 1)], uses_image=False
    )
    bad, left = refused("ParquetInput", tmp_path / "a", schema=small)
    assert bad == [(2, "column 'age'", "1.5 is not a whole number")]
    assert left == ["a"]


# Files that cannot be read at all.


def test_a_column_that_is_missing_or_of_another_type(tmp_path):
    table = grouped_table(random_groups(3))
    pq.write_table(table.rename_columns(["clik" if n == "click" else n for n in table.column_names]), tmp_path / "a")
    with pytest.raises(DataError, match=r"/a: no column 'click'; did you mean 'clik'\?"):
        input_of("GroupParquetInput", tmp_path / "a")
    texts = pa.array([[str(v) for v in values] for values in table["age"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("age"), "age", texts), tmp_path / "a")
    with pytest.raises(DataError, match=r"/a: column 'age' is list<element: string>, .* says whole numbers"):
        input_of("GroupParquetInput", tmp_path / "a")
    write_csv(tmp_path / "a", random_groups(3))
    (tmp_path / "a").write_text((tmp_path / "a").read_text().replace("user", "usr", 1))
    with pytest.raises(DataError, match=r"/a: no column 'user'; "):
        input_of("CSVInput", tmp_path / "a")


def test_files_of_one_input_are_alike(tmp_path):
    table = grouped_table(random_groups(3))
    pq.write_table(table, tmp_path / "a")
    cate = pa.array([values[0] for values in table["cate"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("cate"), "cate", cate), tmp_path / "b")
    with pytest.raises(
        DataError, match=r"/b: column 'cate' is large_binary, and list<.*> in .*/a; write all files with the same types"
    ):
        list(input_of("GroupParquetInput", tmp_path / "*").batches())


def test_an_error_is_met_by_all_that_ask_for_what_is_behind_it():
    def elements():
        yield from "ab"
        raise DataError("broken")

    shared = InOrder(elements())
    # Whichever thread asks first.
    for index in (3, 2, 4):
        with pytest.raises(DataError, match="broken"):
            shared.get(index)
    assert [shared.get(1), shared.get(0)] == ["b", "a"]
    whole = InOrder(iter("ab"))
    assert [whole.get(index) for index in (2, 0, 1, 3)] == [None, "a", "b", None]


def test_a_feature_that_is_missing_or_of_another_type(tmp_path):
    records = [example(group) for group in random_groups(300)]
    del records[0].features.feature["age"]
    write_records(tmp_path / "a", records)
    with pytest.raises(DataError, match=r"/a: no column 'age'; "):
        input_of("GroupTFRecordInput", tmp_path / "a")
    records = [example(group) for group in random_groups(300)]
    records[0].features.feature["age"].CopyFrom(feature_of([1.0], "float32"))
    write_records(tmp_path / "a", records)
    with pytest.raises(DataError, match=r"/a: feature 'age' is float_list, .* needs int64_list"):
        input_of("GroupTFRecordInput", tmp_path / "a")
    # Behind the first, it is found when it is read.
    records = [example(group) for group in random_groups(300)]
    records[280].features.feature["age"].CopyFrom(feature_of([1.0], "float32"))
    write_records(tmp_path / "a", records)
    with pytest.raises(DataError, match=r"/a: record 281 cannot be read: .*age"):
        list(input_of("GroupTFRecordInput", tmp_path / "a").batches())


def test_records_that_are_no_examples(tmp_path):
    write_records(tmp_path / "a", [b"\xff\xff\xff"])
    with pytest.raises(DataError, match=r"/a: record 1 is not a tf.train.Example"):
        input_of("GroupTFRecordInput", tmp_path / "a")


@pytest.mark.parametrize("position", [40, -40])
def test_a_tfrecord_with_a_bad_checksum(tmp_path, position):
    write_tfrecord(tmp_path / "a", random_groups(600))
    content = bytearray((tmp_path / "a").read_bytes())
    content[position] ^= 0xFF
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=r"/a: cannot be read to its end: .*, after row (0|599)$"):
        list(input_of("GroupTFRecordInput", tmp_path / "a").batches())


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput", "GroupTFRecordInput"])
def test_a_file_that_breaks_off(kind, tmp_path):
    WRITERS[kind](tmp_path / "a", random_groups(300))
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"/a: cannot be read"):
        list(input_of(kind, tmp_path / "a").batches())


def test_a_csv_gzip_that_breaks_off(tmp_path):
    write_csv(tmp_path / "a", random_groups(300))
    (tmp_path / "a").write_bytes(gzip.compress((tmp_path / "a").read_bytes())[:-100])
    with pytest.raises(DataError, match=r"/a: cannot be read as CSV"):
        list(input_of("CSVInput", tmp_path / "a").batches())


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "GroupRTPInput"])
def test_files_without_a_row(kind, tmp_path):
    WRITERS[kind](tmp_path / "a", [])
    with pytest.raises(DataError, match=r"/a: no (row|record) of data"):
        input_of(kind, tmp_path / "a")
    # One among others is as good as none.
    WRITERS[kind](tmp_path / "b", random_groups(5))
    assert users(input_of(kind, tmp_path / "*").batches()) == users_of(random_groups(5))


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput"])
def test_a_parquet_file_of_0_bytes(kind, tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match=r"/a: cannot be read as Parquet"):
        input_of(kind, tmp_path / "a")


def test_a_problem_passes_through_bytes():
    problem = Problem("column 'é'", "sample 1: '\x02' is bad")
    assert Problem.decode(problem.encode()) == problem


# Sequences.

SEQUENCES = replace(
    SCHEMA,
    features=(
        id_feature("user", ("user",), 4, "user", "hash", 1000),
        id_sequence("tags", ("tags",), 3, "tags", "hash", 100, separator="|"),
        raw_sequence("scores", ("scores",), 1, separator="|"),
        raw_sequence("pairs", ("scores",), 2, separator="|", dim=2, number_separator="."),
    ),
    attentions=(Attention("din", ("user",), ("tags", "scores"), 4, True),),
)


@pytest.mark.parametrize("kind", WRITERS)
def test_sequences_of_numbers_and_vectors_in_batches_cut_anywhere(kind, folder, groups):
    found = values_of(input_of(kind, folder / kind / "*", schema=SEQUENCES, batch_size=7).batches())
    texts = [row["scores"].split("|") if row["scores"] else [] for row in flat_rows(groups)]
    assert found["scores"] == [[[float(text)] for text in some] for some in texts]
    assert found["pairs"] == [[[float(part) for part in text.split(".")] for text in some] for some in texts]


@pytest.mark.parametrize("kind", WRITERS)
def test_sequences_that_are_attended_to_together_have_one_length(kind, tmp_path):
    groups = change(random_groups(20, seed=1), 12, **whole({"img_path": "p"}))
    bad_group = change(groups, 12, tags=["a", "a|b|c", "|"], scores=["1.0", "1.0||2.5", ""])
    WRITERS[kind](tmp_path / "a", bad_group)
    ((_, where, problem),), left = refused(kind, tmp_path / "a", schema=SEQUENCES)
    assert "tags" in where + problem
    assert "3" in problem
    assert "scores" in problem
    bad_users = ["a", "b", "c"] if kind in GROUPED else ["b"]
    assert left == [user for user in users_of(groups) if user not in bad_users]


# Values that are lists.

LISTS = replace(
    SCHEMA,
    features=(
        id_feature("user", ("user",), 4, "user", "hash", 1000),
        raw_feature("tags", ("tags",), 2, separator="|", dim=2),
        raw_sequence("scores", ("scores",), 2, separator="|", dim=2, number_separator=","),
        raw_feature("cate", ("cate",), 3, separator="|", dim=3),
    ),
)
VECTORS = [[[0.5, -2.0], None, [1e-5, 3.0]], [[1.0, 2.0]]]  # two groups, of three samples and one
SEQUENCES_OF_VECTORS = [[[[1.0, 2.0], [3.0, 4.0]], [], None], [[[5.0, 6.0]]]]
OF_GROUPS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def number_list(values, *dims, fixed=False):
    """An array of lists within each other, the innermost of a fixed size."""
    kind = pa.float32()
    for dim in reversed(dims):
        kind = pa.list_(kind, dim) if fixed and dim else pa.list_(kind)
    return pa.array(values, kind)


@pytest.mark.parametrize("fixed", [False, True])
def test_columns_of_lists_are_vectors(tmp_path, fixed):
    groups = [whole({"img_path": "p"}), {name: values[:1] for name, values in whole({"img_path": "p"}).items()}]
    groups[1]["img_path"] = "q"
    columns = grouped_table(groups)
    lists = {
        "tags": number_list(VECTORS, 0, 2, fixed=fixed),
        "scores": number_list(SEQUENCES_OF_VECTORS, 0, 0, 2, fixed=fixed),
        "cate": number_list(OF_GROUPS, 3, fixed=fixed),
    }
    for name, values in lists.items():
        columns = columns.set_column(columns.column_names.index(name), name, values)
    expected = {
        "tags": [[0.5, -2.0], [0.0, 0.0], [np.float32(1e-5), 3.0], [1.0, 2.0]],
        "scores": [[[1.0, 2.0], [3.0, 4.0]], [], [], [[5.0, 6.0]]],
        "cate": [[1.0, 2.0, 3.0]] * 3 + [[4.0, 5.0, 6.0]],
    }
    pq.write_table(columns, tmp_path / "grouped")
    found = values_of(input_of("GroupParquetInput", tmp_path / "grouped", schema=LISTS).batches())
    assert {name: found[name] for name in expected} == expected
    rows = {
        name: [value for group in groups for value in group[name]] for name in (*LABELS, "user", "age", "weight", "vip")
    }
    rows["img_path"] = ["p", "p", "p", "q"]
    flat = pa.table(rows)
    flat = flat.append_column("tags", number_list([v for group in VECTORS for v in group], 2, fixed=fixed))
    flat = flat.append_column("scores", number_list([v for g in SEQUENCES_OF_VECTORS for v in g], 0, 2, fixed=fixed))
    flat = flat.append_column("cate", number_list([OF_GROUPS[0]] * 3 + OF_GROUPS[1:], 3, fixed=fixed))
    pq.write_table(flat, tmp_path / "flat")
    found = values_of(input_of("ParquetInput", tmp_path / "flat", schema=LISTS).batches())
    assert {name: found[name] for name in expected} == expected


SEEN = [[["a", "b c"], [], ["ü"]], [None], [["x", None, "", "y"]]]  # three groups, of three samples and one each
PLACES = [[[3, 1], [], [20]], [None], [[7, None, 8]]]
IDS_OF_LISTS = replace(
    SCHEMA,
    group_fields=(),
    features=(
        id_feature("user", ("user",), 4, "user", "hash", 1000),
        id_sequence(
            "tags", ("tags",), 4, "tags", "vocabulary", 6, ("a", "b c", "ü", "x", "y"), separator="|",
        ),
        id_sequence("cate", ("cate",), 4, "cate", "identity", 10, separator=";;"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput"])
def test_columns_of_lists_are_sequences(tmp_path, kind):
    """Of text and of numbers; what is null is missing, also among others."""
    expected = {"tags": [[0, 1], [], [2], [], [3, 4]], "cate": [[3, 1], [], [0], [], [7, 8]]}
    groups = [whole({"img_path": "p"})]
    groups += [{name: values[:1] for name, values in whole({"img_path": "q"}).items()} for _ in range(2)]
    for group, path in zip(groups, "pqr", strict=True):
        group["img_path"] = path
    columns = grouped_table(groups)
    lists = {"tags": pa.array(SEEN, pa.list_(pa.list_(pa.large_string()))), "cate": pa.array(PLACES)}
    if kind == "ParquetInput":
        columns = pa.table({n: [v for g in groups for v in g[n]] for n in (*LABELS, "user", "age", "weight", "vip")})
        columns = columns.append_column("img_path", pa.array([*"pppqr"]))
        lists = {name: values.flatten() for name, values in lists.items()}
    for name, values in lists.items():
        at = columns.column_names.index(name) if name in columns.column_names else columns.num_columns
        columns = columns.remove_column(at) if at < columns.num_columns else columns
        columns = columns.append_column(name, values)
    pq.write_table(columns, tmp_path / "a", row_group_size=2)
    found = values_of(input_of(kind, tmp_path / "a", schema=IDS_OF_LISTS).batches())
    assert {name: found[name] for name in expected} == expected


def test_an_element_that_holds_the_separator_is_no_two(tmp_path):
    groups = [whole({"img_path": "p"}), whole({"img_path": "q"})]
    columns = grouped_table(groups)
    place = columns.column_names.index("tags")
    seen = pa.array([[["a"], [], ["x", "y"]], [["a"], ["b|c"], []]])
    pq.write_table(columns.set_column(place, "tags", seen), tmp_path / "a")
    schema = replace(IDS_OF_LISTS, features=IDS_OF_LISTS.features[:2])
    ((_, where, problem),), left = refused("GroupParquetInput", tmp_path / "a", schema=schema)
    assert (where, problem) == ("column 'tags'", "an element contains the separator of the elements")
    assert left == ["a", "b", "c"]


def test_a_list_too_deep_or_of_another_size_is_told(tmp_path):
    groups = [whole({"img_path": "p"})]
    columns = grouped_table(groups)
    place = columns.column_names.index("tags")
    pq.write_table(columns.set_column(place, "tags", number_list([[[[1.0]]] * 3], 0, 0, 0)), tmp_path / "deep")
    with pytest.raises(DataError, match=r"column 'tags' is list<.*list<.*, and data_config.input_fields says text"):
        list(input_of("GroupParquetInput", tmp_path / "deep", schema=LISTS).batches())
    vectors = number_list([[[1.0, 2.0], [1.0], [3.0, float("nan")]]], 0, 0)
    pq.write_table(columns.set_column(place, "tags", vectors), tmp_path / "short")
    ((_, where, problem),), _ = refused("GroupParquetInput", tmp_path / "short", schema=LISTS)
    assert where == "column 'tags'"
    assert problem == "sample 1: '1' does not have the form that its feature needs"
