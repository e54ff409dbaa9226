"""Draws the product pictures of the demo data: what an item's category, style and appeal look like."""

import colorsys
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Floats = npt.NDArray[np.float64]
Plane = npt.NDArray[np.float32]  # [height, width]
Color = tuple[int, int, int]

STYLES = ("retro", "botanic", "urban", "pure")
# Outline of each category's product: (height, half width) from top to bottom, mirrored; both in [-1, 1].
SILHOUETTES: dict[str, list[tuple[float, float]]] = {
    "bag": [(-0.45, 0.55), (0.2, 0.72), (0.8, 0.8), (0.9, 0.7)],
    "bottle": [(-1, 0.2), (-0.5, 0.2), (-0.3, 0.45), (-0.15, 0.5), (0.9, 0.5), (1, 0.42)],
    "cushion": [(-0.8, 0.82), (-0.72, 0.86), (0, 0.74), (0.72, 0.86), (0.8, 0.82)],
    "dress": [(-1, 0.32), (-0.6, 0.36), (-0.25, 0.26), (0.3, 0.58), (1, 0.82)],
    "lamp": [(-0.95, 0.35), (0.1, 0.85), (0.1, 0.12), (0.8, 0.12), (0.85, 0.45), (0.98, 0.45)],
    "mug": [(-0.7, 0.62), (0.5, 0.6), (0.68, 0.48), (0.72, 0.4)],
    "plate": [(math.sin(a) * 0.85, math.cos(a) * 0.85) for a in np.linspace(-math.pi / 2, math.pi / 2, 17)],
    "vase": [(-1, 0.34), (-0.8, 0.24), (-0.5, 0.3), (0, 0.62), (0.35, 0.66), (0.75, 0.45), (1, 0.36)],
}
HANDLES = {"bag": (0.0, -0.5, 0.4), "mug": (0.68, -0.1, 0.36)}  # centre x, centre y, radius
CATEGORIES = tuple(SILHOUETTES)
STYLE_HUES = (0.07, 0.33, 0.6, 0.85)


def _rgb(hue: float, saturation: float, value: float) -> Color:
    """8-bit colour of hue (cyclic), saturation and value (clipped to [0, 1])."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def _grid(size: int) -> tuple[Plane, Plane]:
    """x and y of the pixel centres, each [size, size], in [-1, 1]."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    return np.broadcast_to(line, (size, size)), np.broadcast_to(line[:, None], (size, size))


def _pattern(style: int, u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Share of the accent colour at each place (u, v) of the product: what tells the styles apart without colour."""
    frequency, phase = rng.uniform(9.0, 12.0), rng.uniform(0.0, 6.28)
    wave: Plane
    if STYLES[style] == "retro":  # stripes
        wave = np.sin(frequency * (v + 0.3 * math.sin(phase) * u) + phase)
    elif STYLES[style] == "botanic":  # dots
        wave = np.sin(frequency * u + phase) * np.sin(frequency * v) - 0.35
    elif STYLES[style] == "urban":  # rings
        wave = np.sin(frequency * np.hypot(u - 0.2 * math.sin(phase), v) + phase)
    else:  # pure: one soft sweep
        sweep: Plane = np.clip((u + 0.3 * math.sin(phase)) * 1.2, 0, 1)
        return sweep
    return (wave > 0).astype(np.float32)


def _background(appeal: float, size: int, rng: np.random.Generator) -> Image.Image:
    """A dull gradient; the less appealing, the more clutter lies on it."""
    x, y = _grid(size)
    angle, hue, tint, value = rng.uniform(0, 6.28), rng.random(), rng.uniform(0.02, 0.12), rng.uniform(0.68, 0.95)
    slope = np.float32(rng.uniform(0.04, 0.16))
    light = 1 + slope * (np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y)
    color = np.asarray(_rgb(hue, tint, value), np.float32)
    image = Image.fromarray(np.minimum(light[:, :, None] * color, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.poisson(9 * (1 - appeal))):
        left, top = rng.uniform(0, size, 2)
        width, height = rng.uniform(0.02, 0.08, 2) * size
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + width, top + height), fill=_rgb(rng.random(), 0.12, rng.uniform(0.2, 0.9)))
    return image


def draw_mask(category: int, size: int, center: Floats, scale: float, tilt: float) -> Image.Image:
    """Where the product is: 255, elsewhere 0. Center and scale are in units of half the picture."""
    name = CATEGORIES[category]
    rotation = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])

    def place(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        placed = (np.asarray(points) @ rotation.T * scale + center + 1) * (size / 2)
        return [(float(x), float(y)) for x, y in placed]

    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    half = SILHOUETTES[name]
    draw.polygon(place([(width, y) for y, width in half] + [(-width, y) for y, width in reversed(half)]), fill=255)
    if name in HANDLES:
        x, y, radius = HANDLES[name]
        (center_x, center_y), reach = place([(x, y)])[0], radius * scale * size / 2
        box = (center_x - reach, center_y - reach, center_x + reach, center_y + reach)
        draw.ellipse(box, outline=255, width=max(1, round(reach * 0.3)))
    return mask


def render(category: int, style: int, appeal: float, image_size: int, rng: np.random.Generator) -> Image.Image:
    """Draws one product picture, RGB, `image_size` square.

    Args:
        category: index into CATEGORIES; chooses the silhouette.
        style: index into STYLES; chooses the pattern and, loosely, the hue.
        appeal: in [-1, 1]; more of it means more colour, less clutter, a larger and sharper product.
        image_size: width and height in pixels.
        rng: draws what means nothing: place, tilt, light, shades.
    """
    size = 2 * image_size  # drawn at twice the size for smooth edges
    image = _background(appeal, size, rng)
    scale, tilt = 0.58 + 0.07 * appeal + rng.uniform(-0.09, 0.09), rng.uniform(-0.45, 0.45)
    center = rng.uniform(-0.22, 0.22, 2)
    mask = draw_mask(category, size, center, scale, tilt)

    shadow = mask.reduce(4).filter(ImageFilter.BoxBlur(size / 64)).point([round(i * 0.45) for i in range(256)])
    shift = round(size * 0.03)
    image.paste((40, 38, 42), (round(rng.uniform(-shift, shift)), shift), shadow.resize((size, size)))

    x, y = ((axis - np.float32(middle)) / np.float32(scale) for axis, middle in zip(_grid(size), center, strict=True))
    cos, sin = np.float32(math.cos(tilt)), np.float32(math.sin(tilt))
    u, v = cos * x + sin * y, cos * y - sin * x  # the product's own axes
    hue, saturation = STYLE_HUES[style] + rng.normal(0, 0.07), 0.5 + 0.38 * appeal + rng.normal(0, 0.07)
    main = np.asarray(_rgb(hue, saturation, rng.uniform(0.6, 0.85)), np.float32)
    accent = np.asarray(_rgb(hue + 0.05, saturation * 0.4, 0.97), np.float32)
    light = np.float32(1 + rng.uniform(-0.08, 0.08)) - np.float32(rng.uniform(-0.2, 0.2)) * u - np.float32(0.12) * v
    share = _pattern(style, u, v, rng)[:, :, None]
    product = np.clip((main + share * (accent - main)) * light[:, :, None], 0, 255).astype(np.uint8)
    image.paste(Image.fromarray(product), (0, 0), mask)

    image = image.reduce(2)
    blur = (0.35 - 0.35 * appeal + rng.normal(0, 0.1)) * image_size / 64
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.15 else image
