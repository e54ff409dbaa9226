"""A run that waits for its input says for what: a picture in a bucket, a data file, a store, a pipe."""

import math
import os
import threading
import time

import pytest
from far_helpers import log_training
from flow_helpers import demo_flags, make_data, run, use_small_backbone
from forked import Command

from easyrec_mm.files import waiting as waiting_module
from easyrec_mm.files.waiting import reading, reading_each, stalls_told, waiting


@pytest.fixture
def soon(monkeypatch):
    """Waits are told after a fraction of a second."""
    monkeypatch.setattr(waiting_module, "FIRST_S", 0.3)


def test_a_wait_is_told_in_growing_intervals_with_what_is_being_read(soon):
    told = []
    started = time.monotonic()
    with stalls_told(lambda message: told.append((time.monotonic() - started, message))):
        with reading("s3://b/early.png"), reading("s3://b/late.png"), waiting(lambda: "a batch"):
            time.sleep(1.6)
        time.sleep(0.5)  # nothing waits any more
    assert [message.partition(" for ")[0] for _, message in told] == ["waiting"] * 3
    assert all("not done yet: s3://b/early.png for" in message for _, message in told)
    assert all("a batch" in message for _, message in told)
    for (seconds, _), expected in zip(told, (0.3, 0.6, 1.2), strict=True):
        assert expected <= seconds < expected + 0.35


def test_reads_end_with_their_context(soon):
    told = []
    with stalls_told(told.append):
        with pytest.raises(OSError, match="broken"), reading("broken"):
            raise OSError("broken")
        assert list(reading_each("items", [1, 2])) == [1, 2]
        with waiting(lambda: "nothing"):
            time.sleep(0.5)
    assert told
    assert told[0].endswith("no file is being read by Python")


def test_short_waits_are_not_told(soon):
    told = []
    with stalls_told(told.append):
        for _ in range(10):
            with reading("x"), waiting(lambda: "a batch"):
                time.sleep(0.1)
    assert told == []


def test_only_the_reads_that_take_longest_are_shown(soon):
    told = []

    def read(number):
        with reading(f"file {number}"):
            time.sleep(0.9 - 0.02 * number)

    threads = [threading.Thread(target=read, args=[number]) for number in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    with stalls_told(told.append), waiting(lambda: "a batch"):
        threads[4].join()
    for thread in threads:
        thread.join()
    assert "file 0 for" in told[0]
    assert "file 2 for" in told[0]
    assert "file 3" not in told[0]
    assert told[0].endswith("and 2 more") or told[0].endswith(", 2 more")


# --- Commands


@pytest.fixture(scope="module")
def demo(s3, tmp_path_factory):
    """(bucket with the demo's pictures and data, flags of a training with pictures from there)."""
    folder = tmp_path_factory.mktemp("demo")
    data = make_data(folder / "data")
    bucket = s3.new_bucket()
    s3.put_folder(data, f"{bucket}/data")
    settings = {"data_config__image_root": f"{bucket}/data", "train_config__num_steps": 2}
    return bucket, data, demo_flags(data, folder / "m", **settings)


@pytest.fixture
def hanging(s3):
    """The server answers some requests more, then none for two seconds."""
    stop = threading.Event()

    def hang(num_requests):
        s3.faults.answers_left = num_requests

        def watch():
            while s3.faults.answers and not stop.wait(0.01):
                pass
            stop.wait(2.5)
            s3.faults.answers, s3.faults.answers_left = True, math.inf

        thread = threading.Thread(target=watch)
        thread.start()
        return thread

    yield hang
    stop.set()
    s3.faults.answers, s3.faults.answers_left = True, math.inf


@pytest.mark.slow
def test_training_evaluation_and_prediction_wait_for_pictures(demo, hanging, soon, monkeypatch, tmp_path, capsys):
    use_small_backbone(monkeypatch)
    bucket, data, flags = demo
    commands = {
        "train": (
            ["train", *flags],
            40,
        ),  # while the first pictures are read: later ones may be of batches that nobody needs
        "eval": (["eval", *flags, "--eval_input_path", f"{data}/test/*"], 2),
        "predict": (
            ["predict", *flags, "--predict_input_path", f"{data}/test/*", "--output", tmp_path / "p.parquet"],
            2,
        ),
    }
    for name, (command, num_requests) in commands.items():
        thread = hanging(num_requests)
        run(*command)
        thread.join()
        text = capsys.readouterr().err
        waits = [line for line in text.splitlines() if line.startswith("waiting for ")]
        (line, *_) = [line for line in waits if f"not done yet: {bucket}/data/" in line]
        assert "the first pictures" in line or "pictures or vectors" in line or "no group" in line, name


@pytest.mark.slow
def test_a_training_waits_for_a_data_file_in_a_bucket(demo, hanging, soon, monkeypatch, tmp_path, capsys):
    use_small_backbone(monkeypatch)
    bucket, data, _ = demo
    flags = demo_flags(data, tmp_path / "m", train_config__num_steps=1, train_input_path=f"{bucket}/data/train/*")
    thread = hanging(1)
    run("train", *flags)
    thread.join()
    waits = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waiting for ")]
    assert any(f"not done yet: {bucket}/data/train/" in line for line in waits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CSVInput", "GroupTFRecordInput"])
def test_a_training_waits_for_a_pipe(tmp_path, kind):
    config = log_training(tmp_path, kind, "num_steps: 1")
    (tmp_path / "part-1").unlink()
    os.mkfifo(tmp_path / "part-1")
    printed = tmp_path / "output.txt"
    soon = {"easyrec_mm.files.waiting.FIRST_S": 0.5}
    process = Command(tmp_path, ["train", "--pipeline_config", config], printed, constants=soon)
    try:
        process.wait_for(printed, f"not done yet: {tmp_path}/part-1 for", timeout_s=120)
    finally:
        process.kill()
        _, output = process.end()
    (line, *_) = [line for line in output.splitlines() if f"not done yet: {tmp_path}/part-1 for" in line]
    assert line.startswith("waiting for ")
    assert "train_input_path" in line
