"""Trainings with a process on each GPU of a machine; without GPUs, the processes compute on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flat_helpers import make_log
from forked import Command, fork_local_workers
from servers import free_ports
from test_workers import CONFIG, assert_same_weights, size, train

pytestmark = pytest.mark.slow

EPOCHS = ["--set", "train_config.num_epochs=4"]


@pytest.fixture
def folder(tmp_path):
    """A log, and the training of one process in `one`."""
    make_log(tmp_path, CONFIG, num_rows=1003)
    train(tmp_path, "--model_dir", "one", *size(96), *EPOCHS)
    return tmp_path


def arguments(strategy, number, *more):
    settings = ["--set", f"train_config.train_distribute={strategy}", *size(number), *EPOCHS]
    return ["train", "--pipeline_config", "x.config", *settings, *more]


def start(folder, name, words, gpus, **environment):
    own = {"CUDA_VISIBLE_DEVICES": gpus, **environment}
    return Command(folder, words, folder / f"{name}.txt", own, prepare=fork_local_workers)


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def test_processes_on_the_gpus_of_machines_end_together_and_train_the_weights_of_one(folder):
    """One machine with two, stopped by a signal, then by a process that is killed; then two machines with two each."""
    first = subprocess.Popen(
        [sys.executable, "-m", "easyrec_mm", *arguments("MirroredStrategy", 48)],
        cwd=folder, env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not (folder / "m/model.ckpt-7.index").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=120)[0]
    assert first.returncode == 143, output
    for number in (0, 1):
        assert f"[{number}] stopped; to continue, start all workers again as before, with: easyrec-mm train" in output
    second = start(folder, "second", arguments("MirroredStrategy", 48), "0,1")
    second.wait_for(folder / "m/model.ckpt-21.index")
    os.kill(workers_of(second)[1], signal.SIGKILL)
    status, output = second.end()
    assert status == 137, output
    assert "[0] error: worker 1 (127.0.0.1:" in output
    ports = free_ports(4)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports[::2]]}
    more = ["--set", "train_config.num_gpus_per_worker=2", "--json_logs"]
    machines = [
        start(
            folder, f"machine_{number}", arguments("MultiWorkerMirroredStrategy", 24, *more), gpus,
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}}),
        )
        for number, gpus in enumerate(("0,1", "2,3"))
    ]  # fmt: skip
    statuses, outputs = zip(*(machine.end() for machine in machines), strict=True)
    assert statuses == (0, 0), outputs
    # Every line of theirs is JSON, whichever worker has printed it.
    messages = [{(line["worker"], line["message"]) for line in map(json.loads, out.splitlines())} for out in outputs]
    assert (3, f"worker 3 (127.0.0.1:{ports[3]}) of 4: waiting for the others") in messages[1]
    assert {number for number, message in messages[0] if message.startswith("continuing from")} == {0, 1}
    assert_same_weights(folder / "one", folder / "m", 42)
