"""A worker that stands still closes no connection: the others notice in time, and end. One that is busy is not lost."""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import MagicMock

import grpc
import pytest
import tensorflow as tf
from flat_helpers import make_log
from forked import Command, Process
from servers import free_port
from test_workers import CONFIG, TOGETHER, TRAIN, Workers, size

from easyrec_mm.distribution import joining, watching
from easyrec_mm.distribution.cluster import Cluster
from easyrec_mm.errors import LostWorkerError, UserError
from easyrec_mm.exit_status import LOST_WORKER

pytestmark = pytest.mark.slow

LIMIT_S = 60.0
LONG = [
    "--model_dir", "m", *size(5), "--set", "train_config.num_epochs=500",
    "--set", "eval_config.eval_interval_secs=100000", "--set", "data_config.eval_batch_size=500",
]  # fmt: skip
# Workers that leave three questions in a row unanswered, each for half a second, are lost after 1.5 s, and TensorFlow's
# service misses them after 4 s.
SOON = {
    **{
        f"easyrec_mm.distribution.watching.{name}": value
        for name, value in {"ASK_EVERY_S": 0.2, "NUM_QUESTIONS": 3, "ANSWER_S": 0.5, "END_S": 1.0}.items()
    },
    "easyrec_mm.distribution.joining.HEARTBEAT_S": 4,
}
END = "easyrec_mm.distribution.watching.END_S"
BUSY_S = 6.0


@pytest.fixture
def folder(tmp_path):
    make_log(tmp_path, CONFIG, num_rows=1003)
    return tmp_path


def test_the_limits_leave_less_than_a_minute():
    """As the documentation says: a pause, all questions, and the time to end."""
    asked_s = watching.NUM_QUESTIONS * watching.ANSWER_S
    assert asked_s == joining.HEARTBEAT_S == 30
    assert watching.ASK_EVERY_S + asked_s + watching.END_S <= LIMIT_S - 10


@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_that_is_lost_before_its_server_starts_is_named(tmp_path, number):
    """It has met the others, which then start their servers, and wait for it no longer than for one that is lost."""
    assert joining.START_S + joining.ADDED_S + watching.ANSWER_S <= LIMIT_S - 10
    addresses = tuple(f"127.0.0.1:{free_port()}" for _ in range(2))
    process = Process(functools.partial(_join, Cluster(addresses, number)), tmp_path, tmp_path / "output.txt")
    status, output = process.end()
    assert status == LOST_WORKER, output
    assert f"worker {1 - number} ({addresses[1 - number]}) cannot be reached any more" in output


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (tf.errors.DeadlineExceededError(None, None, "Barrier timed out"), LostWorkerError, "another worker cannot be"),
        (
            tf.errors.UnknownError(None, None, "No port"),
            UserError,
            r"worker 0 \(a:1\): TensorFlow's server .*: No port",
        ),
    ],
)
def test_a_worker_that_was_only_too_late_is_lost(monkeypatch, error, kind, message):
    """It answers by now; a job is started again without counting a failure, unlike for a server that cannot run."""
    monkeypatch.setenv("TF_CONFIG", "")
    monkeypatch.setattr(joining, "context", MagicMock())
    monkeypatch.setattr(joining, "silent", lambda cluster: [])
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", MagicMock(side_effect=error))
    with pytest.raises(UserError, match=message) as raised:
        joining.join(Cluster(("a:1", "b:2"), 0))
    assert type(raised.value) is kind


def test_a_signal_that_comes_before_the_first_step_ends_a_worker(tmp_path):
    """TensorFlow's service takes SIGTERM at the start, and does nothing."""
    addresses = tuple(f"127.0.0.1:{free_port()}" for _ in range(2))
    processes = [
        Process(functools.partial(_join, Cluster(addresses, number), 30), tmp_path, tmp_path / f"output_{number}.txt")
        for number in range(2)
    ]
    for number, process in enumerate(processes):
        process.wait_for(tmp_path / f"output_{number}.txt", "has joined")
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.end(timeout_s=30)[0] for process in processes] == [-signal.SIGTERM] * 2


def _join(cluster, start_s=2):
    joining.START_S, watching.ANSWER_S = start_s, 0.5
    try:
        joining.join(cluster)
    except LostWorkerError as error:
        print(error)
        return error.exit_status
    print("has joined")
    time.sleep(60)
    return 0


def test_only_a_server_of_grpc_answers(monkeypatch):
    monkeypatch.setattr(watching, "ANSWER_S", 0.5)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert watching.has_answered(f"127.0.0.1:{port}")
    server.stop(None).wait()
    assert not watching.has_answered(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the system accepts connections, but nobody answers
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        begun_s = time.monotonic()
        assert not watching.has_answered(address)
        assert time.monotonic() - begun_s < 5


def test_a_frozen_worker_is_named_ends_when_it_goes_on_and_a_restart_continues(folder):
    """It is the first one, which runs TensorFlow's own service."""
    workers = Workers(folder, 2, *LONG, constants=SOON)
    first, other = workers.processes
    first.wait_for(folder / "m/checkpoint")  # which lists the first one
    first.send_signal(signal.SIGSTOP)
    try:
        frozen_s = time.monotonic()
        status, output = other.end()
        assert time.monotonic() - frozen_s < 30
        assert status == LOST_WORKER, output
        assert f"error: worker 0 ({workers.addresses[0]}) cannot be reached any more" in output
    finally:
        first.send_signal(signal.SIGCONT)
    status, output = first.end()
    assert status == LOST_WORKER, output
    assert "error: worker 1 (" in output
    steps = ["--set", "train_config.num_steps=60"]
    statuses, outputs = Workers(folder, 2, *LONG, *steps).end()
    assert statuses == (0, 0), outputs
    assert all("continuing from" in output for output in outputs)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_worker_is_noticed_without_the_service_of_tensorflow(folder, frozen):
    constants = {**SOON, "easyrec_mm.distribution.joining.HEARTBEAT_S": 1000, END: 100.0}
    workers = Workers(folder, 2, *LONG, constants=constants)
    workers.processes[0].wait_for(folder / "m/checkpoint")  # which lists the first one
    workers.processes[frozen].send_signal(signal.SIGSTOP)
    try:
        frozen_s = time.monotonic()
        status, output = workers.processes[1 - frozen].end()
        assert time.monotonic() - frozen_s < 30
    finally:
        workers.processes[frozen].kill()
    assert status == LOST_WORKER, output
    assert f"error: worker {frozen} ({workers.addresses[frozen]}) cannot be reached any more" in output


def busy(computing=(), waiting=()):
    """Let this process hold the interpreter for long at some steps, and wait for its input before some."""
    trainer = importlib.import_module("easyrec_mm.training.trainer").Trainer
    run_step, batches = trainer.run_step, trainer.batches

    def hold(self, item):
        if item is not None and item.step in computing:
            # It keeps the lock of the interpreter, so that no other thread of Python runs.
            ctypes.PyDLL(None).usleep(int(BUSY_S * 1e6))
        return run_step(self, item)

    def wait(self, num_epochs):
        for number, item in enumerate(batches(self, num_epochs)):
            if number in waiting:
                time.sleep(BUSY_S)
            yield item

    trainer.run_step, trainer.batches = hold, wait


def start(folder, number, addresses, arguments, prepare=None, constants=()):
    task = {"type": "worker", "index": number}
    own = {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
    command = [*TRAIN, *TOGETHER, *arguments]
    return Command(folder, command, folder / f"output_{number}.txt", own, {**SOON, **dict(constants)}, prepare)


def test_workers_that_are_busy_for_longer_than_the_limit_are_not_lost(folder):
    """The first one computes, the other one does, and the first one waits for its input."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    arguments = ["--model_dir", "m", *size(48), "--set", "train_config.num_epochs=1"]
    prepare = [functools.partial(busy, computing=(3,), waiting=(8,)), functools.partial(busy, computing=(6,))]
    started_s = time.monotonic()
    processes = [start(folder, i, addresses, arguments, prepare[i]) for i in (0, 1)]
    ends = [process.end() for process in processes]
    assert [status for status, _ in ends] == [0, 0], ends
    assert time.monotonic() - started_s > 3 * BUSY_S


def test_a_worker_that_is_busy_when_another_is_lost_ends_in_time_too(folder):
    """It waits for its input, in which no exchange fails."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    arguments = ["--model_dir", "m", *size(48), "--set", "train_config.log_step_count_steps=1"]
    soon = {**SOON, "test_frozen_workers.BUSY_S": 100.0}
    stalled = start(folder, 0, addresses, arguments, functools.partial(busy, waiting=(3,)), soon)
    lost = start(folder, 1, addresses, arguments)
    stalled.wait_for(folder / "m/metrics.jsonl", '"step": 3')
    lost.kill()
    lost_s = time.monotonic()
    status, output = stalled.end()
    assert status == LOST_WORKER, output
    assert time.monotonic() - lost_s < 30
    assert f"error: worker 1 ({addresses[1]}) cannot be reached any more" in output
