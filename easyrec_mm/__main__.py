"""Entry point: `python -m easyrec_mm` is the command `easyrec-mm`."""

from easyrec_mm.cli.main import run

run()
