"""Vectors that features name by key: which of a store's they are."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from feature_helpers import raw_feature, stored_vector

from easyrec_mm.errors import StoreError
from easyrec_mm.store import Record, open_store
from easyrec_mm.store.feature_vectors import VectorStores, origin_number


@pytest.fixture
def writer(uri):
    store = open_store(uri, writable=True)
    yield store
    store.close()


def write(store, origin, vectors):
    """A generation; None is a key that is marked absent."""
    width = next(len(vector) for vector in vectors.values() if vector is not None)
    generation = store.begin(origin, width, "float32")
    arrays = {key: None if vector is None else np.array(vector, np.float32) for key, vector in vectors.items()}
    store.put_many(generation, [Record(key, array, bytes(16), 0) for key, array in arrays.items()])
    store.complete(generation)


def feature(uri, name="title", width=2):
    return stored_vector(name, ("key",), width, uri)


def test_what_is_missing(uri, writer):
    write(writer, "words", {"a": [1, 2], "b": [3, 4], "bad": None})
    title = feature(uri)
    stores = VectorStores([title, raw_feature("other", ("x",), 1)])
    lookup = stores.look_up(title, ["b", "", "c", "a", "bad"])
    np.testing.assert_array_equal(lookup.vectors, np.float32([[3, 4], [0, 0], [0, 0], [1, 2], [0, 0]]))
    assert lookup.vectors.dtype == np.float32
    assert lookup.is_missing.tolist() == [False, False, True, False, True]
    for keys in ([], ["", ""]):  # nothing is asked of the store
        lookup = stores.look_up(title, keys)
        assert (lookup.vectors.shape, lookup.is_missing.tolist()) == ((len(keys), 2), [False] * len(keys))
    assert list(stores.features) == ["title"]
    stores.close()


def test_vectors_stay_those_that_a_model_was_trained_with(uri, writer):
    write(writer, "words", {"a": [1, 2]})
    title = feature(uri)
    trained = VectorStores([title])
    origins = {name: origin_number(generation.fingerprint) for name, generation in trained.generations.items()}
    write(writer, "better words", {"a": [5, 6]})
    pinned, current = VectorStores([title], origins), VectorStores([title])
    for stores, expected in ((trained, [1, 2]), (pinned, [1, 2]), (current, [5, 6])):
        assert stores.look_up(title, ["a"]).vectors.tolist() == [expected]
    assert pinned.is_newest()
    assert not trained.is_newest()
    assert writer.prune() == ([], {1: "is being read"})
    for stores in (trained, pinned):
        assert stores.look_up(title, ["a"]).vectors.tolist() == [[1, 2]]
        stores.close()
    assert writer.prune() == ([1], {})
    with pytest.raises(StoreError, match=r"'title': .* holds generation 2 of 'better words', but not the vectors that"):
        VectorStores([title], origins)
    write(writer, "words", {"a": [7, 8]})
    again = VectorStores([title], origins)
    assert again.look_up(title, ["a"]).vectors.tolist() == [[7, 8]]
    for stores in (again, current):
        stores.close()


def test_a_newer_generation_of_the_same_origin(uri, writer):
    write(writer, "words", {"a": [1, 2]})
    title = feature(uri)
    stores = VectorStores([title])
    first = stores.generations["title"]
    newer = replace(first, number=2, completed_s=first.completed_s + 1)
    writer.change(lambda meta: replace(meta, current=2, generations={1: first, 2: newer}))
    writer.put_many(newer, [Record("a", np.float32([3, 4]), bytes(16), 0)])
    assert not stores.is_newest()
    newest = VectorStores([title], {"title": origin_number("words")})
    assert newest.look_up(title, ["a"]).vectors.tolist() == [[3, 4]]
    assert stores.look_up(title, ["a"]).vectors.tolist() == [[1, 2]]
    for opened in (stores, newest):
        opened.close()


def test_stores_that_cannot_be_used(uri, writer):
    place = re.escape(f"feature 'title': {writer.uri}")
    writer.begin("words", 2, "float32")
    with pytest.raises(StoreError, match=f"{place}: holds no complete generation of vectors; write one with"):
        VectorStores([feature(uri)])
    with pytest.raises(StoreError, match=f"{place}: holds nothing, but not the vectors that the model was trained"):
        VectorStores([feature(uri)], {"title": 1})
    write(writer, "words", {"a": [1, 2]})
    with pytest.raises(StoreError, match=f"{place}: generation 1 has vectors of 2 numbers, but vector_dim is 3; make"):
        VectorStores([feature(uri, width=3)])


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=f"^feature 'title': lmdb://{tmp_path}/x: no store there; write one with"):
        VectorStores([feature(f"lmdb://{tmp_path}/x")])


def test_numbers_of_origins():
    numbers = [origin_number(f"tower {i}") for i in range(1000)]
    assert len(set(numbers)) == 1000
    assert all(0 <= number < 2**63 for number in numbers)
