"""How long a training is, when it saves, how long it still takes, and learning rates that go with its end."""

from __future__ import annotations

import math
from datetime import datetime

import pytest
from flow_helpers import copy_checkpoint
from training_helpers import Training, optimizer

from easyrec_mm.protos.train_pb2 import TrainConfig
from easyrec_mm.training.length import Length
from easyrec_mm.training.save_times import SaveTimes
from easyrec_mm.training.time_left import Forecast, TimeLeft, duration, time_of_day

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


class Clock:
    """Seconds as a test sets them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


# --- Learning rates


def cosine(step, end, base=0.01):
    """The rate of COSINE."""
    return base * (1 + math.cos(math.pi * step / end)) / 2 if step < end else 0.0


COSINE = optimizer().replace(
    "constant_learning_rate { learning_rate: 0.01 }",
    "cosine_decay_learning_rate { learning_rate_base: 0.01 warmup_steps: 0 }",
)


def rates(training):
    return [(line["step"], line["learning_rate"]) for line in training.log]


@pytest.mark.slow
def test_the_rate_ends_with_the_epochs_also_when_there_are_more_of_them_later(data, tmp_path):
    """An epoch has 3 steps; the rate of step n is that after n - 1 steps."""
    first = Training(data, tmp_path, train="num_epochs: 2", optimizers=COSINE).run()
    assert rates(first) == [(n, pytest.approx(cosine(n - 1, 6), rel=1e-5)) for n in range(1, 7)]
    Training(data, tmp_path, train="num_epochs: 4", optimizers=COSINE).run()
    assert rates(first)[6:] == [(n, pytest.approx(cosine(n - 1, 12), rel=1e-5)) for n in range(7, 13)]
    # Other data count from where they begin: one epoch of them is 3 steps more.
    Training(data, tmp_path, train="num_epochs: 1", optimizers=COSINE, file="own.txt").run()
    assert rates(first)[12:] == [(n, pytest.approx(cosine(n - 1, 15), rel=1e-5)) for n in range(13, 16)]


@pytest.mark.parametrize("train", ["num_steps: 5 num_epochs: 2", "num_steps: 5"])
def test_the_rate_ends_with_the_steps_where_they_are_fewer(data, tmp_path, train):
    training = Training(data, tmp_path, train=train, optimizers=COSINE).run()
    assert rates(training) == [(n, pytest.approx(cosine(n - 1, 5), rel=1e-5)) for n in range(1, 6)]


def test_every_optimizer_of_a_list_ends_with_the_training_also_of_what_is_unfrozen(data, tmp_path):
    training = Training(
        data,
        tmp_path,
        img_model="trainable: NONE unfreeze_at_step: 3",
        train="num_epochs: 2",
        optimizers=" ".join([COSINE, COSINE.replace("0.01", "0.02"), COSINE.replace("0.01", "0.04")]),
    )
    optimizers = [chosen for chosen, _ in training.trainer.steps.optimizers]
    seen = []
    run_step = training.trainer.steps.run
    training.trainer.steps.run = lambda item: (
        seen.append([float(o.learning_rate) for o in optimizers]) or run_step(item)
    )
    training.run()
    assert seen == [[pytest.approx(cosine(n, 6, base), rel=1e-5) for base in (0.01, 0.02, 0.04)] for n in range(6)]


def test_an_end_before_that_of_the_training_is_told(data, tmp_path, capsys):
    short = COSINE.replace("warmup_steps: 0", "warmup_steps: 0 total_steps: 2")
    training = Training(data, tmp_path, train="num_epochs: 2", optimizers=short).run()
    output = capsys.readouterr().out
    assert "training: 6 steps, 2 epochs of 3 steps" in output
    assert "total_steps: the learning rate is 0 from step 2 on, and the training has 6 steps" in output
    assert rates(training)[2:] == [(n, 0.0) for n in range(3, 7)]


# --- Checkpoints


def steps_saved(training):
    return sorted(int(path.stem.partition("-")[2]) for path in training.model_dir.glob("*.index"))


@pytest.mark.slow
def test_a_checkpoint_each_epoch_wherever_batches_end(data, tmp_path):
    """12 groups in batches of 5: epochs are over after steps 3, 5, 8 and 10, the last with the training."""
    changes, every = {"batch_size: 4": "batch_size: 5"}, "save_checkpoints_epochs: 1"
    whole = Training(data, tmp_path / "whole", train=f"num_epochs: 4 {every}", changes=changes).run()
    assert steps_saved(whole) == [3, 5, 8, 10]
    # One that stops in the middle of an epoch, and one at the end of one.
    Training(data, tmp_path / "middle", train=f"num_steps: 4 {every}", changes=changes).run()
    copy_checkpoint(whole.model_dir, 5, tmp_path / "end/m")
    for name, saved in (("middle", [3, 4, 5, 8, 10]), ("end", [5, 8, 10])):
        parts = Training(data, tmp_path / name, train=f"num_epochs: 4 {every}", changes=changes).run()
        assert steps_saved(parts) == saved


@pytest.mark.slow
def test_where_an_epoch_and_a_batch_end_together_the_checkpoint_is_of_that_step(data, tmp_path):
    """12 groups in batches of 4. A training that goes on from there does not save again one step later."""
    every = "save_checkpoints_epochs: 1"
    whole = Training(data, tmp_path / "whole", train=f"num_epochs: 3 {every}").run()
    assert steps_saved(whole) == [3, 6, 9]
    Training(data, tmp_path / "longer", train=f"num_epochs: 2 {every}").run()
    assert steps_saved(Training(data, tmp_path / "longer", train=f"num_epochs: 3 {every}").run()) == [3, 6, 9]


def test_an_epoch_that_ends_with_bad_groups_is_saved_at_the_next_step():
    """Steps 2 and 3 are of batches between which one without samples ended the first epoch."""
    times = SaveTimes(TrainConfig(save_checkpoints_epochs=1))
    assert [times.is_due(*step) for step in ((1, 0, 0), (2, 0, 0), (3, 1, 1), (4, 1, 1))] == [False, False, True, False]


def test_steps_and_epochs_side_by_side():
    both = SaveTimes(TrainConfig(save_checkpoints_epochs=1, save_checkpoints_steps=10))
    assert both.is_due(10, 0, 0)
    assert both.is_due(11, 0, 1)
    assert not both.is_due(11, 0, 0)
    assert not SaveTimes(TrainConfig(save_checkpoints_epochs=1)).is_due(1000, 0, 0)
    assert SaveTimes(TrainConfig()).is_due(1000, 0, 1)
    every_other = SaveTimes(TrainConfig(save_checkpoints_epochs=2))
    assert not every_other.is_due(3, 0, 1)
    assert every_other.is_due(5, 1, 2)


@pytest.mark.parametrize("settings", [{"save_checkpoints_epochs": 1}, {"save_checkpoints_steps": 7}])
def test_checkpoints_that_follow_are_counted(settings):
    """Against the steps of 5 epochs of 8 groups, one by one, in batches of 3."""
    done = [3 * step // 8 for step in range(14)]  # of 14 batches, of which the last is not full
    times = SaveTimes(TrainConfig(**settings))
    due = [step for step in range(1, 14) if times.is_due(step, done[step - 1], done[step])]
    for step in range(14):
        expected = len([n for n in due if step < n < 14]) + 1
        assert abs(times.num_left(step, 14, 8 / 3, 0.0) - expected) <= (
            1 if "save_checkpoints_epochs" in settings else 0
        )


# --- Time


def test_time_left_leaves_out_compilation_and_evaluations():
    clock = Clock()
    left = TimeLeft(clock)
    clock.now = 100.0  # compiling
    for i in range(3 + 6):
        clock.now += 0.5
        left.step()
        known = left.step_s() is not None
        assert known == (i == 8)
    assert left.step_s() == pytest.approx(0.5)
    clock.now += 30.0
    left.evaluated(30.0)
    for _ in range(10):
        clock.now += 0.5
        left.step()
    assert left.step_s() == pytest.approx(0.5)
    assert left.seconds(100, 2) == pytest.approx(100 * 0.5 + 2 * 30)
    for _ in range(400):  # it follows what changes
        clock.now += 0.1
        left.step()
    assert left.step_s() == pytest.approx(0.1)
    left.restart()
    assert left.seconds(100, 2) is None


def test_a_forecast_counts_evaluations_when_it_knows_them():
    clock = Clock()
    times = SaveTimes(TrainConfig(save_checkpoints_steps=100), clock)
    forecast = Forecast(Length(1000, 10, 100.0, True), times, 0, clock)
    assert forecast.announcement(0) == forecast.left(0) == ""
    for _ in range(20):
        clock.now += 1.0
        forecast.step(64, 8)
    assert forecast.seconds(20) == pytest.approx(980)
    said = forecast.announcement(20)
    assert said.startswith("about 17 min in all, until ")
    assert said.endswith(", and the time of evaluations; an epoch has about 6,400 samples and encodes 800 pictures")
    assert forecast.announcement(20) == ""
    assert forecast.left(20) == "16 min left"
    clock.now += 60
    forecast.time.evaluated(60)
    assert forecast.seconds(20) == pytest.approx(980 + 10 * 60)
    rarely = Forecast(Length(1000, 10, 100.0, True), times, 300, clock)
    rarely.time.evaluated(60)
    for _ in range(20):
        clock.now += 1.0
        rarely.step(64, 8)
    assert rarely.seconds(20) == pytest.approx(980 + (1 + 3) * 60)
    endless = Forecast(Length(None, 0, 100.0, True), times, None, clock)
    assert endless.announcement(20) == endless.left(20) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "1 s"), (89, "89 s"), (420, "7 min"), (5100, "85 min")),
        *((7200, "2 h"), (12000, "3 h 20 min"), (192000, "2 days 5 h")),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_time_of_day():
    now = datetime(2026, 3, 1, 14, 25)
    assert time_of_day(420, now) == "14:32"
    assert time_of_day(36000, now) == "Mon 02 Mar 00:25"


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (Length(484, 3, 161.25, True), "484 steps, 3 epochs of 161.25 steps"),
        (Length(484, 1, 484.0, False), "about 484 steps, one epoch of about 484 steps"),
        (Length(9000, 0, 161.0, True), "9,000 steps, an epoch has 161 steps"),
        (Length(9000, 0, None, True), "9,000 steps"),
        (Length(None, 0, None, True), "no end"),
    ],
)
def test_the_length_in_words(length, text):
    assert length.describe() == text
