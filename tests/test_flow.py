"""Whole commands, from files to files."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from flow_helpers import ROOT, copy_checkpoint, demo_flags, make_data, run, use_small_backbone, use_small_backbone_alone
from forked import Command
from full_disk import files_limited_to
from reference import HARMLESS_EDITS, reference_config, write_config
from reference_data import write_reference_data
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.distribution.replicas import SENT_BYTES
from easyrec_mm.evaluation.metrics import metric_value
from easyrec_mm.evaluation.rank_metrics import AUC
from easyrec_mm.training.signals import caught_signals
from easyrec_mm.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_small_backbone(monkeypatch)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The model_dir of a training of 6 steps with an evaluation; not to be changed, but by `eval`."""
    model_dir = tmp_path_factory.mktemp("trained") / "m"
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        run("train", *flags_of_trained(data, model_dir))
    return model_dir


def flags_of_trained(data, model_dir):
    return demo_flags(
        data, model_dir, eval_input_path=f"{data}/eval/*",
        train_config__save_summary_steps=2, train_config__save_checkpoints_steps=4,
    )  # fmt: skip


def checkpoint_values(path) -> dict[str, np.ndarray]:
    """All numbers of a checkpoint."""
    reader = tf.train.load_checkpoint(str(path))
    dtypes = reader.get_variable_to_dtype_map()
    return {name: reader.get_tensor(name) for name, dtype in dtypes.items() if dtype != tf.string}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_train_eval_predict_write_what_they_promise(data, trained, tmp_path, capsys):
    flags, model_dir = flags_of_trained(data, trained), trained
    assert (model_dir / "pipeline.config").exists()
    assert sorted(p.name for p in model_dir.glob("*.index")) == ["model.ckpt-4.index", "model.ckpt-6.index"]
    log = lines(model_dir / "metrics.jsonl")
    train_lines = [line for line in log if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == [1, 2, 3, 4, 5, 6]
    assert train_lines[-1]["loss"] == pytest.approx(
        sum(train_lines[-1][k] for k in train_lines[-1] if k.startswith("loss_")), rel=1e-5
    )
    rates = {"samples_per_second", "images_per_second", "samples_per_image", "encoded_per_second", "input_wait_share"}
    assert {*rates, "flops_per_step", "mfu", "sent_bytes_sum"} <= set(train_lines[0])
    assert all(0 < line["mfu"] < 1 for line in train_lines)
    shown = EventAccumulator(str(model_dir), {"tensors": 0})
    shown.Reload()
    for name in (*rates, "flops_per_step", "mfu", *SENT_BYTES):
        values = [float(tf.make_ndarray(event.tensor_proto)) for event in shown.Tensors(f"train/{name}")]
        assert values == pytest.approx([line[name] for line in train_lines], rel=1e-6), name
    result = json.loads((model_dir / "eval_result.json").read_text())
    assert {"auc_click", "gauc_click", "mean_squared_error_play_time", "num_samples"} <= set(result)

    output = tmp_path / "p.parquet"
    run("predict", *flags, "--predict_input_path", f"{data}/eval/*", "--output", output,
        "--reserved_columns", "user_id,img_path,click,group_size")  # fmt: skip
    rows = pq.read_table(output)
    expected = ["user_id", "img_path", "click", "group_size", "logits_click", "probs_click", "y_play_time"]
    assert rows.column_names == expected
    assert rows["user_id"].to_pylist() == input_values(data / "eval", "user_id")
    np.testing.assert_allclose(rows["probs_click"], 1 / (1 + np.exp(-np.array(rows["logits_click"]))), atol=1e-6)
    auc = metric_value(AUC(), rows["click"].to_numpy(), rows["probs_click"].to_numpy())

    capsys.readouterr()
    run("eval", *flags)
    assert json.loads((model_dir / "eval_result.json").read_text())["auc_click"] == pytest.approx(auc, abs=1e-6)
    assert "auc_click" in capsys.readouterr().out

    run("predict", *flags, "--predict_input_path", f"{data}/eval/*", "--output", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        table = list(csv.DictReader(file))
    np.testing.assert_array_equal(
        np.array([row["probs_click"] for row in table], np.float32), rows["probs_click"].to_numpy()
    )


@pytest.mark.slow
def test_an_easyrec_file_trains_unchanged(tmp_path, monkeypatch):
    """The reference case, with its 224 x 224 pictures and its own backbone, by the flags of EasyRec's train_eval."""
    monkeypatch.undo()
    data = write_reference_data(tmp_path / "data", num_groups=6, seed=1)
    text = reference_config(*HARMLESS_EDITS, eval_input_path=data.input_path)
    config = write_config(tmp_path, text)
    run(
        "train", "--pipeline_config_path", config, "--model_dir", tmp_path / "m", "--continue_train",
        "--train_input_path", data.input_path, "--edit_config_json", '{"train_config.log_step_count_steps": 1}',
    )  # fmt: skip
    written = load_pipeline(str(tmp_path / "m" / "pipeline.config")).config
    assert (written.train_input_path, written.train_config.log_step_count_steps) == (data.input_path, 1)
    config = str(tmp_path / "m" / "pipeline.config")
    result = json.loads((tmp_path / "m" / "eval_result.json").read_text())
    assert {"auc_is_valid_play", "mean_squared_error_play_time"} <= set(result)
    output = tmp_path / "p.parquet"
    run("predict", "--pipeline_config", config, "--predict_input_path", data.input_path, "--output", output)
    rows = pq.read_table(output)
    assert rows.column_names == ["logits_is_valid_play", "probs_is_valid_play", "y_play_time"]
    assert rows.num_rows == result["num_samples"]


def input_values(folder: Path, field: str) -> list[str]:
    """Values of a field as a plain reader of the demo's lines sees them."""
    names = ["user_id", "user_age_level", "user_gender", "user_city", "user_taste", "hour", "category", "price"]
    values = []
    for path in sorted(folder.glob("*.txt")):
        for line in path.read_text().splitlines():
            samples = line.split("|")[4].split("\x01")
            values += [sample.split("\x02")[names.index(field)] for sample in samples]
    return values


@pytest.mark.slow
def test_training_that_a_signal_stops_goes_on_as_if_it_had_not(data, tmp_path, capsys):
    settings = {
        "model_config__e2e_mm_dbmtl__bottom_dnn__dropout_ratio": "[0.5, 0.2]",
        "train_config__num_epochs": 2,
        "data_config__seed": 0,  # which TensorFlow takes as none in places
    }
    run("train", *demo_flags(data, tmp_path / "whole", **settings))
    run_step = Trainer.run_step

    def interrupted(trainer, item):
        if item and item.step == 4:
            signal.raise_signal(signal.SIGINT)
        return run_step(trainer, item)

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_step", interrupted)
        run("train", *demo_flags(data, tmp_path / "parts", **settings), expect=128 + signal.SIGINT)
    assert "continue with: easyrec-mm train --pipeline_config" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "parts").glob("*.index")] == ["model.ckpt-5.index"]
    run("train", *demo_flags(data, tmp_path / "parts", **settings))
    whole, parts = (checkpoint_values(tmp_path / name / "model.ckpt-12") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_other_data_is_read_from_its_start(trained, tmp_path, capsys):
    more = make_data(tmp_path / "more", num_train_groups=24)
    shutil.copytree(trained, tmp_path / "m")
    run("train", *demo_flags(more, tmp_path / "m"))
    assert "reading from the start" in capsys.readouterr().out
    assert (tmp_path / "m" / "model.ckpt-9.index").exists()  # 6 steps and 3 more
    run("train", *demo_flags(more, tmp_path / "m"))
    assert "nothing left to train" in capsys.readouterr().out


def test_fine_tune_restores_by_name_and_map(data, trained, tmp_path, capsys):
    first = checkpoint_values(trained / "model.ckpt-6")
    names = tmp_path / "map.txt"
    names.write_text("embedding/user_city\tembedding/user_taste\n")
    rate = "train_config__optimizer_config[0]__adam_optimizer__learning_rate__cosine_decay_learning_rate"
    settings = {
        "train_config__fine_tune_checkpoint": trained,
        "train_config__fine_tune_ckpt_var_map": names,
        "train_config__num_steps": 1,
        "model_config__e2e_mm_dbmtl__task_towers[0]__relation_dnn__hidden_units": 5,
        f"{rate}__learning_rate_base": 1e-12,
        f"{rate}__warmup_learning_rate": 1e-12,
    }
    run("train", *demo_flags(data, tmp_path / "second", **settings))
    second = checkpoint_values(tmp_path / "second" / "model.ckpt-1")
    np.testing.assert_allclose(second["embedding/user_city"], first["embedding/user_taste"], atol=1e-6)
    np.testing.assert_allclose(
        second["rec/bottom_dnn/dense_0/kernel"], first["rec/bottom_dnn/dense_0/kernel"], atol=1e-6
    )
    report = capsys.readouterr().out
    assert "restored: embedding/user_city [100, 8] from embedding/user_taste" in report
    assert "not restored: rec/tower_click/relation_dnn/dense_0/kernel [32, 5]: the checkpoint's" in report


def optimizers(*kinds: str) -> dict[str, str]:
    """The setting of an optimizer for each part."""
    rate = "learning_rate { constant_learning_rate { learning_rate: 0.01 } }"
    return {
        "train_config__optimizer_config": f"[{', '.join(f'{{ {kind}_optimizer {{ {rate} }} }}' for kind in kinds)}]"
    }


def test_freeze_gradient_and_an_optimizer_for_the_embeddings(data, tmp_path):
    settings = {
        **optimizers("adagrad", "sgd"),
        "train_config__freeze_gradient": '["^image/backbone/", "embedding/hour"]',
        "train_config__save_checkpoints_steps": 1,
        "train_config__keep_checkpoint_max": 9,
    }
    run("train", *demo_flags(data, tmp_path / "m", **settings))
    before, after = (checkpoint_values(tmp_path / "m" / f"model.ckpt-{step}") for step in (1, 6))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert not {name for name in changed if "backbone" in name and "moving" not in name}
    assert not {name for name in changed if name.startswith("embedding/hour")}
    assert {"image/projection/kernel", "embedding/category", "optimizer_0/embedding/category/accumulator"} <= changed
    assert not [name for name in after if name.startswith("optimizer_0/") and "/rec/" in name]


def test_an_optimizer_for_each_of_three_parts(data, tmp_path):
    run("train", *demo_flags(data, tmp_path / "m", **optimizers("ftrl", "adam", "momentum")))
    names = set(checkpoint_values(tmp_path / "m" / "model.ckpt-6"))
    assert "optimizer_0/embedding/hour/accumulator" in names
    assert not [name for name in names if name.startswith("optimizer_0/") and "/rec/" in name]
    assert "optimizer_1/rec/bottom_dnn/dense_0/kernel/m" in names
    assert "optimizer_2/image/projection/kernel/accumulator" in names


@pytest.mark.slow
def test_moving_average_is_what_is_evaluated(data, trained, tmp_path):
    average = {"train_config__optimizer_config[0]__use_moving_average": "true",
               "train_config__optimizer_config[0]__moving_average_decay": 0.5}  # fmt: skip
    flags = demo_flags(data, tmp_path / "m", **average, eval_input_path=f"{data}/eval/*",
                       eval_config__eval_interval_secs=0, train_config__save_checkpoints_steps=3)  # fmt: skip
    run("train", *flags)
    during = json.loads((tmp_path / "m" / "eval_result.json").read_text())
    run("eval", *flags)
    after = json.loads((tmp_path / "m" / "eval_result.json").read_text())
    assert during["log_loss_click"] == pytest.approx(after["log_loss_click"], abs=1e-6)
    # The evaluation at step 3 swapped averages in and out; the training must not have noticed.
    weights, reference = (checkpoint_values(folder / "model.ckpt-6") for folder in (tmp_path / "m", trained))
    for name in reference:
        np.testing.assert_allclose(weights[name], reference[name], rtol=1e-4, atol=1e-6, err_msg=name)
    last = json.loads((trained / "eval_result.json").read_text())
    assert last["log_loss_click"] != pytest.approx(after["log_loss_click"], abs=1e-6)


@pytest.mark.slow
def test_bad_groups_and_pictures_are_recorded_and_stop_the_training(tmp_path, capsys):
    data = make_data(tmp_path / "data", num_train_groups=40)
    file = data / "train/part-0000.txt"
    text = file.read_text().splitlines()
    text[1] = text[1].replace("\x02", "", 1)
    file.write_text("\n".join(text) + "\n")
    picture = data / text[3].split("|")[5]
    picture.write_bytes(picture.read_bytes()[:200])
    run("train", *demo_flags(data, tmp_path / "m", data_config__max_bad_record_share=0.5))
    records = {(r["kind"], r["row"]): r for r in lines(tmp_path / "m" / "bad_records.jsonl")}
    assert records[("group", 2)]["file"] == str(file)
    assert "10 values, not 11" in records[("group", 2)]["problem"]
    assert "damaged" in records[("picture", 4)]["problem"]
    assert "1 of 40 groups" in capsys.readouterr().out
    run("train", *demo_flags(data, tmp_path / "m2"), expect=1)
    error = capsys.readouterr().err
    assert "1 of 40 groups cannot be used" in error
    assert f"{file}:2" in error


def test_a_loss_that_is_no_number_stops_without_spoiling_the_checkpoint(data, tmp_path, capsys):
    rate = "learning_rate { constant_learning_rate { learning_rate: 1e30 } }"
    optimizer = f"[{{ sgd_optimizer {{ {rate} }} }}]"
    flags = demo_flags(data, tmp_path / "m", train_config__optimizer_config=optimizer)
    run("train", *flags, expect=1)
    assert "the loss is" in capsys.readouterr().err
    assert not list((tmp_path / "m").glob("*.index"))


OTHER_CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.config")) if path.name != "demo.config"]


@pytest.mark.slow
@pytest.mark.parametrize("config", OTHER_CONFIGS, ids=lambda path: path.name)
def test_every_config_builds_and_runs_a_step(config, data, tmp_path):
    """The demo's is that of all other tests here."""
    if "titles" in config.name:
        data = make_data(tmp_path / "data", num_train_groups=8, titles=True)
    flags = demo_flags(data, tmp_path / "m", train_config__num_steps=1)
    run("train", "--pipeline_config", config, *flags[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "eval_input_path: is missing"),
        (["eval", "--eval_input_path", "x"], "holds no checkpoint"),
        (
            ["eval", "--eval_input_path", "x", "--checkpoint_path", "nowhere"],
            "--checkpoint_path: no checkpoint 'nowhere'",
        ),
        (["predict", "--predict_input_path", "x", "--output", "p.txt"], "ends in .parquet or .csv"),
        (["predict", "--predict_input_path", "x", "--output", "p.csv", "--reserved_columns", "usr_id"], "'user_id'?"),
        (["train", "--set", "train_input_path=/nowhere/*"], "'/nowhere/*' matches no file"),
        (["train", "--set", "train_input_path="], "train_input_path: is missing"),
        (["train", "--set", "train_config.freeze_gradient=nothing_like_it"], "matches no variable"),
        (["train", "--set", "train_config.fine_tune_checkpoint=/nowhere"], "no checkpoint '/nowhere'"),
        (["train", "--set", "model_dir=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_mistakes_are_told_in_plain_words(data, tmp_path, capsys, arguments, message):
    (tmp_path / "m").mkdir()
    command, *rest = arguments
    run(command, *demo_flags(data, tmp_path / "m"), *rest, expect=1)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_check_shows_what_it_understood(data, tmp_path, capsys):
    run("check", *demo_flags(data, tmp_path / "m"))
    report = capsys.readouterr().out
    assert "the config is valid" in report
    assert "user_gender" in report
    assert f"{16} x {16}" in report
    run("check", *demo_flags(data, tmp_path / "m", data_config__selected_cols="2,3,4,6,5"), expect=1)
    assert "group size 'images/" in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_saves_and_says_how_to_go_on(data, tmp_path):
    """As a process of its own; the test of continued training has SIGINT."""
    flags = demo_flags(data, tmp_path / "m", train_config__num_epochs=10000)
    printed = tmp_path / "output.txt"
    process = Command(ROOT, ["train", *flags], printed, prepare=use_small_backbone_alone)
    process.wait_for(printed, "train step 3")
    process.send_signal(signal.SIGTERM)
    status, output = process.end(60)
    assert status == 128 + signal.SIGTERM, output
    assert "continue with: easyrec-mm train --pipeline_config" in output
    assert "Traceback" not in output
    saved = list((tmp_path / "m").glob("*.index"))
    assert len(saved) == 1
    assert int(saved[0].stem.split("-")[1]) >= 3


def test_a_signal_may_come_while_a_line_is_printed(monkeypatch):
    class Terminal(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if caught.number is None:
                signal.raise_signal(signal.SIGTERM)
            return len(data)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Terminal())))
    with caught_signals("stopping") as caught:
        print("train step 1", flush=True)
    assert caught.number == signal.SIGTERM


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(data, trained, tmp_path, capsys):
    flags = demo_flags(data, tmp_path / "m")
    copy_checkpoint(trained, 4, tmp_path / "m")
    with files_limited_to(100_000):
        run("train", *flags, expect=1)
    error = capsys.readouterr().err
    assert "model.ckpt-6: cannot be written" in error
    assert "the last good one is" in error
    assert "Traceback" not in error
    assert [path.name for path in (tmp_path / "m").glob("*.index")] == ["model.ckpt-4.index"]
    assert [path.name for path in (tmp_path / "m").glob(".*")] == [".lock"]
    run("eval", *flags, "--eval_input_path", f"{data}/eval/*")
