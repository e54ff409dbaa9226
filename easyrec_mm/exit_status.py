"""Exit statuses of commands: 0 for success, 1 for a user's mistake, 2 for invalid flags, and those below."""

# A worker of a training ended because another one was lost. sysexits.h calls it EX_TEMPFAIL: trying again may help.
LOST_WORKER = 75


def after_signal(number: int) -> int:
    """Return the exit status of a command that a signal ended, as shells define it."""
    return 128 + number
