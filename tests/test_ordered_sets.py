"""Sets in the order of insertion, against Python's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tf2onnx import graph

from easyrec_mm.export.ordered_sets import OrderedSet, ordered_sets

ITEMS = st.lists(st.integers(0, 9))


@given(ITEMS, ITEMS, st.integers(0, 9))
def test_it_holds_what_a_set_holds(items, others, item):
    ours, pythons, other = OrderedSet(items), set(items), set(others)
    assert (ours | OrderedSet(others), ours & other, ours - other) == (
        pythons | other,
        pythons & other,
        pythons - other,
    )
    assert ours.union(others, [item]) == pythons | other | {item}
    assert ours.issubset(OrderedSet(others)) == pythons.issubset(other)
    ours |= other
    ours.discard(item)
    assert ours == (pythons | other) - {item}
    assert len(ours) == len((pythons | other) - {item})


@given(ITEMS)
def test_it_is_in_the_order_of_insertion(items):
    ours = OrderedSet()
    for item in items:
        ours.add(item)
    assert list(ours) == list(OrderedSet(items)) == list(dict.fromkeys(items))


def test_tf2onnx_has_its_own_sets_again():
    with ordered_sets():
        assert graph.set is OrderedSet
    assert "set" not in vars(graph)
