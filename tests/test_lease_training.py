"""Trainings whose model_dir is in a bucket: a second one is refused, and one after a kill takes over."""

from __future__ import annotations

import re
import signal
import socket

import pytest
from flat_helpers import make_log
from forked import Command
from test_workers import CONFIG, TRAIN, size

pytestmark = pytest.mark.slow


def test_two_trainings_in_one_bucket(s3, tmp_path):
    make_log(tmp_path, CONFIG, num_rows=300)
    endless = ["--set", "train_config.num_epochs=5000"]
    model_dir = f"{s3.new_bucket()}/m"

    def start(name, *arguments):
        command = [*TRAIN, *size(25), "--model_dir", model_dir, "--set", "eval_input_path=", *arguments]
        return Command(tmp_path, command, tmp_path / f"{name}.txt")

    def keys():
        return {key.partition("/")[2] for key in s3.keys(model_dir)}

    first = start("first", *endless)
    first.wait_for(tmp_path / "first.txt", "train step 20/")
    assert ".lease" in keys()
    status, output = start("second", *endless).end()
    assert status == 1, output
    refusal = f"error: model_dir '{model_dir}': is in use by process {first.pid} on {socket.gethostname()}, since 20"
    assert refusal in output
    assert first.poll() is None
    first.kill()
    assert first.end()[0] == -signal.SIGKILL
    third = start("third", *endless)
    third.wait_for(tmp_path / "third.txt", "train step ")
    third.send_signal(signal.SIGTERM)
    status, output = third.end()
    assert status == 128 + signal.SIGTERM, output
    assert f"warning: {model_dir}/.lease: process {first.pid} on {socket.gethostname()}, since 20" in output
    start_step = int(re.search(rf"continuing from {model_dir}/model.ckpt-(\d+) ", output)[1])
    end_step = int(re.search(rf"checkpoint {model_dir}/model.ckpt-(\d+)$", output, re.MULTILINE)[1])
    assert end_step > start_step
    assert f"model.ckpt-{end_step}.index" in keys()
    assert ".lease" not in keys()
