"""Passwords and signatures of addresses: in no output, log or file of any command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from flow_helpers import embed
from reference import reference_config, write_config
from serve_process import ROOT, running

from easyrec_mm.cli.main import main
from easyrec_mm.config.changes import changes_since, record_of
from easyrec_mm.config.pipeline import write_config as save_config
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.safe_text import hide_secrets, without_secrets

SECRET = "gehe1m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:gehe1m@cache:6379/0?prefix=a@b", "redis://:***@cache:6379/0?prefix=a@b"),
        ("rediss://me:p/gehe1m#?@cache/0", "rediss://me:***@cache/0"),
        ("POSTGRESQL://u:gehe1m@db/x?sslpassword=gehe1m&table=t", "POSTGRESQL://u:***@db/x?sslpassword=***&table=t"),
        ("postgresql://user@db/x", "postgresql://user@db/x"),
        ("a redis://a:gehe1m@h/0, 'redis://:gehe1m@h/1'", "a redis://a:***@h/0, 'redis://:***@h/1'"),
        ("postgresql://h/x?password=gehe1m: failed", "postgresql://h/x?password=***: failed"),
        ("connect host=h password=gehe1m user=u", "connect host=h password=*** user=u"),
        ("https://gehe1m@host/a@2x.png", "https://***@host/a@2x.png"),
        ("http://host/a@2x.png?size=3&design=4&monkey=5", "http://host/a@2x.png?size=3&design=4&monkey=5"),
        ("s3://AK:gehe1m@bucket/x", "s3://AK:***@bucket/x"),
        ("https://b/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=gehe1m&y=1",
         "https://b/x?X-Amz-Credential=***&X-Amz-Signature=***&y=1"),
        ("https://b/x?OSSAccessKeyId=AK&Expires=1&Signature=gehe1m", "https://b/x?OSSAccessKeyId=***&Expires=1&Signature=***"),
        ("https://b/x?sv=1&sig=gehe1m#f", "https://b/x?sv=1&sig=***#f"),
        ("https://b/x?key=gehe1m, https://b/x?access_token=gehe1m", "https://b/x?key=***, https://b/x?access_token=***"),
        ("lmdb:///a:b/c@d and lmdb://a:b/c@d", "lmdb:///a:b/c@d and lmdb://a:b/c@d"),
        ("--key_field=img key=3 a=b", "--key_field=img key=3 a=b"),
    ],
)  # fmt: skip
def test_what_is_hidden(text, shown):
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown


def test_what_a_driver_quotes_alone():
    uri = "postgresql://u:p%40gehe1m/x@h/0"
    for quoted in ("p%40gehe1m/x", "p@gehe1m/x", "gehe1m", "p%40gehe1m"):
        assert "gehe1m" not in hide_secrets(f"invalid token: {quoted}", uri)


@pytest.mark.parametrize(
    ("uri", "saved"),
    [
        ("redis://:gehe1m@cache/0?prefix=a@b", "redis://cache/0?prefix=a@b"),
        ("postgresql://me:gehe1m@db/x", "postgresql://me@db/x"),
        ("https://gehe1m@h/x?token=gehe1m", "https://h/x?token=***"),
        ("lmdb://a:b/c@d", "lmdb://a:b/c@d"),
    ],
)
def test_what_is_saved(uri, saved):
    assert without_secrets(uri) == saved


@pytest.mark.parametrize("part", ["redis://", "a://a:", "?", "x.x", " pass", "?token", "=", "@", "a.-+"])
def test_any_text_takes_time_in_proportion(part):
    """A text of a megabyte; what takes quadratic time would take hours."""
    hide_secrets(part * (1_000_000 // len(part)))


def test_saved_configs(tmp_path):
    """model_dir/pipeline.config and the record in a checkpoint; a new password is no other config."""
    config = EasyRecConfig(train_input_path=f"https://u:{SECRET}@h/x,https://h/y?sig={SECRET}", model_dir="m")
    config.feature_config.features.add(
        input_names=["a"], vector_store=f"redis://:{SECRET}@h/0", vocab_list=["a://", "b"]
    )
    save_config(config, str(tmp_path / "pipeline.config"))
    saved = (tmp_path / "pipeline.config").read_text()
    assert SECRET not in saved
    assert 'vector_store: "redis://h/0"' in saved
    assert SECRET not in record_of(config)
    other = EasyRecConfig()
    other.CopyFrom(config)
    other.feature_config.features[0].vector_store = "redis://:another@h/0"
    assert changes_since(record_of(config), other) == []
    assert SECRET in config.feature_config.features[0].vector_store


def failing_commands(config, folder):
    """Commands that end with a message, each for another reason."""
    web = f"https://u:{SECRET}@127.0.0.1:1/x.csv"
    serve = ["serve", "--rec_model_dir", f"{folder}/rec", "--store"]
    group = ["--output", f"{folder}/grouped", "--group_by", "a", "--image_field", "b"]
    feature = "feature_config.features[0]"
    vectors = [f"--set={feature}.feature_type=VectorFeature", f"--set={feature}.vector_dim=4"]
    vectors += ["--set", f"{feature}.vector_store"]
    yield from (
        ["store", "stat", "--store", f"redis://:{SECRET}@127.0.0.1:1/0"],
        ["store", "stat", "--store", f"redis://:x/{SECRET}@127.0.0.1:1/0"],
        ["store", "stat", "--store", f"redis://:[{SECRET}@127.0.0.1:1/0"],
        ["store", "stat", "--store", f"postgresql://u:{SECRET}@127.0.0.1:1/x"],
        ["store", "stat", "--store", f"postgresql://u:{SECRET}%zz@127.0.0.1:1/x"],
        ["store", "stat", "--store", f"postgresql://u@127.0.0.1:1/x?password={SECRET}"],
        ["store", "stat", "--store", f"mysql://u:{SECRET}@127.0.0.1:1/x"],
        ["store", "stat", "--store", f"lmdb://{folder}/none?password={SECRET}"],
        [*serve, f"redis://:{SECRET}@127.0.0.1:1/0"],
        [*serve, f"lmdb://{folder}/store", "--vector_store", f"redis://:{SECRET}@h/0"],
        ["embed", "--img_model_dir", f"{folder}/rec/1", "--input", web, "--store", f"redis://:{SECRET}@127.0.0.1:1/0"],
        ["group", "--input", web, *group],
        ["group", "--input", f"https://127.0.0.1:1/x.csv?X-Amz-Signature={SECRET}", *group],
        ["check", "--pipeline_config", config, *vectors[:-1], f"{vectors[-1]}=mysql://u:{SECRET}@h/x"],
        ["check", "--pipeline_config", config, *vectors[:-1], f"{vectors[-1]}=redis://:[{SECRET}@h/x"],
        ["no_such_command", f"redis://:{SECRET}@h/0"],
        ["store", "stat", "--store", "lmdb://x", f"--no_such=redis://:{SECRET}@h/0"],
    )  # fmt: skip


@pytest.mark.slow
def test_commands_that_fail(serving_place, tmp_path):
    """All in one process of its own, because `serve` configures the logs of its process."""
    commands = list(failing_commands(write_config(tmp_path, reference_config()), serving_place))
    code = """
import json, sys, easyrec_mm.cli.main as cli
for command in json.loads(sys.argv[1]):
    try:
        status = cli.main(command)
    except SystemExit as error:
        status = error.code
    print("status", status, file=sys.stderr)
"""
    arguments = json.dumps([[str(part) for part in command] for command in commands])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = [sys.executable, "-c", code, arguments]
    done = subprocess.run(process, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    *outputs, rest = re.split(r"status [12]\n", done.stderr)
    assert not rest
    for command, output in zip(commands, outputs, strict=True):
        assert "error: " in output, command
        assert SECRET not in output, (command, output)
    assert SECRET not in done.stdout
    assert_in_no_file(tmp_path)


@pytest.mark.slow
def test_commands_that_succeed(exported, serving_place, samples, servers, tmp_path, monkeypatch, capfd):
    """A PostgreSQL that asks for no password takes any."""
    monkeypatch.chdir(tmp_path)
    uri = servers("postgres").uri.replace("@", f":{SECRET}@") + "?table=secrets"
    embed(exported, uri)
    for command in (
        ["store", "stat", "--store", uri],
        ["store", "prune", "--store", uri],
        ["search", "--store", uri, "--key", samples[0][0]["img_path"], "--html", "found.html"],
    ):
        assert main(command) == 0
    assert main(["store", "rollback", "--store", uri]) == 1
    with running(serving_place / "rec", uri, "--access_log", "--missing_vector", "error") as server:
        assert server.predict(samples[0][:2])[0] == 200
        status, answer = server.predict([{**samples[0][0], "img_path": f"redis://:{SECRET}@h/0"}])
        assert status == 503
        assert server.end() == 0
    assert server.lines
    assert SECRET not in "".join(server.lines)
    assert SECRET not in str(answer)
    output = "".join(capfd.readouterr())
    assert "secrets" in output
    assert SECRET not in output
    assert_in_no_file(tmp_path)


def test_stack_traces():
    """Of a fault in the program."""
    code = "import easyrec_mm.cli.main as cli, easyrec_mm.cli.check as check\n"
    code += f"def fail(flags): raise RuntimeError('redis://:{SECRET}@h/0')\n"
    code += "check.run = fail\ncli.run()"
    command = [sys.executable, "-c", code, "check", "--pipeline_config", "x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "RuntimeError: redis://:***@h/0" in done.stderr
    assert SECRET not in done.stderr.replace(code, "")


def assert_in_no_file(folder):
    for place, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(place, name), "rb") as file:
                assert SECRET.encode() not in file.read(), name
