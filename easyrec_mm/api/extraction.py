"""Extracts vectors of pictures, texts and sounds by any encoder, into stores and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.frames import Data, as_file, is_frame, naming, path_of, table_of
from easyrec_mm.api.options import names_of, options_from
from easyrec_mm.console import warn
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.extraction.extract import Extracted
    from easyrec_mm.extraction.plan import Extraction
    from easyrec_mm.extraction.preprocessing import Settings


def extract(
    items: Data,
    *,
    preprocessing: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    layers: str | Iterable[str] = (),
    text_column: str | Iterable[str] = (),
    **settings: Any,
) -> list[Extracted]:
    """Encode pictures, texts or sounds, and write their vectors, as `easyrec-mm extract` does.

    Args:
      items: pictures or sounds, or tables and lists with paths or texts; globs and lists of them; or a DataFrame.
      preprocessing: settings of a preprocessing file, or the path of one.
      layers: names of layers; by default the output of the encoder.
      text_column: columns of texts.
      **settings: further flags of the command: preset, saved_model or onnx; store or output; image_root, key_column,
        path_column, dtype, batch_size; refresh, bad_items, max_bad_share.

    Returns:
      For each layer the place of its vectors, and how many items were encoded, were there already, and are bad.

    Raises:
      UserError: if the encoder, the items or the output cannot be used, or a setting does not exist.
    """
    from easyrec_mm.extraction.plan import Extraction, checked, with_layers

    run_names = ("refresh", "bad_items", "max_bad_share")
    run_options = {name: settings.pop(name) for name in run_names if name in settings}
    chosen = settings_from(preprocessing)
    paths = {name: os.fspath(value) for name, value in settings.items() if isinstance(value, os.PathLike)}

    def run_on(path: str) -> list[Extracted]:
        values = {
            **settings,
            **paths,
            "input": path,
            "text_column": names_of(text_column, "text_column"),
            "preprocessing": chosen,
        }
        extraction = with_layers(options_from(Extraction, values, "extract"), names_of(layers, "layers"))
        return run([checked(extraction)], run_options, warn)

    if not is_frame(items):
        with naming({"--input": "items"}):
            return run_on(path_of(items, "items"))
    with as_file(table_of(items, "items", [str(column) for column in items.columns]), "the DataFrame items") as path:
        return run_on(path)


def settings_from(preprocessing: str | os.PathLike[str] | Mapping[str, Any] | None) -> Settings:
    """Return settings of a mapping, or of the file at a path.

    Raises:
      ConfigError: if a setting or a value does not exist.
    """
    from easyrec_mm.extraction.preprocessing import Settings, read_settings, settings_of

    if isinstance(preprocessing, Mapping):
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in preprocessing.items()}
        return settings_of(values, "preprocessing")
    return read_settings(os.fspath(preprocessing)) if preprocessing else Settings()


def run(plan: Sequence[Extraction], options: Mapping[str, Any], tell: Callable[[str], None]) -> list[Extracted]:
    """Extract; see extraction/extract.py.

    Args:
      plan: the extractions.
      options: values for ExtractOptions.
      tell: takes a line about records that are left out.

    Raises:
      UserError: if an encoder, an input or an output cannot be used, or an option does not exist.
    """
    import_tensorflow()
    from easyrec_mm.extraction.extract import ExtractOptions
    from easyrec_mm.extraction.extract import extract as extract_plan

    return extract_plan(plan, options_from(ExtractOptions, options, "extract"), tell)
