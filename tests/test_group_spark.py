"""Grouping on a local Spark cluster of two workers: the same files, byte for byte, and the same messages."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from group_helpers import GOOD, contents, make_log, make_pictures, run, stats, write_csv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(spark):
    """The engine on two workers, with items of several tasks."""
    from easyrec_mm.grouping import spark_engine

    with pytest.MonkeyPatch.context() as patch, spark_engine.spark_engine() as engine:
        patch.setattr(spark_engine, "TASK_ROWS", 1000)
        yield engine


def test_two_workers_run(cluster):
    tracker = cluster.session.sparkContext._jsc.sc().statusTracker()
    deadline = time.monotonic() + 120
    while len(tracker.getExecutorInfos()) < 3 and time.monotonic() < deadline:  # the driver is one
        time.sleep(0.1)
    assert len(tracker.getExecutorInfos()) == 3


def both(folder, **flags):
    """The files that each engine makes, with the config and without what names the folder."""
    outputs = []
    for engine in ("local", "spark"):
        template = folder / engine / "x.config"
        output = run(folder, output=f"{engine}/out", engine=engine, pipeline_config_template=template, **flags)
        config = template.read_text().replace(str(folder / engine), "")
        outputs.append((contents(output), config))
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"format": "parquet", "split_by": "user", "user_field": "user", "num_shards": 5},
        {"format": "tfrecord", "split_by": "item", "max_group_size": 3, "seed": 7},
        {"format": "rtp", "split_by": "time:time", "eval_share": 0.3, "num_shards": 2, "rtp_separator": ";"},
    ],
)
def test_the_same_bytes_as_on_one_machine(cluster, tmp_path, flags):
    table = make_log(tmp_path)
    (tmp_path / "parts").mkdir()
    for number in range(3):
        pq.write_table(table.slice(number * 1500, 1500), tmp_path / f"parts/{number}.parquet")
    local, spark = both(tmp_path, log=f"{tmp_path}/parts", label_fields="click,play_time", **flags)
    assert local == spark
    for side in ("train", "eval"):
        assert f"{side}/_SUCCESS" in spark[0]
    assert stats(tmp_path / "spark/out/train")["rows_out"] == 4000


def test_bad_rows_conflicts_and_pictures_are_the_same(cluster, tmp_path):
    rows = [list(row) for row in GOOD]
    rows[10][0] = None
    rows[20][3] = "yes"
    rows[7][1] = "other.jpg"
    rows[299][2] = "x"
    write_csv(tmp_path / "a.csv", rows)
    text = (tmp_path / "a.csv").read_text().splitlines(keepends=True)
    text[51] = "i1,1.jpg,u,0\r\n"
    (tmp_path / "a.csv").write_text("".join(text))
    write_csv(tmp_path / "b.csv", [*GOOD[:40], ["i9", None, "u", 1, 1.0]])
    make_pictures(tmp_path, [f"{i}.jpg" for i in range(4)], np.random.default_rng(0))
    flags = {"image_root": tmp_path, "max_bad_share": 0.5, "num_shards": 3, "label_fields": "click"}
    outputs = []
    for engine in ("local", "spark"):
        log = f"{tmp_path}/a.csv,{tmp_path}/b.csv"
        outputs.append(contents(run(tmp_path, "--embed_images", log=log, output=engine, engine=engine, **flags)))
    assert outputs[0] == outputs[1]
    counts = stats(tmp_path / "spark")
    assert (counts["rows_in"], counts["rows_refused"], counts["rows_out"]) == (341, 3, 338)
    assert (counts["items_in_conflict"], counts["bad_pictures"] > 0, counts["rows_without_picture"]) == (1, True, 1)
    assert not any("attempts" in name for name in outputs[1])


def test_mistakes_are_told_as_on_one_machine(cluster, tmp_path, capfd):
    write_csv(tmp_path / "log.csv", [*GOOD, ["i1", "1.jpg", "u", "no", 1.0]])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    cases = [
        {"log": "log.csv", "label_fields": "click", "max_bad_share": 0},  # more bad rows than allowed
        {"log": "broken.parquet"},  # found by a worker
        {"log": "log.csv", "group_fields": "prize"},
    ]
    for flags in cases:
        messages = []
        for engine in ("local", "spark"):
            capfd.readouterr()
            run(tmp_path, expect=1, engine=engine, **flags)
            lines = capfd.readouterr().err.splitlines()
            first = next(i for i, line in enumerate(lines) if line.startswith("error: "))
            messages.append(lines[first:])
        assert messages[0] == messages[1]
        assert not (tmp_path / "out").exists()


def test_a_task_that_dies_is_told_in_a_line(cluster, tmp_path, capfd, monkeypatch):
    """What is not a mistake of the user's, on a worker: Spark tells it in two stack traces."""
    from easyrec_mm.grouping import spark_engine

    write_csv(tmp_path / "log.csv", GOOD)
    capfd.readouterr()

    class Broken(spark_engine.PlaceRows):
        def __reduce__(self):
            return os.abort, ()

    monkeypatch.setattr(spark_engine, "PlaceRows", Broken)
    run(tmp_path, expect=1, engine="spark")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --engine spark: ")
    assert line.endswith("; see Spark's log")


def test_a_cluster_that_cannot_be_reached(tmp_path):
    """In a process of its own: here the session of the other tests would be taken."""
    write_csv(tmp_path / "log.csv", GOOD)
    command = [sys.executable, "-m", "easyrec_mm", "group", "--input", tmp_path / "log.csv", "--group_by", "item_id"]
    command += [
        "--image_field",
        "img_path",
        "--output",
        tmp_path / "out",
        "--engine",
        "spark",
        "--allow_missing_pictures",
    ]
    done = subprocess.run([*command, "--spark_master", "nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --engine spark: no session on 'nowhere': ")
    assert "Traceback" not in done.stderr


def test_the_workers_of_this_machine_run_this_python(tmp_path):
    """Without a master, Spark runs on this machine, where `python3` may be another one, without the packages."""
    write_csv(tmp_path / "log.csv", GOOD)
    command = [sys.executable, "-m", "easyrec_mm", "group", "--input", tmp_path / "log.csv", "--group_by", "item_id"]
    command += ["--image_field", "img_path", "--output", tmp_path / "out", "--allow_missing_pictures"]
    environment = {name: value for name, value in os.environ.items() if name != "PYSPARK_PYTHON"}
    environment["PATH"] = "/usr/bin:/bin"
    done = subprocess.run([*command, "--engine", "spark"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("part-*"))
