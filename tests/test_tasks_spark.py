"""predict and embed on a local Spark cluster of two workers: what one process without Spark makes."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow_helpers import run, use_small_backbone
from spark_helpers import SECRET, URI, Imported, fail, refuse

from easyrec_mm.errors import DataError
from easyrec_mm.store import open_store

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    use_small_backbone(monkeypatch)


@pytest.fixture
def arguments(exported, tmp_path):
    """predict, of the test data in two files with two bad groups and a bad picture, in batches of two groups."""
    shutil.copytree(exported.data / "images" / "test", tmp_path / "images" / "test")
    next((tmp_path / "images" / "test").iterdir()).write_bytes(b"no picture")
    lines = [line for path in sorted((exported.data / "test").iterdir()) for line in path.read_bytes().splitlines(True)]
    lines[4] = lines[4].replace(b"|", b"", 1)
    lines[9] = b"nothing\n"
    (tmp_path / "test").mkdir()
    (tmp_path / "test/a").write_bytes(b"".join(lines[:7]))
    (tmp_path / "test/b").write_bytes(b"".join(lines[7:]))
    shutil.copytree(exported.model_dir, tmp_path / "m")
    flags = [*exported.flags, "--set=data_config.eval_batch_size=2", f"--set=data_config.image_root={tmp_path}"]
    flags += [f"--set=model_dir={tmp_path}/m", f"--predict_input_path={tmp_path}/test/*"]
    return ["predict", *flags, "--reserved_columns", "user_id,img_path"]


def exported_models(exported):
    return ["--rec_model_dir", exported.folder / "rec", "--img_model_dir", exported.folder / "image"]


def allow(share):
    return f"--set=data_config.max_bad_record_share={share}"


def error_of(capfd):
    return next(line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))


def bad_records(model_dir):
    lines = (model_dir / "predict_bad_records.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]


def test_predictions_are_those_of_one_process(spark, arguments, exported, tmp_path, capsys):
    run(*arguments, allow(1), "--output", tmp_path / "whole.parquet")
    whole = pq.read_table(tmp_path / "whole.parquet")
    expected = bad_records(tmp_path / "m")
    assert {record["kind"] for record in expected} == {"group", "picture"}
    summary = capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "m/predict_bad_records.jsonl").unlink()
    # In folders with numbers as names, as a server takes them.
    shutil.copytree(exported.folder / "rec", tmp_path / "rec/7")
    models = ["--rec_model_dir", tmp_path / "rec", "--img_model_dir", exported.folder / "image"]
    run(*arguments, allow(1), "--output", tmp_path / "out", "--engine", "spark", "--task_num", 3, *models)
    assert capsys.readouterr().out.splitlines()[-1] == summary
    assert bad_records(tmp_path / "m") == expected
    names = [f"part-{index:05d}-of-00003.parquet" for index in range(3)]
    assert sorted(os.listdir(tmp_path / "out")) == ["_SUCCESS", "_tasks.json", *names]
    parts = [pq.read_table(tmp_path / "out" / name) for name in names]
    assert all(len(part) for part in parts)
    together = pa.concat_tables(parts)
    assert together.schema == whole.schema
    for name in whole.column_names:
        if pa.types.is_floating(whole.schema.field(name).type):
            np.testing.assert_allclose(together[name].to_numpy(), whole[name].to_numpy(), atol=1e-5)
        else:
            assert together[name].equals(whole[name])


def test_too_many_bad_records_leave_no_part(spark, arguments, exported, tmp_path, capfd):
    messages = []
    for flags in (["--output", tmp_path / "x.csv"], ["--output", tmp_path / "out/", "--engine", "spark"]):
        capfd.readouterr()
        models = exported_models(exported) if "--engine" in flags else []
        run(*arguments, *flags, *models, expect=1)
        messages.append(error_of(capfd))
    assert messages[0] == messages[1]
    assert "2 of 12 groups cannot be used, more than data_config.max_bad_record_share (0.01)" in messages[0]
    assert os.listdir(tmp_path / "out") == ["_tasks.json"]


def test_mistakes(arguments, exported, earlier_export, tmp_path, capfd):
    models = exported_models(exported)
    other = ["--rec_model_dir", exported.folder / "rec", "--img_model_dir", earlier_export / "image"]
    cases = [
        ([], "--engine spark: runs exported models; give the folders that export has written: --rec_model_dir and"),
        (models[:2], "--engine spark: runs exported models; give the folders that export has written"),
        ([*models, "--task_index", 0, "--task_num", 2], "--task_index: has no effect with --engine spark, which runs"),
        ([*models, "--checkpoint_path", "x"], "--checkpoint_path: has no effect with --engine spark"),
        ([*models, "--precision", "AUTO"], "--precision: has no effect with --engine spark"),
        ([*models, "--output", "x.csv"], "--output x.csv: is one file; Spark writes parts: give a folder"),
        (other, f"--img_model_dir {earlier_export}/image: is another image tower than that of {exported.folder}/rec"),
        ([*models, "--engine", "local"], "--rec_model_dir, --img_model_dir: have no effect without --engine spark"),
        (
            [*models, "--set=feature_config.features[2].hash_bucket_size=77"],
            f"--rec_model_dir {exported.folder}/rec: was exported with other features than the config's: user_city;",
        ),
    ]
    for flags, problem in cases:
        capfd.readouterr()
        run(*arguments, "--engine", "spark", "--output", f"{tmp_path}/out/", *flags, expect=1)
        assert error_of(capfd).startswith(f"error: {problem}")
    assert not (tmp_path / "out").exists()


# --- Embedding


def embed(exported, root, store, *flags, expect=0):
    arguments = ["embed", "--img_model_dir", exported.folder / "image", "--store", f"lmdb://{root}/{store}"]
    arguments += ["--input", root / "items.txt", "--image_root", root, "--bad_pictures", root / f"{store}.jsonl"]
    run(*arguments, *flags, expect=expect)


def records(root, store):
    opened = open_store(f"lmdb://{root}/{store}")
    found = {record.key: record.vector for record in opened.scan(opened.meta().current_generation)}
    opened.close()
    return found


@pytest.fixture
def root(exported, tmp_path):
    """Pictures, two of which are bad, and a list of them, with a line that is not UTF-8."""
    shutil.copytree(exported.data / "images" / "test", tmp_path / "images")
    keys = sorted(f"images/{path.name}" for path in (tmp_path / "images").iterdir())
    for key in (keys[2], keys[9]):
        (tmp_path / key).write_bytes(b"no picture")
    (tmp_path / "items.txt").write_bytes(b"\n".join([b"\xff", *(key.encode() for key in keys)]))
    return tmp_path


@pytest.mark.parametrize("num", [3, 13])  # 13: more than items
def test_vectors_are_those_of_one_process(spark, exported, root, capsys, num):
    embed(exported, root, "one", "--runtime", "onnx", "--max_bad_share", 0.5)
    says = [capsys.readouterr().out.replace("/one", "/spark").rpartition("; ")[0]]
    embed(exported, root, "spark", "--engine", "spark", "--task_num", num, "--max_bad_share", 0.5)
    says.append(capsys.readouterr().out.rpartition("; ")[0])
    assert says[0] == says[1]
    assert "10 pictures embedded by onnx, 0 already in the store, 2 bad" in says[0]
    one, spark = records(root, "one"), records(root, "spark")
    assert one.keys() == spark.keys()
    for key, vector in one.items():
        if vector is None:
            assert spark[key] is None
        else:
            np.testing.assert_allclose(spark[key], vector, atol=1e-5)
    assert (root / "spark.jsonl").read_text() == (root / "one.jsonl").read_text()
    # Again: only what is bad is tried.
    embed(exported, root, "spark", "--engine", "spark", "--max_bad_share", 0.5)
    assert "0 pictures embedded by onnx, 10 already in the store, 2 bad" in capsys.readouterr().out


def test_mistakes_of_embed_are_told_as_without_spark(spark, exported, root, capfd):
    messages = []
    for flags in (["--runtime", "onnx"], ["--engine", "spark", "--task_num", 2]):
        capfd.readouterr()
        embed(exported, root, "s", *flags, expect=1)
        messages.append(error_of(capfd))
        shutil.rmtree(root / "s")
    assert messages[0] == messages[1]
    assert "2 of 12 items have no valid picture, more than --max_bad_share (0.1); generation 1 of" in messages[0]
    embed(exported, root, "s", "--engine", "spark", "--task_index", 0, "--task_num", 2, expect=1)
    assert error_of(capfd) == (
        "error: --task_index: has no effect with --engine spark, which starts all tasks; remove the flag"
    )


# --- What workers raise


def test_an_error_on_a_worker_shows_no_password(spark, capfd):
    from easyrec_mm.spark import run_tasks, spark_session

    message = r"--engine spark: .*ValueError: redis://:\*\*\*@nowhere:6379/0 and \*\*\*"
    with pytest.raises(DataError, match=message), spark_session("", "test"):
        run_tasks(spark, fail, [0, 1], [URI])
    assert SECRET not in "".join(capfd.readouterr())


def test_workers_do_not_show_what_libraries_say_while_they_are_imported(spark):
    from easyrec_mm.spark import run_tasks

    assert run_tasks(spark, Imported(), [0]) == [True]


def test_a_mistake_on_a_worker_is_told_as_it_is_and_paths_are_relative_to_here(spark, tmp_path, monkeypatch):
    from easyrec_mm.spark import run_tasks

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^worker 0 refuses {tmp_path}$"):
        run_tasks(spark, refuse, [0, 1])


def test_each_argument_is_used_once_and_results_are_in_order(spark):
    from easyrec_mm.spark import run_tasks

    parts = [list(range(i)) for i in range(7)]
    assert run_tasks(spark, sum, parts) == [sum(part) for part in parts]
