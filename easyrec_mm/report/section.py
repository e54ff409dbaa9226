"""What a section of the report is: a name, a title, and a function that returns its parts, shown one below the other.

A section knows nothing of HTML, but for `Markup`: pages/templates/parts.html draws each kind of part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.io.json import to_json_plotly

if TYPE_CHECKING:
    from easyrec_mm.report.context import Context


class Unavailable(Exception):  # noqa: N818 - an expected result, not a mistake
    """Raised where a section, or a part of one, cannot be made; the message is a sentence that says why."""


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is "", "note" (small explanation) or "warning"."""

    text: str
    kind: str = ""
    name = "text"


@dataclass(frozen=True)
class Heading:
    """The heading of the parts below it."""

    text: str
    name = "heading"


@dataclass(frozen=True)
class Tile:
    """A figure in large type: what it is, its value as text, and a remark below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """Figures in large type, side by side."""

    tiles: Sequence[Tile]
    name = "tiles"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    text   what it shows
    order  what the table is sorted by in this column, if it is not the text; numbers come before texts, None last
    kind   any of "number", "good", "bad", "quiet" and "code", with spaces between them
    """

    text: str
    order: float | str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table, which a click on a column's name sorts; a plain text as a cell is a Cell with that text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    title: str = ""
    name = "table"

    def cells(self) -> list[list[Cell]]:
        """Return the rows."""
        return [[cell if isinstance(cell, Cell) else Cell(cell, cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Plot:
    """A figure of plotly, drawn when it is first shown.

    Colours are names of the page's style, such as figures.COLOURS, so that they fit its light and dark form.

    figure    the figure; its title stays empty
    title     heading of the figure
    about     a sentence below the title: how to read it
    smooths   whether a slider smooths the lines that have `meta={"smooth": True}`
    wide      whether it has the whole width of the page, in place of a half
    """

    figure: go.Figure
    title: str
    about: str = ""
    smooths: bool = False
    wide: bool = False
    name = "plot"

    @property
    def height(self) -> int:
        """Return the height in pixels, which the page keeps free for it."""
        return int(self.figure.layout.height or 340)

    def json(self) -> str:
        """Return the figure as JSON that may stand within HTML."""
        text: str = to_json_plotly(_without_tags(self.figure.to_dict()))
        return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _without_tags(value: Any) -> Any:
    """Return a part of a figure with its texts escaped: plotly reads tags in them, and names of users may look so."""
    if isinstance(value, dict):
        # Templates of labels are the program's own, and have tags of plotly.
        return {key: inner if key == "hovertemplate" else _without_tags(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tags(inner) for inner in value]
    return value.replace("&", "&amp;").replace("<", "&lt;") if isinstance(value, str) else value


@dataclass(frozen=True)
class Picture:
    """A picture with lines below it; `jpeg` is None where it cannot be shown, and `problem` then says why."""

    jpeg: bytes | None
    lines: Sequence[str] = ()
    problem: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side; `side` is the width of one of them in pixels."""

    pictures: Sequence[Picture]
    title: str = ""
    side: int = 144
    name = "pictures"


@dataclass(frozen=True)
class Choice:
    """Parts of which the reader chooses one list, such as those of a task: its name -> its parts."""

    label: str
    options: Mapping[str, Sequence[Part]]
    name = "choice"


@dataclass(frozen=True)
class Details:
    """Parts that are folded until the reader opens them."""

    summary: str
    parts: Sequence[Part]
    name = "details"


@dataclass(frozen=True)
class Code:
    """Text in its own lines and in letters of equal width, such as a config."""

    text: str
    name = "code"


@dataclass(frozen=True)
class Markup:
    """HTML that pages/render.py has rendered from a template of its own."""

    html: str
    name = "markup"


Part = Text | Heading | Tiles | Table | Plot | Pictures | Choice | Details | Code | Markup


@dataclass(frozen=True)
class Section:
    """A section of the report.

    name   name in the page's address, as in report.html#metrics
    title  name of its tab
    make   returns the parts; raises Unavailable, or a UserError of the data, if it cannot
    """

    name: str
    title: str
    make: Callable[[Context], Sequence[Part]]


def by_task(options: Mapping[str, Sequence[Part]]) -> Sequence[Part]:
    """Return the parts of the only task, or a choice between tasks."""
    if len(options) == 1:
        return next(iter(options.values()))
    return [Choice("task", options)]


def tried(make: Callable[..., Sequence[Part]], *arguments: Any) -> Sequence[Part]:
    """Return the parts that a function makes, or the sentence that says why they cannot be made."""
    try:
        return make(*arguments)
    except Unavailable as error:
        return [Text(str(error), "note")]
