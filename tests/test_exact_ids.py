"""Whole numbers are whole numbers in whatever type a file has them, and ids stay apart."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from group_helpers import make_log, run

from easyrec_mm.cli.main import main
from easyrec_mm.formats.columns import to_kind
from easyrec_mm.grouping.log_plan import plan_columns

LARGE = 2**53
DECIMAL = pa.decimal128(38, 4)


def kinds(folder, *columns):
    """The kind of a column that files of Parquet, or CSV for texts, have like this."""
    files = []
    for number, column in enumerate(columns):
        if isinstance(column, str):
            path = folder / f"{number}.csv"
            path.write_text(f"id,x\n{column}")
        else:
            path = folder / f"{number}.parquet"
            pq.write_table(pa.table({"id": column, "x": [1] * len(column)}), path)
        files.append(str(path))
    return plan_columns(files, files, ",", 0.01)["id"]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1.0, None, 3.0]), "int64"),
        (pa.array([1.0, 2.5]), "float64"),
        (pa.array([1.0, 2.0], pa.float32()), "int64"),
        (pa.array([1.0, float("nan")]), "int64"),
        (pa.array([1e18, 2e18]), "int64"),
        (pa.array([1.0, 1e20]), "float64"),
        (pa.array([None, None], pa.float64()), "string"),
        (pa.array([Decimal(7), None], DECIMAL), "int64"),
        (pa.array([Decimal("7.25")], DECIMAL), "float64"),
        (pa.array([Decimal(10**19 + 1), Decimal(10**19 + 2)], pa.decimal128(20, 0)), "string"),
        ("1.0,1\n2.0,1\n,1\n", "int64"),
        ("1.0,1\n2.5,1\n", "float64"),
        ("1e3,1\n", "int64"),
        ("1e+16,1\n2.5e16,1\n7,1\n", "int64"),
        ("1e18,1\n", "float64"),
        ("1e-3,1\n", "float64"),
    ],
)
def test_the_kind_is_that_of_the_values(tmp_path, column, kind):
    assert kinds(tmp_path, column) == kind


def test_days_of_different_types_have_one_kind(tmp_path):
    """As pandas writes them: a day with a missing id is of floats."""
    assert kinds(tmp_path, pa.array([LARGE, LARGE + 1]), pa.array([1.0, None])) == "int64"
    assert kinds(tmp_path, pa.array([1.0, None]), "1,1\n2,1\n") == "int64"
    assert kinds(tmp_path, pa.array([1.0, None]), pa.array([0.5])) == "float64"


def test_decimals_keep_every_digit():
    ids = [Decimal(LARGE + 1), None, Decimal(-LARGE - 3), Decimal(2**63)]
    whole = to_kind(pa.array(ids, DECIMAL), "int64")
    assert whole.values.to_pylist() == [LARGE + 1, None, -LARGE - 3, None]
    assert whole.is_bad.tolist() == [False, False, False, True]
    texts = to_kind(pa.array([*ids, Decimal("10.50"), Decimal("0.0001")], DECIMAL), "string").values
    assert texts.to_pylist() == [str(LARGE + 1), None, str(-LARGE - 3), str(2**63), "10.5", "0.0001"]


@pytest.mark.parametrize("column", [pa.array([0, 1, 2, None]), pa.array([0.0, 1.0, 0.5, None])])
def test_nothing_is_cut_to_a_bool(column):
    typed = to_kind(column, "bool")
    assert typed.values.to_pylist() == [False, True, None, None]
    assert typed.is_bad.tolist() == [False, False, True, False]
    decimals = pa.array([None if value is None else Decimal(str(value)) for value in column.to_pylist()], DECIMAL)
    assert to_kind(decimals, "bool").values.to_pylist() == [False, True, None, None]


def test_whole_numbers_may_have_exponents():
    typed = to_kind(pa.array(["1e16", "+2.5E+2", "7", "1.5", "1e-1", "1e18", None, ""]), "int64")
    assert typed.values.to_pylist() == [10**16, 250, 7, None, None, None, None, None]
    assert typed.is_bad.tolist() == [False, False, False, True, True, True, False, False]
    assert to_kind(pa.array(["1e3"]), "int64", strict=True).is_bad.tolist() == [True]


def test_nothing_is_cut_to_a_whole_number():
    for column in (pa.array([12.99, 3.0]), pa.array([Decimal("12.99"), Decimal(3)], DECIMAL), pa.array(["12.99", "3"])):
        typed = to_kind(column, "int64")
        assert typed.values.to_pylist() == [None, 3]
        assert typed.is_bad.tolist() == [True, False]


@pytest.mark.parametrize("kind", ["decimal", "float", "int and float"])
def test_users_are_told_apart(tmp_path, kind):
    table = make_log(tmp_path, num_rows=400).drop_columns(["user"])
    users = np.arange(400) % 200 + (LARGE if kind == "int and float" else 10**9)
    column = pa.array(users)
    if kind == "decimal":
        column = pa.array([Decimal(int(user)) for user in users], pa.decimal128(20, 0))
    if kind == "float":
        column = pa.array(pd.Series(users, dtype=float).where(np.arange(400) > 0))
    pq.write_table(table.append_column("user", column), tmp_path / "log.parquet")
    run(tmp_path, log="log.parquet", label_fields="click", user_field="user", format="parquet")
    groups = pq.ParquetDataset(sorted((tmp_path / "out").rglob("*.parquet"))).read()
    assert len({user for of_group in groups["user"].to_pylist() for user in of_group} - {None}) == 200


def test_floats_that_are_no_ids_are_refused(tmp_path, capsys):
    table = make_log(tmp_path, num_rows=40)
    pq.write_table(table.append_column("weight", pa.array(np.arange(40) / 8)), tmp_path / "log.parquet")
    flags = ["--input", f"{tmp_path}/log.parquet", "--group_by", "weight", "--image_field", "img_path"]
    assert main(["group", *flags, "--label_fields", "click", "--output", f"{tmp_path}/out"]) == 1
    assert "--group_by: column 'weight' holds fractions" in capsys.readouterr().err


def test_whole_numbers_beyond_53_bits_and_no_pictures(tmp_path):
    """Limits and numbers of values are exact; no picture is opened where none is wanted."""
    first = 1_800_000_000_000_000_001
    ids = pa.array([first, first + 1, None, first + 2] * 20, pa.int64())
    rows = {"user": ids, "click": [0, 1] * 40, "img": ["a.jpg"] * 80}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    flags = ["--image_field", "img", "--label_fields", "click", "--num_pictures", "0"]
    arguments = ["--input", f"{tmp_path}/log.parquet", *flags, "--output", f"{tmp_path}/s.html"]
    assert main(["stats", *arguments, "--json", f"{tmp_path}/s.json"]) == 0
    report = json.loads((tmp_path / "s.json").read_text())
    numbers = report["fields"]["user"]["numbers"]
    assert [numbers["least"], numbers["greatest"]] == [first, first + 2]
    assert report["fields"]["user"]["distinct"] == 3
    assert report["pictures"]["opened"] == 0
