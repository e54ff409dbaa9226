"""A model that is evaluated again and again: what is kept for the next evaluation never makes it a wrong one."""

from __future__ import annotations

import json

import pytest
from training_helpers import evaluated_training

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.errors import DataError
from easyrec_mm.evaluation import evaluator as evaluator_module
from easyrec_mm.evaluation.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


@pytest.fixture(scope="module")
def training(data, tmp_path_factory):
    return evaluated_training(data, tmp_path_factory.mktemp("evaluator"), "")


@pytest.fixture
def lines(data):
    return (data / "one.txt").read_text().splitlines(keepends=True)


def make_evaluator(training, path, records=None):
    return Evaluator(
        training.model, training.pipeline.config, str(path), "eval_input_path", records or BadRecords(None, 0.5)
    )


@pytest.mark.slow
def test_it_follows_the_weights_and_opens_its_input_once(training, monkeypatch):
    path = training.pipeline.config.eval_input_path
    opened = []
    monkeypatch.setattr(
        evaluator_module, "Input", lambda *args, **kwargs: opened.append(args) or Input(*args, **kwargs)
    )
    evaluator = make_evaluator(training, path)
    first = evaluator.run()
    assert evaluator.run() == first
    assert len(opened) == 1
    # Twice of everything is another network.
    weights = {v.path: v.numpy() for v in training.model.named_variables().values()}
    for v in training.model.named_variables().values():
        v.assign(2 * v.numpy())
    changed = evaluator.run()
    assert changed["log_loss_click"] != pytest.approx(first["log_loss_click"], abs=1e-6)
    assert changed == pytest.approx(make_evaluator(training, path).run())
    for v in training.model.named_variables().values():
        v.assign(weights[v.path])
    assert evaluator.run() == pytest.approx(first)


def test_files_that_were_replaced_or_came_since_are_read(training, lines, tmp_path):
    for name, part in (("a.txt", lines[:4]), ("b.txt", lines[4:])):
        (tmp_path / name).write_text("".join(part))
    evaluator = make_evaluator(training, tmp_path / "*.txt")
    assert evaluator.run()["num_samples"] == 24
    (tmp_path / "b.txt").write_text("".join(lines[4:6]))
    assert evaluator.run()["num_samples"] == make_evaluator(training, tmp_path / "*.txt").run()["num_samples"] == 12
    (tmp_path / "c.txt").write_text("".join(lines[6:]))
    assert evaluator.run()["num_samples"] == 24
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"eval_input_path: '.*\*\.txt' matches no file"):
        evaluator.run()


def test_bad_records_are_counted_each_time_and_written_once(training, lines, tmp_path):
    (tmp_path / "a.txt").write_text("".join(["no group\n", *lines]))
    records = BadRecords(str(tmp_path / "bad.jsonl"), 0.1)
    evaluator = make_evaluator(training, tmp_path / "a.txt", records)
    for _ in range(2):
        assert evaluator.run()["num_samples"] == 24
        assert records.counts["groups"] == 13
        assert records.counts["bad_groups"] == 1
    written = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(record["row"], record["kind"]) for record in written] == [(1, "group")]
    # What a message shows is of the files as they are now.
    (tmp_path / "a.txt").write_text("".join([*lines, "no group\n", "no group\n"]))
    with pytest.raises(DataError, match=r"2 of 14 groups cannot be used(?s:.*)a.txt:13: ") as error:
        evaluator.run()
    assert "a.txt:1:" not in str(error.value)
