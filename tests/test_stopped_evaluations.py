"""Evaluations that a signal or a kill cuts off: the training ends at once, and its next start makes them up."""

import os
import signal

import pytest
from training_helpers import evaluated_training, make_training_data

from easyrec_mm.evaluation import evaluator
from easyrec_mm.evaluation.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_training_data(tmp_path_factory.mktemp("data"))


def steps(training, kind):
    return [line["step"] for line in training.lines(kind)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_an_evaluation_stops_it(data, tmp_path, monkeypatch, request, number):
    before = signal.signal(number, signal.default_int_handler)  # not ignored, as SIGHUP is under nohup
    request.addfinalizer(lambda: signal.signal(number, before))
    training = evaluated_training(data, tmp_path, "")
    rows = []
    plan_columns = evaluator.plan_columns

    def counted(*arguments):
        rows.append(1)
        if len(rows) == 5:  # the second batch of the second evaluation
            os.kill(os.getpid(), number)
        return plan_columns(*arguments)

    monkeypatch.setattr(evaluator, "plan_columns", counted)
    result = training.trainer.train()
    assert (result.step, result.signal) == (2, number)
    assert len(rows) == 5
    assert steps(training, "eval") == [1]
    again = evaluated_training(data, tmp_path, "").run()
    assert steps(again, "eval") == list(range(1, 10))
    assert steps(again, "train") == list(range(1, 10))


@pytest.mark.parametrize("step", [4, 9])
def test_an_evaluation_that_a_kill_prevented_is_made_up_once(data, tmp_path, monkeypatch, step):
    training = evaluated_training(data, tmp_path, "")
    run, runs = Evaluator.run, []

    def killed(self, *arguments):
        runs.append(1)
        if len(runs) == step:
            raise KeyboardInterrupt
        return run(self, *arguments)

    monkeypatch.setattr(Evaluator, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        training.trainer.train()
    assert steps(training, "eval") == list(range(1, step))
    evaluated_training(data, tmp_path, "").run()
    assert steps(training, "eval") == list(range(1, 10))
    evaluated_training(data, tmp_path, "").run()  # nothing left to do
    assert steps(training, "eval") == list(range(1, 10))
    assert steps(training, "end") == [9]


def test_the_results_are_those_of_an_undisturbed_training(data, tmp_path, monkeypatch):
    whole = evaluated_training(data, tmp_path / "whole", "").run()
    test_an_evaluation_that_a_kill_prevented_is_made_up_once(data, tmp_path, monkeypatch, 4)
    other = evaluated_training(data, tmp_path, "")
    for line, expected in zip(other.lines("eval"), whole.lines("eval"), strict=True):
        assert {**line, "time": 0} == {**expected, "time": 0}
