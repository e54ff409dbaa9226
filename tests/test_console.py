"""What commands print cannot control the terminal, and has the form that --quiet and --json_logs ask for."""

import json
import logging
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import SimpleNamespace

import pytest
from flat_helpers import CONFIG, make_log
from hypothesis import given
from hypothesis import strategies as st

from easyrec_mm.cli.main import COMMANDS, main
from easyrec_mm.console import Console, Stream, json_line, pass_on, say, tell_result
from easyrec_mm.safe_text import printable
from easyrec_mm.serving.monitoring import JsonFormatter

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


# --- --quiet and --json_logs


def in_form(capsys, is_quiet, is_json, action):
    """The lines of stdout and stderr that an action prints on a console of this form."""
    console = Console()
    console.use(is_quiet, is_json, "train")
    with console.guarded():
        action()
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err.splitlines()


def speak():
    say("train step 3: loss 0.5", step=3, values={"loss": 0.5, "auc": math.nan})
    say("warning: slow")
    print("auc_click\n0.7")
    tell_result("written: x", file="x")
    for line in ("note: left out", "warning: odd", "error: redis://u:secret@h/0", "waiting"):
        print(line, file=sys.stderr)


def test_without_flags_lines_are_as_they_were_written(capsys):
    out, err = in_form(capsys, False, False, speak)
    assert out == ["train step 3: loss 0.5", "warning: slow", "auc_click", "0.7", "written: x"]
    assert err == ["note: left out", "warning: odd", "error: redis://u:***@h/0", "waiting"]


def test_quiet_leaves_out_the_work_under_way_and_notes(capsys):
    out, err = in_form(capsys, True, False, speak)
    assert out == ["warning: slow", "auc_click", "0.7", "written: x"]
    assert err == ["warning: odd", "error: redis://u:***@h/0", "waiting"]


def test_each_message_is_a_line_of_json_in_the_shape_of_the_servers_log(capsys):
    out, err = (list(map(json.loads, lines)) for lines in in_form(capsys, False, True, speak))
    assert [(line["level"], line["message"]) for line in out] == [
        ("INFO", "train step 3: loss 0.5"), ("WARNING", "warning: slow"), ("INFO", "auc_click\n0.7"),
        ("INFO", "written: x"),
    ]  # fmt: skip
    assert [line["level"] for line in err] == ["INFO", "WARNING", "ERROR", "WARNING"]
    assert (out[0]["step"], out[0]["values"], out[3]["file"]) == (3, {"loss": 0.5, "auc": None}, "x")
    assert err[2]["message"] == "error: redis://u:***@h/0"
    record = logging.LogRecord("easyrec_mm.train", logging.WARNING, "f", 1, "warning: odd", (), None)
    of_server = json.loads(JsonFormatter().format(record))
    time_of = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
    assert all(time_of.fullmatch(line.pop("time")) for line in (of_server, err[1]))
    assert err[1] == of_server


def test_both_flags_together_leave_lines_of_json_of_what_matters(capsys):
    out, err = (list(map(json.loads, lines)) for lines in in_form(capsys, True, True, speak))
    assert [line["message"] for line in out] == ["warning: slow", "auc_click\n0.7", "written: x"]
    assert [line["level"] for line in err] == ["WARNING", "ERROR", "WARNING"]


def test_messages_of_several_threads_stay_whole(capsys):
    def speak_together():
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: print("x" * number, number), range(200)))

    lines = in_form(capsys, False, True, speak_together)[0]
    assert sorted((json.loads(line)["message"] for line in lines), key=len) == [f"{'x' * n} {n}" for n in range(200)]


def test_lines_of_workers_keep_their_fields_and_get_their_number(capsys):
    line = json_line(0.0, "INFO", "easyrec_mm.train", "train step 3", {"step": 3})

    def speak_for_worker():
        pass_on(line + "\n", 1, sys.stdout)
        pass_on("a library says\n", 2, sys.stderr)

    (out,), (err,) = in_form(capsys, False, True, speak_for_worker)
    assert json.loads(out) == {**json.loads(line), "worker": 1}
    assert (json.loads(err)["message"], json.loads(err)["worker"]) == ("a library says", 2)
    assert in_form(capsys, True, False, speak_for_worker) == ([f"[1] {line}"], ["[2] a library says"])


def test_a_stack_trace_is_one_line_of_json(capsys):
    console = Console()
    console.use(False, True, "train")
    try:
        raise ValueError("http://user:secret@host/x")
    except ValueError as error:
        console.show_exception(ValueError, error, error.__traceback__)
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["message"]) == ("ERROR", "ValueError: http://user:***@host/x")
    assert line["exception"].startswith("Traceback")
    assert "secret" not in line["exception"]


def test_all_commands_have_both_flags_and_invalid_flags_are_json_too(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command, "--json_logs", "--no_such_flag"])
        assert ended.value.code == 2
        printed = capsys.readouterr()
        usage, error = map(json.loads, printed.err.splitlines())
        assert printed.out == ""
        assert (error["level"], usage["message"].split()[0]) == ("ERROR", "usage:")
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert {"--quiet", "--json_logs"} <= set(capsys.readouterr().out.split())


def test_a_bar_is_drawn_on_a_terminal_only_without_the_flags():
    for is_quiet, is_json in product((False, True), repeat=2):
        console = Console()
        console.use(is_quiet, is_json)
        stream = SimpleNamespace(isatty=lambda: True)
        assert Stream(stream, console, "WARNING").isatty() == (not is_quiet and not is_json)


@pytest.mark.slow
def test_a_training_prints_json_alone_and_quietly_only_its_result(tmp_path, monkeypatch, capfd):
    """Read from the files themselves, so that nothing that goes past the streams is missed."""
    monkeypatch.chdir(tmp_path)
    flags = make_log(tmp_path)
    assert main(["train", *flags, "--json_logs"]) == 0
    printed = capfd.readouterr()
    lines = [json.loads(line) for line in (printed.out + printed.err).splitlines()]
    assert {"time", "level", "logger", "process", "message"} <= set.intersection(*map(set, lines))
    steps = [line for line in lines if line.get("work") == "train"]
    assert [line["step"] for line in steps] == [1, 2]
    logged = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if line["kind"] == "train"]
    assert [line["values"]["loss"] for line in steps] == losses
    (result,) = [line for line in lines if "checkpoint" in line]
    assert (result["step"], result["checkpoint"]) == (2, "m/model.ckpt-2")
    written = json.loads((tmp_path / "m" / "eval_result.json").read_text())
    (evaluated,) = [line for line in lines if "results" in line]
    assert (evaluated["step"], evaluated["results"]["auc_click"]) == (2, written["auc_click"])
    assert main(["eval", *flags, "--compare", "m", "--json_logs"]) == 0
    written = json.loads((tmp_path / "m" / "eval_result.json").read_text())
    printed = capfd.readouterr()
    (evaluated,) = [line for line in map(json.loads, (printed.out + printed.err).splitlines()) if "results" in line]
    assert {"easyrec_mm": written["easyrec_mm"], **evaluated["results"]} == written
    assert evaluated["results"]["comparison"]["differences"]["auc_click"]["difference"] == 0
    assert evaluated["checkpoint"] == "m/model.ckpt-2 (step 2)"
    predict = ["predict", *flags, "--predict_input_path", "eval.csv", "--output", "p.csv", "--json_logs"]
    assert main(predict) == 0
    printed = capfd.readouterr()
    (result,) = [line for line in map(json.loads, (printed.out + printed.err).splitlines()) if "output" in line]
    assert (result["rows"], result["output"]) == (written["num_samples"], "p.csv")
    assert main(["train", *flags, "--quiet"]) == 0
    assert capfd.readouterr() == ("step 2; checkpoint m/model.ckpt-2\n", "")
