"""What the drawings of the documentation share: colours, arrows, and the SVG around the parts."""

from __future__ import annotations

from collections.abc import Sequence

INK, LINE, IMAGE, REC, PLAIN = "#1f2933", "#52606d", "#fde2c4", "#cfe3fb", "#f0f2f5"

Place = tuple[float, float]


def arrow(start: Place, end: Place) -> str:
    """Return a straight arrow."""
    return f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" class="arrow"/>'


def svg(title: str, width: int, height: int, style: str, parts: Sequence[str]) -> str:
    """Return a drawing of parts on white; `style` is CSS in addition to that of texts."""
    text_style = f"text {{ font: 12px system-ui, sans-serif; fill: {INK}; text-anchor: middle }}"
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker>'
    )
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>{title}</title>",
        f"<style>{text_style} {style}</style>",
        f"<defs>{tip}</defs>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
        *parts,
        "</svg>",
        "",
    )
    return "\n".join(lines)
