"""Trainings of workers with files of their own (data_config.file_shard): weights, restarts, and what each opens."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Sequence

import numpy as np
import pytest
from forked import Command
from servers import free_port
from test_workers import CONFIG, TOGETHER, TRAIN, assert_same_weights, size, train, values

from easyrec_mm.exit_status import LOST_WORKER
from easyrec_mm.runs.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

HEADER = "click,price,user,tags"
# Rows of each file; with two workers the first file is of worker 0, the others of worker 1.
SIZES = (300, 150, 60)
# In the part of an epoch in which worker 1 has read all its files, and at its end.
SAVED = ["--set", "train_config.save_checkpoints_steps=11", "--set", "train_config.save_checkpoints_epochs=1"]
OF_OWN = ["--train_input_path", "part-*.csv", "--set", "data_config.file_shard=true", *size(24)]


def rows(num, seed):
    draw = random.Random(seed)
    return [f"{draw.random() < 0.4:d},{draw.random():.3f},u{draw.randrange(9)},a|b" for _ in range(num)]


def write(path, lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_files")
    for number, num in enumerate(SIZES):
        write(folder / f"part-{number}.csv", rows(num, number))
    write(folder / "eval.csv", rows(30, 9))
    (folder / "x.config").write_text(CONFIG)
    return folder


class Workers:
    """Processes that train together, each in a folder of its own; all have the same model_dir."""

    def __init__(self, folders: Sequence, model_dir, *arguments):
        addresses = [f"127.0.0.1:{free_port()}" for _ in folders]
        self.processes = []
        for number, folder in enumerate(folders):
            task = {"type": "worker", "index": number}
            own = {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
            flags = [*TRAIN, *TOGETHER, *OF_OWN, "--model_dir", str(model_dir), *arguments]
            self.processes.append(Command(folder, flags, folder / f"output_{number}.txt", own))

    def end(self):
        return tuple(zip(*(process.end() for process in self.processes), strict=True))


def run(*arguments):
    statuses, outputs = Workers(*arguments).end()
    assert set(statuses) == {0}, outputs
    return outputs


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The folder with the model_dir of a training of two workers, of which each can read its own files only."""
    machines = [shutil.copytree(folder, tmp_path_factory.mktemp("worker") / "x") for _ in range(2)]
    for number, machine in enumerate(machines):
        for file in range(3):
            if (file == 0) == (number == 1):
                path = machine / f"part-{file}.csv"
                path.write_bytes(bytes(path.stat().st_size))
    outputs = run(machines, folder / "whole", *SAVED)
    for output, number in zip(outputs, (300, 210), strict=True):
        assert f"file_shard: {number} of 510 groups are in this worker's own files" in output
        assert "training: 26 steps, 2 epochs of 13 steps" in output
    return folder


def leave(model_dir, step):
    """Forget the checkpoints of later steps than this one."""
    checkpoints = Checkpoints(str(model_dir))
    checkpoints.leave_out([path for path in checkpoints.all() if int(path.rpartition("-")[2]) > step])


def test_a_training_that_was_killed_goes_on_bit_by_bit(whole):
    """In the part of an epoch in which worker 1 has read all its files."""
    workers = Workers([whole] * 2, "m", *SAVED)
    workers.processes[0].wait_for(whole / "m/model.ckpt-11.index")
    workers.processes[1].kill()
    statuses, outputs = workers.end()
    assert statuses == (LOST_WORKER, -signal.SIGKILL), outputs
    leave(whole / "m", 11)
    outputs = run([whole] * 2, "m", *SAVED)
    assert "continuing from m/model.ckpt-11 (step 11)" in outputs[0]
    one, other = (values(whole / name, 26) for name in ("whole", "m"))
    assert one.keys() == other.keys()
    for key in one.keys() - {"progress/config"}:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_another_number_of_workers_goes_on_between_epochs(whole):
    for name, step in (("refused", 11), ("one", 13)):
        leave(shutil.copytree(whole / "whole", whole / name), step)
    status, output = Command(whole, [*TRAIN, "--model_dir", "refused", *OF_OWN], whole / "output.txt").end()
    assert status == 1
    assert (
        "error: data_config.file_shard: refused/model.ckpt-11 is of 2 workers, each with files of its own, within "
        "epoch 0, and this training of workers without files of their own" in output
    )
    train(whole, "--model_dir", "one", *OF_OWN)
    output = (whole / "output.txt").read_text()
    assert "continuing from one/model.ckpt-13" in output
    assert "the training data or their order have changed" not in output
    (last,) = (json.loads(line) for line in (whole / "one/metrics.jsonl").open() if '"end"' in line)
    assert last["step"] == 13 + -(-510 // 24)


def test_a_batch_is_the_union_of_the_batches_of_the_workers(folder, tmp_path):
    """The weights are those of one process with the rows of such batches one behind the other."""
    shutil.copy(folder / "x.config", tmp_path)
    shutil.copy(folder / "eval.csv", tmp_path)
    parts = [rows(240, seed) for seed in range(2)]
    for number, part in enumerate(parts):
        write(tmp_path / f"part-{number}.csv", part)
    write(tmp_path / "train.csv", [row for i in range(0, 240, 24) for part in parts for row in part[i : i + 24]])
    settings = ["--set", "data_config.shuffle=false", "--set", "train_config.num_epochs=1"]
    train(tmp_path, "--model_dir", "one", *size(48), *settings)
    run([tmp_path] * 2, "m", *settings)
    assert_same_weights(tmp_path / "one", tmp_path / "m", 10)


def test_fewer_files_than_workers_are_refused(folder):
    statuses, outputs = Workers([folder] * 2, "few", "--train_input_path", "part-0.csv").end()
    assert statuses == (1, 1)
    for output in outputs:
        assert "error: train_input_path: 1 file with data for 2 workers, of which each reads files of its own" in output
