"""Text of data, files and names that commands print cannot control the terminal."""

import json
import re

import pytest
from flat_helpers import CONFIG, make_log
from hypothesis import given
from hypothesis import strategies as st

from easyrec_mm.cli.main import main
from easyrec_mm.safe_text import printable

# Clears the screen, sets the title, goes back over the line, deletes, turns the direction of text.
EVIL = "\x1b[2J\x1b]0;title\x07\r\x08\x7f\x9b1m\u202e"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@given(st.text())
def test_printable_text_has_no_control_characters_and_json_stays_json(text):
    safe = printable(text + "\udc80")
    assert not CONTROL.search(safe)
    assert safe.encode("utf-8")
    if not CONTROL.search(text) and "\u2028" not in text and "\u2029" not in text:
        assert safe == text + "\\udc80"
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


@pytest.fixture
def evil_log(tmp_path, monkeypatch):
    """A log whose values, and a config whose names, hold control characters."""
    monkeypatch.chdir(tmp_path)
    flags = make_log(tmp_path)
    for name in ("train.csv", "eval.csv"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("a|b", f"a|{EVIL}".replace("\r", "")), newline="")
    return flags


def test_no_command_prints_what_controls_a_terminal(evil_log, tmp_path, capsys):
    (tmp_path / "evil.config").write_text(
        CONFIG.replace("batch_size: 50", "batch_size: 50 # " + EVIL.replace("\r", ""))
    )
    store = f"lmdb://{tmp_path}/{EVIL}"
    commands = [
        ["check", *evil_log],
        ["stats", *evil_log],
        ["check", "--pipeline_config", f"{EVIL}.config"],
        ["check", *evil_log, "--set", f"model_dir.{EVIL}=1"],
        ["check", *evil_log, "--set", f"train_input_path={EVIL}"],
        ["train", *evil_log, "--edit_config_json", json.dumps({f"train_config.{EVIL}": 1})],
        ["eval", *evil_log, "--checkpoint_path", EVIL],
        ["group", "--input", f"{EVIL}.csv", "--group_by", "user", "--image_field", "tags", "--output", "g"],
        ["group", "--input", "train.csv", "--group_by", EVIL, "--image_field", "tags", "--output", "g"],
        ["convert", *evil_log, "--input", EVIL, "--output", "c"],
        ["search", "--store", store, "--key", EVIL],
        ["store", "stat", "--store", store],
        ["embed", "--img_model_dir", EVIL, "--input", EVIL, "--store", store],
    ]
    for command in commands:
        main(command)
        output = capsys.readouterr()
        printed = output.out + output.err
        assert printed, command
        assert CONTROL.findall(printed) == [], command
    assert main(["check", *evil_log]) == 0
    assert "\\u001b[2J" in capsys.readouterr().out


def test_invalid_flags_are_neutralised_too(capsys):
    with pytest.raises(SystemExit):
        main([EVIL])
    assert CONTROL.findall(capsys.readouterr().err) == []
