"""What a run shows while it works."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios

import pytest

from easyrec_mm.runs.progress import Progress

RATES = {"samples_per_second": 800.0, "images_per_second": 50.0, "samples_per_image": 16.0, "input_wait_share": 0.25}


def everything_written(terminal: int) -> str:
    """What stood on a terminal whose other end is closed; a terminal hands it over in pieces, whenever it likes."""
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 10_000)
        except OSError:  # How Linux tells the end of it.
            piece = b""
        if not piece:
            return b"".join(pieces).decode()
        pieces.append(piece)


@pytest.mark.parametrize("size", [(0, 0), (30, 100)])
def test_a_terminal_gets_a_bar_with_speeds_whatever_size_it_tells(monkeypatch, size):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = Progress("train", 20)
        progress.add(256, 16, 16, 0.1)
        progress.show({"loss": 0.5}, RATES, "7 min left")
        progress.close()
    shown = everything_written(ours)
    os.close(ours)
    assert "train 1/20" in shown
    assert "7 min left, 800 samples/s, 50 images/s, 16.0 samples/image, input wait 25%" in shown


def test_elsewhere_a_plain_line(capsys):
    progress = Progress("train", None, first=3)
    progress.add(256, 16, 16, 0.1)
    progress.show({"loss": 0.5}, RATES)
    progress = Progress("train", 20, first=4, is_exact=False)
    progress.show({"loss": 0.5}, RATES, "7 min left")
    values = "loss 0.5, 800 samples/s, 50 images/s, 16.0 samples/image, input wait 25%"
    assert capsys.readouterr().out == f"train step 4: {values}\ntrain step 4/~20: {values}, 7 min left\n"
