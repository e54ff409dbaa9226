"""A transformer block (Vaswani et al., NeurIPS 2017) with normalisation before attention and dense layers."""

from __future__ import annotations

import keras


def transformer_block(number: int, dim: int, num_heads: int, dropout: float, dtype: str) -> keras.layers.Layer:
    """Build block `number` for positions `[N, L, dim]`, with 4 * dim hidden units.

    Args:
      number: a part of its name.
      dim: width of a position.
      num_heads: heads of the attention.
      dropout: share of the values that are zeroed in training.
      dtype: Keras dtype policy.
    """
    import keras_hub  # takes half a second, and only some networks need it

    return keras_hub.layers.TransformerEncoder(
        4 * dim,
        num_heads,
        dropout=dropout,
        activation="gelu",
        normalize_first=True,
        name=f"block_{number}",
        dtype=dtype,
    )
