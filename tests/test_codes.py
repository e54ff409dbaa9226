"""Codebooks, their names and the report on codes, against plain NumPy and k-means itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from code_helpers import cluster_vectors
from sklearn.metrics import adjusted_rand_score

from easyrec_mm.codes.codebooks import Codebooks, Level
from easyrec_mm.codes.fitting import Sample, fit
from easyrec_mm.codes.renaming import renamed
from easyrec_mm.codes.report import Variance, collisions
from easyrec_mm.store.codes import Shape, codebooks_uri, codes_uri, parse_origin


def fitted(vectors, levels=2, codes=8, seed=0, old=None):
    old = np.zeros((len(vectors), levels), np.int32) if old is None else old
    return fit(vectors, old, Shape(levels, codes), seed, "tower")


def assigned_by_hand(codebooks, vectors):
    """Codes and what is left of each vector, one vector after another in float64."""
    codes, rests = [], []
    for vector in vectors.astype(np.float64):
        row, rest = [], vector
        for level in codebooks.levels:
            nearest = int(np.argmin(((level.centroids - rest) ** 2).sum(axis=1)))
            row.append(int(level.names[nearest]))
            rest = rest - level.centroids[nearest]
        codes.append(row)
        rests.append(rest)
    return np.array(codes), np.array(rests)


# --- Fitting and assigning


def test_codes_are_the_nearest_centroids_of_what_is_left():
    vectors, clusters = cluster_vectors(400)
    codebooks = fitted(vectors, levels=3)
    codes, square_errors = codebooks.assign(vectors)
    expected, rests = assigned_by_hand(codebooks, vectors)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(square_errors[:, -1], (rests**2).sum(axis=1), rtol=1e-4)
    assert adjusted_rand_score(clusters, codes[:, 0]) == 1
    assert (np.diff(square_errors.mean(axis=0)) < 0).all()
    # Of k-means: each centroid is the mean of its vectors, and of what the level before leaves of them.
    for name, centroid in zip(codebooks.levels[0].names, codebooks.levels[0].centroids, strict=True):
        np.testing.assert_allclose(centroid, vectors[codes[:, 0] == name].mean(axis=0), atol=1e-5)


def test_the_seed_decides_and_nothing_else():
    vectors, _ = cluster_vectors(400)
    assert fitted(vectors, codes=20).origin == fitted(vectors.copy(), codes=20).origin
    assert fitted(vectors, codes=20, seed=1).origin != fitted(vectors, codes=20).origin
    origin = parse_origin(fitted(vectors).origin)
    assert (origin.shape, origin.vectors) == (Shape(2, 8), "tower")
    assert parse_origin("d" * 64) is None


@pytest.mark.parametrize("number", [1, 3, 8])
def test_vectors_no_more_than_codes_are_their_own_centroids(number):
    vectors = np.random.default_rng(0).normal(size=(number, 5)).astype(np.float32)
    vectors = np.repeat(vectors, 3, axis=0)  # duplicates share all codes
    codebooks = fitted(vectors)
    codes, square_errors = codebooks.assign(vectors)
    assert [len(level.names) for level in codebooks.levels] == [number, 1]
    assert not square_errors.any()
    assert len(np.unique(codes, axis=0)) == number
    assert (codes[0::3] == codes[1::3]).all()


def test_what_is_left_by_rounding_is_no_reason_for_codes():
    """Of equal vectors far from 0 a mean differs in the last digits, and levels after it would code that."""
    rng = np.random.default_rng(0)
    vectors = np.repeat((1000 + rng.normal(size=(9, 4))).astype(np.float32), 11, axis=0)
    codebooks = fitted(vectors, levels=4, codes=8)
    codes, _ = codebooks.assign(vectors)
    assert len(np.unique(codes, axis=0)) == 9
    assert len(codebooks.levels[3].names) == 1


def test_a_sample_is_that_of_the_keys():
    """Whatever their order and the portions in which they come."""
    keys = [f"k{i}" for i in range(1000)]
    vectors = np.arange(1000, dtype=np.float32)[:, None]
    codes = vectors.astype(np.int32) + 1
    drawn = []
    for order, size in ((np.arange(1000), 1000), (np.random.default_rng(0).permutation(1000), 7)):
        sample = Sample(50, seed=3)
        for start in range(0, 1000, size):
            rows = order[start : start + size]
            sample.add([keys[row] for row in rows], vectors[rows], codes[rows])
        drawn.append(sample.drawn())
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    np.testing.assert_array_equal(drawn[0][1], drawn[0][0] + 1)
    assert len(np.unique(drawn[0][0])) == 50
    assert 300 < drawn[0][0].mean() < 700
    other = Sample(50, seed=4)
    other.add(keys, vectors, codes)
    assert set(other.drawn()[0].ravel()) != set(drawn[0][0].ravel())


# --- Names


def test_names_are_those_of_the_best_assignment():
    """As the best of all permutations, tried one by one."""
    rng = np.random.default_rng(2)
    codebooks = Codebooks(Shape(1, 5), "tower", (Level(np.arange(1, 6, dtype=np.int32), rng.normal(size=(5, 2))),))
    for _ in range(10):
        old, new = rng.integers(1, 6, (2, 60, 1)).astype(np.int32)
        result = renamed(codebooks, old, new, None)
        place = {
            tuple(centroid): name
            for name, centroid in zip(result.levels[0].names, result.levels[0].centroids, strict=True)
        }
        names = np.array([place[tuple(centroid)] for centroid in codebooks.levels[0].centroids])
        assert sorted(names) == [1, 2, 3, 4, 5]
        kept = (names[new[:, 0] - 1] == old[:, 0]).sum()
        assert kept == max((np.array(p)[new[:, 0] - 1] == old[:, 0]).sum() for p in itertools.permutations(range(1, 6)))


def test_shuffled_codebooks_get_their_names_back():
    """By the items; by the centroids, where no item has codes in both."""
    vectors, _ = cluster_vectors(300)
    old = fitted(vectors, levels=3, codes=12)
    rng = np.random.default_rng(0)
    shuffled = Codebooks(
        old.shape,
        old.vectors,
        tuple(Level(level.names, level.centroids[rng.permutation(len(level.names))]) for level in old.levels),
    )
    old_codes, new_codes = old.assign(vectors).codes, shuffled.assign(vectors).codes
    assert (old_codes != new_codes).mean() > 0.5
    for codebooks in (
        renamed(shuffled, old_codes, new_codes, None),
        renamed(shuffled, old_codes[:0], new_codes[:0], old),
    ):
        assert codebooks.origin == old.origin
        np.testing.assert_array_equal(codebooks.assign(vectors).codes, old_codes)


def test_a_refit_stays_near_the_old_codes():
    vectors, clusters = cluster_vectors(600)
    old = fitted(vectors[:400], codes=16)
    codes = np.zeros((600, 2), np.int32)
    codes[:400] = old.assign(vectors[:400]).codes
    again = fitted(vectors, codes=16, seed=9, old=codes)
    new = again.assign(vectors).codes
    names = renamed(again, codes[:400], new[:400], old)
    assert (names.assign(vectors[:400]).codes[:, 0] == codes[:400, 0]).mean() > 0.9
    scratch = fitted(vectors, codes=16, seed=9)
    names = renamed(scratch, codes[:400], scratch.assign(vectors[:400]).codes, old)
    assert (names.assign(vectors[:400]).codes[:, 0] == codes[:400, 0]).mean() < 0.9
    # It is as good as a new one, and finds a cluster that the old codes have not seen.
    assert again.assign(vectors).square_errors[:, 0].sum() < 1.1 * scratch.assign(vectors).square_errors[:, 0].sum()
    far = vectors[clusters == 0] + 50
    both = np.concatenate([vectors, far])
    with_far = fitted(both, codes=16, old=np.concatenate([codes, np.zeros((len(far), 2), np.int32)]))
    assert with_far.assign(far).square_errors[:, 0].mean() < 2 * 6 * 0.3**2


# --- Report


def test_collisions_are_counted():
    codes = np.array([[1, 1], [1, 2], [1, 1], [2, 1], [2, 1], [2, 1]])
    assert collisions(codes) == (collisions(codes[::-1]))
    result = collisions(codes)
    assert (result.num_codes, result.num_items, result.largest, result.largest_id) == (3, 5, 3, "2_1")
    alone = collisions(codes[1:2])
    assert (alone.num_codes, alone.num_items, alone.largest) == (1, 0, 1)


def test_the_explained_share_is_that_of_the_variance():
    vectors, _ = cluster_vectors(500)
    codebooks = fitted(vectors, levels=3)
    variance = Variance(vectors.shape[1], 3)
    for start in range(0, 500, 70):
        part = vectors[start : start + 70]
        variance.add(part, codebooks.assign(part).square_errors)
    total = ((vectors - vectors.mean(axis=0)) ** 2).sum()
    errors = codebooks.assign(vectors).square_errors
    np.testing.assert_allclose(variance.explained(), 1 - errors.sum(axis=0) / total, rtol=1e-5)
    assert variance.error() == pytest.approx(errors[:, -1].mean())
    equal = Variance(2, 1)
    equal.add(np.full((3, 2), 0.1, np.float32), np.zeros((3, 1)))
    assert np.isnan(equal.explained()).all()


# --- Places


@pytest.mark.parametrize(
    ("uri", "codes", "codebooks"),
    [
        ("lmdb://a/b/", "lmdb://a/b/codes", "lmdb://a/b/codebooks"),
        ("redis://h:1/0", "redis://h:1/0?prefix=easyrec_mm:codes", "redis://h:1/0?prefix=easyrec_mm:codebooks"),
        ("redis://h/0?prefix=x&a=%3A", "redis://h/0?a=%3A&prefix=x:codes", "redis://h/0?a=%3A&prefix=x:codebooks"),
        ("postgres://u:p@h/d", "postgres://u:p@h/d?table=image_vectors_codes", "postgres://u:p@h/d?table=image_vectors_codebooks"),
        ("postgresql://h/d?table=t", "postgresql://h/d?table=t_codes", "postgresql://h/d?table=t_codebooks"),
    ],
)  # fmt: skip
def test_codes_are_beside_the_vectors(uri, codes, codebooks):
    assert (codes_uri(uri), codebooks_uri(uri)) == (codes, codebooks)
