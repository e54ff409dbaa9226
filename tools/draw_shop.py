"""Draw docs/shop.jpg, the picture of docs/tutorial.md: items of the demo's shop, of little appeal above, of much below.

python tools/draw_shop.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "samples"))

from demo_pictures import CATEGORIES, STYLES, render  # noqa: E402

OUTPUT = ROOT / "docs" / "shop.jpg"
SIDE, GAP = 96, 6
APPEALS = (-0.8, 0.8)


def draw() -> Image.Image:
    """The picture: a category in each column, in the styles in turn."""
    step = SIDE + GAP
    sheet = Image.new("RGB", (len(CATEGORIES) * step + GAP, len(APPEALS) * step + GAP), "white")
    for column in range(len(CATEGORIES)):
        for row, appeal in enumerate(APPEALS):
            rng = np.random.default_rng([column, row])
            picture = render(column, (column + row) % len(STYLES), appeal, SIDE, rng)
            sheet.paste(picture, (GAP + column * step, GAP + row * step))
    return sheet


if __name__ == "__main__":
    draw().save(OUTPUT, quality=90)
