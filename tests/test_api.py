"""The Python API: what the commands do, with DataFrames in place of files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from flat_helpers import CONFIG, make_log

import easyrec_mm as er
from easyrec_mm.cli.main import main

# --- Training on a log without pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a training by the command on Parquet, in `m`, and its log as a DataFrame."""
    folder = tmp_path_factory.mktemp("api")
    make_log(folder, CONFIG.replace("CSVInput with_header: true", "ParquetInput").replace(".csv", ".parquet"))
    frame = pd.read_csv(folder / "train.csv")
    for name in ("train", "eval"):
        frame.to_parquet(folder / f"{name}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--pipeline_config", "x.config"]) == 0
    return folder, frame


@pytest.fixture
def run(trained, monkeypatch):
    """That training."""
    monkeypatch.chdir(trained[0])
    return er.load("x.config").trained()


def rows_of_command(frame, *flags):
    """The predictions that the command writes for the rows of a DataFrame."""
    frame.to_parquet("some.parquet")
    output = ["--predict_input_path", "some.parquet", "--output", "predicted.parquet"]
    assert main(["predict", "--pipeline_config", "x.config", *output, *flags]) == 0
    return pq.read_table("predicted.parquet").to_pandas()


@pytest.mark.slow
def test_a_frame_trains_the_weights_of_its_file_and_an_equal_one_goes_on(run, trained):
    frame = trained[1]
    pipeline = er.load("x.config", {"model_dir": "of_frames"})
    own = pipeline.train(frame, frame)
    assert dict(own.evaluate()) == dict(run.evaluate())
    pd.testing.assert_frame_equal(own.predict(frame), run.predict(frame))
    steps = own.metrics()
    assert steps.loc[steps["kind"] == "train", "step"].tolist() == [1, 2]
    pipeline.train(frame.copy(), frame)
    again = own.metrics()
    assert again.loc[again["kind"] == "train", "step"].tolist() == [1, 2]
    pipeline.with_settings({"train_config.num_epochs": 2}).train(frame.copy(), frame)
    steps = own.metrics()
    assert steps.loc[steps["kind"] == "train", "step"].tolist() == [1, 2, 3, 4]


@pytest.mark.slow
def test_an_evaluation_is_that_of_the_command(run, trained):
    assert main(["eval", "--pipeline_config", "x.config"]) == 0
    written = json.loads(Path("m/eval_result.json").read_text())
    results = run.evaluate(trained[1])
    assert results["auc_click"] == written["auc_click"]
    assert results.intervals == run.evaluate("eval.parquet").intervals
    comparison = run.evaluate(trained[1], compare=run).comparison
    assert {line["difference"] for line in comparison["differences"].values()} == {0.0}


@pytest.mark.slow
def test_a_report_is_that_of_the_command_and_explains_what_stands_in_tables(run, tmp_path):
    of_command = tmp_path / "command.html"
    shutil.copy("eval.parquet", "later.parquet")
    run = er.load("x.config", {"eval_input_path": "later.parquet"}).trained()
    written = run.report(tmp_path / "own.html", compare="m")
    assert written == str(tmp_path / "own.html")
    flags = ["--compare", "m", "--eval_input_path", "later.parquet", "--output", str(of_command)]
    assert main(["report", "--model_dir", "m", *flags]) == 0
    pages = [path.read_text().partition("<footer")[0] for path in (Path(written), of_command)]
    assert pages[0] == pages[1]
    uses = pages[0].partition('id="panel-ablation"')[2].partition("</section>")[0]
    assert "Changes of the metrics of click" in uses
    with pytest.raises(er.UserError, match="is a folder"):
        run.report(tmp_path)


@pytest.mark.slow
def test_predictions_are_those_of_the_command_with_the_index_of_the_frame(run, trained):
    frame = trained[1].sample(frac=1, random_state=3)
    frame.index = [f"row {number % 30}" for number in range(len(frame))]
    predicted = run.predict(frame, reserved_columns="user")
    assert predicted.index.equals(frame.index)
    assert predicted["user"].tolist() == frame["user"].tolist()
    expected = rows_of_command(frame, "--reserved_columns", "user")
    pd.testing.assert_frame_equal(predicted.reset_index(drop=True), expected, check_dtype=False)
    pd.testing.assert_frame_equal(run.predict("some.parquet", reserved_columns=["user"]), expected)


@pytest.mark.slow
def test_a_row_that_cannot_be_read_has_no_prediction(run, trained, capsys):
    frame = trained[1].head(400).copy()
    frame = pd.concat([frame] * 3, ignore_index=True)
    frame.loc[[5, 9], "price"] = np.inf
    predicted = run.predict(frame)
    assert predicted.index[predicted["probs_click"].isna()].tolist() == [5, 9]
    assert "warning: " in capsys.readouterr().err
    listed = [json.loads(line) for line in Path("m/predict_bad_records.jsonl").read_text().splitlines()]
    assert [(record["row"], record["where"]) for record in listed] == [(6, "column 'price'"), (10, "column 'price'")]
    assert {record["file"] for record in listed} == {"the DataFrame data"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda frame: frame.drop(columns="price"),
            "the DataFrame data: no column 'price'; choose one of click, tags, user$",
        ),
        (lambda frame: frame.assign(price="cheap"), "the DataFrame data.*price"),
        (lambda frame: frame.assign(price=float("inf")), "the DataFrame data.*price"),
    ],
)
def test_messages_name_the_argument_and_the_column(run, trained, change, message):
    with pytest.raises(er.DataError, match=message) as raised:
        run.predict(pd.concat([change(trained[1])] * 11))
    assert "/tmp" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("data", [None, 7, pd.Series(["x.csv"]), [{"price": 1.0}]])
def test_data_that_are_neither_files_nor_a_frame(run, data):
    with pytest.raises(er.DataError, match=r"^data: is a .*; give the path"):
        run.predict(data)


@pytest.mark.slow
def test_data_of_training_and_evaluation_have_rows_of_the_same_kind(shop):
    _, log, groups, *_ = shop
    pipeline = er.load(groups.pipeline_config, {"model_dir": "other", "eval_input_path": groups.train_data})
    grouped = pd.read_parquet(sorted(Path(groups.output).glob("part-*.parquet"))[0])
    with pytest.raises(er.DataError, match="train_data, eval_data: one has a row per sample, one a row per group"):
        pipeline.train(log, grouped)
    with pytest.raises(
        er.DataError, match="eval_data: the config's eval_input_path is GroupParquetInput, and the Data"
    ):
        pipeline.train(log)
    assert not Path("other").exists()


# --- With pictures


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with pictures; a log of them; a training on its groups, exported and embedded."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for item in range(12):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"images/{item}.png")
    log = pd.DataFrame({"item": random.integers(0, 12, 600), "age": random.integers(18, 70, 600)})
    log["path"] = "images/" + log["item"].astype(str) + ".png"
    log["click"] = (random.random(600) < 0.2 + 0.3 * (log["item"] % 2)).astype(int)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        groups = er.group(log, "groups", group_by="item", image_field="path", label_fields="click", image_size=(16, 16))
        run = er.load(groups.pipeline_config, {"train_config.num_steps": 4}).train()
        models = run.export("export", parity_groups=10)
        with pytest.raises(er.UserError, match="embed: no option 'refesh'; did you mean 'refresh'"):
            er.embed(models.img_model_dir, log, "lmdb://vectors", refesh="all")
        er.embed(models.img_model_dir, log, "lmdb://vectors")
        yield folder, log, groups, run, models


@pytest.mark.slow
def test_groups_of_a_frame_are_those_of_its_file(shop):
    _, log, groups, *_ = shop
    log.to_parquet("log.parquet")
    columns = ["--group_by", "item", "--image_field", "path", "--label_fields", "click", "--image_size", "16x16"]
    files = ["--input", "log.parquet", "--output", "by_command", "--pipeline_config_template", "by_command.config"]
    assert main(["group", *columns, *files]) == 0
    own, of_command = (sorted(Path(name).glob("part-*")) for name in (groups.output, "by_command"))
    assert [path.read_bytes() for path in own] == [path.read_bytes() for path in of_command]
    assert "600 rows in, 600 out" in str(groups)


@pytest.mark.slow
def test_a_frame_of_groups_has_a_row_for_each_sample(shop):
    _, _, groups, run, _ = shop
    frame = pd.concat([pd.read_parquet(path) for path in sorted(Path(groups.output).glob("part-*.parquet"))])
    frame.index = [f"group {number}" for number in range(len(frame))]
    predicted = run.predict(frame)
    assert predicted.index.tolist() == [name for name, labels in frame["click"].items() for _ in labels]
    assert run.evaluate(frame)["num_samples"] == 600
    assert run.evaluate(frame)["auc_click"] == pytest.approx(run.evaluate(groups.train_data)["auc_click"], abs=1e-12)


@pytest.mark.slow
def test_a_server_answers_what_the_training_predicts(shop):
    _, log, _, run, models = shop
    some = log.sample(50, random_state=1).drop(columns="click")
    with er.Server(models.rec_model_dir, "lmdb://vectors", max_instances=20) as server:
        answers = server.predict(some)
        pd.testing.assert_frame_equal(answers, run.predict(some), check_dtype=False, atol=1e-5)
        request = some.drop(columns="age").to_dict("records")
        shared = server.predict(request[:20], shared={"age": 30})
        expected = run.predict(some.assign(age=30)).head(20)
        np.testing.assert_allclose(shared["probs_click"], expected["probs_click"], atol=1e-5)
        with pytest.raises(er.UserError, match=r"^candidates:1: age: is missing"):
            server.predict(some.drop(columns="age"))
        with pytest.raises(er.UserError, match=r"^instance 1: age: is missing"):
            server.predict([*some.head(1).to_dict("records"), {"path": "images/3.png", "item": 3, "age": None}])
        gaps = some.assign(age=some["age"].where(np.arange(50) % 2 == 0))
        filled = server.predict(gaps)
        pd.testing.assert_frame_equal(filled, run.predict(gaps), check_dtype=False, atol=1e-5)
        assert filled.equals(server.predict(some.assign(age=some["age"] * (np.arange(50) % 2 == 0))))
        assert not np.allclose(filled["probs_click"], answers["probs_click"])
        all_share = server.predict(some.assign(age=None), shared={"age": 30})
        assert all_share.equals(server.predict(some.assign(age=30)))
        with pytest.raises(er.DataError, match=r"candidates: column 'age': .*whole number"):
            server.predict(some.assign(age=30.5))
        assert server.predict(some.assign(age=some["age"].astype(float))).equals(answers)
        assert not server.reload()


@pytest.mark.slow
def test_a_search_finds_what_the_command_prints(shop, capsys):
    models = shop[-1]
    found = er.search("lmdb://vectors", image="images/3.png", img_model_dir=models.img_model_dir, top_k=4)
    assert found["key"][0] == "images/3.png"
    by_key = er.search("lmdb://vectors", key="images/3.png", top_k=3)
    assert by_key["key"].tolist() == found["key"].tolist()[1:]
    assert main(["search", "--store", "lmdb://vectors", "--key", "images/3.png", "--top_k", "3"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[-3:]] == by_key["key"].tolist()


# --- Signals


@pytest.mark.slow
def test_an_interrupt_saves_a_checkpoint(run, trained):
    code = """
        import os, signal, threading, easyrec_mm as er
        er.load("x.config").trained()
        pipeline = er.load("x.config", {"model_dir": "interrupted", "train_config.num_epochs": 1000})
        from easyrec_mm.runs.progress import Progress
        shown = Progress.show
        def show(self, *arguments, **named):
            os.kill(os.getpid(), signal.SIGINT)
            Progress.show = shown
            shown(self, *arguments, **named)
        Progress.show = show
        try:
            pipeline.train()
        except KeyboardInterrupt:
            print("interrupted at", pipeline.trained().checkpoint)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1].startswith("interrupted at interrupted/model.ckpt-")
    assert "absl::InitializeLog" not in done.stderr  # a notice of TensorFlow's libraries


@pytest.mark.slow
def test_a_thread_can_train(run, trained):
    with ThreadPoolExecutor(1) as pool:
        own = pool.submit(er.load("x.config", {"model_dir": "of_thread"}).train).result()
    assert dict(own.evaluate()) == dict(run.evaluate())
