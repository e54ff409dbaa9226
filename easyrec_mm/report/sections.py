"""The sections of the report, in the order of its tabs. A new one is a function in a module, and a line here."""

from __future__ import annotations

from easyrec_mm.report import curves, summary
from easyrec_mm.report.section import Section

SECTIONS: list[Section] = [
    Section("summary", "Summary", summary.parts),
    Section("learning", "Learning curves", curves.learning),
    Section("speed", "Speed", curves.speed),
]
