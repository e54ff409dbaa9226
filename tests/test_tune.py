"""What a search takes and refuses; test_tune_search.py has whole searches."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
import time

import pytest
from flow_helpers import ROOT
from optuna.trial import TrialState
from tune_helpers import command_of, evaluations

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import changed_pipeline, load_pipeline
from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.tuning import search
from easyrec_mm.tuning.objective import Objective, objective_of
from easyrec_mm.tuning.pictures import picture_space
from easyrec_mm.tuning.search import HopelessError, Search
from easyrec_mm.tuning.space import Entry, overrides_of, own_values, read_space
from easyrec_mm.tuning.study import REASON, open_study, pruner_of, storage_used
from easyrec_mm.tuning.tune import Tune

X = Entry("space.yaml:1: x", "x", low=0.0, high=1.0)
AUC = Objective("auc_click", is_bigger=True, takes_best=False)
NOT_STOPPED = bool  # says False


@pytest.fixture(scope="module", autouse=True)
def _looks_often():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "LOOK_EVERY_S", 0.01)
        yield


def study_in(folder, pruner="none", url="", is_new=True):
    return open_study(url or f"sqlite:///{folder}/study.db", "s", True, pruner_of(pruner), 0, is_new)


@pytest.fixture
def demo():
    return load_pipeline(str(ROOT / "configs/demo.config"))


# --- The search


@pytest.mark.slow
def test_trials_that_fail_have_reasons_and_the_search_goes_on(tmp_path):
    fails = Entry("space.yaml:2: fails", "fails", ("no", "killed", "data", "undefined"))
    study = study_in(tmp_path)
    for kind in ("no", "killed", "data", "undefined"):
        study.enqueue_trial({"x": 0.5, "fails": kind})
    Search(study, [X, fails], AUC, command_of(), tmp_path).run(4, 1, NOT_STOPPED)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, *[TrialState.FAIL] * 3]
    assert [trial.user_attrs.get(REASON) for trial in study.trials] == [
        None,
        "ended by signal 9 (SIGKILL); memory may have run out",
        "train.csv:3: is bad",
        "auc_click is undefined in all evaluations, or there was none",
    ]


def test_a_mistake_that_all_trials_share_ends_the_search(tmp_path):
    study = study_in(tmp_path)
    trials = Search(study, [X, Entry("", "fails", ("data",))], AUC, command_of(), tmp_path)
    with pytest.raises(HopelessError, match=r"train.csv:3: is bad\nall of the first 3 trials failed for this reason"):
        trials.run(50, 1, NOT_STOPPED)
    assert len(study.trials) == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://a:secret@b/c", r"--storage mysql://a@b/c: is neither SQLite nor PostgreSQL; write sqlite:///"),
        ("study.db", "--storage study.db: is neither SQLite"),
        ("sqlite:////nowhere/study.db", "cannot be used: .*unable to open database file; check"),
        ("postgresql://a:secret@127.0.0.1:1/c", r"--storage postgresql://a@127.0.0.1:1/c: cannot be used: .*refused"),
    ],
)
def test_storages_that_cannot_be_used(tmp_path, url, message):
    with pytest.raises(UserError, match=message) as caught, storage_used(url):
        study_in(tmp_path, url=url)
    assert "secret" not in str(caught.value)


def test_a_storage_without_the_search(tmp_path):
    with pytest.raises(UserError, match="does not have the search of --output_dir"):
        study_in(tmp_path, is_new=False)


# --- The space

RATE = "train_config.optimizer_config[0].adamw_optimizer.learning_rate.cosine_decay_learning_rate.learning_rate_base"
TOWER = "model_config.e2e_mm_dbmtl.img_model"


def space_of(tmp_path, text, pipeline):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    try:
        return read_space(str(path), pipeline)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{tmp_path}/", "")) from error


def test_a_space_gives_configs_as_set_does(tmp_path, demo):
    text = (
        f"{RATE}: {{low: 1e-4, high: 1e-2, log: true}}\n"
        "data_config.batch_size: {low: 32, high: 128, step: 32}\n"
        "model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units: {choices: [[128, 64], [256]]}\n"
        f"{TOWER}.trainable: {{choices: [ALL, HEAD]}}\n"
        f"{TOWER}.normalize_features: {{choices: [true, false]}}\n"
    )
    entries = space_of(tmp_path, text, demo)
    assert (entries[0].low, entries[0].high, entries[0].is_log, entries[1].is_whole) == (1e-4, 1e-2, True, True)
    assert own_values(entries, demo) == {
        entries[0].name: 0.003, "data_config.batch_size": 64,
        "model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units": "[128, 64]", f"{TOWER}.trainable": "ALL",
        f"{TOWER}.normalize_features": True,
    }  # fmt: skip
    values = dict(zip([entry.name for entry in entries], [0.005, 96, "[256]", "HEAD", False], strict=True))
    changed = changed_pipeline(demo, overrides_of(entries, values)).config
    settings = [f"{RATE}=0.005", "data_config.batch_size=96", f"{TOWER}.trainable=HEAD",
                "model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units=[256]",
                f"{TOWER}.normalize_features=false"]  # fmt: skip
    assert changed == load_pipeline(demo.path, settings).config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {low: 1", "space.yaml:1: is not YAML: "),
        ("- a", "space.yaml: names no setting; write lines such as"),
        ("", "space.yaml: names no setting"),
        ("\ndata_config.batch_sise: {low: 1, high: 2}", "space.yaml:2: data_config.batch_sise: DatasetConfig has "
         "no field 'batch_sise'; did you mean 'batch_size'?"),
        ("data_config.batch_size: 5", "space.yaml:1: data_config.batch_size: 5 does not say which values to try"),
        ("data_config.batch_size: {low: 1}", "high is missing"),
        ("data_config.batch_size: {low: 9, high: 3}", "low 9 is not below high 3"),
        ("data_config.batch_size: {low: 1.5, high: 3}", "low: 1.5 is not a whole number"),
        ("data_config.batch_size: {low: x, high: 3}", "low: 'x' is not a number"),
        ("data_config.batch_size: {low: 1, high: 3, hihg: 3}", "no key named 'hihg'; did you mean 'high'?"),
        ("data_config.batch_size: {low: 1, high: 3, choices: [1]}", "has choices and a range"),
        ("data_config.batch_size: {low: 1, high: 4, step: 2}", "high 4 is not low plus a number of steps; give 3 or 5"),
        ("data_config.batch_size: {low: 1, high: 4, step: 2, log: true}", "has log and step"),
        ("data_config.seed: {low: 0, high: 4, log: true}", "low 0 has no logarithm"),
        ("data_config.batch_size: {choices: []}", "choices: [] is not a list of values"),
        ("data_config.batch_size: {choices: [8, 8]}", "choices: 8 occurs twice"),
        ("data_config.batch_size: {choices: [8, x]}", "batch_size: x: 'x' is not a valid value for batch_size"),
        ("data_config.batch_size: {low: 0, high: 8}", "data_config.batch_size: 0: gives an invalid config: "),
        (f"{TOWER}.trainable: {{low: 0, high: 1}}", "is a name, which has no range; write {choices: [...]}"),
        (f"{TOWER}.trainable: {{choices: [SOME]}}", "SOME: 'SOME' is not a valid value"),
        (f"{TOWER}.normalize_features: {{low: 0, high: 1}}", "is true or false, which has no range"),
        ("model_dir: {choices: [a]}", "cannot be searched: each trial has a folder of its own"),
        ("eval_config.num_examples: {choices: [5]}", "trials that are evaluated otherwise cannot be compared"),
        ("data_config.seed: {low: 1, high: 2}\ndata_config.seed: {low: 1, high: 2}", "space.yaml:2: data_config.seed: "
         "stands in line 1, too"),
        (f"{TOWER}.trainable: {{choices: [ALL, HEAD]}}\n{TOWER}.layer_decay: {{low: 0.5, high: 0.9}}",
         "give an invalid config together; change the space: "),
    ],
)  # fmt: skip
def test_mistakes_in_a_space_are_told_with_their_places(tmp_path, demo, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        space_of(tmp_path, text, demo)


def test_all_mistakes_are_told_at_once(tmp_path, demo):
    text = "data_config.batch_size: {low: 9, high: 3}\nmodel_dir: {choices: [a]}\n"
    with pytest.raises(ConfigError) as caught:
        space_of(tmp_path, text, demo)
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == ["space.yaml:1", "space.yaml:2"]


def test_the_space_of_pictures_has_what_fits(demo):
    entries, left_out = picture_space(demo)
    names = [entry.name.removeprefix("model_config.e2e_mm_dbmtl.") for entry in entries]
    augmentation = ["horizontal_flip", "random_resized_crop_min_area", "brightness"]
    assert names == [
        "img_model.learning_rate_multiplier", "highway_dnn.emb_size", "img_model.layer_decay",
        *[f"img_model.augmentation.{name}" for name in augmentation],
    ]  # fmt: skip
    assert left_out == {}
    tuned = load_pipeline(demo.path, ["train_config.fine_tune_checkpoint=x", f"{TOWER}.encode_ratio=0.5"])
    names = [entry.name for entry in picture_space(tuned)[0]]
    assert f"{TOWER}.layer_decay" not in names
    frozen = load_pipeline(demo.path, [f"{TOWER}.trainable=NONE"])
    entries, left_out = picture_space(frozen)
    assert [entry.name for entry in entries] == ["model_config.e2e_mm_dbmtl.highway_dnn.emb_size"]
    assert set(left_out) > {f"{TOWER}.learning_rate_multiplier", f"{TOWER}.layer_decay"}


# --- The objective and the command


def test_the_metric_is_that_of_the_config_or_of_the_flag(demo):
    assert objective_of(demo, "") == ("auc_click", True, False)
    assert objective_of(demo, "log_loss") == ("log_loss_click", False, False)
    best = load_pipeline(
        demo.path, ["export_config.exporter_type=best", "export_config.best_exporter_metric=ece_click"]
    )
    assert objective_of(best, "") == ("ece_click", False, True)
    assert objective_of(best, "").value([0.3, 0.1, 0.2]) == 0.1
    with pytest.raises(
        UserError, match=r"--metric acu_click: no such metric in the evaluation; did you mean 'auc_click'"
    ):
        objective_of(demo, "acu_click")
    with pytest.raises(
        UserError, match="--metric calibration: neither larger nor smaller values are better; choose one"
    ):
        objective_of(demo, "calibration")
    with pytest.raises(ConfigError, match="eval_input_path: is missing"):
        objective_of(load_pipeline(demo.path, ["eval_input_path="]), "")


@pytest.mark.slow
def test_a_signal_ends_the_command_and_it_goes_on(tmp_path, capfd, monkeypatch, demo):
    """With trainings that only write evaluations."""
    monkeypatch.chdir(ROOT)
    rate = demo.config.train_config.optimizer_config[0].adamw_optimizer.learning_rate.cosine_decay_learning_rate
    (tmp_path / "space.yaml").write_text(f"{RATE}: {{low: 1e-4, high: 1, log: true}}\n")
    tune = ["tune", "--pipeline_config", "configs/demo.config", "--space", f"{tmp_path}/space.yaml", "--trials", "3",
            "--jobs", "2", "--output_dir", f"{tmp_path}/t"]  # fmt: skip
    monkeypatch.setattr(Tune, "command", lambda _, values, folder: command_of(1.0)(values, folder))

    def stop():
        while not list((tmp_path / "t").glob("trials/*/model/metrics.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(tune) == 128 + signal.SIGTERM
    thread.join()
    assert f"stopped; continue with: easyrec-mm {shlex.join(tune)}" in capfd.readouterr().out
    assert "No trial is done yet." in (tmp_path / "t/tune.html").read_text()
    assert main([*tune, "--metric", "log_loss"]) == 1
    assert "contains a search with another metric; give what it was begun with" in capfd.readouterr().err
    monkeypatch.setattr(Tune, "command", lambda _, values, folder: command_of()(values, folder))
    assert main(tune) == 0
    assert [len(evaluations(folder)) for folder in sorted((tmp_path / "t/trials").iterdir())] == [5, 5, 5]
    best = load_pipeline(f"{tmp_path}/t/best.config").config
    found = best.train_config.optimizer_config[0].adamw_optimizer.learning_rate.cosine_decay_learning_rate
    assert found.learning_rate_base != rate.learning_rate_base
    found.learning_rate_base, best.model_dir = rate.learning_rate_base, demo.config.model_dir
    assert best == demo.config


def test_a_mistake_that_was_corrected_begins_anew(tmp_path, capfd, monkeypatch):
    (tmp_path / "space.yaml").write_text(f"{RATE}: {{low: 1e-4, high: 1, log: true}}\n")
    tune = ["tune", "--pipeline_config", str(ROOT / "configs/demo.config"), "--space", f"{tmp_path}/space.yaml",
            "--trials", "1", "--output_dir", f"{tmp_path}/t"]  # fmt: skip
    broken = command_of()
    monkeypatch.setattr(Tune, "command", lambda _, values, folder: broken({**values, "fails": "data"}, folder))
    assert main(tune) == 1
    error = capfd.readouterr().err
    assert "error: train.csv:3: is bad\nall of the first 1 trials failed for this reason" in error
    monkeypatch.setattr(Tune, "command", lambda _, values, folder: broken(values, folder))
    assert main([*tune, "--set", "data_config.batch_size=32"]) == 0
    assert "best trial: 0, auc_click" in capfd.readouterr().out


def test_the_command_tells_what_is_missing(tmp_path, capsys, monkeypatch):
    tune = ["tune", "--pipeline_config", str(ROOT / "configs/demo.config"), "--set", f"model_dir={tmp_path}/m"]
    assert main([*tune, "--space", "nowhere.yaml"]) == 1
    assert "error: --space nowhere.yaml: cannot be read: No such file or directory" in capsys.readouterr().err
    (tmp_path / "m_tune").mkdir()
    (tmp_path / "m_tune" / "mine.txt").touch()
    assert main([*tune, "--space", "pictures"]) == 1
    assert (
        f"--output_dir {tmp_path}/m_tune: contains files that belong to no search (mine.txt)" in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([*tune, "--space", "pictures"]) == 1
    assert (
        "install easyrec-mm[tune]; in the clone: .venv/bin/python -m pip install -e '.[tune]'"
        in capsys.readouterr().err
    )
