"""The best checkpoint, early stopping and watching with the folder of the training in a bucket."""

from __future__ import annotations

import json
from itertools import repeat
from pathlib import Path

import pytest
from training_helpers import (
    EACH_STEP,
    evaluated_training,
    set_evaluations,
    use_backbone_of_three_stages,
)

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.files.folders import shown
from easyrec_mm.runs.best_checkpoint import choose_checkpoint
from easyrec_mm.training.signals import Caught
from easyrec_mm.training.watch import WATCH_METRICS, WATCH_RESULT, WATCH_SUMMARIES, Watch


@pytest.mark.slow
def test_a_training_in_a_bucket(s3, data, tmp_path, monkeypatch):
    use_backbone_of_three_stages(monkeypatch)
    bucket = s3.new_bucket()
    # Five evaluations of the training, two of what watches it.
    set_evaluations(monkeypatch, [0.5, 0.7, 0.6, 0.6, 0.6, 0.7, 0.6])

    def train(steps):
        export = 'exporter_type: "best" enable_early_stop: true early_stop_patience: 3'
        settings = f"{steps} {EACH_STEP} keep_checkpoint_max: 1"
        return evaluated_training(data, tmp_path, export, settings, model_dir=f"{bucket}/m").run()

    def checkpoints():
        return sorted(Path(key).stem for key in s3.keys(f"{bucket}/m") if key.endswith(".index"))

    train("num_steps: 3")
    assert checkpoints() == ["model.ckpt-2", "model.ckpt-3"]
    # In a new copy of the folder, as on another machine.
    train("num_epochs: 3")
    assert checkpoints() == ["model.ckpt-2", "model.ckpt-5"]
    pipeline = load_pipeline(str(tmp_path / "test.config"))
    chosen = choose_checkpoint(pipeline, None).path
    assert shown(chosen) == f"{bucket}/m/model.ckpt-2"
    assert list(Path(chosen).parent.glob("model.ckpt-2.data-*"))

    before = {key: s3.get(f"{bucket}/m/{key}") for key in ("metrics.jsonl", "checkpoint", "pipeline.config")}
    said: list[str] = []
    watch = Watch(pipeline, pipeline.config.eval_input_path, lambda message, **figures: said.append(message))
    assert watch.run(0.0, Caught()) == "the training is over"
    lines = [json.loads(line) for line in s3.get(f"{bucket}/m/{WATCH_METRICS}").splitlines()]
    assert [line["step"] for line in lines] == [2, 5]
    assert json.loads(s3.get(f"{bucket}/m/{WATCH_RESULT}"))["auc_click"] == lines[-1]["auc_click"]
    assert any(f"m/{WATCH_SUMMARIES}/" in key for key in s3.keys(f"{bucket}/m"))
    assert {key: s3.get(f"{bucket}/m/{key}") for key in before} == before
    # Copies of values are not kept.
    assert not list(watch.local.glob("*.data-*"))


@pytest.mark.slow
def test_what_a_training_writes_later_is_seen(s3, data, tmp_path, monkeypatch):
    """Files of the same size, too: of the list of checkpoints nothing but its content may change."""
    use_backbone_of_three_stages(monkeypatch)
    set_evaluations(monkeypatch, repeat(0.5))
    bucket = s3.new_bucket()

    def train(steps):
        settings = f"{steps} {EACH_STEP} keep_checkpoint_max: 1"
        return evaluated_training(data, tmp_path, "", settings, model_dir=f"{bucket}/m").run()

    train("num_steps: 2")
    pipeline = load_pipeline(str(tmp_path / "test.config"))
    watch = Watch(pipeline, pipeline.config.eval_input_path, lambda message, **figures: None)
    monkeypatch.setattr(Watch, "sleep", lambda self, caught: train("num_steps: 4"))
    evaluated = []
    evaluate = Watch.evaluate
    monkeypatch.setattr(Watch, "evaluate", lambda self, path: evaluated.append(path[-1]) or evaluate(self, path))
    monkeypatch.setattr(Watch, "is_training_over", lambda self: "4" in evaluated)
    assert watch.run(0.0, Caught()) == "the training is over"
    assert evaluated == ["2", "4"]
