"""Draw docs/flow.svg, the picture at the top of README.md: from a click log to a served answer.

python tools/draw_flow.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from drawing import IMAGE, LINE, PLAIN, REC, arrow, svg

OUTPUT = Path(__file__).parents[1] / "docs" / "flow.svg"
WIDTH, HEIGHT = 1000, 312
BOX_WIDTH, BOX_HEIGHT, GAP = 136, 74, 28

# Title, explanation in lines, colour.
Box = tuple[str, tuple[str, ...], str]

TRAINING: tuple[Box, ...] = (
    ("click log", ("impressions, and", "paths of pictures"), PLAIN),
    ("groups", ("one item: its picture", "and n samples"), PLAIN),
    ("image tower", ("once per", "distinct picture"), IMAGE),
    ("broadcast", ("image vector to all", "samples of the item"), IMAGE),
    ("shared bottom", ("with all other", "features"), REC),
    ("task towers", ("click, play time, ...,", "related to each other"), REC),
)
SERVING: tuple[Box, ...] = (
    ("image model", ("embeds all pictures,", "once each"), IMAGE),
    ("store", ("vectors of all items,", "in generations"), PLAIN),
    ("rec model", ("fields + vector", "to predictions"), REC),
    ("server", ("200 candidates", "in milliseconds"), REC),
)
TOTAL: Box = ("total model", ("both in one,", "proven equal"), PLAIN)


def box(x: float, y: float, content: Box) -> str:
    """A box with its upper left corner at that place."""
    title, lines, colour = content
    middle = x + BOX_WIDTH / 2
    shape = f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{colour}" stroke="{LINE}"/>'
    texts = [f'<text x="{middle}" y="{y + 22}" class="title">{escape(title)}</text>']
    texts += [f'<text x="{middle}" y="{y + 43 + 17 * i}">{escape(line)}</text>' for i, line in enumerate(lines)]
    return "\n".join([shape, *texts])


def row(contents: tuple[Box, ...], x: float, y: float) -> list[str]:
    """Boxes side by side, with arrows between them."""
    parts = []
    for i, content in enumerate(contents):
        left = x + i * (BOX_WIDTH + GAP)
        parts.append(box(left, y, content))
        if i:
            parts.append(arrow((left - GAP, y + BOX_HEIGHT / 2), (left - 4, y + BOX_HEIGHT / 2)))
    return parts


def draw() -> str:
    """The picture."""
    left, top, bottom = 22.0, 46.0, 218.0
    step = BOX_WIDTH + GAP
    second = left + step
    parts = [*row(TRAINING, left, top), *row(SERVING, second, bottom), box(left + 5 * step, bottom, TOTAL)]
    # From the trained network down to the three models.
    from_image, from_rec = left + 2.5 * step - GAP / 2, left + 4.5 * step - GAP / 2
    parts += [
        arrow((from_image, top + BOX_HEIGHT), (second + BOX_WIDTH / 2 + 20, bottom - 4)),
        arrow((from_rec, top + BOX_HEIGHT), (left + 3 * step + BOX_WIDTH / 2 + 10, bottom - 4)),
        arrow((left + 5 * step + BOX_WIDTH / 2, top + BOX_HEIGHT), (left + 5 * step + BOX_WIDTH / 2, bottom - 4)),
        f'<text x="{left}" y="30" class="head">trained together, end to end</text>',
        f'<text x="{left}" y="172" class="head">export splits it into three models</text>',
    ]
    style = (
        ".title { font-weight: 600; font-size: 13.5px } "
        f".head {{ text-anchor: start; font-size: 13px; fill: {LINE} }} "
        f".arrow {{ stroke: {LINE}; stroke-width: 1.5; marker-end: url(#tip) }}"
    )
    return svg("From a click log to a served answer", WIDTH, HEIGHT, style, parts)


if __name__ == "__main__":
    OUTPUT.write_text(draw(), encoding="utf-8")
