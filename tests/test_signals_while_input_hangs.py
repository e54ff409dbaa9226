"""A signal ends a training in good order although the input hangs, as when a server of pictures does not answer."""

import json
import math
import signal

import pytest
from flow_helpers import demo_flags, make_data, run, use_small_backbone, use_small_backbone_alone
from forked import Command

pytestmark = pytest.mark.slow

SETTINGS = {"data_config__prefetch_size": 1, "train_config__num_steps": 4, "train_config__log_step_count_steps": 1}
SOON = {"easyrec_mm.files.waiting.FIRST_S": 0.5, "easyrec_mm.data.until_stopped.PATIENCE_S": 0.5}
NUM_FIRST = 64  # pictures that are read before the first step


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def bucket(s3, data):
    """(server, bucket with the pictures of the demo); the server answers again after the test."""
    name = s3.new_bucket()
    s3.put_folder(data, f"{name}/data")
    yield s3, name
    answer(s3)


def answer(s3):
    s3.faults.answers, s3.faults.answers_left = True, math.inf


def stopped_while_it_hangs(s3, flags, folder, num_answers):
    """Output of a training that gets SIGTERM when the server answers no more, after that many pictures."""
    s3.faults.answers_left = num_answers
    printed = folder / "output.txt"
    process = Command(folder, ["train", *flags], printed, constants=SOON, prepare=use_small_backbone_alone)
    try:
        process.wait_for(printed, "not done yet: s3://", timeout_s=120)
        process.send_signal(signal.SIGTERM)
        status, output = process.end(60)
    finally:
        process.kill()
        answer(s3)
    assert status == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    assert "a batch did not arrive" in output or "evaluat" in output
    assert "stopped; continue with" in output
    return output


def losses(model_dir, kind="train"):
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss")) for line in lines if line["kind"] == kind]


def test_a_training_that_waits_for_pictures(bucket, data, tmp_path, monkeypatch):
    use_small_backbone(monkeypatch)
    s3, name = bucket
    settings = {**SETTINGS, "data_config__image_root": f"{name}/data"}
    run("train", *demo_flags(data, tmp_path / "undisturbed", **settings))
    flags = demo_flags(data, tmp_path / "m", **settings)
    stopped_while_it_hangs(s3, flags, tmp_path, NUM_FIRST + 20)
    done = losses(tmp_path / "m")
    assert 0 < len(done) < 4
    run("train", *flags)
    assert losses(tmp_path / "m") == losses(tmp_path / "undisturbed")


def test_an_evaluation_that_waits_for_pictures(bucket, data, tmp_path, monkeypatch):
    use_small_backbone(monkeypatch)
    s3, name = bucket
    settings = {**SETTINGS, "data_config__image_root": f"{name}/data", "eval_input_path": f"{data}/test/*"}
    flags = demo_flags(data, tmp_path / "m", **settings)
    pictures = 4 * 8  # of the steps
    stopped_while_it_hangs(s3, flags, tmp_path, 2 * NUM_FIRST + pictures)
    assert [step for step, _ in losses(tmp_path / "m")] == [1, 2, 3, 4]
    assert losses(tmp_path / "m", "eval") == []
    run("train", *flags)
    assert [step for step, _ in losses(tmp_path / "m", "eval")] == [4]
