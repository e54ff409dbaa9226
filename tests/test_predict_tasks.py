"""predict --task_index, --task_num: the parts of all tasks are what one process writes, value by value."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow_helpers import run, use_small_backbone, use_small_backbone_alone
from forked import Command

from easyrec_mm.evaluation import predict


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    use_small_backbone(monkeypatch)


@pytest.fixture
def arguments(exported, tmp_path):
    """predict, of the 12 groups of the test data in three files, in batches of two groups; two groups are bad."""
    lines = [line for path in sorted((exported.data / "test").iterdir()) for line in path.read_bytes().splitlines(True)]
    lines[4] = lines[4].replace(b"|", b"", 1)
    lines[9] = b"nothing\n"
    (tmp_path / "test").mkdir()
    for name, part in (("a", lines[:5]), ("b", lines[5:6]), ("c", lines[6:])):
        (tmp_path / "test" / name).write_bytes(b"".join(part))
    shutil.copytree(exported.model_dir, tmp_path / "m")
    flags = [*exported.flags, "--set=data_config.eval_batch_size=2", "--set=data_config.max_bad_record_share=1"]
    flags += [f"--set=model_dir={tmp_path}/m", f"--predict_input_path={tmp_path}/test/*"]
    return ["predict", *flags, "--reserved_columns", "user_id,img_path"]


def of_task(index, num):
    return ["--task_index", index, "--task_num", num]


def bad_records(model_dir, pattern):
    records = [json.loads(line) for path in sorted(model_dir.glob(pattern)) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "time"} for record in records]


def error_of(capfd):
    return next(line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))


def test_parts_are_the_rows_of_one_process(arguments, tmp_path):
    run(*arguments, "--output", tmp_path / "whole.parquet")
    whole = pq.read_table(tmp_path / "whole.parquet")
    assert len(whole) > 30
    for num in (3, 8):  # 8: more than batches
        out = tmp_path / f"out{num}"
        for index in reversed(range(num)):
            assert not (out / "_SUCCESS").exists()
            run(*arguments, "--output", out, *of_task(index, num))
        names = [f"part-{index:05d}-of-{num:05d}.parquet" for index in range(num)]
        assert sorted(os.listdir(out)) == ["_SUCCESS", "_tasks.json", *names]
        assert pa.concat_tables(pq.read_table(out / name) for name in names).equals(whole)
        assert pq.read_table(out).equals(whole)  # as a folder, without what is not a part
        expected = bad_records(tmp_path / "m", "predict_bad_records.jsonl")
        assert len(expected) == 2
        assert bad_records(tmp_path / "m", f"predict_bad_records-*-of-{num:05d}.jsonl") == expected


def test_parts_of_text(arguments, tmp_path):
    run(*arguments, "--output", tmp_path / "whole.csv")
    for index in range(2):
        run(*arguments, "--output", f"{tmp_path}/out/", "--format", "csv", *of_task(index, 2))
    whole, *parts = (
        list(csv.reader((tmp_path / name).open(newline="")))
        for name in ("whole.csv", "out/part-00000-of-00002.csv", "out/part-00001-of-00002.csv")
    )
    assert parts[0] + parts[1][1:] == whole
    assert parts[1][0] == whole[0]


def test_a_folder_of_one_process(arguments, tmp_path):
    run(*arguments, "--output", tmp_path / "whole.parquet")
    run(*arguments, "--output", f"{tmp_path}/out/")
    assert pq.read_table(tmp_path / "out/part-00000-of-00001.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))
    assert (tmp_path / "out/_SUCCESS").exists()


def test_a_task_runs_again_and_another_prediction_is_refused(arguments, exported, tmp_path, capfd):
    out = tmp_path / "out"
    run(*arguments, "--output", out, *of_task(1, 2))
    (out / ".part-00001-of-00002.parquet.tmp-0123").write_bytes(b"left by a killed run")
    before = pq.read_table(out / "part-00001-of-00002.parquet")
    run(*arguments, "--output", out, *of_task(1, 2))
    assert pq.read_table(out / "part-00001-of-00002.parquet").equals(before)
    assert sorted(os.listdir(out)) == ["_tasks.json", "part-00001-of-00002.parquet"]

    cases = {
        "--task_num is 2 there, and 3 here": of_task(0, 3),
        "--reserved_columns is user_id,img_path there, and user_id here": ["--reserved_columns", "user_id"],
        "checkpoint is model.ckpt-6 (step 6) there, and model.ckpt-3 (step 3) here": [
            "--checkpoint_path", f"{tmp_path}/m/model.ckpt-3",
        ],
        "format is parquet there, and csv here": ["--format", "csv"],
        "batch size is 2 there, and 4 here": ["--set=data_config.eval_batch_size=4"],
    }  # fmt: skip
    for problem, flags in cases.items():
        capfd.readouterr()
        run(*arguments, "--output", out, *of_task(0, 2), *flags, expect=1)
        assert f"--output {out}: has parts of another prediction: {problem}; start all tasks" in error_of(capfd)
    shutil.copy(tmp_path / "test/a", tmp_path / "test/d")
    run(*arguments, "--output", out, *of_task(0, 2), expect=1)
    error = error_of(capfd)
    assert "--predict_input_path is " in error
    assert ", 3 files there, and " in error
    assert ", 4 files here" in error
    assert sorted(os.listdir(out)) == ["_tasks.json", "part-00001-of-00002.parquet"]


def test_another_prediction_that_begins_meanwhile_is_found_at_the_end(arguments, tmp_path, capfd, monkeypatch):
    out = tmp_path / "out"

    def begin_another(*args):
        values = json.loads((out / "_tasks.json").read_text())
        (out / "_tasks.json").write_text(json.dumps(values | {"--task_num": 5}))
        return 0

    monkeypatch.setattr(predict, "predict", begin_another)
    run(*arguments, "--output", out, *of_task(0, 2), expect=1)
    assert "--task_num is 5 there, and 2 here" in error_of(capfd)
    assert os.listdir(out) == ["_tasks.json"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--task_num", 2], "--task_num 2: is without --task_index; give each process its own, from 0 to 1"),
        (["--task_index", 2], "--task_index 2: is without --task_num; give the number of all tasks as well"),
        (of_task(2, 2), "--task_index 2: is out of range; the indices of 2 tasks are 0 to 1"),
        ([*of_task(0, 2), "--output", "p.csv"], "--output p.csv: is one file, and 2 tasks write; give a folder, such"),
        (["--output", "p.csv", "--format", "csv"], "--format: has no effect on p.csv, whose ending says the format"),
        (["--output", "p.txt"], "--output p.txt: write to a file that ends in .parquet or .csv, or to a folder"),
        (["--output", "none/p.csv"], "--output none/p.csv: the folder none does not exist; create it, or give another"),
        (["--output", "x/", "--quote_formulas"], "--quote_formulas: has no effect on .parquet; write .csv"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(arguments, capfd, flags, problem):
    run(*arguments, "--output", "x", *flags, expect=1)
    assert error_of(capfd).startswith(f"error: {problem}")


def test_a_folder_with_other_files_is_refused(arguments, tmp_path, capfd):
    run(*arguments, "--output", tmp_path, *of_task(0, 2), expect=1)
    assert f"error: --output {tmp_path}: has other files, such as " in error_of(capfd)
    (tmp_path / "out").write_text("a file")
    run(*arguments, "--output", tmp_path / "out", *of_task(0, 2), expect=1)
    assert error_of(capfd) == f"error: --output {tmp_path}/out: cannot be written: File exists"
    (tmp_path / "o").mkdir()
    (tmp_path / "o/_tasks.json").write_text("{}")
    run(*arguments, "--output", tmp_path / "o", *of_task(0, 2), expect=1)
    assert (
        error_of(capfd) == f"error: {tmp_path}/o/_tasks.json: is not a file of easyrec-mm predict; name another folder"
    )


def test_parts_in_a_bucket(arguments, tmp_path, bucket):
    run(*arguments, "--output", tmp_path / "whole.parquet")
    for index in range(2):
        run(*arguments, "--output", f"{bucket}/out/", *of_task(index, 2))
    from easyrec_mm.files import place_of, read

    paths = sorted(info.path for info in place_of(bucket).below(f"{bucket}/out"))
    assert [path.rpartition("/")[2] for path in paths][:2] == ["_SUCCESS", "_tasks.json"]
    parts = [pq.read_table(pa.BufferReader(read(path))) for path in paths[2:]]
    assert len(parts) == 2
    assert pa.concat_tables(parts).equals(pq.read_table(tmp_path / "whole.parquet"))


def write_slowly():
    """Let `predict` hang after each batch, in a process of its own."""
    outputs = predict.batch_outputs

    def slow(*args):
        for batch in outputs(*args):
            yield batch
            time.sleep(60)

    predict.batch_outputs = slow
    use_small_backbone_alone()


@pytest.mark.slow
def test_a_killed_task_leaves_no_part(arguments, tmp_path):
    """Killed while it writes, and started again."""
    out = tmp_path / "out"
    command = [*arguments, "--output", out, *of_task(0, 2)]
    process = Command(tmp_path, command, tmp_path / "output.txt", prepare=write_slowly)
    deadline = time.monotonic() + 120
    while not list(out.glob(".part*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    assert process.end()[0] == -signal.SIGKILL
    (left,) = [name for name in os.listdir(out) if name != "_tasks.json"]
    assert left.startswith(".part-00000-of-00002.parquet.tmp-")
    for index in range(2):
        run(*arguments, "--output", out, *of_task(index, 2))
    run(*arguments, "--output", tmp_path / "whole.parquet")
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"))
    assert left not in os.listdir(out)
