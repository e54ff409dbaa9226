"""How search compares vectors, against NumPy: the cosine about the mean, whitening, and stores with little in them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from easyrec_mm.cli.main import main
from easyrec_mm.store import Record, open_store, similarity
from easyrec_mm.store.records import content_hash
from easyrec_mm.store.search import Index, Query, evaluate, neighbours, read_index
from easyrec_mm.store.similarity import PLAIN, fit, mean_cosine

NUMBER, WIDTH = 400, 6


def narrow_cone(number=NUMBER, width=WIDTH, seed=0):
    """Vectors as of a trained tower: one direction in common, and small differences of unequal size."""
    random = np.random.default_rng(seed)
    common = random.normal(size=width) * 5
    return (common + random.normal(size=(number, width)) * np.geomspace(0.1, 0.01, width)).astype(np.float32)


def cosines(matrix):
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return unit @ unit.T


def centred(matrix):
    return cosines(matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64))


def whitened(matrix):
    """Cosine in the inner product of Mahalanobis."""
    differences = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    products = differences @ np.linalg.pinv(np.cov(matrix.T.astype(np.float64), bias=True), 1e-9) @ differences.T
    lengths = np.sqrt(np.diag(products))
    return products / lengths / lengths[:, None]


EXPECTED = {"centred": centred, "whitened": whitened, "cosine": lambda matrix: cosines(matrix.astype(np.float64))}


@pytest.fixture(params=[1 << 14, 7], ids=["at once", "in parts"])
def _parts(request, monkeypatch):
    monkeypatch.setattr(similarity, "ROWS_AT_A_TIME", request.param)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("name", list(EXPECTED))
def test_similarities_are_those_of_numpy(name):
    matrix = narrow_cone()
    expected = EXPECTED[name](matrix)
    keys = [f"k{i}" for i in range(NUMBER)]
    index = Index(keys, matrix.copy(), "exact", fit(name, matrix))
    for row in (0, 200):
        found, nearness = zip(*index.nearest(matrix[row], NUMBER, keys[row]), strict=True)
        rows = [int(key[1:]) for key in found]
        assert sorted(rows) == [i for i in range(NUMBER) if i != row]
        np.testing.assert_allclose(nearness, expected[row][rows], atol=1e-5)
        assert (np.diff(nearness) <= 0).all()
    new = matrix[5] * 1.01  # not of the store: the statistics are those of the store
    (found, nearness), *_ = index.nearest(new, 1)
    joined = np.concatenate([matrix, new[None]]).astype(np.float64)
    if name == "centred":
        differences = joined - matrix.mean(axis=0, dtype=np.float64)
        expected_last = cosines(differences)[-1, :NUMBER]
        assert (found, nearness) == (f"k{expected_last.argmax()}", pytest.approx(expected_last.max(), abs=1e-5))


@pytest.mark.usefixtures("_parts")
def test_statistics_are_those_of_numpy():
    matrix = narrow_cone(60)
    matrix[3] = 0  # has cosine 0 with all others
    fitted = fit("centred", matrix)
    pairs = ~np.eye(60, dtype=bool)
    exact = matrix.astype(np.float64)
    with np.errstate(invalid="ignore"):
        plain = np.nan_to_num(cosines(exact))
    assert fitted.plain_cosine == pytest.approx(plain[pairs].mean(), rel=1e-9)
    square_distances = ((exact[:, None] - exact) ** 2).sum(axis=2)
    assert fitted.distance == pytest.approx(np.sqrt(square_distances[pairs].mean()), rel=1e-9)
    index = Index([str(i) for i in range(60)], matrix.copy(), "exact", fitted)
    assert mean_cosine(iter([index.vectors[:20], index.vectors[20:]])) == pytest.approx(
        centred(matrix)[pairs].mean(), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("name", ["centred", "whitened"])
def test_other_indexes_find_what_numpy_does(kind, name):
    matrix = narrow_cone(1500, 16)
    truth = np.argsort(-EXPECTED[name](matrix), axis=1)[:, :10]
    index = Index([str(i) for i in range(1500)], matrix.copy(), kind, fit(name, matrix))
    rows, _ = index.search(index.vectors, 10)
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), truth.tolist(), strict=True)]
    assert np.mean(shares) > 0.8
    assert index.recall(10) == pytest.approx(np.mean(shares), abs=0.05)


DEGENERATE = {
    "one vector": np.float32([[1, 2, 3]]),
    "all equal": np.full((40, 3), 0.1, np.float32),
    "all zero": np.zeros((5, 3), np.float32),
    "width 1": np.float32([[0.1], [0.2], [0.4]]),
    "some zero": np.float32([[0, 0, 0], [1, 2, 3], [1, 2, 4], [0, 0, 0]]),
    "very large": np.float32([[3e38, -3e38, 1], [-3e38, 3e38, 1], [3e38, 3e38, 1]]),
    "very small": np.float32([[1e-40, 0, 0], [0, 1e-40, 0], [0, 0, 2e-40]]),
    "wider than many": np.eye(3, 12, dtype=np.float32),
}


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
@pytest.mark.parametrize("name", list(EXPECTED))
@pytest.mark.parametrize("case", list(DEGENERATE))
def test_stores_with_little_in_them(case, name, kind):
    matrix = DEGENERATE[case]
    number = len(matrix)
    index = Index([str(i) for i in range(number)], matrix.copy(), kind, fit(name, matrix))
    found = index.nearest(matrix[0], 10)
    assert sorted(int(key) for key, _ in found) == list(range(min(number, 10))) or number > 10
    assert all(-1.00001 <= nearness <= 1.00001 for _, nearness in found)
    assert index.recall(10) == 1
    lengths = np.linalg.norm(index.vectors, axis=1)
    assert all(length == 0 or length == pytest.approx(1, abs=1e-6) for length in lengths)


def test_vectors_that_are_the_mean_have_nothing_in_common():
    same = np.full((7, 3), 0.1, np.float32)
    for name in ("centred", "whitened"):
        assert not fit(name, same).unit(same).any()
    assert fit("centred", same).distance < 1e-8
    assert math.isnan(fit("centred", same[:1]).distance)
    assert math.isnan(fit("centred", same[:1]).plain_cosine)
    two = np.float32([[0.1], [0.2], [0.4]])  # of one number, which is less or more than the mean
    np.testing.assert_array_equal(fit("centred", two).unit(two), [[-1], [-1], [1]])
    assert PLAIN.unit(two).tolist() == [[1], [1], [1]]


def test_whitening_makes_few_vectors_equally_unlike():
    """N points that span N - 1 directions have the same cosine with each other: a reason against it as the default."""
    units = fit("whitened", few := narrow_cone(7, 16)).unit(few)
    np.testing.assert_allclose(units @ units.T, np.where(np.eye(7, dtype=bool), 1, -1 / 6), atol=1e-3)


def test_whitening_leaves_out_what_is_rounding():
    matrix = narrow_cone(200, 3)
    flat = np.concatenate([matrix, matrix[:, :1] + matrix[:, 1:2]], axis=1)  # the fourth number says nothing new
    np.testing.assert_allclose((units := fit("whitened", flat).unit(flat)) @ units.T, whitened(matrix), atol=0.01)


def test_labels_are_compared_by_the_statistics_of_all(tmp_path):
    matrix = narrow_cone(120, seed=4)
    matrix[60:] += np.float32([0.5, 0, 0, 0, 0, 0])  # those without a label move the mean
    labels = np.random.default_rng(1).integers(8, size=60)
    text = "key,label\n" + "".join(f"k{i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    for name, reference in (("centred", centred), ("whitened", whitened)):
        index = Index([f"k{i}" for i in range(120)], matrix.copy(), "exact", fit(name, matrix))
        near = reference(matrix)[:60, :60].copy()
        np.fill_diagonal(near, -2)
        counts = np.bincount(labels)[labels]
        expected = (labels[near.argmax(axis=1)] == labels)[counts > 1].mean()
        assert evaluate(index, str(tmp_path / "labels.csv"), 3).recall[1] == pytest.approx(expected)


# --- In a store


@pytest.fixture
def store(tmp_path):
    """Four keys with the vector of the first, of which one has the same picture; and two other vectors."""
    opened = open_store(f"lmdb://{tmp_path}/store", writable=True)
    generation = opened.begin("tower", 3, "float32")
    base = np.float32([5, 5, 0])
    other = np.float32([5, 5, 0.1])
    contents = {"query": (base, b"1"), "same picture": (base, b"1"), "same vector": (base, b"2"), "odd": (-base, b"3")}
    contents |= {"near": (other, b"4"), "near too": (other, b"4"), "minus zero": (np.float32([5, 5, -0.0]), b"5")}
    records = [Record(key, vector, content_hash(content), 0) for key, (vector, content) in contents.items()]
    opened.put_many(
        generation, [*records, Record("without hash", base, bytes(16), 0), Record("bad", None, bytes(16), 0)]
    )
    opened.complete(generation)
    yield opened
    opened.close()


def test_duplicates_are_marked_and_distances_are_those_of_the_stored_vectors(store):
    generation = store.meta().current_generation
    index = read_index(store, generation)
    assert index.similarity.name == "centred"
    found = neighbours(store, generation, index, Query(np.float32([5, 5, 0]), content_hash(b"1"), "query"), 10)
    duplicates = {neighbour.key: neighbour.duplicate for neighbour in found}
    second = min(rank for rank, neighbour in enumerate(found, 1) if neighbour.key.startswith("near"))
    assert sorted(duplicates.pop(key) for key in ("near", "near too")) == ["", f"same content as rank {second}"]
    assert duplicates == {
        "same picture": "same content as the query",
        "same vector": "same vector as the query",
        "minus zero": "same vector as the query",
        "without hash": "same vector as the query",
        "odd": "",
    }
    distances = {neighbour.key: neighbour.distance for neighbour in found}
    assert distances["near"] == pytest.approx(0.1)
    assert distances["odd"] == pytest.approx(10 * math.sqrt(2))
    assert distances["same picture"] == 0


@pytest.mark.parametrize(("flags", "name"), [([], "centred"), (["--similarity", "whitened"], "whitened")])
def test_the_command_says_how_it_compares(store, tmp_path, capsys, flags, name):
    store.close()
    (tmp_path / "labels.csv").write_text("key,label\nnear,1\nnear too,1\nodd,2\nsame picture,2\n", encoding="utf-8")
    arguments = ["search", "--store", store.uri, "--key", "query", "--eval", f"{tmp_path}/labels.csv", *flags]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    near = EXPECTED[name](np.float32([[5, 5, 0]] * 5 + [[-5, -5, 0]] + [[5, 5, 0.1]] * 2))[
        np.ix_([7, 6, 5, 0], [7, 6, 5, 0])
    ]
    np.fill_diagonal(near, -2)
    hits = np.array([1, 1, 2, 2])[near.argmax(axis=1)] == [1, 1, 2, 2]
    assert re.search(rf"^similarity {name}: cosine of the vectors less their mean", out)
    assert re.search(
        r"^all pairs of the 8 vectors: mean cosine -?0\.\d{4} \(as they are stored 0\.\d{4}\), root", out, re.M
    )
    assert "(same content as the query)\n" in out
    assert f"recall@1  {hits.mean():.4f}\n" in out


def test_the_plain_cosine_is_given_back(store, capsys):
    store.close()
    assert main(["search", "--store", store.uri, "--key", "query", "--similarity", "cosine"]) == 0
    out = capsys.readouterr().out
    near = float(np.dot([5, 5, 0], [5, 5, 0.1]) / np.linalg.norm([5, 5, 0]) / np.linalg.norm([5, 5, 0.1]))
    assert re.search(rf"^ +\d +{near:.6f} +0\.1  near too", out, re.M)
    assert "as they are stored" in out.splitlines()[0]


def test_a_store_of_one_vector(tmp_path, capsys):
    store = open_store(f"lmdb://{tmp_path}/one", writable=True)
    generation = store.begin("tower", 3, "float32")
    store.put_many(generation, [Record("a", np.float32([1, 2, 3]), bytes(16), 0)])
    store.complete(generation)
    store.close()
    assert main(["search", "--store", store.uri, "--key", "a"]) == 0
    assert "the store holds one vector alone" in capsys.readouterr().out
