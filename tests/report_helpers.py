"""A report in a browser: what it prints and requests, how wide it is, how well its letters can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PHONE = {"width": 390, "height": 844}

# Contrast of WCAG 2.2 of each text that is seen, against the colour behind it: [[ratio, text], ...], the lowest first.
CONTRASTS = """() => {
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parsed = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parsed(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const result = [];
  for (const element of document.querySelectorAll("body *:not(script):not(style)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const isDrawn = element instanceof SVGElement;
    const colour = parsed(isDrawn ? getComputedStyle(element).fill : getComputedStyle(element).color).slice(0, 3);
    const back = behind(element);
    const [high, low] = [luminance(colour), luminance(back)].sort((a, b) => b - a);
    result.push([(high + 0.05) / (low + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return result.sort((a, b) => a[0] - b[0]);
}"""


class Opened:
    """A page in the browser.

    messages   what it has written to the console, and errors
    requests   what it has asked for beside itself
    """

    def __init__(self, page, path: Path) -> None:
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        self.requests = [url for url in self.requests if not url.startswith("data:") and url != path.as_uri()]

    @property
    def names(self) -> list[str]:
        """Names of the sections."""
        return [panel.get_attribute("data-name") for panel in self.page.locator("[role=tabpanel]").all()]

    def show(self, name: str) -> None:
        """Show a section, and wait until the plots that are seen are drawn."""
        self.page.locator(f"#tab-{name}").click()
        panel = self.page.locator(f"#panel-{name}")
        assert panel.is_visible()
        for figure in panel.locator("figure.plot").all():
            if figure.is_visible():
                figure.scroll_into_view_if_needed()
                figure.locator(".main-svg").first.wait_for()

    def width(self) -> int:
        """How wide what can be scrolled to is."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def mark(self, name: str) -> float:
        """Seconds after the start of loading until a mark of the page."""
        return float(self.page.evaluate(f"performance.getEntriesByName('{name}')[0].startTime")) / 1000

    def column(self, panel: str, number: int) -> list[str]:
        """Texts of a column of the first table that is seen in a section."""
        table = self.page.locator(f"#panel-{panel} table:visible").first
        return [row.locator("td").nth(number).inner_text() for row in table.locator("tbody tr").all()]


@contextmanager
def opened(browser, path: Path, **settings) -> Iterator[Opened]:
    """A page in a window of its own, without a network."""
    context = browser.new_context(**settings)
    context.set_offline(True)
    try:
        yield Opened(context.new_page(), path)
    finally:
        context.close()


def numbers_of(texts: list[str]) -> list[float]:
    """Numbers in the texts that are numbers."""
    return [float(text.replace(",", "")) for text in texts if re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?", text)]
