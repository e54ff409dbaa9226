"""Pictures by TensorFlow's own s3://, which tensorflow-io brings: in the environment of requirements/tfio.txt alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from flow_helpers import demo_flags, make_data

from easyrec_mm.tensorflow_import import import_tensorflow

pytest.importorskip("tensorflow_io")


@pytest.fixture(scope="module")
def data(s3, tmp_path_factory):
    """Demo data here and in a bucket."""
    here = make_data(tmp_path_factory.mktemp("demo") / "data")
    there = f"{s3.new_bucket()}/data"
    s3.put_folder(here, there)
    return here, there


def run(*arguments):
    program = str(Path(sys.executable).with_name("easyrec-mm"))
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def losses(model_dir):
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]


def test_a_training_reads_pictures_by_tensorflow_io(s3, data, tmp_path):
    here, there = data
    s3.faults.agents.clear()
    done = run("train", *demo_flags(there, tmp_path / "there"))
    assert done.returncode == 0, done.stderr  # tensorflow-io aborts processes that end as usual
    assert "step 6; checkpoint" in done.stdout
    pictures = {path: agents for path, agents in s3.faults.agents.items() if path.endswith(".jpg")}
    assert len(pictures) == len(list((here / "images/train").iterdir()))
    assert all(agent.startswith("aws-sdk-cpp/") for agents in pictures.values() for agent in agents)
    assert run("train", *demo_flags(here, tmp_path / "here")).returncode == 0
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "here"), rel=1e-4)
    assert len(losses(tmp_path / "there")) == 6


def test_a_mistake_has_its_status(s3, data, tmp_path):
    done = run("train", *demo_flags(f"{data[1]}/none", tmp_path / "m"))
    assert (done.returncode, done.stderr.count("error: ")) == (1, 1)
    assert f"'{data[1]}/none/train/*' matches no file" in done.stderr


def test_the_commands_register_its_schemes():
    import_tensorflow()
    assert {"s3", "oss", "hdfs"} <= set(tf.io.gfile.get_registered_schemes())
