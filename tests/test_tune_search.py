"""Whole searches: with trainings that only write evaluations, and with real ones; killed, stopped and gone on with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
from flat_helpers import CONFIG, make_log
from flow_helpers import ROOT
from optuna.trial import TrialState
from test_tune import AUC, NOT_STOPPED, X, study_in
from tune_helpers import command_of, evaluations

from easyrec_mm import __version__
from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.tuning import search
from easyrec_mm.tuning.page import page
from easyrec_mm.tuning.search import Search
from easyrec_mm.tuning.study import best_trial, open_study, pruner_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _looks_often():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "LOOK_EVERY_S", 0.01)
        yield


XS = [0.5, 0.35, 0.25, 0.4, 0.2, 1.0, 0.3]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The folder and the study of a search with these values, of which 1.0 does worst, and takes the longest."""
    folder = tmp_path_factory.mktemp("pruned")
    study = study_in(folder, "median")
    trials = Search(
        study, [X], AUC, lambda values, to: command_of(9.0 if values["x"] == 1 else 0.0)(values, to), folder
    )
    for x in XS:
        trials.begin_with({"x": x})
    trials.run(len(XS), 1, NOT_STOPPED)
    return folder, study


def test_trials_that_do_worse_end_early_and_the_best_is_kept(pruned):
    folder, study = pruned
    assert [trial.params["x"] for trial in study.trials] == XS
    for trial, x in zip(study.trials, XS, strict=True):
        is_worst = x == 1.0
        assert trial.state == (TrialState.PRUNED if is_worst else TrialState.COMPLETE)
        steps = [1] if is_worst else [1, 2, 3, 4, 5]
        assert evaluations(folder / "trials" / f"{trial.number:04d}") == steps
        values = [1 - (x - 0.3) ** 2 - 0.1 / number for number in steps]
        assert trial.intermediate_values == pytest.approx(dict(zip(steps, values, strict=True)))
        assert trial.value == pytest.approx(values[-1])
    assert best_trial(study).params == {"x": 0.3}
    checkpoints = {path.parts[-3] for path in (folder / "trials").glob("*/model/model.ckpt-*")}
    assert checkpoints == {"0006"}


def test_the_page_is_whole_without_a_network(pruned):
    _, study = pruned
    text = page(study, [X], AUC, "<x>.config")
    assert "&lt;x&gt;.config" in text
    assert not re.search(r"<(script|link|img)[^>]* (src|href)=(?!\"data:)", text)
    assert text.count('class="plotly-graph-div"') == 5
    table = text[text.index('<table id="trials">') :]
    rows = re.findall(r'<tr(?: class="(\w+)")?><td>(\d+)</td><td>([\w ]+)</td><td>([^<]*)</td>', table)
    assert [int(number) for _, number, _, _ in rows[:1]] == [best_trial(study).number]
    assert [row[0] for row in rows] == ["best"] + [""] * 6
    done = [float(value) for _, _, state, value in rows if state == "done"]
    assert done == sorted(done, reverse=True)


def test_a_search_that_was_stopped_goes_on_with_its_trials(tmp_path):
    logs = [tmp_path / f"trials/000{number}/model/metrics.jsonl" for number in range(2)]
    Search(study_in(tmp_path), [X], AUC, command_of(2.0), tmp_path).run(4, 2, lambda: all(log.exists() for log in logs))
    unfinished = study_in(tmp_path, is_new=False)
    assert [trial.state for trial in unfinished.trials] == [TrialState.RUNNING] * 2
    params = [trial.params for trial in unfinished.trials]
    Search(unfinished, [X], AUC, command_of(0.0), tmp_path).run(4, 2, NOT_STOPPED)
    assert [trial.state for trial in unfinished.trials] == [TrialState.COMPLETE] * 4
    assert [trial.params for trial in unfinished.trials][:2] == params
    for number in range(4):
        folder = tmp_path / "trials" / f"{number:04d}"
        assert evaluations(folder) == [1, 2, 3, 4, 5]
        assert list(unfinished.trials[number].intermediate_values) == [1, 2, 3, 4, 5]
        begun = (folder / "train.log").read_text().splitlines()
        assert begun[0] == "begins behind 0"
        assert len(begun) == (2 if number < 2 else 1)
    # All are done: nothing is left to do, and a larger number goes on.
    Search(unfinished, [X], AUC, command_of(), tmp_path).run(5, 1, NOT_STOPPED)
    assert len(unfinished.trials) == 5


def test_a_search_in_postgresql_goes_on(tmp_path, servers):
    url = servers("postgres").uri
    Search(study_in(tmp_path, url=url), [X], AUC, command_of(), tmp_path).run(1, 1, NOT_STOPPED)
    again = study_in(tmp_path, url=url, is_new=False)
    Search(again, [X], AUC, command_of(), tmp_path).run(2, 1, NOT_STOPPED)
    assert [trial.state for trial in again.trials] == [TrialState.COMPLETE] * 2


RATE = "train_config.optimizer_config[0].adam_optimizer.learning_rate.constant_learning_rate.learning_rate"


def test_a_search_with_trainings_that_is_killed_goes_on(tmp_path, monkeypatch, capfd):
    make_log(tmp_path, CONFIG, num_rows=400)
    (tmp_path / "space.yaml").write_text(f"{RATE}: {{low: 1e-4, high: 1e-1, log: true}}\n")
    tune = [
        "tune", "--pipeline_config", "x.config", "--space", "space.yaml", "--trials", "2", "--output_dir", "t",
        "--set", "data_config.batch_size=10", "--set", "train_config.num_epochs=10",
        "--set", "train_config.save_checkpoints_steps=100", "--set", "train_config.log_step_count_steps=100",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "easyrec_mm", *tune], cwd=tmp_path, env=environment)
    model_dir = tmp_path / "t/trials/0000/model"
    while not list(model_dir.glob("*.index")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    # It ends with the search, and saves a checkpoint first.
    log = tmp_path / "t/trials/0000/train.log"
    until = time.monotonic() + 30
    while "stopped; continue with" not in log.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(tune) == 0
    known = json.loads((tmp_path / "t/tune.json").read_text())
    assert known["easyrec_mm"] == __version__
    assert f" of a search by easyrec-mm {__version__}: auc_click" in (tmp_path / "t/best.config").read_text()
    study = open_study(f"sqlite:///{tmp_path}/t/study.db", known["study"], True, pruner_of("none"), 0, is_new=False)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert study.trials[0].params == {RATE: 0.01}  # that of the config
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("start") == 2
    steps = [line["step"] for line in lines if line["kind"] == "eval"]
    assert steps == list(range(100, 401, 100))
    assert study.trials[0].value == pytest.approx(lines[-2]["auc_click"], rel=1e-6)
    output = capfd.readouterr().out
    assert "trial 0, which goes on" in output
    assert f"best trial: {study.best_trial.number}, auc_click" in output
    # The config of the best trial trains as it is.
    config = load_pipeline("t/best.config").config
    rate = config.train_config.optimizer_config[0].adam_optimizer.learning_rate.constant_learning_rate.learning_rate
    assert rate == pytest.approx(study.best_trial.params[RATE], rel=1e-6)
    assert main(["train", "--pipeline_config", "t/best.config", "--set", "train_config.num_steps=3"]) == 0
    assert (tmp_path / "t/best/model.ckpt-3.index").exists()
    assert study.best_trial.number in [
        int(n) for n in re.findall(r'class="best"><td>(\d+)', (tmp_path / "t/tune.html").read_text())
    ]
