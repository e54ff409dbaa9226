"""Evaluations beside a training: `easyrec-mm eval --watch`."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import tensorflow as tf
from flow_helpers import copy_checkpoint
from training_helpers import EACH_STEP, evaluated_training

from easyrec_mm import __version__
from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import CheckpointError
from easyrec_mm.evaluation.evaluator import Evaluator
from easyrec_mm.training import watch
from easyrec_mm.training.signals import Caught
from easyrec_mm.training.watch import WATCH_METRICS, WATCH_RESULT, WATCH_SUMMARIES, Watch

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A training of 3 steps, with a checkpoint and an evaluation of each; not to be changed."""
    return evaluated_training(data, tmp_path_factory.mktemp("finished"), "", f"num_steps: 3 {EACH_STEP}").run()


@pytest.fixture
def model_dir(finished, tmp_path):
    """A copy of its folder, to be changed."""
    return Path(shutil.copytree(finished.model_dir, tmp_path / "m"))


def pipeline_of(model_dir: Path):
    return load_pipeline(str(model_dir / "pipeline.config"), [f"model_dir={model_dir}"])


def watcher(model_dir: Path, said: list[str], path: str = "") -> Watch:
    pipeline = pipeline_of(model_dir)
    return Watch(pipeline, path or pipeline.config.eval_input_path, lambda message, **figures: said.append(message))


def watched(model_dir: Path) -> list[dict]:
    path = model_dir / WATCH_METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_every_checkpoint_is_evaluated_once_as_the_training_does(finished, model_dir, capsys):
    before = {path: path.read_bytes() for path in model_dir.rglob("*") if path.is_file()}
    arguments = ["eval", "--pipeline_config", str(model_dir / "pipeline.config"), f"--set=model_dir={model_dir}"]
    assert main([*arguments, "--watch"]) == 0
    assert "the training is over; results are in" in capsys.readouterr().out
    lines = watched(model_dir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, of_training in zip(lines, finished.lines("eval"), strict=True):
        assert line["auc_click"] == of_training["auc_click"]
        assert line["log_loss_click"] == pytest.approx(of_training["log_loss_click"], rel=1e-5)
    assert lines[-1]["checkpoint"] == "model.ckpt-3"
    result = json.loads((model_dir / WATCH_RESULT).read_text())
    assert result.pop("easyrec_mm") == __version__
    assert result == {name: lines[-1][name] for name in result}
    assert list((model_dir / WATCH_SUMMARIES).glob("events.out.tfevents.*"))
    # Nothing that the training writes was written.
    assert all(path.read_bytes() == content for path, content in before.items())
    # Once more, by another process.
    assert main([*arguments, "--watch"]) == 0
    assert watched(model_dir) == lines
    # Other data are another evaluation.
    assert main([*arguments, "--watch", f"--eval_input_path={pipeline_of(model_dir).config.train_input_path},"]) == 0
    assert [line["step"] for line in watched(model_dir)] == [1, 2, 3, 1, 2, 3]


def test_checkpoints_are_awaited_until_the_training_is_over(finished, model_dir, monkeypatch):
    """Whenever the watch sleeps, the training does a part of its steps."""
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.0)
    lines = (model_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    for path in [*model_dir.glob("model.ckpt-*"), model_dir / "checkpoint"]:
        path.unlink()
    (model_dir / "metrics.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    slept = []

    def sleep(self, caught):
        slept.append(watched(model_dir))
        last = 1 + len(slept)
        copy_checkpoint(finished.model_dir, last, model_dir)
        if last == 3:
            (model_dir / "metrics.jsonl").write_text("".join(lines))

    monkeypatch.setattr(Watch, "sleep", sleep)
    assert watcher(model_dir, []).run(0.0, Caught()) == "the training is over"
    assert [line["step"] for line in watched(model_dir)] == [2, 3]
    assert [len(before) for before in slept] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("time", [0.0, 9e9])
def test_a_training_begun_anew_is_evaluated_anew(model_dir, data, tmp_path, time):
    """Whatever the clock of its machine says."""
    said: list[str] = []
    assert watcher(model_dir, said).run(0.0, Caught()) == "the training is over"
    anew = evaluated_training(data, tmp_path / "anew", "", f"num_steps: 3 {EACH_STEP}")
    anew.trainer.model.rec.weights[0].assign_add(tf.ones_like(anew.trainer.model.rec.weights[0]))
    anew.run()
    for path in Path(anew.model_dir).glob("model.ckpt-[23].*"):
        shutil.copy(path, model_dir)
    with (model_dir / "metrics.jsonl").open("a") as file:
        for kind, step in (("start", 1), ("end", 3)):
            file.write(json.dumps({"kind": kind, "step": step, "time": time}) + "\n")
    for _ in range(2):
        assert watcher(model_dir, said).run(0.0, Caught()) == "the training is over"
    assert [line["step"] for line in watched(model_dir)] == [1, 2, 3, 2, 3]


@pytest.mark.parametrize("time", [0.0, 9e9])
def test_the_clock_of_the_training_does_not_matter(model_dir, time):
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").open()]
    (model_dir / "metrics.jsonl").write_text("".join(json.dumps({**line, "time": time}) + "\n" for line in lines))
    caught = Caught()

    def say(message, **figures):
        if len(watched(model_dir)) == 4:
            caught.number = signal.SIGTERM  # it would never end

    pipeline = pipeline_of(model_dir)
    assert Watch(pipeline, pipeline.config.eval_input_path, say).run(0.0, caught) == "the training is over"
    assert [line["step"] for line in watched(model_dir)] == [1, 2, 3]


def test_it_stops_when_nothing_comes(model_dir, monkeypatch):
    """All checkpoints are evaluated with one evaluator until then."""
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.0)
    built = []
    monkeypatch.setattr(watch, "Evaluator", lambda *args, **named: built.append(args) or Evaluator(*args, **named))
    lines = (model_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (model_dir / "metrics.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    assert watcher(model_dir, []).run(0.01, Caught()) == "no new checkpoint in 0.01 seconds"
    assert [line["step"] for line in watched(model_dir)] == [1, 2, 3]
    assert len(built) == 1


def test_a_signal_ends_it_after_the_evaluation_under_way(model_dir, monkeypatch, capsys):
    evaluate = Evaluator.run

    def interrupted(self):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(self)

    monkeypatch.setattr(Evaluator, "run", interrupted)
    arguments = ["--pipeline_config", str(model_dir / "pipeline.config"), f"--set=model_dir={model_dir}", "--watch"]
    assert main(["eval", *arguments]) == 128 + signal.SIGTERM
    assert "stopped by a signal" in capsys.readouterr().out
    assert [line["step"] for line in watched(model_dir)] == [1]


def test_a_checkpoint_that_is_deleted_under_its_hands(model_dir, monkeypatch):
    said: list[str] = []
    load = watch.load_weights

    def deleted(model, config, checkpoint):
        if checkpoint.endswith("-2"):
            for file in model_dir.glob("model.ckpt-2.*"):
                file.unlink()
        return load(model, config, checkpoint)

    monkeypatch.setattr(watch, "load_weights", deleted)
    assert watcher(model_dir, said).run(0.0, Caught()) == "the training is over"
    assert [line["step"] for line in watched(model_dir)] == [1, 3]
    assert "model.ckpt-2 is gone before it could be evaluated" in said


def test_a_checkpoint_of_another_model_is_an_error(model_dir):
    pipeline = load_pipeline(
        str(model_dir / "pipeline.config"),
        [f"model_dir={model_dir}", "model_config.e2e_mm_dbmtl.task_towers[0].dnn.hidden_units=[5]"],
    )
    with pytest.raises(CheckpointError, match="does not fit this config"):
        Watch(pipeline, pipeline.config.eval_input_path, lambda message, **figures: None).run(0.0, Caught())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--watch_timeout_s", "5"], "--watch_timeout_s: has no effect without --watch"),
        (["--watch", "--checkpoint_path", "x"], "--checkpoint_path: has no effect with --watch"),
    ],
)
def test_flags_that_do_not_go_together(model_dir, capsys, flags, says):
    assert main(["eval", "--pipeline_config", str(model_dir / "pipeline.config"), *flags]) == 1
    assert says in capsys.readouterr().err
