"""Makes tf2onnx go through its sets in the order of insertion, so that equal models are written as equal bytes.

tf2onnx keeps nodes and names in sets, whose order depends on addresses and on the hash seed of the process. Nodes were
therefore in another order, or merged differently, in each export of the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSet
from contextlib import contextmanager
from itertools import chain
from typing import Any


class OrderedSet(MutableSet[Any]):
    """A set in the order of insertion, with the methods of `set` that tf2onnx calls."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: Any) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Any) -> None:
        """Add an item."""
        self._items[item] = None

    def discard(self, item: Any) -> None:
        """Remove an item if it is in the set."""
        self._items.pop(item, None)

    def union(self, *others: Iterable[Any]) -> OrderedSet:
        """Return a set with the items of all."""
        return OrderedSet(chain(self, *others))

    def issubset(self, other: Iterable[Any]) -> bool:
        """Return whether all items are in `other`."""
        return set(self) <= set(other)


@contextmanager
def ordered_sets() -> Iterator[None]:
    """Let `set` mean OrderedSet in the modules of tf2onnx where the order of a set shows in the model."""
    from tf2onnx import graph
    from tf2onnx.optimizer import back_to_back_optimizer

    modules: tuple[Any, ...] = (graph, back_to_back_optimizer)
    for module in modules:
        module.set = OrderedSet
    try:
        yield
    finally:
        for module in modules:
            del module.set
