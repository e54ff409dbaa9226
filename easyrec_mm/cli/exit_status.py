"""Exit statuses of commands."""


def after_signal(number: int) -> int:
    """Return the exit status of a command that a signal ended, as shells define it."""
    return 128 + number
