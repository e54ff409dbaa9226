"""Which evaluation was the best and when a training stops improving, by what metrics.jsonl says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.config.best import Criterion
from easyrec_mm.runs.evaluations import Evaluation, forget_later_steps, read_evaluations, standing_of, stop_reason

AUC = Criterion("auc_click")
LOSS = Criterion("log_loss_click", is_bigger=False)


def evaluations(*values, every=10):
    return [Evaluation(every * i, value) for i, value in enumerate(values, 1)]


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(step: int, value: float | None, kind: str = "eval") -> dict:
    return {"kind": kind, "step": step, "time": 0.0, "auc_click": value}


def start(step: int) -> dict:
    return {"kind": "start", "step": step, "time": 0.0}


DAMAGED = [
    "\x00\x17", "[]", "{}", '{"kind": "eval", "step": null}', '{"kind": "start", "step": "20"}',
    '{"kind": "eval", "step": [1]}', '{"kind": "eval", "step": true}', '{"kind": "ev',
]  # fmt: skip


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    path = write(tmp_path / "metrics.jsonl", start(0), line(10, 0.6))
    good = path.read_text()
    path.write_text("\n".join(DAMAGED) + "\n" + good + '{"kind": "eval", "step": 20, "auc_click": "0.7"}\n{"kind": "ev')
    assert read_evaluations(path, "auc_click") == [Evaluation(10, 0.6)]
    assert forget_later_steps(path, 10) == len(DAMAGED)  # not the last line, which a kill leaves
    assert path.read_text() == good
    assert forget_later_steps(path, 10) == 0
    assert forget_later_steps(tmp_path / "none", 10) == 0


def test_the_end_from_which_a_training_goes_on_is_forgotten(tmp_path):
    path = write(tmp_path / "metrics.jsonl", start(0), line(10, 0.6), {"kind": "end", "step": 10, "reason": "r"})
    assert forget_later_steps(path, 10) == 0
    assert path.read_text() == write(tmp_path / "other.jsonl", start(0), line(10, 0.6)).read_text()


def test_lines_of_an_evaluation_are_read(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"kind": "train", "step": 10, "auc_click": 0.9},
        line(10, 0.6),
        {"kind": "eval", "step": 20, "log_loss_click": 0.1},
        line(30, None),
    )
    assert read_evaluations(path, "auc_click") == [Evaluation(10, 0.6), Evaluation(30, None)]
    assert read_evaluations(path, "gauc_click") == []
    assert read_evaluations(tmp_path / "none", "auc_click") == []


def test_what_a_killed_training_leaves_is_not_read(tmp_path):
    path = write(tmp_path / "metrics.jsonl", line(10, 0.6), line(20, 0.7))
    with path.open("ab") as file:
        file.write(b'{"kind": "eval", "step": 30, "auc_cl\xff')
    assert [e.step for e in read_evaluations(path, "auc_click")] == [10, 20]


def test_a_training_that_goes_on_from_an_earlier_step_forgets_what_followed(tmp_path):
    lines = [start(0), line(10, 0.6), line(20, 0.9), line(30, 0.8), start(20), line(30, 0.7)]
    assert read_evaluations(write(tmp_path / "a", *lines), "auc_click") == evaluations(0.6, 0.9, 0.7)
    # From the beginning, with the log of the training before still there.
    assert read_evaluations(write(tmp_path / "b", *lines, start(0)), "auc_click") == []
    assert read_evaluations(write(tmp_path / "c", *lines, start(0), line(10, 0.5)), "auc_click") == evaluations(0.5)


@pytest.mark.parametrize(
    ("criterion", "values", "best"),
    [
        (AUC, [0.5, 0.7, 0.6], 20),
        (AUC, [0.5, 0.7, 0.7], 20),  # the first of equal ones
        (LOSS, [0.5, 0.7, 0.4], 30),
        (AUC, [None, 0.5, None], 20),
        (AUC, [None, None], None),
        (AUC, [], None),
        (Criterion("auc_click", threshold=0.7), [0.5, 0.7, 0.6], 20),
        (Criterion("auc_click", threshold=0.8), [0.5, 0.7, 0.6], None),
        (Criterion("log_loss_click", is_bigger=False, threshold=0.3), [0.5, 0.2, 0.3], 20),
        (Criterion("log_loss_click", is_bigger=False, threshold=0.1), [0.5, 0.2, 0.3], None),
        # Too small for an improvement, and the best all the same.
        (Criterion("auc_click", min_delta=0.1), [0.5, 0.55], 20),
    ],
)
def test_the_best(criterion, values, best):
    evaluation = standing_of(evaluations(*values), criterion).best
    assert (evaluation and evaluation.step) == best


@pytest.mark.parametrize(
    ("settings", "values", "says"),
    [
        ({"patience": 2}, [0.5, 0.7, 0.6], None),
        ({"patience": 2}, [0.5, 0.7, 0.6, 0.7], "did not improve in 2 evaluations since step 20"),
        ({"patience": 2}, [0.5, 0.7, 0.6, 0.8, 0.7], None),
        # An evaluation without a value says nothing.
        ({"patience": 2}, [0.5, 0.7, 0.6, None], None),
        ({"patience": 2}, [None, None, None, None], None),
        ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.59], "did not improve by 0.1 in 2 evaluations since step 10"),
        ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.65], None),
        ({"max_steps": 20}, [0.5, 0.7, 0.6], None),
        ({"max_steps": 20}, [0.5, 0.7, 0.6, 0.6], "did not improve in 20 steps since step 20"),
        ({"max_steps": 15}, [0.5, 0.7, 0.6, 0.6], "did not improve in 20 steps since step 20"),
        ({}, [0.5] * 50, None),
    ],
)
def test_when_to_stop(settings, values, says):
    criterion = Criterion("auc_click", **settings)
    reason = stop_reason(standing_of(evaluations(*values), criterion), criterion)
    if says is None:
        assert reason is None
    else:
        assert f"auc_click {says}" in reason


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 50).map(lambda number: number / 100), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.025]),
    st.booleans(),
)
def test_patience_is_that_of_keras(values, patience, min_delta, is_bigger):
    """Values of two digits: none differ by just min_delta, which Keras does not take for an improvement."""
    mode = "max" if is_bigger else "min"
    callback = keras.callbacks.EarlyStopping("auc", min_delta=min_delta, patience=patience, mode=mode)
    callback.set_model(model := SimpleNamespace(stop_training=False))
    callback.on_train_begin()
    criterion = Criterion("auc", is_bigger=is_bigger, min_delta=min_delta, patience=patience)
    for i, value in enumerate(values):
        callback.on_epoch_end(i, {"auc": value})
        stops = stop_reason(standing_of(evaluations(*values[: i + 1]), criterion), criterion) is not None
        assert stops == model.stop_training
        if stops:
            break
