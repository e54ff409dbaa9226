"""The Python API without a training: the package, settings, what is read of a DataFrame, wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from flat_helpers import make_log

import easyrec_mm as er
from easyrec_mm.api.frames import fields_of, table_of
from easyrec_mm.api.options import options_from
from easyrec_mm.embedding.embed import EmbedOptions
from easyrec_mm.serving.release import ServiceOptions

# Modules that the import of the package must not bring.
HEAVY = ("tensorflow", "keras", "numpy", "pandas", "pyarrow", "google.protobuf")


# --- The package


def test_the_import_loads_nothing_that_takes_time():
    code = "import sys, time; start = time.process_time(); import easyrec_mm; print(time.process_time() - start)"
    code += "; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, *loaded = out.split()
    assert not set(HEAVY) & set(loaded)
    assert "easyrec_mm" in loaded
    assert float(seconds) < 0.2


def test_names_of_the_package():
    assert set(er.__all__) <= set(dir(er))
    assert all(getattr(er, name).__module__.startswith("easyrec_mm.") for name in er.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = er.lod


def test_an_error_shows_no_password():
    assert str(er.StoreError("redis://user:secret@host/0: cannot be reached")) == (
        "redis://user:***@host/0: cannot be reached"
    )


# --- Loading


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a flat log and a config for it."""
    make_log(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_settings_change_the_config(folder):
    pipeline = er.load(
        Path("x.config"),
        {"train_config.num_steps": 7, "data_config": {"shuffle": False, "seed": "5"}, "model_dir": Path("other")},
    )
    assert pipeline.config.train_config.num_steps == 7
    assert (pipeline.config.data_config.shuffle, pipeline.config.data_config.seed) == (False, 5)
    assert pipeline.with_settings({"train_config.num_steps": 8}).config.train_config.num_steps == 8
    assert pipeline.model_dir == "other"


def test_settings_may_be_values_of_numpy(folder):
    units = "model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units"
    settings = {"train_config.num_steps": np.int64(7), "data_config.shuffle": np.bool_(False), units: np.array([3, 2])}
    pipeline = er.load("x.config", settings)
    assert pipeline.config.train_config.num_steps == 7
    assert not pipeline.config.data_config.shuffle
    assert list(pipeline.config.model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units) == [3, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_config.num_stps": 7}, "settings: train_config.num_stps: TrainConfig has no field 'num_stps'; did you"),
        ({"train_config.num_steps": "many"}, "settings: train_config.num_steps: 'many' is not a valid value"),
        ({"train_config.num_steps": None}, "settings: train_config.num_steps: null is not a value"),
        (
            {"train_config.num_steps": 7j},
            "settings: train_config.num_steps: is of type complex; give a text, a number",
        ),
        ({7: 7}, "settings: 7 is not a path"),
        (["train_config.num_steps=7"], "settings: is a list; give a dict"),
    ],
)
def test_settings_that_are_wrong(folder, settings, message):
    with pytest.raises(er.ConfigError, match=message):
        er.load("x.config", settings)


# --- DataFrames


def test_what_is_read_of_a_frame():
    frame = pd.DataFrame(
        {
            "category": pd.Categorical(["a", None, "b"]),
            "whole": pd.array([1, None, 3], dtype="Int64"),
            "number": [1.5, np.nan, 2.5],
            "sparse": pd.arrays.SparseArray([0, 0, 1]),
            "other": [object(), object(), object()],
        },
        index=["x", "x", "z"],
    )
    table = table_of(frame, "data", ["number", "category", "whole", "sparse", "missing"])
    assert table.to_pydict() == {
        "number": [1.5, None, 2.5],
        "category": ["a", None, "b"],
        "whole": [1, None, 3],
        "sparse": [0, 0, 1],
    }


def test_times_and_decimals_are_read_as_group_writes_them():
    times = pd.Series(pd.to_datetime(["2024-01-02 03:04:05", None])).astype("datetime64[s]")
    frame = pd.DataFrame(
        {"time": times, "seconds": times, "price": [Decimal("1.50"), None], "code": [Decimal("7")] * 2}
    )
    table = fields_of(frame, "data", {"time": "string", "seconds": "int64", "price": "float32", "code": "string"})
    expected = {"time": ["2024-01-02 03:04:05", None], "price": [1.5, None], "code": ["7", "7"]}
    assert table.drop_columns("seconds").to_pydict() == expected
    # Of a number nobody knows the unit: the reader refuses it.
    assert pa.types.is_timestamp(table["seconds"].type)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"a": []}), "data: the DataFrame has no rows"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "data: 2 columns are named 'a'"),
        (pd.DataFrame({"a": pd.Series(["\ud800"], dtype=object)}), "data: column 'a': cannot be read: .*surrogates"),
        (pd.DataFrame({"a": [1, "x"]}), "data: column 'a': cannot be read: .*convert the column to one type"),
        (pd.DataFrame({"b": [1]}), "data: no column has the name of a field of the config; the DataFrame has b"),
    ],
)
def test_frames_that_cannot_be_read(frame, message):
    with pytest.raises(er.DataError, match=message):
        table_of(frame, "data", ["a"])


# --- Arguments


def test_options_take_paths_and_values_of_numpy():
    values = {"bad_pictures": Path("bad.jsonl"), "batch_size": np.int64(8), "max_bad_share": np.float32(0.5)}
    options = options_from(EmbedOptions, values, "embed")
    assert options == EmbedOptions("bad.jsonl", batch_size=8, max_bad_share=0.5)
    assert isinstance(options.batch_size, int)
    service = options_from(ServiceOptions, {"rec_model_dir": "r", "image_hosts": "s3://a", "num_threads": 2}, "Server")
    assert service.image_hosts == ("s3://a",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: er.group("x.csv", "g", group_by="a", image_field="b", overwite=True),
            "group: no option 'overwite'; did",
        ),
        (lambda: er.group("x.csv", "g", group_by="a", image_field="b"), "^data: 'x.csv' matches no file"),
        (
            lambda: er.group("x.csv", "g", group_by="a", image_field="b", format="csv"),
            "group: format: is 'csv'; choose one of parquet, tfrecord, rtp",
        ),
        (
            lambda: er.group("x.csv", "g", group_by="a", image_field="b", max_group_size="8"),
            "group: max_group_size: is '8'; give a whole number",
        ),
        (
            lambda: er.group("x.csv", "g", group_by="a", image_field="b", overwrite=1),
            "group: overwrite: is 1; give True or False",
        ),
        (
            lambda: er.group("x.csv", "g", group_by="a", image_field="b", label_fields=["c", 5]),
            r"group: label_fields: is \('c', 5\); give a text or a list of texts",
        ),
        (lambda: er.Server("r", "lmdb://v", max_instances=True), "Server: max_instances: is True; give a whole number"),
        (lambda: er.Server("r", "lmdb://v", picture_timeout_s="x"), "Server: picture_timeout_s: is 'x'; give a number"),
        (
            lambda: er.Server("r", "lmdb://v", image_hosts=5),
            "Server: image_hosts: is 5; give a text or a list of texts",
        ),
        (lambda: er.embed("i", "x.txt", "lmdb://v"), "i: no manifest.json"),
        (lambda: er.embed("i", "x.txt", "lmdb://v", runtime="gpu"), "embed: runtime: is 'gpu'; choose one of auto,"),
        (lambda: er.search("lmdb://v", key="a", similarity="dot"), "search: similarity: is 'dot'; choose one of cen"),
        (lambda: er.Server("r", "lmdb://v", runtme="onnx"), "Server: no option 'runtme'; did you mean 'runtime'?"),
        (lambda: er.search("lmdb://v"), "search: give what to look for"),
    ],
)
def test_arguments_that_do_not_exist(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(er.UserError, match=message):
        call()
