"""Draw docs/groups.svg, the picture of docs/data_format.md: rows of a log become groups, and a picture is encoded once.

python tools/draw_groups.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from drawing import IMAGE, LINE, PLAIN, REC, arrow, svg

OUTPUT = Path(__file__).parents[1] / "docs" / "groups.svg"
WIDTH, HEIGHT = 1000, 330
CELL_HEIGHT, TOP = 24, 66
GREEN = "#d5ead0"

# item, user, click, path of the picture; in the order of the log.
LOG = (
    ("i7", "u1", "0", "7.jpg"),
    ("i3", "u2", "1", "3.jpg"),
    ("i7", "u3", "1", "7.jpg"),
    ("i9", "u1", "0", "7.jpg"),
    ("i3", "u4", "0", "3.jpg"),
    ("i7", "u2", "0", "7.jpg"),
)
COLOURS = {"i7": IMAGE, "i3": REC, "i9": GREEN}


def cell(x: float, y: float, width: float, text: str, colour: str, height: float = CELL_HEIGHT) -> str:
    """A cell of a table with its upper left corner at that place."""
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}" stroke="{LINE}"/>'
    return f'{shape}\n<text x="{x + width / 2}" y="{y + height / 2 + 4.5}">{escape(text)}</text>'


def head(x: float, text: str, below: str = "") -> list[str]:
    """The title of a column of the drawing."""
    return [
        f'<text x="{x}" y="24" class="title">{escape(text)}</text>',
        f'<text x="{x}" y="43" class="note">{escape(below)}</text>',
    ]


def groups() -> dict[str, list[tuple[str, str, str, str]]]:
    """The rows of each item, in the order of the log."""
    of_item: dict[str, list[tuple[str, str, str, str]]] = {}
    for row in LOG:
        of_item.setdefault(row[0], []).append(row)
    return of_item


def draw() -> str:
    """The picture."""
    parts = head(20, "click log", "a row per impression")
    for i, row in enumerate(LOG):
        for j, (text, width) in enumerate(zip(row, (32, 36, 24, 54), strict=True)):
            parts.append(cell(20 + sum((32, 36, 24, 54)[:j]), TOP + i * CELL_HEIGHT, width, text, COLOURS[row[0]]))
    parts += head(236, "groups", "rows of an item, its picture once")
    parts += head(520, "pictures", "each distinct one once")
    parts += head(700, "image tower", "a vector per picture")
    parts += head(862, "samples", "with their vector")
    parts.append(arrow((172, 140), (230, 140)))
    y_of_picture = {"7.jpg": TOP + 20.0, "3.jpg": TOP + 128.0}
    for path, y in y_of_picture.items():
        parts.append(cell(540, y, 80, path, PLAIN, 44))
        parts.append(arrow((620, y + 22), (702, y + 22)))
        parts.append(cell(706, y, 62, "v" + path[0], PLAIN, 44))
    top, sample = float(TOP), 0
    for item, rows in groups().items():
        height = CELL_HEIGHT * len(rows)
        parts.append(cell(236, top, 40, item, COLOURS[item], height))
        for i, (_, user, click, _) in enumerate(rows):
            y = top + i * CELL_HEIGHT
            parts += [cell(276, y, 40, user, COLOURS[item]), cell(316, y, 26, click, COLOURS[item])]
            row_top = TOP + 26.0 * sample
            parts.append(cell(862, row_top, 44, user, COLOURS[item]))
            parts.append(cell(906, row_top, 40, "v" + rows[0][3][0], PLAIN))
            parts.append(arrow((768, y_of_picture[rows[0][3]] + 22), (858, row_top + CELL_HEIGHT / 2)))
            sample += 1
        parts.append(cell(342, top, 60, rows[0][3], COLOURS[item], height))
        parts.append(cell(402, top, 26, str(len(rows)), COLOURS[item], height))
        parts.append(arrow((428, top + height / 2), (536, y_of_picture[rows[0][3]] + 22)))
        top += height + 14
    y = top + 8
    labels = ((256, "item"), (296, "user"), (329, "click"), (372, "picture"), (415, "size"))
    parts += [f'<text x="{x}" y="{y}" class="small">{text}</text>' for x, text in labels]
    notes = (
        "Two items may show the same picture: it is encoded once, too.",
        "The gradient of a vector is the sum over all samples that read it.",
    )
    parts += [f'<text x="20" y="{HEIGHT - 30 + 18 * i}" class="note">{text}</text>' for i, text in enumerate(notes)]
    style = (
        ".title { font-weight: 600; font-size: 13.5px; text-anchor: start } "
        f".note {{ text-anchor: start; fill: {LINE} }} .small {{ font-size: 11px; fill: {LINE} }} "
        f".arrow {{ stroke: {LINE}; stroke-width: 1.3; marker-end: url(#tip) }}"
    )
    return svg("From a click log to groups, and from pictures to samples", WIDTH, HEIGHT, style, parts)


if __name__ == "__main__":
    OUTPUT.write_text(draw(), encoding="utf-8")
