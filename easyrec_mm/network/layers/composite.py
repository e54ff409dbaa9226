"""The base of layers that consist of other layers."""

from __future__ import annotations

import keras


class Composite(keras.layers.Layer):
    """A layer whose inner layers create their variables when it is first called, which must be outside of a graph.

    Keras would otherwise trace `call` before the first call, at each level of nesting again, to create them: a third of
    the time to build a model.
    """

    def __init__(self, name: str, dtype: str | None = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.built = True
