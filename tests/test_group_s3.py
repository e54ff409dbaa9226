"""Grouping, converting and statistics of what lies in a bucket: the same as of what lies here; S3 by moto."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from flow_helpers import use_small_backbone
from group_helpers import contents, make_log, make_pictures, run

from easyrec_mm.cli.main import main


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a log in two files, its pictures but for one, and what grouping them makes: `out`, `x.config`."""
    folder = tmp_path_factory.mktemp("log")
    table = make_log(folder, num_rows=1500, num_items=40)
    (folder / "logs").mkdir()
    for number in range(2):
        pq.write_table(table.slice(number * 700, 700 + 100 * number), folder / f"logs/{number}.parquet")
    (folder / "logs/_SUCCESS").touch()
    make_pictures(folder, [f"images/{i}.png" for i in range(39)], np.random.default_rng(0))
    run(folder, *flags(folder), log="logs", pipeline_config_template=folder / "x.config")
    return folder


def flags(place):
    """Of everything that reads or writes files."""
    options = {
        "embed_images": None,
        "image_root": place,
        "split_by": "item",
        "max_bad_share": 0.1,
        "image_size": "24x24",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value) if part is not None]


@pytest.fixture(scope="module")
def bucket(s3, here):
    name = s3.new_bucket()
    for path in here.rglob("*"):
        if path.is_file() and path.relative_to(here).parts[0] in ("logs", "images"):
            s3.put(f"{name}/{path.relative_to(here)}", path.read_bytes())
    return name


def contents_there(s3, folder):
    prefix = folder.partition("://")[2].partition("/")[2]
    return {
        key.removeprefix(prefix).strip("/"): s3.get(f"{folder.rpartition(prefix)[0]}{key}") for key in s3.keys(folder)
    }


def group(bucket, output, *more, log="logs", expect=0):
    arguments = ["--input", f"{bucket}/{log}", "--group_by", "item_id", "--image_field", "img_path"]
    assert main(["group", *map(str, [*arguments, "--output", f"{bucket}/{output}", *flags(bucket), *more])]) == expect


def without_names(files):
    """Without where the log was read."""
    return {name: data.replace(b"s3://", b"") for name, data in files.items() if not name.endswith("bad_rows.jsonl")}


def test_a_log_in_a_bucket_makes_the_same_shards_there(s3, here, bucket, tmp_path, capsys):
    group(bucket, "out", "--pipeline_config_template", tmp_path / "x.config")
    remote_files = contents_there(s3, f"{bucket}/out")
    assert without_names(remote_files) == without_names(contents(here / "out"))
    bad = [json.loads(line) for line in remote_files["bad_rows.jsonl"].decode().splitlines()]
    assert {(bad_row["kind"], bad_row["where"]) for bad_row in bad} == {("picture", "images/39.png")}
    assert all(bad_row["file"].startswith(f"{bucket}/logs/") for bad_row in bad)
    there, expected = ((folder / "x.config").read_text().replace(str(folder), bucket) for folder in (tmp_path, here))
    # Comments are broken into lines by their length.
    assert re.sub(r"[\s#]+", " ", there) == re.sub(r"[\s#]+", " ", expected)
    # What is there is not replaced unasked, and then whole.
    group(bucket, "out", expect=1)
    assert f"--output: {bucket}/out is not empty; name another folder" in capsys.readouterr().err
    s3.put(f"{bucket}/out/train/part-99999.parquet", b"old")
    group(bucket, "out", "--overwrite")
    assert set(contents_there(s3, f"{bucket}/out")) == set(remote_files)


def test_pictures_are_found_beside_a_log_in_a_bucket(bucket, tmp_path, capsys):
    arguments = ["--input", f"{bucket}/logs", "--group_by", "item_id", "--image_field", "img_path"]
    arguments += ["--pipeline_config_template", f"{tmp_path}/x.config", "--output"]
    assert main(["group", *arguments, f"{tmp_path}/out"]) == 0
    assert f"image_root: {bucket}, where the pictures were found" in capsys.readouterr().out
    assert f'image_root: "{bucket}"' in (tmp_path / "x.config").read_text()
    assert main(["group", *arguments, f"{tmp_path}/other", "--image_root", f"{bucket}/pictures"]) == 1
    assert f"they are in {bucket}: give that with --image_root {bucket}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_config_of_a_bucket_trains(s3, here, bucket, tmp_path, monkeypatch, capsys):
    use_small_backbone(monkeypatch)
    group(bucket, "to_train", "--pipeline_config_template", tmp_path / "x.config")
    settings = [f"--set=model_dir={tmp_path}/model", "--set=data_config.max_bad_record_share=0.1"]
    settings += ["--set=train_config.num_epochs=1"]
    assert main(["train", "--pipeline_config", str(tmp_path / "x.config"), *settings]) == 0
    assert (tmp_path / "model/eval_result.json").exists()
    capsys.readouterr()
    report = ["--output", str(tmp_path / "stats.html")]
    assert main(["stats", "--pipeline_config", str(tmp_path / "x.config"), *report]) == 0
    text = capsys.readouterr().out
    assert "formats: PNG (" in text
    assert "sizes: 24 x 24 (" in text
    assert "1 bad\n" in text
    assert "bad: images/39.png: cannot be read: is not in part-" in text


def test_a_conversion_in_a_bucket_is_that_of_files(s3, here, bucket, tmp_path):
    group(bucket, "to_convert", "--pipeline_config_template", tmp_path / "x.config")
    arguments = ["convert", "--pipeline_config", str(tmp_path / "x.config"), "--format", "tfrecord"]
    assert main([*arguments, "--output", f"{bucket}/converted"]) == 0
    local = ["convert", "--pipeline_config", str(here / "x.config"), "--format", "tfrecord"]
    assert main([*local, "--output", str(tmp_path / "converted")]) == 0
    remote_files, local_files = contents_there(s3, f"{bucket}/converted"), contents(tmp_path / "converted")
    for files, place in ((remote_files, f"{bucket}/to_convert"), (local_files, str(here / "out"))):
        for name in list(files):
            if name.endswith("stats.json"):
                files[name] = files[name].decode().replace(place, "")
    assert remote_files == local_files


def test_what_fails_leaves_nothing_in_the_bucket(s3, bucket, capsys):
    s3.put(f"{bucket}/broken/0.parquet", s3.get(f"{bucket}/logs/0.parquet"))
    s3.put(f"{bucket}/broken/1.parquet", s3.get(f"{bucket}/logs/1.parquet")[:-100])
    group(bucket, "failed", log="broken", expect=1)
    assert f"{bucket}/broken/1.parquet: cannot be read" in capsys.readouterr().err
    assert contents_there(s3, f"{bucket}/failed") == {}
    group(bucket, "failed", log="none/*", expect=1)
    assert f"--input: '{bucket}/none/*' matches no file" in capsys.readouterr().err
