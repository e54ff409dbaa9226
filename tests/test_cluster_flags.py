"""--workers and --worker_index in place of TF_CONFIG."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from flat_helpers import make_log
from forked import Command
from servers import free_port
from test_workers import CONFIG, TOGETHER, TRAIN, assert_same_weights, size, train

from easyrec_mm.api.workers import cluster_of
from easyrec_mm.cli.main import main, make_parser
from easyrec_mm.distribution.cluster import Cluster, cluster_of_flags, expanded
from easyrec_mm.distribution.local_workers import LocalWorkers
from easyrec_mm.errors import ConfigError
from easyrec_mm.protos.train_pb2 import MultiWorkerMirroredStrategy

WORKERS = ("a:1", "b:2")
PIPELINE = SimpleNamespace(
    path="x.config",
    config=SimpleNamespace(train_config=SimpleNamespace(train_distribute=MultiWorkerMirroredStrategy)),
)


@pytest.fixture
def tf_config(monkeypatch):
    """A function that sets TF_CONFIG."""

    def set_it(workers, index):
        task = {"type": "worker", "index": index}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": workers}, "task": task}))

    monkeypatch.delenv("TF_CONFIG", raising=False)
    return set_it


@pytest.mark.parametrize("command", ["train", "eval"])
def test_flags_make_the_cluster(command, tf_config):
    arguments = [command, "--pipeline_config", "x.config", "--workers", "a:1,b:2", "--worker_index", "1"]
    flags = make_parser().parse_args(arguments)
    assert cluster_of(PIPELINE, flags.workers, flags.worker_index) == Cluster(WORKERS, 1)
    flags = make_parser().parse_args(arguments[:3])
    assert cluster_of(PIPELINE, flags.workers, flags.worker_index) is None


def test_flags_that_name_one_worker_or_repeat_tf_config(tf_config):
    assert cluster_of(PIPELINE, ("a:1",), 0) is None
    tf_config(WORKERS, 1)
    assert cluster_of(PIPELINE, WORKERS, 1) == Cluster(WORKERS, 1)


@pytest.mark.parametrize(
    ("workers", "index", "message"),
    [
        ((), 1, "--worker_index 1: is without --workers; give the addresses of all workers as well"),
        (WORKERS, None, "--workers a:1,b:2: is without --worker_index; give each worker its own, from 0 to 1"),
        (WORKERS, 2, "--worker_index 2: is out of range; the numbers of 2 workers are 0 to 1"),
        (("a:1", "a:1"), 0, "--workers: two workers have the address a:1; give each a port of its own"),
        (("a:1", "b"), 0, "--workers: 'b' is not an address; give host:port"),
    ],
)
def test_flags_that_are_no_cluster(workers, index, message):
    with pytest.raises(ConfigError, match=message):
        cluster_of_flags(workers, index)


@pytest.mark.parametrize(("workers", "index"), [(WORKERS, 0), (("a:1", "c:2"), 1), ((*WORKERS, "c:3"), 1)])
def test_flags_that_contradict_tf_config(tf_config, workers, index):
    tf_config(workers, index)
    message = (
        rf"--workers names worker 1 \(b:2\) of 2, but TF_CONFIG names worker {index} \({workers[index]}\) of "
        rf"{len(workers)}; give only one of them"
    )
    with pytest.raises(ConfigError, match=message):
        cluster_of(PIPELINE, WORKERS, 1)


def test_the_processes_on_the_gpus_of_a_worker_have_its_flags_too(monkeypatch):
    local = LocalWorkers((), expanded(WORKERS, 3), 3, 3)
    for place in range(3):
        monkeypatch.setenv("TF_CONFIG", local.environment(place)["TF_CONFIG"])
        assert cluster_of(PIPELINE, WORKERS, 1) == Cluster(expanded(WORKERS, 3), 3 + place, is_expanded=True)
        with pytest.raises(ConfigError, match="give only one of them"):
            cluster_of(PIPELINE, ("c:1", "b:2"), 1)


def test_a_command_says_what_is_wrong_with_its_flags(tmp_path, monkeypatch, capsys, tf_config):
    make_log(tmp_path, CONFIG, num_rows=20)
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, *TOGETHER, "--workers", "a:1,b:2"]) == 1
    assert "error: --workers a:1,b:2: is without --worker_index; give each worker its own" in capsys.readouterr().err
    assert main([*TRAIN, "--workers", "a:1,b:2", "--worker_index", "0"]) == 1
    message = "train_config.train_distribute: is NoStrategy, but --workers names 2 workers; set MultiWorkerMirrored"
    assert message in capsys.readouterr().err
    evaluate = ["eval", *TRAIN[1:], *TOGETHER, "--workers", "a:1,b:2", "--worker_index", "0", "--watch"]
    assert main(evaluate) == 1
    assert (
        "--watch: is done by one process, but --workers names several workers; leave it out" in capsys.readouterr().err
    )


@pytest.mark.parametrize("flags", [["--workers", "a:1"], ["--worker_index", "0"]])
def test_what_starts_the_workers_names_them(tmp_path, monkeypatch, capsys, flags):
    make_log(tmp_path, CONFIG, num_rows=20)
    monkeypatch.chdir(tmp_path)
    assert main(["deploy", *TRAIN[1:], "--workers", "2", "--image", "i", "--claim", "c:/work", "--", *flags]) == 1
    assert (
        "--workers, --worker_index: stand behind --, but the workers are named without them" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_workers_of_flags_train_and_evaluate_like_one_process(tmp_path):
    make_log(tmp_path, CONFIG, num_rows=300)
    train(tmp_path, "--model_dir", "one", *size(50))
    addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(2))

    def run(command, *arguments):
        flags = [*TRAIN[1:], *TOGETHER, "--workers", addresses, *arguments]
        processes = [
            Command(tmp_path, [command, *flags, "--worker_index", number], tmp_path / f"output_{number}.txt")
            for number in range(2)
        ]
        ends = [process.end() for process in processes]
        assert [status for status, _ in ends] == [0, 0], ends
        return ends

    run("train", "--model_dir", "of_2", *size(25))
    assert_same_weights(tmp_path / "one", tmp_path / "of_2", 12)
    ends = run("eval", "--set", "model_dir=of_2")
    assert "gauc_click" in ends[0][1]
    assert "gauc_click" not in ends[1][1]
