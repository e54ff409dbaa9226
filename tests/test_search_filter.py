"""Filters against conditions in Python, and tables of metadata."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easyrec_mm.errors import DataError
from easyrec_mm.retrieval.filter import Filter, FilterError
from easyrec_mm.retrieval.metadata import Metadata, read_metadata

DAY = datetime.date
COLUMNS = {
    "key": ["a", "b", "c", "d", "e"],
    "category": ["shoes", "bag", None, "shoes", "Schuhe 鞋"],
    "price": [49.5, 50.0, 5.0, math.nan, None],
    "stock": [3, 0, 9_007_199_254_740_993, 7, 1],
    "is_new": [True, False, None, True, False],
    "added": [DAY(2026, 1, 1), DAY(2026, 6, 1), None, DAY(2025, 1, 1), DAY(2026, 12, 1)],
    "unit price": [1.0, 2.0, 3.0, 4.0, 5.0],
    "tags": [["x"], [], [], [], []],
}
TABLE = pa.table(COLUMNS).set_column(1, "category", pa.array(COLUMNS["category"]).dictionary_encode())


@pytest.fixture(scope="module")
def metadata():
    return Metadata(TABLE, "key", "items.parquet")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("category == 'shoes'", "ad"),
        ("category != 'shoes'", "be"),
        ("not category == 'shoes'", "be"),
        ("category == 'shoes' and price < 50", "a"),
        ("(category == 'shoes') & (price < 50)", "a"),
        ("category == 'bag' or price < 50", "abc"),
        ("~(price < 50)", "b"),
        ("price is None", "de"),
        ("price != None", "abc"),
        ("category in ['shoes', 'bag']", "abd"),
        ("category not in ('shoes', 'bag')", "e"),
        ("'鞋' in category", "e"),
        ("'x' not in category", "abde"),
        ("0 < stock <= 3", "ae"),
        ("stock == 9007199254740993", "c"),
        ("stock > 10000000000000000000000", ""),
        ("is_new", "ad"),
        ("not is_new", "be"),
        ("is_new == True", "ad"),
        ("added >= '2026-06-01'", "be"),
        ("price / 2 + 1 < stock * 10 - 2", "a c"),
        ("-price < -49.7", "b"),
        ("column('unit price') > 3", "de"),
        ("stock / 0 > 1 and stock == 3", "a"),
        ("1 < 2", "abcde"),
    ],
)
def test_the_rows_of_a_filter(metadata, text, keys):
    mask = Filter(text, metadata).mask(metadata.table(COLUMNS["key"]))
    assert [key for key, chosen in zip(COLUMNS["key"], mask, strict=True) if chosen] == list(keys.replace(" ", ""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("categry == 'shoes'", "items.parquet has no column 'categry'; did you mean 'category'"),
        ("column('unit') > 1", "has no column 'unit'"),
        ("category < 5", "'category < 5' compares a text with a number; 'texts' stand in quotation marks"),
        ("price == 'cheap'", "compares a number with a text"),
        ("price", "'price' is a number, not true or false"),
        ("price == 1 & stock == 2", "not true or false|nothing can be computed"),
        ("category + 1 > 2", "'category' is a text, with which nothing can be computed"),
        ("added > 'soon'", "compares a time with a text that is none; write it as 2026-12-31"),
        ("tags == 1", "'tags' is a column of type list<.*>, which a filter cannot compare"),
        ("price < None", "compares with None"),
        ("price is 5", "uses 'is', which is for None alone"),
        ("price in []", "names no value"),
        ("5 in price", "needs a list or a text"),
        ("__import__('os').system('true')", "is not supported; a filter has columns"),
        ("price.__class__ == 1", "is not supported"),
        ("[x for x in price]", "is not supported"),
        ("open('x')", "is not supported"),
        ("price <", "cannot be read at column"),
        ("x" * 20000, "more than 10000 characters"),
        ("not " * 150 + "is_new", "is nested more than 100 levels deep|is too deep"),
        ("(" * 4000 + "is_new" + ")" * 3999, "cannot be read"),
    ],
)
def test_filters_that_are_refused(metadata, text, message):
    with pytest.raises(FilterError, match=message):
        Filter(text, metadata)


def test_items_are_joined_by_key(metadata):
    table = metadata.table(["e", "none", "a"])
    assert table["category"].to_pylist() == ["Schuhe 鞋", None, "shoes"]
    assert metadata.rows(["e", "none", "a"]).tolist() == [4, -1, 0]
    assert metadata.columns == ["category", "price", "stock", "is_new", "added", "unit price"]
    assert metadata.values(["d"], ["price", "stock"]) == [{"price": None, "stock": 7}]


def test_keys_of_csv_and_parquet(tmp_path):
    (tmp_path / "a.csv").write_text('id,name\n007,"a, ""b""\nc"\n12,\n')
    table = read_metadata(str(tmp_path / "a.csv"), "id")
    assert table.values(["007", "12", "7"], ["name"]) == [{"name": 'a, "b"\nc'}, {"name": ""}, {"name": None}]
    pq.write_table(pa.table({"key": np.arange(3), "price": [1.5, 2, 3]}), tmp_path / "a.parquet")
    assert read_metadata(str(tmp_path / "a.parquet")).values(["2"], ["price"]) == [{"price": 3.0}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\na,b\n", "no column 'key'; .*--metadata_key names the column"),
        ("key,name\na,b\na,c\n", "rows 1 and 2 have the key 'a'; leave one row per item"),
        ("key,name\na,b\n,c\n", "row 2: 'key' is missing"),
        ("key,name\na,b,c\n", "cannot be read: .*; give Parquet, or CSV with a header"),
        ("", "cannot be read"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(DataError, match=f"items.csv: {message}"):
        read_metadata(str(tmp_path / "items.csv"))


def test_a_table_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"none.csv: cannot be read"):
        read_metadata(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="column 'price' is of type double; keys are texts or whole numbers"):
        Metadata(TABLE, "price", "items")
