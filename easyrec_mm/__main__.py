"""`python -m easyrec_mm` is `easyrec-mm`."""

from easyrec_mm.cli import run

run()
