"""Tables of MaxCompute: what is read of them, in which order, and what users are told. PyODPS talks to a stub of the
service (odps_server.py)."""

import re
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from flow_helpers import ROOT, copy_checkpoint, demo_flags, make_data, use_small_backbone
from input_helpers import table_of
from odps_server import ACCESS_ID, PROJECT, OdpsServer, StubTable, use

from easyrec_mm.cli.main import main
from easyrec_mm.errors import DataError
from easyrec_mm.formats import odps_tables
from easyrec_mm.formats.odps_tables import LINE, OdpsTables
from easyrec_mm.formats.typed_groups import ROW

COLUMNS = ["click", "play_time", "features", "img_path", "group_size"]
SETTING = "train_input_path"


def rows(count, first=0):
    numbers = range(first, first + count)
    return pa.table(
        {
            "group_size": pa.array([2] * count, pa.int64()),
            "note": ["not read"] * count,
            "click": ["1\x010"] * count,
            "features": pa.array([f"{n};x\x01y\xff".encode("latin1") for n in numbers], pa.binary()),
            "img_path": pa.array([None if n % 5 == 3 else f"p{n}.jpg" for n in numbers]),
        }
    )


READ = ["click", "features", "img_path", "group_size"]


def line(number):
    picture = b"" if number % 5 == 3 else b"p%d.jpg" % number
    return b"#".join([b"1\x010", b"%d;x\x01y\xff" % number, picture, b"2"])


@pytest.fixture
def server(monkeypatch):
    partitions = {
        "dt=1,hour=1": rows(3),
        "dt=1,hour=2": rows(20, 3),
        "dt=2,hour=1": rows(2, 100),
        "dt=3,hour=1": rows(0),
    }
    server = OdpsServer({"flat": StubTable({"": rows(25)}), "parts": StubTable(partitions)})
    use(server, monkeypatch)
    monkeypatch.setattr(odps_tables, "SLICE_ROWS", 7)
    yield server
    server.close()


def tables(path, columns=READ):
    return OdpsTables(path, SETTING, columns, "#")


def read(opened):
    """(lines, rows) of all slices."""
    table = pa.concat_tables(piece for name in opened.slices for piece in opened.read(name))
    return table[LINE].to_pylist(), table[ROW].to_pylist()


def test_a_table_is_read_in_slices_and_each_row_once(server):
    opened = tables(f"odps://{PROJECT}/tables/flat")
    assert list(opened.slices) == [f"odps://shop/tables/flat[{r}]" for r in ("1-7", "8-14", "15-21", "22-25")]
    lines, numbers = read(opened)
    assert lines == [line(n) for n in range(25)]
    assert numbers == list(range(1, 26))
    assert sorted(server.requests) == [("flat", "", 0, 7), ("flat", "", 7, 7), ("flat", "", 14, 7), ("flat", "", 21, 4)]


def test_slices_are_fetched_side_by_side(server):
    server.meeting = threading.Barrier(4, timeout=60)  # each request is answered when all four have come
    opened = tables(f"odps://{PROJECT}/tables/flat")
    opened.ahead(list(opened.slices))
    assert read(opened)[0] == [line(n) for n in range(25)]


def test_a_path_names_partitions_whole_or_by_their_first_levels(server):
    names = {
        "odps://shop/tables/parts/dt=1/hour=1": [3],
        "odps://shop/tables/parts/dt=1": [3, 7, 7, 6],
        "odps://shop/tables/parts": [3, 7, 7, 6, 2],
        "odps://shop/tables/parts/dt=2, odps://shop/tables/parts/dt=1/hour=1/": [2, 3],
        "odps://shop/tables/parts/dt=1,odps://shop/tables/parts/dt=1/hour=1": [3, 7, 7, 6],
    }
    for path, sizes in names.items():
        opened = tables(path)
        assert [table_slice.num_rows for table_slice in opened.slices.values()] == sizes, path
    opened = tables("odps://shop/tables/parts/dt=1")
    assert read(opened) == ([line(n) for n in range(23)], [1, 2, 3, *range(1, 21)])
    assert "odps://shop/tables/parts/dt=1/hour=2[15-20]" in opened.slices


@pytest.mark.parametrize(
    ("path", "columns", "message"),
    [
        (
            "shop.flat",
            READ,
            r"train_input_path: 'shop\.flat' is not a MaxCompute table; give odps://project/tables/name",
        ),
        ("", READ, "train_input_path: is not set"),
        ("odps://shop/tables/none", READ, "odps://shop/tables/none: cannot be read: .*Table not found - none"),
        ("odps://other/tables/flat", READ, "odps://other/tables/flat: cannot be read: .*no project"),
        ("odps://shop/tables/flat/dt=1", READ, "'odps://shop/tables/flat/dt=1': the table has no partitions"),
        ("odps://shop/tables/parts/dat=1", READ, "no partition level 'dat'; did you mean 'dt'"),
        ("odps://shop/tables/parts/dt=9", READ, "'odps://shop/tables/parts/dt=9' has no partition; check the path"),
        ("odps://shop/tables/flat", ["clik"], r"no column 'clik' \(data_config.selected_cols\); did you mean 'click'"),
    ],
)
def test_what_is_not_there_is_named(server, path, columns, message):
    with pytest.raises(DataError, match=message):
        tables(path, columns)


def test_credentials_that_are_wrong_or_missing_are_told_at_once(server, monkeypatch, tmp_path):
    use(server, monkeypatch, ODPS_ACCESS_ID="somebody")
    with pytest.raises(DataError, match=r"cannot be read: .*the access id is not known"):
        tables("odps://shop/tables/flat")
    monkeypatch.delenv("ODPS_ACCESS_ID")
    odps_tables.client_of.cache_clear()
    with pytest.raises(DataError, match="no credentials of MaxCompute; set ODPS_ACCESS_ID"):
        tables("odps://shop/tables/flat")
    use(server, monkeypatch, ODPS_ENDPOINT="http://127.0.0.1:9/api")
    with pytest.raises(DataError, match=r"odps://shop/tables/flat: cannot be read: .*Connection refused"):
        tables("odps://shop/tables/flat")
    ini = tmp_path / "odps_config.ini"
    ini.write_text(f"access_id={ACCESS_ID}\naccess_key=a%key\nend_point={server.endpoint}\n", encoding="utf-8")
    use(server, monkeypatch, ODPS_CONFIG_FILE_PATH=str(ini), ODPS_ACCESS_ID="", ODPS_ACCESS_KEY="", ODPS_ENDPOINT="")
    assert len(read(tables("odps://shop/tables/flat"))[0]) == 25


@pytest.mark.slow
def test_a_service_that_is_busy_is_asked_again(server):
    server.refusals = 2
    assert read(tables("odps://shop/tables/parts/dt=2")) == ([line(100), line(101)], [1, 2])


def test_rows_that_change_are_told(server, monkeypatch):
    opened = tables("odps://shop/tables/flat")
    names = list(opened.slices)
    list(opened.read(names[0]))
    server.tables["flat"].partitions[""] = rows(20)
    # The session that has begun still promises 25 rows.
    with pytest.raises(DataError, match=r"flat\[15-21\]: the table returned 6 rows instead of 7; try again"):
        list(opened.read(names[2]))
    monkeypatch.setattr(odps_tables, "SESSION_SECONDS", -1)
    with pytest.raises(DataError, match="flat: has 20 rows now, but had 25 when reading began"):
        list(opened.read(names[1]))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """(folder, data, server): demo data as files, and as a table with a partition a split."""
    folder = tmp_path_factory.mktemp("odps")
    data = make_data(folder / "data")
    splits = {}
    for split in ("train", "test"):
        splits[f"ds={split}"] = table_of(data / split)
    server = OdpsServer({"samples": StubTable(splits)})
    text = (ROOT / "configs/demo.config").read_text(encoding="utf-8")
    text = text.replace("input_type: GroupRTPInput", "input_type: OdpsGroupRTPInput")
    text = re.sub(r"  rtp_separator: .*\n", "", text)
    text = re.sub(r'selected_cols: "[^"]*"', f'selected_cols: "{",".join(COLUMNS)}"', text)
    (folder / "odps.config").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_small_backbone(monkeypatch)
        use(server, monkeypatch)
        monkeypatch.setattr(odps_tables, "SLICE_ROWS", 10)
        yield folder, data, server
    server.close()


def table_flags(flow, model, **settings):
    folder, data, _ = flow
    flags = demo_flags(data, folder / model, **settings)
    flags[1] = str(folder / "odps.config")
    return [*flags, f"--set=train_input_path=odps://{PROJECT}/tables/samples/ds=train"]


@pytest.mark.slow
def test_a_table_trains_the_model_that_its_lines_do(flow):
    folder, data, _ = flow
    assert main(["train", *demo_flags(data, folder / "text", data_config__shuffle="false")]) == 0
    assert main(["train", *table_flags(flow, "table", data_config__shuffle="false")]) == 0
    predictions = {}
    for model, flags, path in (
        ("text", demo_flags(data, folder / "text"), f"{data}/test/*"),
        ("table", table_flags(flow, "table"), f"odps://{PROJECT}/tables/samples/ds=test"),
    ):
        output = folder / f"{model}.parquet"
        arguments = ["--predict_input_path", path, "--output", str(output), "--reserved_columns", "user_id,img_path"]
        assert main(["predict", *flags, *arguments]) == 0
        predictions[model] = pq.read_table(output).to_pydict()
    assert list(predictions["text"]) == list(predictions["table"])
    for name, values in predictions["text"].items():
        if isinstance(values[0], str):
            assert predictions["table"][name] == values
        else:  # batches end with files, and the last bits of what a model computes depend on the batch
            np.testing.assert_allclose(predictions["table"][name], values, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_shuffled_training_goes_on_where_it_stopped(flow):
    folder, _, server = flow
    settings = {"train_config__num_epochs": 2, "train_config__save_checkpoints_steps": 7}
    assert main(["train", *table_flags(flow, "whole", **settings)]) == 0
    parts = table_flags(flow, "parts", **settings)
    copy_checkpoint(folder / "whole", 7, folder / "parts")
    server.requests.clear()
    assert main(["train", *parts]) == 0
    assert server.requests
    expected, checkpoint = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder / model))) for model in ("whole", "parts")
    )
    dtypes = expected.get_variable_to_dtype_map()
    assert checkpoint.get_variable_to_dtype_map() == dtypes
    for name in (name for name, dtype in dtypes.items() if dtype != tf.string):
        np.testing.assert_array_equal(checkpoint.get_tensor(name), expected.get_tensor(name), err_msg=name)


def test_bad_rows_are_told_with_table_and_row(flow, capsys):
    _, _, server = flow
    good = server.tables["samples"].partitions["ds=train"]
    sizes = good["group_size"].to_pylist()
    sizes[13] += 1
    bad = good.set_column(good.column_names.index("group_size"), "group_size", pa.array(sizes))
    server.tables["samples"].partitions["ds=bad"] = bad
    flags = table_flags(flow, "bad", data_config__max_bad_record_share=0.5)
    assert main(["check", *flags, f"--set=train_input_path=odps://{PROJECT}/tables/samples/ds=bad"]) == 0
    report = capsys.readouterr().out
    problem = f"column 'click': {sizes[13] - 1} entries, group size {sizes[13]}"
    assert f"odps://shop/tables/samples/ds=bad[11-20]:14: {problem}" in report


def test_settings_of_files_are_mistakes(flow, capsys):
    assert main(["check", *table_flags(flow, "x"), '--set=data_config.rtp_separator=";"']) == 1
    assert "data_config.rtp_separator: has no effect with input_type OdpsGroupRTPInput" in capsys.readouterr().err
    assert main(["check", *table_flags(flow, "x"), '--set=data_config.selected_cols="click,features,img_path"']) == 1
    assert "has 3 columns, not 5; give 2 label column(s) (click, play_time)" in capsys.readouterr().err
