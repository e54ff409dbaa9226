"""Gives semantic IDs to the vectors of a store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from easyrec_mm.errors import UserError

if TYPE_CHECKING:
    from easyrec_mm.codes.report import Report


def quantize(
    store: str,
    *,
    codes: str = "",
    refit: bool = False,
    seed: int = 0,
    sample: int = 1 << 18,
    output: str | os.PathLike[str] = "",
) -> Report:
    """Give codes to the vectors of a store, which become current beside them, as `easyrec-mm quantize` does.

    Args:
      store: URI of the store.
      codes: levels and codes per level, as in 4x256; "" for those of the store's codebooks, or 4x256.
      refit: make new codebooks where some exist, and keep the names of codes for as many items as possible.
      seed: of new codebooks.
      sample: most vectors of which codebooks are made.
      output: also write the codes to this file, .parquet or .csv.

    Returns:
      What the codes tell of the vectors, how many items share their code, and how many have another one than before.

    Raises:
      UserError: if the store or the output cannot be used, or the codebooks are not for these vectors.
    """
    from easyrec_mm.codes.quantize import QuantizeOptions, parse_shape
    from easyrec_mm.codes.quantize import quantize as quantize_store

    try:
        shape = parse_shape(codes) if codes else None
    except ValueError as error:
        raise UserError(f"quantize: codes: {error}") from error
    for name, value, least in (("seed", seed, 0), ("sample", sample, 1)):
        if value < least:
            raise UserError(f"quantize: {name}: is {value}; give a number from {least}")
    return quantize_store(store, QuantizeOptions(shape, refit, seed, sample, os.fspath(output)))
