"""The best checkpoint and early stopping in whole trainings, of metrics as a test sets them."""

from __future__ import annotations

import json
import math

import pytest
from training_helpers import (
    EACH_STEP,
    Training,
    evaluated_training,
    optimizer,
    set_evaluations,
)

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.errors import CheckpointError
from easyrec_mm.evaluation.evaluator import Evaluator, load_model
from easyrec_mm.runs.best_checkpoint import choose_checkpoint
from easyrec_mm.training.evaluations import TrainingEvaluations

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")

AVERAGED = "use_moving_average: true moving_average_decay: 0.5"


@pytest.fixture
def scripted(monkeypatch):
    """Sets the AUC of the evaluations that follow."""

    def script(*values):
        set_evaluations(monkeypatch, values)

    return script


def steps(run: Training, kind: str = "eval") -> list[int]:
    return [line["step"] for line in run.lines(kind)]


def saved_steps(run: Training) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in run.model_dir.glob("*.index"))


def chosen(run: Training, *settings: str) -> int:
    pipeline = load_pipeline(str(run.model_dir / "pipeline.config"), list(settings))
    return int(choose_checkpoint(pipeline, None).path.rpartition("-")[2])


@pytest.mark.slow
def test_it_stops_without_improvement_and_keeps_the_best(data, tmp_path, scripted, capsys):
    scripted(0.5, 0.7, 0.6, 0.65, 0.69)
    stopping = 'exporter_type: "best" enable_early_stop: true early_stop_patience: 3'
    run = evaluated_training(data, tmp_path, stopping, f"num_epochs: 3 {EACH_STEP} keep_checkpoint_max: 1").run()
    assert steps(run) == [1, 2, 3, 4, 5]
    assert saved_steps(run) == [2, 5]
    assert chosen(run) == 2
    output = capsys.readouterr().out
    reason = "auc_click did not improve in 3 evaluations since step 2 (export_config.early_stop_patience)"
    assert f"the training ends at step 5: {reason}" in output
    assert "best checkpoint: that of step 2, auc_click 0.7" in output
    assert [(line["step"], line["reason"]) for line in run.lines("end")] == [(5, reason)]

    # Once more: it has stopped.
    evaluated_training(data, tmp_path, stopping).run()
    assert f"nothing left to train at step 5: {reason}" in capsys.readouterr().out
    # With more patience it goes on, and counts on.
    scripted(0.6, 0.6)
    evaluated_training(data, tmp_path, stopping.replace("patience: 3", "patience: 5")).run()
    assert steps(run) == [1, 2, 3, 4, 5, 6, 7]
    assert "did not improve in 5 evaluations since step 2" in capsys.readouterr().out
    assert chosen(run) == 2


@pytest.mark.slow
def test_patience_counts_on_over_a_training_that_was_cut_off(data, tmp_path, scripted):
    scripted(0.7, 0.6, 0.6, 0.9)
    stopping = "enable_early_stop: true early_stop_patience: 4"
    run = evaluated_training(data, tmp_path, stopping, f"num_steps: 3 {EACH_STEP}").run()
    # A line of a later step that no checkpoint was written of, as after a crash of the machine.
    with (run.model_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "eval", "step": 4, "time": 0, "auc_click": 0.9}) + "\n")
    scripted(0.65, 0.65, 0.65)
    run = evaluated_training(data, tmp_path, stopping).run()
    assert steps(run)[-2:] == [4, 5]
    assert chosen(run, "export_config.exporter_type=best") == 1


def test_an_evaluation_without_a_value_is_told_and_not_counted(data, tmp_path, scripted, capsys):
    scripted(0.7, math.nan, math.nan, 0.6, math.inf, 0.5, 0.9)
    run = evaluated_training(data, tmp_path, "enable_early_stop: true early_stop_patience: 2").run()
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert [line["auc_click"] for line in run.lines("eval")] == [0.7, None, None, 0.6, None, 0.5]
    output = capsys.readouterr().out
    for step in (2, 3, 5):
        assert f"warning: auc_click is undefined in the evaluation at step {step}, " in output


def test_a_minimum_that_is_never_reached(data, tmp_path, scripted, capsys):
    scripted(0.5, 0.7, 0.6)
    best = 'exporter_type: "best" best_exporter_threshold: 0.8'
    run = evaluated_training(data, tmp_path, best, f"num_steps: 3 {EACH_STEP} keep_checkpoint_max: 1").run()
    assert saved_steps(run) == [3]
    nearest = "the nearest was 0.7 at step 2"
    output = capsys.readouterr().out
    assert f"no checkpoint reached auc_click >= 0.8 (export_config.best_exporter_threshold): {nearest}" in output
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* reached auc_click >= 0.8 .*the nearest was 0.7"):
        chosen(run)
    assert chosen(run, "export_config.exporter_type=final", "export_config.best_exporter_threshold=0.8",
                  "export_config.enable_early_stop=true") == 3  # fmt: skip


def test_a_best_checkpoint_that_is_gone(data, tmp_path, scripted):
    scripted(0.75, 0.9, 0.8)
    run = evaluated_training(data, tmp_path, 'exporter_type: "best"', f"num_steps: 3 {EACH_STEP}").run()
    for file in run.model_dir.glob("model.ckpt-2.*"):
        file.unlink()
    pipeline = load_pipeline(str(run.model_dir / "pipeline.config"))
    choice = choose_checkpoint(pipeline, None)
    assert choice.path.endswith("model.ckpt-3")
    assert choice.note == (
        "the best checkpoint, of step 2 (auc_click 0.9), is gone; "
        "the best of those that are left is that of step 3 (0.8)"
    )
    with pytest.raises(CheckpointError, match=r"of step 2, is gone, and none that is left reached auc_click >= 0.85"):
        chosen(run, "export_config.best_exporter_threshold=0.85")
    # It is not mistaken for the checkpoint of that step of another training.
    for file in run.model_dir.glob("model.ckpt-*"):
        file.unlink()
    (run.model_dir / "checkpoint").unlink()
    scripted(0.3, 0.2)
    again = evaluated_training(data, tmp_path, 'exporter_type: "best"', f"num_steps: 2 {EACH_STEP}").run()
    assert chosen(again) == 1
    # And a training that was never evaluated has none.
    (again.model_dir / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"no evaluation of a checkpoint in .* has a value of 'auc_click'"):
        chosen(again)


@pytest.mark.slow
def test_the_best_checkpoint_gives_the_metrics_of_its_evaluation(data, tmp_path):
    """Of real evaluations, by a loss, which is better when it is smaller; of the average of the weights."""
    export = 'exporter_type: "best" best_exporter_metric: "log_loss"'
    train = f"num_steps: 4 {EACH_STEP}"
    run = evaluated_training(data, tmp_path, export, train, optimizer(rate=0.3, more=AVERAGED)).run()
    losses = {line["step"]: line["log_loss_click"] for line in run.lines("eval")}
    best = min(losses, key=losses.get)
    assert chosen(run) == best
    pipeline = load_pipeline(str(run.model_dir / "pipeline.config"))
    model, step = load_model(pipeline.config, pipeline.schema, choose_checkpoint(pipeline, None).path)
    assert step == best
    path = pipeline.config.eval_input_path
    results = Evaluator(model, pipeline.config, path, "eval_input_path", BadRecords("", 0.5)).run()
    assert results["log_loss_click"] == pytest.approx(losses[best], rel=1e-4)


def test_no_step_is_best_where_nothing_asks_for_it(data, tmp_path, scripted, capsys):
    scripted(0.9, 0.5, 0.5)
    run = evaluated_training(data, tmp_path, "", f"num_steps: 3 {EACH_STEP} keep_checkpoint_max: 1").run()
    assert steps(run) == [1, 2, 3]
    assert saved_steps(run) == [3]
    assert chosen(run) == 3
    output = capsys.readouterr().out
    assert "the training ends at step 3: num_steps 3 are done" in output
    assert "best" not in output


def test_evaluations_keep_to_their_interval(data, tmp_path, scripted, monkeypatch):
    scripted(*[0.5] * 9)
    monkeypatch.setattr(TrainingEvaluations, "is_due", False)
    assert steps(evaluated_training(data, tmp_path, "").run()) == [9]
