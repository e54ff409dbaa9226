"""The exit status of a command is the one that the documentation names."""

import os
import re
import signal
import subprocess
import sys

import pytest
from docs_helpers import ROOT

from easyrec_mm.cli import check
from easyrec_mm.cli.main import main
from easyrec_mm.errors import LostWorkerError, UserError
from easyrec_mm.exit_status import FAILURE, INVALID_FLAGS, LOST_WORKER, MEANINGS, SUCCESS, after_signal

CHECK = ["check", "--pipeline_config", "x.config"]


def test_the_table_of_the_documentation_is_that_of_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = text.split("| exit status | meaning |\n|---|---|\n")[1].split("\n\n")[0]
    assert [tuple(row.strip("| ").split(" | ")) for row in table.splitlines()] == list(MEANINGS.items())


def test_the_help_shows_the_table(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == SUCCESS
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{status}: {meaning}" in text for status, meaning in MEANINGS.items())


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("x: is wrong"), FAILURE, "error: x: is wrong"),
        (LostWorkerError("worker 1"), LOST_WORKER, "error: worker 1"),
        (FileNotFoundError(2, "No such file", "x"), FAILURE, "error: x: No such file"),
        (MemoryError(), FAILURE, "error: memory ran out: "),
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted"),
    ],
)
def test_a_command_that_fails_in_some_way(error, status, message, monkeypatch, capsys):
    def fail(flags):
        raise error

    monkeypatch.setattr(check, "run", fail)
    assert main(CHECK) == status
    assert capsys.readouterr().err.strip().startswith(message)


def test_success_and_invalid_flags(monkeypatch):
    monkeypatch.setattr(check, "run", lambda flags: 0)
    assert main(CHECK) == SUCCESS
    with pytest.raises(SystemExit) as ended:
        main([*CHECK, "--no_such_flag"])
    assert ended.value.code == INVALID_FLAGS


@pytest.mark.parametrize(("flag", "advice"), [("--modeldir=m", "; did you mean --model_dir?"), ("--no_such_flag", "")])
def test_an_unknown_flag_shows_the_usage_of_its_command(flag, advice, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--pipeline_config", "x.config", flag])
    said = capsys.readouterr().err
    assert said.startswith("usage: easyrec-mm train ")
    assert said.endswith(f"easyrec-mm train: error: unrecognized arguments: {flag}{advice}\n")


@pytest.mark.parametrize(("flag", "status"), [("--version", SUCCESS), ("--no_such_flag", INVALID_FLAGS)])
def test_the_process_ends_with_the_status_of_the_parser(flag, status):
    assert subprocess.run([sys.executable, "-m", "easyrec_mm", flag], capture_output=True).returncode == status


def test_statuses_after_signals_are_those_of_the_shell():
    for number in (signal.SIGINT, signal.SIGTERM):
        status = os.waitstatus_to_exitcode(os.system(f"sh -c 'kill -{number} $$'; exit $?"))
        assert after_signal(number) == status
    examples = re.findall(r"(\d+) after (Ctrl-C|SIGTERM)", MEANINGS["128 + N"])
    numbers = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
    assert {name: int(status) for status, name in examples} == {name: after_signal(n) for name, n in numbers.items()}
