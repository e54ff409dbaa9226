"""The page: what each section says, or why it says nothing, in one file without any others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from plotly.offline import get_plotlyjs

from easyrec_mm.errors import UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.pages.render import render
from easyrec_mm.report.context import Context
from easyrec_mm.report.section import Choice, Details, Part, Plot, Section, Text, Unavailable
from easyrec_mm.report.sections import SECTIONS
from easyrec_mm.safe_text import hide_secrets


@dataclass(frozen=True)
class Made:
    """A section that was made: its parts, the seconds that this took beyond passes of models, and why it is missing."""

    section: Section
    parts: Sequence[Part]
    seconds: float
    problem: str = ""


def make_sections(context: Context, sections: Sequence[Section] = SECTIONS) -> list[Made]:
    """Make the sections; one that cannot be made says why in its place.

    Only what is expected is caught: a mistake in the code fails.
    """
    return [_made(section, context) for section in sections]


def _made(section: Section, context: Context) -> Made:
    started, before = time.perf_counter(), context.model_seconds
    problem = ""
    try:
        parts = section.make(context)
    except (Unavailable, UserError) as error:
        problem = shown(str(error))
        parts = [Text(problem, "note" if isinstance(error, Unavailable) else "warning")]
    seconds = time.perf_counter() - started - (context.model_seconds - before)
    return Made(section, parts, seconds, problem)


def page(context: Context, made: Sequence[Made]) -> str:
    """Render the page."""
    names = [run.name for run in context.runs]
    title = f"{names[0]}: what it has learned"
    plotly = get_plotlyjs() if any(_has_plot(section.parts) for section in made) else ""
    text = render(
        "report.html",
        title=title,
        subtitle=_subtitle(context),
        sections=[_values(section) for section in made],
        plotly_place=_PLOTLY_PLACE,
        made_at=time.strftime("%Y-%m-%d %H:%M"),
    )
    # Not through the template: nothing in it is escaped, and secrets are looked for in what users have written.
    return hide_secrets(text).replace(
        _PLOTLY_PLACE, f'<script type="text/plain" id="plotly">{plotly}</script>' if plotly else ""
    )


# Where the template wants plotly.js.
_PLOTLY_PLACE = "<!-- plotly.js -->"


def _values(made: Made) -> dict[str, object]:
    """Return what the template shows of a section."""
    smooths = any(isinstance(part, Plot) and part.smooths for part in made.parts)
    return {"name": made.section.name, "title": made.section.title, "parts": made.parts, "smooths": smooths}


def _subtitle(context: Context) -> str:
    run = context.run
    others = [other.name for other in context.runs[1:]]
    step = f", step {run.step:,}" if run.step >= 0 else ""
    return f"{shown(run.path)}{step}" + (f"; compared with {', '.join(others)}" if others else "")


def _has_plot(parts: Sequence[Part]) -> bool:
    for part in parts:
        if isinstance(part, Plot):
            return True
        if isinstance(part, Choice) and any(map(_has_plot, part.options.values())):
            return True
        if isinstance(part, Details) and _has_plot(part.parts):
            return True
    return False
