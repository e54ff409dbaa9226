"""Signals that end a run, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

START = """
import ctypes, time
from easyrec_mm.training.signals import caught_signals
with caught_signals("stopping"):
    print("waiting", flush=True)
"""
# The lock of C that nobody gives back: Python calls no handlers meanwhile, as in an exchange with another worker.
IN_C = """
    lock = (ctypes.c_char * 64)()
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""
IN_PYTHON = """
    time.sleep(60)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("waits", [IN_C, IN_PYTHON], ids=["in C", "in Python"])
def test_a_second_signal_ends_a_process_that_waits(waits, second):
    process = subprocess.Popen(
        [sys.executable, "-c", START + waits], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline() == "stopping\n"
        assert process.poll() is None
        process.send_signal(second)
        started = time.monotonic()
        process.wait(20)
        assert time.monotonic() - started < 10
        assert process.returncode in (-second, 128 + second)
    finally:
        process.kill()
        process.communicate()
