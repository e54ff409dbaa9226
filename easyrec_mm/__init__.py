"""End-to-end multimodal CTR training: grouped samples, one image pass per distinct picture, related task towers.

The names below are the Python API, described in docs/api.md. Each is imported when it is first used, so that importing
the package takes a moment.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easyrec_mm.api.embedding import embed
    from easyrec_mm.api.exporting import Exported
    from easyrec_mm.api.grouping import Engine, Groups, group
    from easyrec_mm.api.pipeline import Pipeline, load
    from easyrec_mm.api.quantizing import quantize
    from easyrec_mm.api.run import Run
    from easyrec_mm.api.searching import Index, search
    from easyrec_mm.api.serving import Server
    from easyrec_mm.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        ExportError,
        StoreError,
        UserError,
    )

__version__ = "0.1.0"

_MODULES = {
    "embed": "api.embedding",
    "Exported": "api.exporting",
    "Engine": "api.grouping",
    "Groups": "api.grouping",
    "group": "api.grouping",
    "Pipeline": "api.pipeline",
    "load": "api.pipeline",
    "quantize": "api.quantizing",
    "Run": "api.run",
    "Index": "api.searching",
    "search": "api.searching",
    "Server": "api.serving",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "ExportError": "errors",
    "StoreError": "errors",
    "UserError": "errors",
}
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Engine",
    "ExportError",
    "Exported",
    "Groups",
    "Index",
    "Pipeline",
    "Run",
    "Server",
    "StoreError",
    "UserError",
    "embed",
    "group",
    "load",
    "quantize",
    "search",
]


def __getattr__(name: str) -> Any:
    """Import a name of the API."""
    if name not in _MODULES:
        raise AttributeError(f"module 'easyrec_mm' has no attribute '{name}'")
    return getattr(import_module(f"easyrec_mm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the names of the API as well."""
    return sorted({*globals(), *__all__})
