"""Exit statuses of commands."""


def after_signal(number: int) -> int:
    """The exit status of a command that a signal ended, as shells have it."""
    return 128 + number
