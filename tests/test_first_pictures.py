"""Pictures that cannot be read stop `group`, `check` and `train` at once; where they are is found, or told."""

from __future__ import annotations

import os
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from flow_helpers import use_small_backbone
from group_helpers import contents, make_log, make_pictures, stats, write_csv

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline

NAMES = [f"images/{i}.png" for i in range(8)]


def write_log(path, num_rows=160, names=NAMES, num_items=8):
    rows = [
        (f"i{i % num_items}", names[i % num_items], f"u{i % 7}", int(i % 3 == 0), i % 11 / 2) for i in range(num_rows)
    ]
    return write_csv(path, rows)


def group(log, output, *flags, expect=0):
    arguments = ["group", "--input", log, "--group_by", "item_id", "--image_field", "img_path", "--output", output]
    assert main([*map(str, arguments), "--label_fields", "click", *map(str, flags)]) == expect


@pytest.fixture
def shop(tmp_path):
    """A folder `shop` with pictures."""
    make_pictures(tmp_path / "shop", NAMES, np.random.default_rng(0))
    return tmp_path / "shop"


# --- group


@pytest.mark.parametrize("inside", ["", "logs", "logs/2026/10"])
def test_the_folder_of_the_log_and_those_above_are_tried(shop, tmp_path, capsys, inside):
    log = write_log(shop / inside / "log.csv")
    group(log, tmp_path / "out", "--pipeline_config_template", tmp_path / "x.config")
    assert f"image_root: {shop}, where the pictures were found" in capsys.readouterr().out
    assert load_pipeline(str(tmp_path / "x.config")).config.data_config.image_root == str(shop)


def test_pictures_in_the_folder_of_the_log_are_none_of_its_files(shop, tmp_path):
    write_log(shop / "log.csv")
    group(shop, tmp_path / "out")
    assert stats(tmp_path / "out")["rows_out"] == 160


def test_the_current_folder_stays_what_no_image_root_means(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(shop)
    write_log(shop / "log.csv")
    group("log.csv", tmp_path / "out", "--pipeline_config_template", tmp_path / "x.config")
    assert "image_root" not in capsys.readouterr().out
    assert "image_root:" not in (tmp_path / "x.config").read_text()


def test_a_log_of_a_relative_path(shop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(shop / "log.csv")
    group("shop/log.csv", "out", "--pipeline_config_template", "x.config")
    assert load_pipeline("x.config").config.data_config.image_root == str(shop)


def test_pictures_are_packed_from_the_folder_of_the_log(shop, tmp_path):
    log = write_log(shop / "log.csv")
    group(log, tmp_path / "out", "--embed_images", "--num_shards", 1)
    with tarfile.open(tmp_path / "out/part-00000.pictures.tar") as tar:
        assert sorted(tar.getnames()) == NAMES
    group(log, tmp_path / "told", "--embed_images", "--num_shards", 1, "--image_root", shop)
    assert contents(tmp_path / "told") == contents(tmp_path / "out")


def test_group_stops_where_most_pictures_are_missing(shop, tmp_path, capsys):
    for name in NAMES[:5]:
        (shop / name).unlink()
    log = write_log(shop / "log.csv", num_rows=50_000)
    group(log, tmp_path / "out", expect=1)
    error = capsys.readouterr().err
    assert "--image_root: is not set, and 8 of the first 8 pictures cannot be read" in error
    assert f"the first 'images/0.png' ({log}:2): No such file or directory" in error
    for folder in ("the current folder", str(shop), str(tmp_path)):
        assert folder in error
    assert "give the folder in which these paths start" in error
    assert "--allow_missing_pictures" in error
    assert not (tmp_path / "out").exists()
    # Half of them are no reason to stop before all are looked at.
    make_pictures(shop, NAMES[:1], np.random.default_rng(0))
    group(log, tmp_path / "out")


def test_a_wrong_image_root_is_told_with_the_right_one(shop, tmp_path, capsys):
    log = write_log(shop / "log.csv")
    group(log, tmp_path / "out", "--image_root", shop / "images", expect=1)
    error = capsys.readouterr().err
    assert f"--image_root: '{shop}/images': 8 of the first 8 pictures cannot be read" in error
    assert f"they are in {shop}: give that" in error


def test_pictures_elsewhere(tmp_path, capsys):
    log = write_log(tmp_path / "log.csv")
    flags = ["--allow_missing_pictures", "--pipeline_config_template", tmp_path / "x.config"]
    group(log, tmp_path / "out", *flags, "--image_root", "/data")
    assert stats(tmp_path / "out")["rows_out"] == 160
    assert load_pipeline(str(tmp_path / "x.config")).config.data_config.image_root == "/data"


def test_whole_paths_start_nowhere_else(tmp_path, capsys):
    log = write_log(tmp_path / "log.csv", names=[f"/nowhere/{name}" for name in NAMES])
    group(log, tmp_path / "out", expect=1)
    error = capsys.readouterr().err
    assert "the first '/nowhere/images/0.png'" in error
    assert "the paths are absolute: correct the column 'img_path'" in error


def test_more_than_the_first_pictures_are_not_looked_at(shop, tmp_path):
    """64 of 200 are: those that come later are counted when they are packed or trained."""
    names = [f"images/{i}.png" for i in range(200)]
    make_pictures(shop, names[:40], np.random.default_rng(0))
    group(write_log(shop / "log.csv", 400, names, 200), tmp_path / "out")
    group(write_log(shop / "turned.csv", 400, names[::-1], 200), tmp_path / "turned", expect=1)


def test_a_column_without_any_picture(tmp_path, capsys):
    log = write_log(tmp_path / "log.csv", names=[None] * 8)
    group(log, tmp_path / "out", expect=1)
    assert "--image_field: column 'img_path' is empty in all 160 rows" in capsys.readouterr().err


# --- check and train


@pytest.fixture(params=["parquet", "tfrecord", "rtp"])
def config(request, shop, tmp_path, monkeypatch):
    """A config of groups, and its data, in the folder of the pictures."""
    use_small_backbone(monkeypatch)
    make_log(shop, num_rows=600, num_items=8)
    flags = ["--pipeline_config_template", shop / "x.config", "--format", request.param, "--rtp_separator", ";"]
    arguments = ["group", "--input", shop / "log.parquet", "--group_by", "item_id", "--image_field", "img_path"]
    assert main([*map(str, [*arguments, "--output", shop / "groups", *flags]), "--label_fields", "click"]) == 0
    return shop / "x.config"


@pytest.mark.parametrize("command", ["check", "train"])
def test_check_and_train_stop_and_tell_where_the_pictures_are(config, tmp_path, capsys, command):
    flags = ["--pipeline_config", str(config), "--set", "data_config.image_root="]
    assert main([command, *flags]) == 1
    error = capsys.readouterr().err
    assert f"{config}: data_config.image_root: is not set, and 8 of the first 8 pictures cannot be read" in error
    assert "the first 'images/" in error
    assert "groups/part-0000" in error
    folder = config.parent
    assert f'they are in {folder}: set image_root: "{folder}", or --set data_config.image_root={folder}' in error
    assert "Traceback" not in error
    assert not list((folder / "groups_model").glob("*.index")) if command == "train" else True


def test_check_and_train_tell_where_they_looked(config, tmp_path, capsys):
    os.rename(config.parent / "images", tmp_path / "moved")
    for command in ("check", "train"):
        assert main([command, "--pipeline_config", str(config), "--set", "data_config.image_root=/data"]) == 1
        error = capsys.readouterr().err
        assert "data_config.image_root: '/data': 8 of the first 8 pictures cannot be read" in error
        assert f"looked in /data, the current folder, {config.parent}/groups, {config.parent}" in error
        assert "set the folder in which these paths start" in error
    # A share that is allowed to be bad is not a reason to stop.
    allowed = ["--set", "data_config.image_root=/data", "--set", "data_config.max_bad_record_share=1"]
    assert main(["check", "--pipeline_config", str(config), *allowed]) == 0


def test_packed_pictures_that_are_not_there(shop, tmp_path, capsys, monkeypatch):
    use_small_backbone(monkeypatch)
    make_log(shop, num_rows=600, num_items=8)
    pq.write_table(pq.read_table(shop / "log.parquet"), shop / "log.parquet")
    arguments = ["group", "--input", shop / "log.parquet", "--group_by", "item_id", "--image_field", "img_path"]
    arguments += ["--output", shop / "groups", "--embed_images", "--num_shards", 1, "--label_fields", "click"]
    assert main([*map(str, arguments), "--pipeline_config_template", str(shop / "x.config")]) == 0
    assert main(["check", "--pipeline_config", str(shop / "x.config")]) == 0
    with tarfile.open(shop / "groups/part-00000.pictures.tar", "w"):
        pass
    capsys.readouterr()
    for command in ("check", "train"):
        assert main([command, "--pipeline_config", str(shop / "x.config")]) == 1
        error = capsys.readouterr().err
        assert "data_config.packed_images: 8 of the first 8 pictures cannot be read, the first 'images/" in error
        assert "is not in part-00000.pictures.tar; pack them again" in error
