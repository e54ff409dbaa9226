"""`python -m easyrec_mm` is `easyrec-mm`."""

import sys

from easyrec_mm.cli import main

sys.exit(main())
