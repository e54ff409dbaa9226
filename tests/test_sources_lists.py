"""Columns of lists are vectors and sequences; lists that do not fit are told."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_helpers import id_feature, id_sequence, raw_feature, raw_sequence
from source_helpers import LABELS, SCHEMA, grouped_table, input_of, refused, values_of, whole

from easyrec_mm.errors import DataError

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
    batch_values = values_of(input_of("GroupParquetInput", tmp_path / "grouped", schema=LISTS).batches())
    assert {name: batch_values[name] for name in expected} == expected
    rows = {
        name: [value for group in groups for value in group[name]] for name in (*LABELS, "user", "age", "weight", "vip")
    }
    rows["img_path"] = ["p", "p", "p", "q"]
    flat = pa.table(rows)
    flat = flat.append_column("tags", number_list([v for group in VECTORS for v in group], 2, fixed=fixed))
    flat = flat.append_column("scores", number_list([v for g in SEQUENCES_OF_VECTORS for v in g], 0, 2, fixed=fixed))
    flat = flat.append_column("cate", number_list([OF_GROUPS[0]] * 3 + OF_GROUPS[1:], 3, fixed=fixed))
    pq.write_table(flat, tmp_path / "flat")
    batch_values = values_of(input_of("ParquetInput", tmp_path / "flat", schema=LISTS).batches())
    assert {name: batch_values[name] for name in expected} == expected


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
    batch_values = values_of(input_of(kind, tmp_path / "a", schema=IDS_OF_LISTS).batches())
    assert {name: batch_values[name] for name in expected} == expected


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
