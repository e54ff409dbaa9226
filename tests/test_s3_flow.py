"""Whole commands with everything in a bucket: data, pictures, checkpoints, exports, outputs; S3 by moto."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from flow_helpers import KINDS, demo_flags, make_data, numbers, use_small_backbone

from easyrec_mm.cli.main import main
from easyrec_mm.files import place
from easyrec_mm.manifest import MANIFEST, SAMPLE_REQUEST
from easyrec_mm.serving.release import ServiceOptions
from easyrec_mm.serving.service import Service
from easyrec_mm.store import open_store


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    use_small_backbone(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture(scope="module")
def bucket(s3, data):
    """A bucket with the demo data; s3://name."""
    name = s3.new_bucket()
    s3.put_folder(data, f"{name}/data")
    return name


def run(*arguments, expect=0):
    assert main([str(a) for a in arguments]) == expect


def remote_flags(bucket, model_dir, **settings):
    return demo_flags(f"{bucket}/data", f"{bucket}/{model_dir}", **settings)


def names(s3, path):
    prefix = path.removeprefix("s3://").partition("/")[2] + "/"
    return {key.removeprefix(prefix) for key in s3.keys(path)}


@pytest.mark.slow
def test_everything_in_a_bucket(s3, bucket, data, tmp_path, capsys):
    s3.faults.unavailable_share, s3.faults.bytes_per_s = 0.05, 2e7
    flags = remote_flags(bucket, "run", eval_input_path=f"{bucket}/data/eval/*", train_config__keep_checkpoint_max=2)
    # A training that stops, and goes on where it was.
    steps = "--set=train_config.save_checkpoints_steps=2"
    run("train", *flags, steps, "--set=train_config.num_steps=4", "--set=eval_input_path=")
    assert f"checkpoint {bucket}/run/model.ckpt-4" in capsys.readouterr().out
    run("train", *flags, steps)
    output = capsys.readouterr().out
    assert f"continuing from {bucket}/run/model.ckpt-4 (step 4)" in output
    files = names(s3, f"{bucket}/run")
    assert {name for name in files if name.endswith(".index")} == {"model.ckpt-4.index", "model.ckpt-6.index"}
    assert {name.partition(".data")[0] for name in files if ".data-" in name} == {"model.ckpt-4", "model.ckpt-6"}
    log = [json.loads(line) for line in s3.get(f"{bucket}/run/metrics.jsonl").splitlines()]
    assert [line["step"] for line in log if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert sum("tfevents" in name for name in files) == 2
    assert not any("tmp" in name for name in files)
    # As if all were here.
    run("train", *demo_flags(data, tmp_path / "m", eval_input_path=f"{data}/eval/*"))
    here = json.loads((tmp_path / "m/eval_result.json").read_text())
    there = json.loads(s3.get(f"{bucket}/run/eval_result.json"))
    assert numbers(there) == pytest.approx(numbers(here), abs=1e-6)

    s3.delete(f"{bucket}/run/eval_result.json")
    run("eval", *flags)
    there = numbers(json.loads(s3.get(f"{bucket}/run/eval_result.json")))
    # Beside the intervals.
    assert {name: there[name] for name in numbers(here)} == pytest.approx(numbers(here), abs=1e-6)
    assert f"written to {bucket}/run/eval_result.json" in capsys.readouterr().out
    run("predict", *flags, "--predict_input_path", f"{bucket}/data/test/*", "--output", f"{bucket}/p.parquet",
        "--checkpoint_path", f"{bucket}/run/model.ckpt-6")  # fmt: skip
    run("predict", *flags[:2], *demo_flags(data, tmp_path / "m")[2:], "--predict_input_path", f"{data}/test/*",
        "--output", tmp_path / "p.parquet")  # fmt: skip
    remote, local = pq.read_table(io.BytesIO(s3.get(f"{bucket}/p.parquet"))), pq.read_table(tmp_path / "p.parquet")
    np.testing.assert_allclose(remote["probs_click"], local["probs_click"], atol=1e-6)

    exports = [f"--{flag}_model_export_dir={bucket}/export/{kind}/1" for kind, flag in KINDS.items()]
    run("export", "--model_dir", f"{bucket}/run", "--parity_groups", "12", *exports)
    assert f"{bucket}/run/model.ckpt-6: image model in {bucket}/export/image/1" in capsys.readouterr().out
    for kind in KINDS:
        manifest = json.loads(s3.get(f"{bucket}/export/{kind}/1/{MANIFEST}"))
        assert set(manifest["files"]) == names(s3, f"{bucket}/export/{kind}/1") - {MANIFEST, SAMPLE_REQUEST}

    store = f"lmdb://{tmp_path}/vectors"
    run("embed", "--img_model_dir", f"{bucket}/export/image/1", "--input", f"{bucket}/data/images/test/*",
        "--image_root", f"{bucket}/data", "--store", store, "--bad_pictures", f"{bucket}/bad.jsonl")  # fmt: skip
    assert s3.get(f"{bucket}/bad.jsonl") == b""
    keys = sorted(str(path.relative_to(data)) for path in (data / "images/test").iterdir())
    opened = open_store(store)
    assert len(opened.get_many(keys).vectors) == len(keys)
    run("search", "--store", store, "--key", keys[0], "--image_root", f"{bucket}/data", "--html", f"{bucket}/s.html")
    assert s3.get(f"{bucket}/s.html").count(b"data:image/jpeg") == len(keys) == 12

    _serve_and_exchange(s3, bucket, opened)
    opened.close()
    assert s3.faults.num_unavailable > 20


def _serve_and_exchange(s3, bucket, store):
    """A release that is put beside the one that serves is taken over."""
    service = Service(ServiceOptions(f"{bucket}/export/rec"), store)
    assert service.release.folder == f"{bucket}/export/rec/1"
    copy = service.release.copy
    assert service.reload() is None
    for name in names(s3, f"{bucket}/export/rec/1") - {MANIFEST}:
        s3.put(f"{bucket}/export/rec/2/{name}", s3.get(f"{bucket}/export/rec/1/{name}"))
    assert service.reload() is None  # it is not complete
    s3.put(f"{bucket}/export/rec/2/{MANIFEST}", s3.get(f"{bucket}/export/rec/1/{MANIFEST}"))
    assert service.reload().folder == f"{bucket}/export/rec/2"
    assert not Path(copy).exists()
    assert Path(service.release.copy).exists()


@pytest.mark.parametrize("setting", ["train_input_path", "data_config.image_root", "model_dir"])
@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        ("no bucket", "there is no such bucket; check its name"),
        ("wrong credentials", "the credentials are refused (InvalidAccessKeyId: "),
        ("no server", "no answer for "),
    ],
)
def test_what_cannot_be_reached_is_told_in_time(s3, data, tmp_path, capsys, monkeypatch, setting, mistake, expected):
    bucket = f"s3://{mistake.replace(' ', '-')}-{setting[:5]}" if mistake == "no bucket" else s3.new_bucket()
    path = f"{bucket}/train/*" if setting == "train_input_path" else bucket
    if mistake == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setattr(place, "FIRST_TRY_S", 1.0)
    s3.check_credentials(mistake == "wrong credentials")
    try:
        run("train", *demo_flags(data, tmp_path / "m"), f"--set={setting}={path}", expect=1)
    finally:
        s3.check_credentials(False)
    error = capsys.readouterr().err
    assert f"{bucket}: {expected}" in error
    assert "Traceback" not in error
