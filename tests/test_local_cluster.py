"""scripts/local_cluster: several workers on this machine, with a stand-in for the command that each of them runs."""

import json
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from flat_helpers import CONFIG, make_log

from easyrec_mm.console import json_line

SCRIPT = Path(__file__).parent.parent / "scripts/local_cluster"
STAND_IN = """
import json, os, signal, sys, time
task = json.loads(os.environ["TF_CONFIG"])
number = task["task"]["index"]
print(json.dumps([sys.argv[1:], task, sorted(os.sched_getaffinity(0))]), flush=True)
{action}
"""


@pytest.fixture
def script(tmp_path):
    """A copy of the script, beside which no environment lies, and how to make what it runs."""
    make_log(tmp_path)
    package = tmp_path / "easyrec_mm"
    package.mkdir()
    for path in (SCRIPT.parent.parent / "easyrec_mm").iterdir():
        if path.name not in ("__main__.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    copy = tmp_path / "scripts/local_cluster"
    copy.parent.mkdir()
    copy.write_text(SCRIPT.read_text())

    def start(action, *arguments):
        (package / "__main__.py").write_text(STAND_IN.format(action=action))
        return subprocess.Popen(
            [sys.executable, copy, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_each_worker_has_its_place_and_its_cores(script):
    process = script("", "--workers", "3", "--", "train", "--pipeline_config", "x.config")
    lines = [line.partition(" ") for line in process.communicate(timeout=60)[0].splitlines()]
    assert process.returncode == 0
    assert sorted(prefix for prefix, *_ in lines) == ["[0]", "[1]", "[2]"]
    cores = set()
    for prefix, _, text in lines:
        arguments, task, own = json.loads(text)
        expected = ["train", "--pipeline_config", "x.config"]
        assert arguments == [*expected, "--set", "train_config.train_distribute=MultiWorkerMirroredStrategy"]
        assert task["task"] == {"type": "worker", "index": int(prefix[1])}
        assert len(set(task["cluster"]["worker"])) == 3
        cores |= set(own)
    assert cores == os.sched_getaffinity(0)


def test_any_python_will_do(tmp_path):
    """It goes on in the environment of the project."""
    venv.create(tmp_path / "bare", with_pip=False)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [tmp_path / "bare/bin/python", SCRIPT, "--", "train", "--pipeline_config", "y.config"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    has_environment = (SCRIPT.parent.parent / ".venv").is_dir()
    expected = "error: y.config: " if has_environment else "error: the packages of easyrec_mm are not installed; run"
    assert done.stderr.startswith(expected)


def test_json_logs_have_the_worker_as_a_field(script):
    line = json_line(0.0, "INFO", "easyrec_mm.train", "train step 3", {"step": 3})
    action = f"print({line!r}); print('error: a library says', file=sys.stderr)"
    process = script(action, "--workers", "2", "--", "train", "--pipeline_config", "x.config", "--json_logs")
    lines = [json.loads(line) for line in process.communicate(timeout=60)[0].splitlines()]
    by_message = {(line["message"], line["worker"]): line for line in lines}
    for worker in range(2):
        assert by_message["train step 3", worker] == {**json.loads(line), "worker": worker}
        assert by_message["error: a library says", worker]["level"] == "ERROR"
    process = script("", "--workers", "2", "--", "train", "--pipeline_config", "y.config", "--json_logs")
    (error,) = map(json.loads, process.communicate(timeout=60)[0].splitlines())
    assert (error["level"], error["logger"]) == ("ERROR", "easyrec_mm.train")


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize(
    ("strategy", "stays"),
    [("EmbeddingParallelStrategy", True), ("CollectiveAllReduceStrategy", True), ("NoStrategy", False)],
)
def test_a_strategy_of_the_config_stays(script, tmp_path, strategy, stays, command):
    text = CONFIG.replace("train_config {", f"train_config {{ train_distribute: {strategy}")
    (tmp_path / "x.config").write_text(text)
    process = script("", "--workers", "1", "--", command, "--pipeline_config", "x.config")
    arguments, _, _ = json.loads(process.communicate(timeout=60)[0].partition(" ")[2])
    assert ("--set" in arguments) is not stays


def test_a_config_that_is_not_there(script):
    process = script("", "--workers", "2", "--", "train", "--pipeline_config", "y.config")
    assert "error: y.config: " in process.communicate(timeout=60)[0]
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["embed", "--img_model_dir=x", "--input=y", "--store=z"], 1, "error: embed: is the work of one process"),
        (["trian", "--pipeline_config=x.config"], 2, "invalid choice: 'trian'"),
        (["eval", "--pipeline_config=x.config", "--evil"], 2, "unrecognized arguments: --evil"),
    ],
)
def test_what_no_workers_can_run_is_told_once(script, command, status, message):
    process = script("", "--workers", "2", "--", *command)
    assert process.communicate(timeout=60)[0].count(message) == 1
    assert process.returncode == status


def test_the_status_of_the_first_failure(script):
    """The others are told to end."""
    action = "sys.exit(3) if number == 1 else (signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)), time.sleep(60))"
    process = script(action, "--workers", "2", "--", "train", "--pipeline_config", "x.config")
    started_s = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert time.monotonic() - started_s < 30


def test_a_signal_reaches_all(script):
    action = "signal.signal(signal.SIGTERM, lambda *_: (print('ends', flush=True), sys.exit(143)))\n"
    action += "print('waits', flush=True); time.sleep(60)"
    process = script(action, "--workers", "2", "--", "eval", "--pipeline_config", "x.config")
    seen = ""
    while seen.count("waits") < 2:
        seen += process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    assert rest.count("ends") == 2
    assert process.returncode == 143
