"""The Python API without a training: the package, settings, what is read of a DataFrame, wrong arguments."""

from __future__ import annotations

import argparse
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from flat_helpers import make_log

import easyrec_mm as er
from easyrec_mm import ranges
from easyrec_mm.api.frames import fields_of, table_of
from easyrec_mm.api.grouping import Engine
from easyrec_mm.api.options import options_from
from easyrec_mm.api.run import Run
from easyrec_mm.cli.flags import Value
from easyrec_mm.cli.main import main, make_parser
from easyrec_mm.embedding.embed import EmbedOptions
from easyrec_mm.grouping.options import GroupOptions
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


def test_a_text_column_without_a_value_is_read():
    """pandas has NaN in it, as in a column of numbers."""
    frame = pd.DataFrame({"category": [np.nan, np.nan], "price": [np.nan, np.nan]})
    table = fields_of(frame, "data", {"category": "string", "price": "float32"})
    assert [str(kind) for kind in table.schema.types] == ["string", "double"]
    assert table.to_pydict() == {"category": [None, None], "price": [None, None]}


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


# Dataclass of options -> the command whose flags have the names of its fields.
OF_COMMANDS = {GroupOptions: "group", Engine: "group", EmbedOptions: "embed", ServiceOptions: "serve"}


@pytest.mark.parametrize("options", OF_COMMANDS)
def test_flags_and_arguments_take_the_same_values(options):
    flags = {}

    class Recorder(argparse.ArgumentParser):
        def add_argument(self, *names, **settings):
            action = super().add_argument(*names, **settings)
            if self.prog.endswith(f" {OF_COMMANDS[options]}"):
                flags[action.dest] = action
            return action

    make_parser(Recorder)
    limits = {
        name: hint.__metadata__[0]
        for name, hint in get_type_hints(options, include_extras=True).items()
        if get_origin(hint) is Annotated
    }
    own = set(get_type_hints(options)) & set(flags)
    assert limits == {name: flags[name].type.limit for name in own if isinstance(flags[name].type, Value)}
    assert limits
    numbers = [name for name in own if get_type_hints(options)[name] in (int, float)]
    assert set(numbers) <= set(limits)


@pytest.mark.parametrize(
    ("limit", "valid", "invalid"),
    [
        (ranges.POSITIVE, ["1", "9223372036854775807"], ["0", "-1", "1.5", "x", "", "9223372036854775808"]),
        (ranges.NOT_NEGATIVE, ["0", "7"], ["-1", "9" * 30]),
        (ranges.SHARE, ["0", "1", "0.5"], ["-0.1", "1.01", "nan", "inf", "x"]),
        (ranges.GIB, ["1", "2.5"], ["0.9", "inf"]),
        (ranges.SECONDS, ["0", "0.5"], ["-1", "inf", "nan"]),
        (ranges.POSITIVE_SECONDS, ["0.1"], ["0", "-1"]),
        (ranges.MINUTES, ["0.1"], ["0"]),
    ],
)
def test_ranges_hold_for_texts_and_numbers(limit, valid, invalid):
    for text in valid:
        number = limit.parsed(text)
        assert number == limit.kind(text) == limit.checked(number, "n")
    for text in invalid:
        with pytest.raises(ValueError, match=f"is not {limit.description}"):
            limit.parsed(text)
        try:
            value = limit.kind(text)
        except ValueError:
            value = text
        with pytest.raises(er.UserError, match=f"^n: is .*; give {limit.description}"):
            limit.checked(value, "n")


def of_log(**values):
    """Call `group` on a log that does not exist, with values that are checked before it is read."""
    return er.group("x.csv", values.pop("output", "g"), **{"group_by": "a", "image_field": "b", **values})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: of_log(max_group_size=0), "^group: max_group_size: is 0; give a whole number, 1 or more"),
        (lambda: of_log(max_bad_share=7), "^group: max_bad_share: is 7; give a share from 0 to 1"),
        (lambda: of_log(seed=2**70), "^group: seed: is 11805.*; give a whole number, 0 or more, and below"),
        (lambda: of_log(separator=";;"), "^group: separator: is ';;'; give one character"),
        (lambda: of_log(image_size=64), "^group: image_size: is 64; give width and height"),
        (lambda: of_log(types=5), "^group: types: is 5; give a dict"),
        (lambda: of_log(split_by=5), "^group: split_by: is 5; give a text"),
        (lambda: of_log(columns=[5]), r"^group: columns: is \(5,\); give a text or a list of texts"),
        (lambda: of_log(output=None), "^group: output: is None; give a path"),
        (lambda: of_log(engine="spark"), "^group: engine: is 'spark'; give an er.Engine"),
        (lambda: of_log(engine=Engine("yarn")), "^group: engine: name: is 'yarn'; choose one of local, spark"),
        (lambda: of_log(engine=Engine(memory_gib=0)), "^group: engine: memory_gib: is 0; give a number of GiB"),
        (lambda: er.Server("r", "lmdb://v", max_instances=0), "^Server: max_instances: is 0; give a whole number, 1"),
        (lambda: er.Server("r", "lmdb://v", picture_timeout_s=-1), "^Server: picture_timeout_s: is -1; give a number"),
        (lambda: er.Server("r", "lmdb://v", vector_stores=5), "^Server: vector_stores: is 5; give a dict"),
        (lambda: er.Server("r", 5), "^Server: store: is 5; give a path"),
        (lambda: er.embed("i", "x.txt", 5), "^embed: store: is 5; give a path"),
        (lambda: er.search("lmdb://v", key="a", top_k="x"), "^search: top_k: is 'x'; give a whole number"),
        (lambda: er.search("lmdb://v", key="a", fields=5), "^search: fields: is 5; give a dict"),
    ],
)
def test_arguments_beyond_their_limits(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(er.UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.with_settings(5), "^settings: is a int; give a dict"),
        (lambda p: p.check(-3), "^check: num_groups: is -3; give a whole number, 1 or more"),
        (lambda p: p.trained(5), "^checkpoint_path: is 5; give a path"),
        (lambda p: Run(p).evaluate(compare=5), "^compare: is 5; give a path"),
        (lambda p: Run(p).predict("x.csv", reserved_columns=5), "^reserved_columns: is 5; give a text or a list"),
        (lambda p: Run(p).predict("x.csv", reserved_columns="nope"), "^reserved_columns: no input field 'nope'"),
        (lambda p: Run(p).export("e", parity_groups=0), "^parity_groups: is 0; give a whole number, 1 or more"),
        (lambda p: Run(p).export(5), "^output: is 5; give a path"),
        (lambda p: Run(p).export("e", asset_files="nope"), "^asset_files nope: is not a file"),
        (lambda p: Run(p).export("e", asset_files=5), "^asset_files: is 5; give a text or a list of texts"),
        (lambda p: Run(p).report("r.html", num_pictures=0), "^num_pictures: is 0; give a whole number, 1 or more"),
        (lambda p: Run(p).report("r.html", compare=[5]), "^compare: is 5; give a path"),
        (lambda p: Run(p).report("r.html", compare=5), "^compare: is 5; give a training"),
    ],
)
def test_arguments_of_a_training_beyond_their_limits(folder, call, message):
    pipeline = er.load("x.config")
    with pytest.raises(er.UserError, match=message):
        call(pipeline)


@pytest.mark.parametrize("command", [["check", "--num_groups"], ["export", "--parity_groups"], ["group", "--seed"]])
@pytest.mark.parametrize("number", ["-3", "9" * 30])
def test_flags_beyond_their_limits(command, number, capsys):
    with pytest.raises(SystemExit):
        main([*command[:1], f"{command[1]}={number}"])
    assert f"'{number}' is not a whole number" in capsys.readouterr().err


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
