"""A worker that stands still closes no connection: the others notice in time, and end. One that is busy is not lost."""

from __future__ import annotations

import functools
import importlib
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from flat_helpers import make_log
from forked import Command
from servers import free_port
from test_workers import CONFIG, TOGETHER, TRAIN, Workers, size

from easyrec_mm.distribution import joining, watching
from easyrec_mm.exit_status import LOST_WORKER

pytestmark = pytest.mark.slow

LIMIT_S = 60.0
LONG = ["--model_dir", "m", *size(5), "--set", "train_config.num_epochs=500"]
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


def test_a_frozen_worker_is_named_within_a_minute_and_a_restart_goes_on(folder):
    """It is the first one, which runs TensorFlow's own service."""
    workers = Workers(folder, 2, *LONG)
    first, other = workers.processes
    first.wait_for(folder / "m/checkpoint")  # which lists the first one
    first.send_signal(signal.SIGSTOP)
    try:
        frozen_s = time.monotonic()
        status, output = other.end()
        assert time.monotonic() - frozen_s < LIMIT_S
        assert status == LOST_WORKER, output
        named = f"error: worker 0 ({workers.addresses[0]}) cannot be reached any more"
        assert named in output
    finally:
        first.kill()
        first.send_signal(signal.SIGCONT)
    first.end()
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


def test_a_frozen_worker_that_goes_on_later_ends_too(folder):
    workers = Workers(folder, 2, *LONG, constants=SOON)
    workers.processes[0].wait_for(folder / "m/model.ckpt-7.index")
    workers.processes[0].send_signal(signal.SIGSTOP)
    assert workers.processes[1].end()[0] == LOST_WORKER
    workers.processes[0].send_signal(signal.SIGCONT)
    status, output = workers.processes[0].end()
    assert status == LOST_WORKER, output
    assert "error: worker 1 (" in output


def busy(kind):
    """Let this process, at its third step, hold the interpreter, write for long, or wait for its input."""
    trainer = importlib.import_module("easyrec_mm.training.trainer").Trainer
    run_step, batches = trainer.run_step, trainer.batches

    def hold(self, item):
        until_s = time.monotonic() + BUSY_S
        while item is not None and item.step == 3 and time.monotonic() < until_s:
            sum(range(60_000_000))  # seconds in which no other thread of Python runs
        return run_step(self, item)

    def wait(self, num_epochs):
        for number, item in enumerate(batches(self, num_epochs)):
            if number == 3:
                time.sleep(BUSY_S)
            yield item

    if kind == "computes":
        trainer.run_step = hold
    else:
        trainer.batches = wait


def start(folder, number, addresses, arguments, prepare=None, constants=()):
    task = {"type": "worker", "index": number}
    own = {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
    command = [*TRAIN, *TOGETHER, *arguments]
    return Command(folder, command, folder / f"output_{number}.txt", own, {**SOON, **dict(constants)}, prepare)


@pytest.mark.parametrize(("number", "kind"), [(0, "computes"), (1, "computes"), (0, "waits for its input")])
def test_a_worker_that_is_busy_for_longer_than_the_limit_is_not_lost(folder, number, kind):
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    arguments = ["--model_dir", "m", *size(48), "--set", "train_config.num_epochs=1"]
    prepare = {number: functools.partial(busy, kind)}
    started_s = time.monotonic()
    processes = [start(folder, i, addresses, arguments, prepare.get(i)) for i in (0, 1)]
    ends = [process.end() for process in processes]
    assert [status for status, _ in ends] == [0, 0], ends
    assert time.monotonic() - started_s > BUSY_S


def test_a_worker_that_is_busy_when_another_is_lost_ends_in_time_too(folder):
    """It waits for its input, in which no exchange fails."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    arguments = ["--model_dir", "m", *size(48), "--set", "train_config.log_step_count_steps=1"]
    soon = {**SOON, "test_frozen_workers.BUSY_S": 100.0}
    stalled = start(folder, 0, addresses, arguments, functools.partial(busy, "waits for its input"), soon)
    lost = start(folder, 1, addresses, arguments)
    stalled.wait_for(folder / "m/metrics.jsonl", '"step": 3')
    lost.kill()
    lost_s = time.monotonic()
    status, output = stalled.end()
    assert status == LOST_WORKER, output
    assert time.monotonic() - lost_s < 30
    assert f"error: worker 1 ({addresses[1]}) cannot be reached any more" in output
