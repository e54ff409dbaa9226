"""`python -m easyrec_mm` is `easyrec-mm`."""

from easyrec_mm.cli.main import run

run()
