"""Workers that `train` starts on this machine: how many, on which GPUs, with which addresses, and how they end."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from easyrec_mm.api.workers import cluster_of, workers_to_start
from easyrec_mm.distribution import local_workers
from easyrec_mm.distribution.cluster import Cluster, expanded, read_cluster
from easyrec_mm.distribution.gpus import gpus_in, visible_gpus
from easyrec_mm.distribution.local_workers import LocalWorkers, free_addresses, run_workers
from easyrec_mm.errors import ConfigError
from easyrec_mm.exit_status import LOST_WORKER
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.train_pb2 import DistributionStrategy

LISTED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb)
  MIG 3g.40gb     Device  0: (UUID: MIG-cc)
  MIG 3g.40gb     Device  1: (UUID: MIG-dd)
"""


def pipeline_with(strategy, num=0):
    config = EasyRecConfig()
    config.train_config.train_distribute = DistributionStrategy.Value(strategy)
    config.train_config.num_gpus_per_worker = num
    return SimpleNamespace(path="x.config", config=config)


def started(strategy, num=0, cluster=None):
    return workers_to_start(pipeline_with(strategy, num), cluster, ("train", "--flag"))


# --- GPUs


@pytest.mark.parametrize(
    ("value", "gpus"),
    [("0,1", ("0", "1")), (" 2 , GPU-a ", ("2", "GPU-a")), ("", ()), ("-1", ()), ("3,-1,4", ("3",)), ("1,,2", ("1",))],
)
def test_cuda_visible_devices_ends_with_the_first_that_does_not_exist(value, gpus):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}) == gpus


def test_the_driver_lists_gpus_and_the_parts_of_one_that_is_divided(tmp_path, monkeypatch):
    assert gpus_in(LISTED) == ("GPU-aa", "MIG-cc", "MIG-dd")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == ()  # no such program
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && echo '{LISTED}'")
    program.chmod(0o755)
    assert visible_gpus({}) == ("GPU-aa", "MIG-cc", "MIG-dd")
    program.write_text("#!/bin/sh\necho no driver; exit 9")
    assert visible_gpus({}) == ()


# --- How many, and where


def test_mirrored_strategy_has_a_process_on_each_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,5")
    for num, gpus in ((0, ("0", "3", "5")), (2, ("0", "3"))):
        local = started("MirroredStrategy", num)
        assert (local.gpus, local.first, local.num) == (gpus, 0, len(gpus))
        assert local.command == (sys.executable, "-m", "easyrec_mm", "train", "--flag")
        for place, gpu in enumerate(gpus):
            environment = local.environment(place)
            assert environment["CUDA_VISIBLE_DEVICES"] == gpu
            cluster = read_cluster(environment)
            assert cluster == Cluster(local.workers, place, is_expanded=True)
            # It starts no further ones.
            assert started("MirroredStrategy", num, cluster) is None


def test_one_gpu_or_none_is_one_process(monkeypatch):
    for value, num, own in (("", 0, ""), ("", 1, ""), ("4", 0, "4"), ("4,5", 1, "4")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert started("MirroredStrategy", num) is None
        assert visible_gpus() == tuple(filter(None, [own]))


def test_a_strategy_of_one_process_per_address_leaves_the_gpus_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for strategy, num in (("NoStrategy", 0), ("NoStrategy", 2), ("MultiWorkerMirroredStrategy", 0)):
        assert started(strategy, num) is None
        assert visible_gpus() == ("0", "1")


def test_all_machines_expand_the_cluster_alike(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    machines = ("a:2222", "b:5000")
    parts = [started("MultiWorkerMirroredStrategy", 3, Cluster(machines, number)) for number in (0, 1)]
    workers = ("a:2222", "a:2223", "a:2224", "b:5000", "b:5001", "b:5002")
    clusters = [read_cluster(part.environment(place)) for part in parts for place in range(3)]
    assert clusters == [Cluster(workers, number, is_expanded=True) for number in range(6)]
    # Without TF_CONFIG, or with that of one machine, this machine is the only one.
    assert (started("CollectiveAllReduceStrategy", 2).num, started("CollectiveAllReduceStrategy", 2).first) == (2, 0)


def test_ports_that_overlap_or_do_not_exist():
    assert expanded(("a:1", "a:3", "[::1]:9"), 2) == ("a:1", "a:2", "a:3", "a:4", "[::1]:9", "[::1]:10")
    for machines in (("a:2222", "a:2223"), ("a:65535",)):
        with pytest.raises(ConfigError, match=rf"TF_CONFIG: '{machines[-1]}': its 2 processes have the ports"):
            expanded(machines, 2)


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    message = (
        r"x.config: train_config.num_gpus_per_worker: 3 GPUs, but this machine has 2 \(6, 7\); set at most that many"
    )
    for strategy in ("MirroredStrategy", "MultiWorkerMirroredStrategy"):
        with pytest.raises(ConfigError, match=message):
            started(strategy, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"num_gpus_per_worker: 2 GPUs, but this machine has none; "):
        started("MirroredStrategy", 2)


def test_mirrored_strategy_is_that_of_one_machine(monkeypatch):
    value = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    message = "train_distribute: is MirroredStrategy, but TF_CONFIG names 2 workers; set MultiWorkerMirroredStrategy"
    with pytest.raises(ConfigError, match=message):
        cluster_of(pipeline_with("MirroredStrategy"))
    assert cluster_of(pipeline_with("MultiWorkerMirroredStrategy")).workers == ("a:1", "b:1")


# --- How they end


def run(action, num=3):
    """Run processes that know their `number`; return the status and the sorted lines of both outputs."""
    code = (
        "import json, os, signal, sys, time; number = json.loads(os.environ['TF_CONFIG'])['task']['index']\n" + action
    )
    local = LocalWorkers((sys.executable, "-c", code), free_addresses(num), 0, num)
    output, errors = io.StringIO(), io.StringIO()
    status = run_workers(local, output, errors)
    return status, sorted(output.getvalue().splitlines()), sorted(errors.getvalue().splitlines())


def test_lines_of_both_outputs_have_the_number_of_the_worker():
    outcome = run("print('says', number); print('error', file=sys.stderr)", 2)
    assert outcome == (0, ["[0] says 0", "[1] says 1"], ["[0] error", "[1] error"])


LOSES = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({LOST_WORKER})); time.sleep(60)"


@pytest.mark.parametrize(
    ("action", "status"),
    [
        (f"if number == 1: os.kill(os.getpid(), 9)\n{LOSES}", 137),
        (f"if number == 2: sys.exit(1)\n{LOSES}", 1),
        (f"if number == 0: sys.exit({LOST_WORKER})\ntime.sleep(60)", LOST_WORKER),
        ("os.kill(os.getpid(), 15)", 143),
        ("", 0),
    ],
)
def test_the_status_is_that_of_the_worker_that_failed_not_of_those_that_lost_it(action, status):
    assert run(action)[0] == status


def test_a_worker_that_does_not_end_after_a_failure_is_killed(monkeypatch):
    monkeypatch.setattr(local_workers, "END_S", 1.0)
    started_s = time.monotonic()
    ignore = "sys.exit(4) if number == 0 else (signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(60))"
    assert run(ignore, 2)[0] == 4
    assert time.monotonic() - started_s < 20


def test_a_worker_that_a_forwarded_signal_ends_late_gets_no_second_one():
    """The second one would end it while it saves."""
    action = """
if number:
    numbers = []
    signal.signal(signal.SIGTERM, lambda caught, _: numbers.append(caught))
    print("ready", flush=True)
    until = time.monotonic() + 20
    while not numbers and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(1)
    print("signals", len(numbers), flush=True)
    sys.exit(143)
time.sleep(1)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(20)
"""
    assert run(action, 2) == (143, ["[1] ready", "[1] signals 1"], [])


def test_handlers_of_signals_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run("", 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
