"""Exit statuses of commands."""

SUCCESS = 0
FAILURE = 1
# As argparse has it.
INVALID_FLAGS = 2
# A worker of a training ended because another one was lost. sysexits.h calls it EX_TEMPFAIL: trying again may help.
LOST_WORKER = 75
_AFTER_SIGNAL = 128

# Exit status -> what it says of the command; `easyrec-mm --help` and docs/troubleshooting.md show it.
MEANINGS = {
    str(SUCCESS): "the command did what it should; a server has answered what was under way when a signal came",
    str(FAILURE): "it failed: a message on stderr says where and what to do; a stack trace is a fault of the program",
    str(INVALID_FLAGS): "the flags are invalid; nothing was done",
    str(LOST_WORKER): "a worker of a training ended because another one was lost; starting all again goes on",
    f"{_AFTER_SIGNAL} + N": "signal N ended it, such as 130 after Ctrl-C and 143 after SIGTERM; a training saves first",
}


def after_signal(number: int) -> int:
    """Return the exit status of a command that a signal ended, as shells define it."""
    return _AFTER_SIGNAL + number
