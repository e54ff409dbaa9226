"""Trainings that are killed again and again end with the weights, metrics and counts of one that never was."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
from flat_helpers import make_log
from forked import Command
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from test_workers import CONFIG, SPEEDS, TRAIN, Workers, values

from easyrec_mm.exit_status import LOST_WORKER

pytestmark = pytest.mark.slow

NUM_KILLS, LAST_STEP, LAST_STEP_TOGETHER = 20, 251, 126
BAD_ROWS = (100, 400, 900)
ALONE = [
    "--set", "data_config.batch_size=16", "--set", "data_config.max_bad_record_share=0.5",
    "--set", "train_config.num_epochs=4", "--set", "train_config.log_step_count_steps=1",
    "--set", "train_config.save_summary_steps=1", "--set", "train_config.save_checkpoints_steps=4",
    "--set", "model_config.e2e_mm_dbmtl.bottom_dnn.dropout_ratio=[0.3, 0.3]",
    "--set", "train_config.optimizer_config[0].use_moving_average=true",
    "--set", "train_config.optimizer_config[0].moving_average_decay=0.9",
    "--set", "eval_config.eval_interval_secs=100000", "--eval_input_path", "few.csv",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three of the thousand groups are bad."""
    folder = tmp_path_factory.mktemp("kills")
    make_log(folder, CONFIG, num_rows=1003)
    lines = (folder / "train.csv").read_text().splitlines(keepends=True)
    for row in BAD_ROWS:
        lines[row] = "2" + lines[row][1:]
    (folder / "train.csv").write_text("".join(lines))
    (folder / "few.csv").write_text("".join(lines[:40]))
    return folder


def assert_same_run(one, other, step):
    """The same bytes of weights and state, and the same reports, each step once."""
    saved = [values(model_dir, step) for model_dir in (one, other)]
    assert saved[0].keys() == saved[1].keys()
    for name, value in saved[0].items():
        if name not in ("progress/unreported", "progress/config"):
            np.testing.assert_array_equal(saved[1][name], value, err_msg=name)
    logs = [[json.loads(line) for line in (model_dir / "metrics.jsonl").open()] for model_dir in (one, other)]
    reports = [
        [{k: v for k, v in line.items() if k not in {"time", *SPEEDS}} for line in log if line["kind"] != "start"]
        for log in logs
    ]
    assert [line["step"] for line in reports[0] if line["kind"] == "train"] == list(range(1, step + 1))
    assert reports[1] == reports[0]
    bad = [
        [{**json.loads(line), "time": ""} for line in (model_dir / "bad_records.jsonl").open()]
        for model_dir in (one, other)
    ]
    assert len(bad[0]) == len(BAD_ROWS)
    assert bad[1] == bad[0]
    assert steps_shown(other, step) == steps_shown(one, step)


def steps_shown(model_dir, last):
    """Tag -> the steps of which TensorBoard shows a value."""
    reader = EventAccumulator(str(model_dir), {"tensors": 0})
    reader.Reload()
    steps = {tag: [event.step for event in reader.Tensors(tag)] for tag in reader.Tags()["tensors"]}
    assert steps["train/loss"] == list(range(1, last + 1))
    return steps


def test_a_training_killed_at_random_goes_on_as_if_it_never_was(folder):
    status, output = Command(folder, [*TRAIN, "--model_dir", "whole", *ALONE], folder / "whole.txt").end()
    assert status == 0, output
    draw, log = random.Random(0), folder / "killed/metrics.jsonl"
    num_kills = 0
    while True:
        training = Command(folder, [*TRAIN, "--model_dir", "killed", *ALONE], folder / "killed.txt")
        size = (log.stat().st_size if log.exists() else 0) + draw.randrange(1, 4000)
        while num_kills < NUM_KILLS and training.poll() is None and not (log.exists() and log.stat().st_size >= size):
            time.sleep(0.002)
        if num_kills == NUM_KILLS:
            break
        time.sleep(draw.random() * 0.05)
        assert training.poll() is None, "it ended before it was killed often enough"
        training.kill()
        num_kills += 1
        assert training.end()[0] == -9
    status, output = training.end()
    assert status == 0, output
    assert_same_run(folder / "whole", folder / "killed", LAST_STEP)


def test_workers_of_which_one_or_all_are_killed_go_on_as_if_none_was(folder):
    """One of them, both, and one while the first writes a checkpoint."""
    arguments = [*ALONE, "--set", "data_config.batch_size=8", "--set", "train_config.num_epochs=2"]
    statuses, outputs = Workers(folder, 2, "--model_dir", "together", *arguments).end()
    assert statuses == (0, 0), outputs
    model_dir = folder / "again"
    for lost, sign in (
        (1, "model.ckpt-20.index"),
        (0, "model.ckpt-40.index"),
        (None, "model.ckpt-64.index"),
        (1, ".model.ckpt.tmp"),
    ):
        workers = Workers(folder, 2, "--model_dir", "again", *arguments)
        workers.processes[0].wait_for(model_dir / sign)
        for number in (0, 1) if lost is None else [lost]:
            workers.processes[number].kill()
        statuses, outputs = workers.end()
        assert statuses == tuple(-9 if lost in (None, number) else LOST_WORKER for number in (0, 1)), outputs
        if lost is not None:
            named = f"error: worker {lost} ({workers.addresses[lost]}) cannot be reached any more"
            assert named in outputs[1 - lost]
    statuses, outputs = Workers(folder, 2, "--model_dir", "again", *arguments).end()
    assert statuses == (0, 0), outputs
    assert_same_run(folder / "together", model_dir, LAST_STEP_TOGETHER)
