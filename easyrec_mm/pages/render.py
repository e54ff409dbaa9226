"""Renders templates as HTML pages. Values are escaped, so that no name or path of a user is read as HTML."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from easyrec_mm import __version__


def render(template: str, **values: object) -> str:
    """Render a template of the folder `templates` with the given values.

    Raises:
      jinja2.UndefinedError: if the template needs a value that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


def jpeg_url(content: bytes) -> str:
    """Return a data URL that embeds a JPEG in a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


_ENVIRONMENT = Environment(
    loader=PackageLoader("easyrec_mm.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["jpeg_url"] = jpeg_url
_ENVIRONMENT.globals["version"] = __version__
