"""The config that `init` writes: from data of each format, from a description, and from answers on a terminal."""

from __future__ import annotations

import csv
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from group_helpers import make_log, make_pictures

from easyrec_mm.cli.init import QUESTIONS
from easyrec_mm.cli.main import main, make_parser
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.grouping import first_rows
from easyrec_mm.protos.data_pb2 import DatasetConfig

ROWS = 2000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a log, its pictures, and the same rows as CSV and as groups of two formats."""
    folder = tmp_path_factory.mktemp("data")
    table = make_log(folder, ROWS)
    make_pictures(folder, sorted(set(table["img_path"].to_pylist())), np.random.default_rng(0))
    with (folder / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([table.column_names, *zip(*table.to_pydict().values(), strict=True)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        columns = ["--group_by", "item_id", "--image_field", "img_path", "--user_field", "user", "--quiet"]
        group = ["group", "--input", "log.parquet", *columns]
        assert main([*group, "--output", "whole", "--pipeline_config_template", "whole.config"]) == 0
        assert main([*group, "--output", "g", "--split_by", "item", "--pipeline_config_template", "g.config"]) == 0
        convert = ["convert", "--pipeline_config", "g.config", "--format", "tfrecord", "--output", "tf"]
        assert main([*convert, "--quiet"]) == 0
    return folder


@pytest.fixture
def in_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    return tmp_path / "x.config"


@pytest.fixture(scope="module")
def bucket(data, s3):
    """A bucket with the same files."""
    name = s3.new_bucket()
    s3.put_folder(data, name)
    return name


def config_of(path):
    return load_pipeline(str(path)).config


@pytest.mark.parametrize(
    ("files", "input_type", "paths"),
    [
        ("g", "GroupParquetInput", ("g/train/*.parquet", "g/eval/*.parquet")),
        pytest.param(
            *("tf", "GroupTFRecordInput", ("tf/train/*.tfrecord", "tf/eval/*.tfrecord")), marks=pytest.mark.slow
        ),
        ("log.parquet", "ParquetInput", ("log.parquet", "")),
        ("log.csv", "CSVInput", ("log.csv", "")),
    ],
)
def test_a_config_from_data_of_each_format_passes_check(files, input_type, paths, in_data, capsys):
    assert main(["init", "--input", files, "--output", str(in_data)]) == 0
    config = config_of(in_data)
    assert config.data_config.input_type == DatasetConfig.InputType.Value(input_type)
    assert (config.train_input_path, config.eval_input_path) == paths
    assert main(["check", "--pipeline_config", str(in_data)]) == 0
    assert "the config is valid" in capsys.readouterr().out


@pytest.mark.parametrize("files", ["g", "log.parquet", "log.csv"])
def test_a_config_from_data_in_a_bucket(files, in_data, s3, bucket, tmp_path):
    """It is the one from the same data here, but for the place."""
    assert main(["init", "--input", files, "--output", str(in_data)]) == 0
    remote = tmp_path / "remote.config"
    assert main(["init", "--input", f"{bucket}/{files}", "--output", str(remote)]) == 0
    assert str(config_of(remote)).replace(f"{bucket}/", "") == str(config_of(in_data))
    assert main(["check", "--pipeline_config", str(remote), "--set", f"data_config.image_root={bucket}"]) == 0
    assert main(["init", "--input", f"{bucket}/nothing.csv", "--output", f"{tmp_path}/other.config"]) == 1


def test_what_is_inferred_of_groups_is_what_group_infers_of_their_rows(in_data):
    """By other readers: those of grouped files instead of those of a log."""
    assert main(["init", "--input", "whole", "--output", str(in_data), "--model_dir", "whole_model"]) == 0
    ours, theirs = config_of(in_data), config_of("whole.config")
    assert ours.train_input_path == "whole/*.parquet"
    ours.train_input_path = theirs.train_input_path
    for config in (ours, theirs):  # fields have the order of the columns
        config.data_config.input_fields.sort(key=lambda field: field.input_name)
    assert ours == theirs


def test_files_and_patterns_stay_and_folders_become_patterns(in_data):
    paths = "g/train, whole/part-*.parquet ,g/eval/part-00000.parquet"
    assert main(["init", "--input", paths, "--output", str(in_data)]) == 0
    assert config_of(in_data).train_input_path == "g/train/*.parquet,whole/part-*.parquet,g/eval/part-00000.parquet"


def matching_data(folder, config):
    """Write groups, or rows, as the fields of a config say; return nothing."""
    random = np.random.default_rng(1)
    fields = {field.input_name: field.input_type for field in config.data_config.input_fields}
    is_flat = config.data_config.input_type == DatasetConfig.ParquetInput

    def value(name, kind):
        if name == "click":
            return int(random.integers(2))
        return f"{name}{random.integers(9)}" if kind == DatasetConfig.STRING else float(random.random())

    rows = []
    for number in range(60):
        size = 1 if is_flat else int(random.integers(1, 5))
        row = {name: [value(name, kind) for _ in range(size)] for name, kind in fields.items()}
        row = {name: values[0] for name, values in row.items()} if is_flat else row
        rows.append({**row, "img_path": f"images/{number % 7}.png"})
    for path in (config.train_input_path, config.eval_input_path):
        file = folder / path.replace("*", "part-0.parquet")
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    make_pictures(folder, [f"images/{number}.png" for number in range(7)], random)


@pytest.mark.slow
@pytest.mark.parametrize("input_type", ["GroupParquetInput", "ParquetInput"])
def test_a_described_config_reads_data_that_match_it_and_trains(input_type, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    features = "user_id:id:50,city:id,tags:tags:20,price:number"
    flags = ["--features", features, "--num_rows", "5000", "--image_size", "32x16"]
    assert main(["init", "--output", "new/x.config", "--input_type", input_type, *flags]) == 0
    config = config_of("new/x.config")
    rows = {feature.input_names[0]: feature.hash_bucket_size for feature in config.feature_config.features}
    assert rows == {"user_id": 100, "city": 20_000, "tags": 100, "price": 0, "img_path": 0}
    shape = config.feature_config.features[-1].img_shape
    assert (shape.width, shape.height) == (32, 16)
    matching_data(tmp_path, config)
    assert main(["check", "--pipeline_config", "new/x.config"]) == 0
    if input_type == "GroupParquetInput":  # the network is the same
        assert main(["train", "--pipeline_config", "new/x.config", "--quiet", "--set", "train_config.num_steps=2"]) == 0
        assert "step 2; checkpoint" in capsys.readouterr().out


def test_the_defaults_describe_data_and_every_section_says_what_to_change(tmp_path, monkeypatch):
    """Nobody is asked: the input of the tests cannot be read."""
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    text = (tmp_path / "pipeline.config").read_text()
    lines = text.splitlines()
    sections = [number for number, line in enumerate(lines) if re.match(r"\w+ \{|train_input_path", line)]
    assert len(sections) == 7
    for number in sections:
        above = text.rsplit(lines[number], 1)[0].rsplit("\n\n", 1)[1]
        assert above.startswith("# ")
        assert re.search(r"[Cc]hange", above), lines[number]
    config = config_of("pipeline.config")
    assert list(config.data_config.label_fields) == ["click"]


def test_a_config_is_not_overwritten_without_the_flag(in_data, capsys):
    in_data.write_text("mine")
    assert main(["init", "--output", str(in_data)]) == 1
    advice = "exists; name another file, or replace it with --overwrite"
    assert capsys.readouterr().err == f"error: --output: {in_data} {advice}\n"
    assert in_data.read_text() == "mine"
    assert main(["init", "--output", str(in_data), "--overwrite"]) == 0
    assert config_of(in_data).model_dir == "model"


def test_a_person_at_a_terminal_is_asked_for_what_no_flag_says(in_data):
    """A question for each flag that is missing, with its default; an empty answer takes it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "easyrec_mm", "init", "--output", str(in_data), "--train_input_path", "t/*"]
    answers = {"input": "whole", "image_root": "pictures", "label_fields": "click"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        for name in ("input", "image_field", "label_fields", "group_by", "user_field", "eval_input_path", "image_root"):
            while not shown.endswith("]: "):
                shown += os.read(ours, 1000).decode()
            assert QUESTIONS[name] in shown
            shown = ""
            os.write(ours, f"{answers.get(name, '')}\n".encode())
        os.write(ours, b"\x04")  # the end of the input: all other defaults
        assert process.wait(60) == 0
    os.close(ours)
    config = config_of(in_data)
    assert (config.train_input_path, config.data_config.image_root) == ("t/*", "pictures")
    assert config.model_config.feature_groups[0].feature_names == ["img_path"]


def test_each_question_has_a_flag():
    flags = vars(make_parser().parse_args(["init"]))
    assert set(QUESTIONS) <= set(flags)
    assert {flags[name] for name in QUESTIONS} == {None}


def test_tables_as_large_as_the_first_rows_need_are_told(in_data, monkeypatch):
    monkeypatch.setattr(first_rows, "NUM_READ", 50)
    assert main(["init", "--input", "log.csv", "--output", str(in_data)]) == 0
    text = in_data.read_text()
    assert "as large as the first 50 rows need" in text
    assert "suit 2,000 rows" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--input log.csv --image_field img_pth",
            "--image_field: log.csv has no column 'img_pth'; did you mean 'img_",
        ),
        ("--input log.csv --label_fields clik", "--label_fields: log.csv has no column 'clik'; did you mean 'click'?"),
        ("--input no_pictures.parquet", "--image_field: no column of no_pictures.parquet holds paths of pictures"),
        ("--input uneven.parquet", "uneven.parquet: row 2: column 'price': 1 values, group size 2; correct the file"),
        ("--input nothing.csv", "--input: 'nothing.csv' matches no file; check the path"),
        ("--input empty.csv", "empty.csv: no row of data; give files that hold rows"),
        (
            "--input lines.txt",
            "lines.txt: is neither Parquet nor TFRecord nor .csv; lines of GroupRTPInput do",
        ),
        ("--input damaged.parquet", "damaged.parquet: cannot be read: "),
        ("--input log.csv --features a:id", "--features: has no effect with --input, from which this is inferred"),
        ("--input log.csv --num_rows 5", "--num_rows: has no effect with --input, from which this is inferred"),
        ("--features a:ids", "--features a:ids: write NAME:KIND with a kind of id, number, tags, text, and for"),
        ("--features a:number:3", "--features a:number:3: write NAME:KIND"),
        (
            "--features a:id,a:tags",
            "--features, --label_fields, --image_field: 'a' is named twice; give each",
        ),
        ("--features a-b:id", "--features: 'a-b' is not a name of a field; give letters, digits and _"),
        ("--image_size 3", "--image_size 3: write width x height in pixels"),
    ],
)
def test_mistakes(flags, message, in_data, data, capsys):
    pq.write_table(pa.table({"click": [0, 1], "name": ["a", "b"]}), "no_pictures.parquet")
    uneven = {"click": [[0, 1], [1, 0]], "price": [[1.0, 2.0], [3.0]], "img_path": ["a.png", "b.png"]}
    pq.write_table(pa.table(uneven), "uneven.parquet")
    (data / "empty.csv").write_text("click,img_path\n")
    (data / "lines.txt").write_text("0|a|b.png|1\n")
    (data / "damaged.parquet").write_bytes(b"PAR1" + b"x" * 50)
    assert main(["init", "--output", str(in_data), *flags.split()]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not in_data.exists()
