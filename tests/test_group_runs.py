"""Runs of `group` and `convert` that are killed, started twice or without room on the disk; which files they read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_disk import files_limited_to
from group_helpers import COLUMNS, GOOD, contents, make_log, make_pictures, run, stats, write_csv

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.embedding.items import read_items
from easyrec_mm.errors import DataError
from easyrec_mm.files.data_names import is_meant
from easyrec_mm.grouping.find_files import find_inputs, is_grouped, is_log
from easyrec_mm.grouping.work_place import work_place

ROOT = Path(__file__).parents[1]


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def killed(function, arguments):
    """Run a command in a process that is killed when it calls `function`."""
    module, _, name = function.rpartition(".")
    code = f"""
import importlib, os, signal, sys
from easyrec_mm.cli.main import main
module = importlib.import_module({module!r})
setattr(module, {name!r}, lambda *arguments, **more: os.kill(os.getpid(), signal.SIGKILL))
main({list(map(str, arguments))!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL


def group_arguments(folder, output):
    arguments = ["group", "--input", folder / "log.csv", "--group_by", "item_id", "--image_field", "img_path"]
    return [*arguments, "--output", folder / output, "--allow_missing_pictures"]


@pytest.mark.parametrize("function", ["group.infer", "group_stats.write_stats", "output_folder.replace_folder"])
def test_the_next_run_removes_what_a_killed_one_has_left(tmp_path, function):
    write_csv(tmp_path / "log.csv", GOOD)
    for output in ("b", "a"):
        killed(f"easyrec_mm.grouping.{function}", group_arguments(tmp_path, output))
        assert hidden(tmp_path) == [f".{output}.easyrec_mm"]
        assert not (tmp_path / output).exists()
    with work_place(str(tmp_path / "c")) as running:
        Path(running, "rows").mkdir()
        killed(f"easyrec_mm.grouping.{function}", group_arguments(tmp_path, "b"))
        run(tmp_path, output="a")
        assert hidden(tmp_path) == [".c.easyrec_mm"]
        assert Path(running, "rows").exists()
    assert hidden(tmp_path) == []
    assert stats(tmp_path / "a")["rows_out"] == 300


def test_a_killed_conversion_is_removed_too(tmp_path):
    make_log(tmp_path, num_rows=300)
    config = tmp_path / "x.config"
    run(tmp_path, log="log.parquet", label_fields="click", pipeline_config_template=config)
    arguments = ["convert", "--pipeline_config", config, "--format", "tfrecord", "--output", tmp_path / "tf"]
    killed("easyrec_mm.grouping.convert.write_stats", arguments)
    assert hidden(tmp_path) == [".tf.easyrec_mm"]
    with work_place(str(tmp_path / "tf")):
        assert main(list(map(str, arguments))) == 1
    assert main(list(map(str, arguments))) == 0
    assert hidden(tmp_path) == []
    assert (tmp_path / "tf/train/part-00000.tfrecord").exists()


def test_a_second_run_to_the_same_output_is_refused(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", GOOD)
    with work_place(str(tmp_path / "out")):
        for output in ("out", "x/../out", "out/"):
            run(tmp_path, output=output, expect=1)
            error = capsys.readouterr().err
            assert f"--output '{tmp_path}/{output.rstrip('/')}': is in use by process {os.getpid()} on " in error
            assert "; wait until it has ended, or choose another folder" in error
        run(tmp_path, output="other")
    run(tmp_path)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_one_of_two_processes_wins(tmp_path):
    """Started together, in the same folder and with the same output."""
    write_csv(tmp_path / "log.csv", GOOD * 50)
    command = [sys.executable, "-m", "easyrec_mm", *map(str, group_arguments(tmp_path, "out"))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=env) for _ in range(2)]
    results = sorted((process.communicate()[1].decode(), process.returncode) for process in both)
    assert results[0] == ("", 0)
    # The other one was refused, or came when the first had ended.
    assert results[1][1] == 1
    assert "is in use by process" in results[1][0] or "is not empty" in results[1][0]
    assert stats(tmp_path / "out")["rows_out"] == 300 * 50
    assert hidden(tmp_path) == []


def test_a_remote_output_is_locked_on_this_machine(tmp_path, bucket, capsys):
    write_csv(tmp_path / "log.csv", GOOD)
    arguments = [str(part) for part in group_arguments(tmp_path, "x")]
    arguments[arguments.index("--output") + 1] = f"{bucket}/out"
    with work_place(f"{bucket}/out/"):
        assert main(arguments) == 1
        assert f"--output '{bucket}/out': is in use by process" in capsys.readouterr().err
    assert main(arguments) == 0


@pytest.mark.parametrize("kind", ["parquet", "tfrecord", "rtp"])
@pytest.mark.parametrize("size", [100, 20_000, 60_000])
def test_a_full_disk_is_told_with_the_path(tmp_path, capsys, kind, size):
    rows = [(f"i{i % 50}", f"images/{i % 50}.png", f"user {i * 7919 % 100_003}", i % 2, i / 7) for i in range(8000)]
    write_csv(tmp_path / "log.csv", rows)
    make_pictures(tmp_path, [f"images/{i}.png" for i in range(50)], np.random.default_rng(0))
    flags = ["--embed_images", "--num_shards", 1, "--image_root", tmp_path, "--format", kind]
    with files_limited_to(size):
        run(tmp_path, *flags, label_fields="click", rtp_separator=";", expect=1)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/.out.easyrec_mm/")
    assert "File too large" in error
    assert hidden(tmp_path) == []
    assert not (tmp_path / "out").exists()


def test_a_full_disk_in_a_conversion(tmp_path, capsys):
    make_log(tmp_path)
    config = tmp_path / "x.config"
    run(tmp_path, log="log.parquet", label_fields="click", pipeline_config_template=config)
    arguments = ["convert", "--pipeline_config", config, "--format", "tfrecord", "--output", tmp_path / "tf"]
    with files_limited_to(5000):
        assert main(list(map(str, arguments))) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/.tf.easyrec_mm/new/train/part-0000")
    assert hidden(tmp_path) == []


# --- Outputs and inputs by name


@pytest.mark.parametrize("name", ["a,b", "a[1]", "what?", "all*", "a{b}", "a\\b", " a"])
def test_an_output_that_no_pattern_can_name(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "log.csv", GOOD)
    arguments = [str(part) for part in group_arguments(tmp_path, "x")]
    arguments[arguments.index("--output") + 1] = name
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"--output: '{name}' has " in error
    assert "name another folder" in error
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_inputs_are_files_folders_and_globs(tmp_path):
    for name in ("b/2.csv", "b/1.csv", "b/_SUCCESS", "b/.hidden", "b/c/3.csv", "a.csv", "d.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    paths = find_inputs(f"{tmp_path}/b, {tmp_path}/?.csv,{tmp_path}/a.csv", is_log).files
    assert [name.removeprefix(f"{tmp_path}/") for name in paths] == [
        "b/1.csv", "b/2.csv", "b/c/3.csv", "a.csv", "d.csv"
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"--input: '.*nothing\*' matches no file"):
        find_inputs(f"{tmp_path}/nothing*", is_log)


def test_only_files_of_known_kinds_are_read_in_folders(tmp_path, capsys):
    write_csv(tmp_path / "logs/a.csv", GOOD)
    columns = dict(zip(COLUMNS, map(list, zip(*GOOD, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "logs/day=2/000000_0") if (
        tmp_path / "logs/day=2"
    ).mkdir() is None else 0
    make_pictures(tmp_path / "logs", ["x.jpeg", "images/y.png"], np.random.default_rng(0))
    for name in ("z.JFIF", "z.heic", "notes.md", "log.txt", "000001", "_SUCCESS", ".crc", "stats.json"):
        (tmp_path / "logs" / name).write_bytes(b"item_id,x\n1,2\n")
    output = run(tmp_path, log=tmp_path / "logs")
    assert stats(output)["rows_out"] == 600
    assert "note: 7 file(s) below --input are not read, such as " in capsys.readouterr().out
    # A pattern names files, but pictures are never meant.
    files = find_inputs(f"{tmp_path}/logs/*.*", is_log)
    assert [os.path.basename(file) for file in files.files] == ["a.csv", "log.txt", "notes.md"]
    (tmp_path / "logs/a.csv").unlink()
    (tmp_path / "logs/day=2/000000_0").unlink()
    run(tmp_path, log=tmp_path / "logs", output="none", expect=1)
    assert "holds no file of a known kind, but " in capsys.readouterr().err


def test_groups_in_folders(tmp_path):
    for name in ("part-0.parquet", "part-0.pictures.tar", "part-1.tfrecord", "part-2.txt.gz", "part-3", "stats.json"):
        (tmp_path / name).write_bytes(b"")
    names = [os.path.basename(file) for file in find_inputs(str(tmp_path), is_grouped).files]
    assert names == ["part-0.parquet", "part-1.tfrecord", "part-2.txt.gz", "part-3"]


@pytest.mark.parametrize("command", ["stats", "check", "convert"])
def test_patterns_pass_over_what_group_writes_beside_the_data(tmp_path, capsys, command):
    make_log(tmp_path, num_rows=400)
    config = tmp_path / "x.config"
    make_pictures(tmp_path, [f"images/{i}.png" for i in range(120)], np.random.default_rng(0))
    flags = ["--embed_images", "--image_root", tmp_path]
    run(tmp_path, *flags, log="log.parquet", label_fields="click", pipeline_config_template=config)
    (tmp_path / "out/_metadata").write_bytes(b"x")
    (tmp_path / "out/.crc").write_bytes(b"x")
    arguments = [command, "--pipeline_config", config]
    if command == "check":
        arguments += ["--set", f"train_input_path={tmp_path}/out/*"]
    else:
        arguments += ["--input", f"{tmp_path}/out/*", "--output", tmp_path / "x.html"]
    assert main(list(map(str, arguments))) == 0, capsys.readouterr().err
    assert "part-" not in capsys.readouterr().err


def test_embed_passes_over_what_group_writes_beside_the_data(tmp_path):
    table = make_log(tmp_path, num_rows=400)
    config = tmp_path / "x.config"
    run(tmp_path, log="log.parquet", label_fields="click", pipeline_config_template=config)
    schema = load_pipeline(str(config)).schema
    for paths in (f"{tmp_path}/out/*", f"{tmp_path}/out"):
        items = read_items(paths, schema)
        assert {item.path for item in items.items} == set(table["img_path"].to_pylist())
        assert items.refused == []


@pytest.mark.parametrize(
    ("path", "pattern", "is_one"),
    [
        ("a/part-0", "a/*", True),
        ("a/_SUCCESS", "a/*", False),
        ("a/_SUCCESS", "a/_*", True),
        ("a/_SUCCESS", "a/_SUCCESS", True),
        ("a/.crc", "a/?crc", False),
        ("a/_x.jpg", "a/*", True),
        ("a/stats.json", "a/*.json", False),
        ("a/stats.json", "a/stats.json", True),
        ("s3://b/p.pictures.tar", "s3://b/*", False),
    ],
)
def test_what_a_pattern_means(path, pattern, is_one):
    assert is_meant(path, pattern) == is_one


@pytest.mark.parametrize("separator", ["\\001", "\\t", "\\x02", "\x01", ";"])
def test_separators_of_other_programs(tmp_path, separator):
    character = separator.encode().decode("unicode_escape")
    text = "\n".join(character.join(map(str, row)) for row in [COLUMNS, *GOOD])
    (tmp_path / "log.csv").write_text(text)
    assert stats(run(tmp_path, separator=separator))["rows_out"] == 300


def test_the_row_labels_of_pandas_are_no_column(tmp_path):
    table = pa.table(dict(zip(COLUMNS, map(list, zip(*GOOD, strict=True)), strict=True)))
    pq.write_table(table.append_column("__index_level_0__", pa.array(range(300))), tmp_path / "log.parquet")
    assert set(stats(run(tmp_path, log="log.parquet"))["columns"]) == set(COLUMNS)


def test_an_output_with_a_scheme_of_files(tmp_path):
    write_csv(tmp_path / "log.csv", GOOD)
    arguments = [str(part) for part in group_arguments(tmp_path, "x")]
    arguments[arguments.index("--output") + 1] = f"file://{tmp_path}/out"
    assert main([*arguments, "--pipeline_config_template", f"file://{tmp_path}/x.config"]) == 0
    assert stats(tmp_path / "out")["rows_out"] == 300
    assert f'train_input_path: "{tmp_path}/out/part-*.parquet"' in (tmp_path / "x.config").read_text()
