"""Every input type: the same mistakes in values, lists and pictures of a group are refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from source_helpers import (
    LABELS,
    SCHEMA,
    VALUES,
    WRITERS,
    change,
    example,
    feature_of,
    grouped_table,
    input_of,
    random_groups,
    refused,
    users_of,
    values_of,
    whole,
    write_grouped_parquet,
    write_records,
    write_tfrecord,
)

from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.source import Order
from easyrec_mm.formats.tfrecord import read_examples
from easyrec_mm.formats.tfrecord_graph import GroupTfRecordSource
from easyrec_mm.formats.typed_groups import TypedGroups

BAD_VALUES = {
    "label out of range": ({"click": [0, 7, 1]}, "click", "sample 1: label 7"),
    "label that is not finite": ({"seconds": [0.5, 1.0, float("nan")]}, "seconds", "sample 2"),
    "number that is not finite": ({"weight": [float("inf"), 1.0, 2.0]}, "weight", "sample 0"),
    "more tags than scores": ({"tags": ["a", "a|b", ""], "scores": ["1", "1", ""]}, "tags", "2 "),
    "score that is not a number": ({"tags": ["a", "a", ""], "scores": ["1", "x", ""]}, "scores", "'x'"),
    "categories that disagree": ({"cate": ["c", "d", "c"]}, "cate", "sample 1: 'd', but sample 0 has 'c'"),
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
    problem = f"{2**63} is more than 64 bits with a sign can hold; set the field's input_type to STRING"
    assert bad == [(row, "column 'age'", problem)]
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
    source = GroupTfRecordSource(
        DataFiles(str(path), "input"), SCHEMA, tuple(LABELS), tuple(VALUES), Order(False, 0, 1)
    )
    number = tf.TensorSpec([1], tf.int64)
    parse = tf.function(source.parse, input_signature=[number, number, number, tf.TensorSpec([1], tf.string)])
    return parse, TypedGroups(SCHEMA, tuple(LABELS), tuple(VALUES))


@pytest.mark.slow
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
    table = grouped_table(groups)
    cate = pa.array([group["cate"][0] for group in groups])
    pictures = pa.array([[group["img_path"]] * len(group["click"]) for group in groups])
    other = table.set_column(table.column_names.index("cate"), "cate", cate)
    other = other.set_column(other.column_names.index("img_path"), "img_path", pictures).drop_columns("group_size")
    pq.write_table(table, tmp_path / "one")
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
