"""Workers whose machines differ: in their data, in what they can write, in their clocks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import time
from functools import partial

import pytest
import tensorflow as tf
from flat_helpers import make_log
from forked import Command
from servers import free_port
from test_workers import CONFIG, TOGETHER, TRAIN, assert_same_weights, size, train

from easyrec_mm.exit_status import LOST_WORKER
from easyrec_mm.files.lock import locked
from easyrec_mm.runs.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


def set_clocks_ahead():
    """Set the clocks of this process, not those of the other worker, a day ahead."""
    for name, unit in (("time", 1), ("time_ns", 10**9)):
        clock = getattr(time, name)
        setattr(time, name, partial(lambda clock, ahead: clock() + ahead, clock, 86400 * unit))


def run_two(folder, *arguments, settings=({}, {})):
    """Exit statuses and outputs of two workers, each with its own folder or preparation, as Command takes them."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = []
    for number, own in enumerate(settings):
        tf_config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
        own = {"folder": folder, "output": folder / f"output_{number}.txt", **own}
        command = [*TRAIN, *TOGETHER, *arguments]
        processes.append(Command(arguments=command, environment={"TF_CONFIG": json.dumps(tf_config)}, **own))
    return map(list, zip(*(process.end() for process in processes), strict=True))


@pytest.fixture
def folder(tmp_path):
    make_log(tmp_path, CONFIG, num_rows=300)
    return tmp_path


def test_a_worker_without_samples(folder):
    """Each has its own statistics; the first has all samples, and thus those of one process."""
    text = (folder / "train.csv").read_text().splitlines(keepends=True)
    (folder / "train.csv").write_text("".join(text[:21]))
    settings = ["--set", "train_config.sync_batch_norm=false", "--set", "train_config.num_epochs=1"]
    train(folder, "--model_dir", "one", *size(50), *settings)
    statuses, outputs = run_two(folder, "--model_dir", "m", *size(25), *settings)
    assert statuses == [0, 0], outputs
    assert_same_weights(folder / "one", folder / "m", 1)


def test_workers_that_find_other_data_are_refused(folder):
    other = folder / "other"
    other.mkdir()
    shutil.copy(folder / "x.config", other)
    text = (folder / "train.csv").read_text()
    (other / "train.csv").write_text(text.replace("a|b", "a|c"))
    statuses, outputs = run_two(folder, *size(8), settings=[{}, {"folder": other}])
    assert statuses == [1, 1], outputs
    for output in outputs:
        assert "error: train_input_path: the workers have found different files: worker 0 has train.csv of " in output
        assert output.count(f"train.csv of {len(text)} bytes, version ") == 2


def test_workers_that_begin_with_other_weights_are_refused(folder):
    """Each starts from a checkpoint of its own machine."""
    other = folder / "other"
    other.mkdir()
    for name in ("x.config", "train.csv", "eval.csv"):
        shutil.copy(folder / name, other)
    for number, own in enumerate((folder, other)):
        Checkpoints(str(own / "before")).save(1, {"embedding/user": tf.fill([50, 4], float(number))})
    start = ["--set", "train_config.fine_tune_checkpoint=before/model.ckpt-1"]
    statuses, outputs = run_two(folder, "--model_dir", "m", *size(8), *start, settings=[{}, {"folder": other}])
    assert statuses == [1, 1], outputs
    for output in outputs:
        assert "error: worker 1 begins with other values than worker 0 of embedding/user; give all workers " in output


def test_a_second_training_of_several_workers_in_one_model_dir_is_refused(folder):
    with locked(str(folder / "m"), "model_dir"):
        statuses, outputs = run_two(folder, "--model_dir", "m", *size(8))
    assert statuses == [1, LOST_WORKER], outputs
    held = f"error: model_dir 'm': is in use by process {os.getpid()} on {socket.gethostname()}, since 20"
    assert held in outputs[0]
    assert "error: worker 0 (" in outputs[1]


def test_a_model_dir_that_cannot_be_written_is_named_by_the_first_worker(folder):
    (folder / "m").write_text("a file")
    statuses, outputs = run_two(folder, "--model_dir", "m/n", *size(8))
    assert statuses == [1, LOST_WORKER], outputs
    assert "error: m" in outputs[0]
    assert "Not a directory" in outputs[0]
    assert "error: worker 0 (" in outputs[1]


def test_a_disk_that_is_full_ends_all_and_they_go_on(folder):
    """The first checkpoint does not fit; nothing of it is left, and a restart begins anew."""
    large = ["--set", "feature_config.features[1].hash_bucket_size=5000"]  # 80 KB, more than a worker prints
    train(folder, "--model_dir", "one", *size(50), *large)
    limits = (40_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    full = {"prepare": partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)}
    statuses, outputs = run_two(folder, "--model_dir", "m", *size(25), *large, settings=[full, {}])
    assert statuses == [1, LOST_WORKER], outputs
    assert "Traceback" not in outputs[0] + outputs[1]
    assert "File too large" in outputs[0]
    assert not list((folder / "m").glob("model.ckpt*.index"))
    statuses, outputs = run_two(folder, "--model_dir", "m", *size(25), *large)
    assert statuses == [0, 0], outputs
    assert_same_weights(folder / "one", folder / "m", 12)


def test_clocks_of_workers_may_differ(folder):
    """A day between them, also after a restart, when the other one is the first."""
    late = {"prepare": set_clocks_ahead}
    train(folder, "--model_dir", "one", *size(50), "--set", "train_config.num_epochs=4")
    started = time.time()
    for settings, num_epochs in (([{}, late], 2), ([late, {}], 4)):
        more = ["--set", f"train_config.num_epochs={num_epochs}"]
        statuses, outputs = run_two(folder, "--model_dir", "m", *size(25), *more, settings=settings)
        assert statuses == [0, 0], outputs
    assert_same_weights(folder / "one", folder / "m", 24)
    lines = [json.loads(line) for line in (folder / "m/metrics.jsonl").open()]
    days = [(line["time"] - started) // 86400 for line in lines]
    assert days == sorted(days)
    assert set(days) == {0, 1}  # the clock of the first worker
    assert all(0 < line["samples_per_second"] < 1e6 for line in lines if line["kind"] == "train")
