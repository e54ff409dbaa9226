"""Searches nearest items by the similarity of their image vectors, with faiss, so that users can judge the vectors.

It works on the current generation of a store. Similarities are cosines (similarity.py), inner products of vectors of
length 1; a vector of length 0 has cosine 0 with all others.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import StoreError, UserError
from easyrec_mm.files import StorageError, join, put_text, read
from easyrec_mm.pages.render import render
from easyrec_mm.store import Generation, Store
from easyrec_mm.store.records import NO_CONTENT
from easyrec_mm.store.similarity import PLAIN, ROWS_AT_A_TIME, Similarity, SimilarityName, fit

IndexKind = Literal["auto", "exact", "hnsw", "ivf"]
# Up to this number of vectors, each query is compared with all of them.
_MOST_EXACT = 1_000_000
_NUM_RECALL_QUERIES = 200
_QUERIES_AT_A_TIME = 1000
THUMBNAIL = 224
# Cut-off of the mean precision of the Google Universal Image Embedding challenge.
_PRECISION_AT = 5
# Differences of cosines that are differences of rounding.
_ROUNDING = 1e-6


class Query(NamedTuple):
    """What to look for: the vector `[D]` as the image model computes it, the hash of its content, and its key in the
    store if it has one.
    """

    vector: NDArray[Any]
    content_hash: bytes
    key: str | None = None


class Neighbour(NamedTuple):
    """An item that is near to the query.

    cosine         by the similarity of the index
    distance       length of the difference of the two vectors as they are stored
    duplicate      what it is equal to: "same content as the query", "same vector as rank 2"; "" if it is unlike all
                   that are nearer
    """

    key: str
    cosine: float
    distance: float
    duplicate: str


@dataclass(frozen=True)
class Evaluation:
    """How often neighbours share a label.

    recall         at k -> share of queries with at least one item of their label among their k nearest
    mmp            mMP@5: mean over queries of the precision among the nearest min(n, 5), n: other items of the label
    num_queries    items whose label at least one other item has
    num_alone      items whose label no other item has; they are not queries
    num_missing    items of the file whose vectors are missing from the store
    """

    recall: dict[int, float]
    mmp: float
    num_queries: int
    num_alone: int
    num_missing: int


class Index:
    """A searchable index of vectors.

    Args:
      keys: N names.
      vectors: float32 `[N, D]`; the index owns them from now on, and replaces them by those of `similarity.unit`.
      kind: "exact"; "hnsw" and "ivf" are faster but may miss neighbours: `recall` measures the share they find;
        "auto": exact up to a million vectors, ivf above, which is built quickly.
      similarity: how vectors are compared; by default by the cosine of what is given.
    """

    def __init__(
        self, keys: Sequence[str], vectors: NDArray[Any], kind: IndexKind = "auto", similarity: Similarity = PLAIN
    ) -> None:
        self.keys = keys
        self.similarity = similarity
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        similarity.apply(self.vectors)
        self.kind = kind if kind != "auto" else "exact" if len(keys) <= _MOST_EXACT else "ivf"
        self._index = _KINDS[self.kind](*self.vectors.shape)
        self._index.train(self.vectors)
        self._index.add(self.vectors)

    def search(self, units: NDArray[Any], top_k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the rows `[Q, k]` nearest to `units` `[Q, D]` of `similarity`, nearest first, and cosines; row -1 if
        fewer were found.
        """
        cosines, rows = self._index.search(units, min(top_k, len(self.keys)))
        return rows, cosines

    def nearest(
        self, vector: NDArray[Any], top_k: int, without: str | None = None, among: NDArray[Any] | None = None
    ) -> list[tuple[str, float]]:
        """Return keys and cosines of the items nearest to a vector `[D]`, nearest first.

        Args:
          vector: the vector.
          top_k: number of items.
          without: key of an item that is left out.
          among: rows of the items that come into question, which are all compared, whatever the kind of the index;
            None for all items.
        """
        units = self.similarity.unit(vector[None]).astype(np.float32)
        number = top_k + (without is not None)
        if among is None:
            rows, cosines = (found[0] for found in self.search(units, number))
        else:
            rows, cosines = self._search_among(units[0], number, among)
        pairs = [(self.keys[row], float(cosine)) for row, cosine in zip(rows, cosines, strict=True) if row >= 0]
        return [(key, cosine) for key, cosine in pairs if key != without][:top_k]

    def _search_among(self, unit: NDArray[Any], number: int, among: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the rows nearest to a vector of `similarity` among some, nearest first, and their cosines."""
        cosines = np.empty(len(among), np.float32)
        for start in range(0, len(among), ROWS_AT_A_TIME):  # a copy of all rows may not fit into memory
            part = slice(start, start + ROWS_AT_A_TIME)
            cosines[part] = self.vectors[among[part]] @ unit
        order = np.argsort(-cosines, kind="stable")[:number]
        return among[order], cosines[order]

    def recall(self, top_k: int) -> float:
        """Return the share of the true `top_k` neighbours that the index finds, for a sample of its own vectors.

        An item that is as near as the last of them counts as one of them.
        """
        queries = self.vectors[np.random.default_rng(0).permutation(len(self.keys))[:_NUM_RECALL_QUERIES]]
        exact = _KINDS["exact"](*self.vectors.shape)
        exact.add(self.vectors)
        expected, _ = exact.search(queries, min(top_k, len(self.keys)))
        rows, cosines = self.search(queries, top_k)
        return float(np.mean((rows >= 0) & (cosines >= expected[:, -1:] - _ROUNDING)))


def _hnsw(number: int, width: int) -> Any:
    index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.hnsw.efSearch = 128
    return index


def _ivf(number: int, width: int) -> Any:
    # About 4 * sqrt(N) lists (faiss, "Guidelines to choose an index"), limited to have enough vectors to train each.
    num_lists = max(1, min(int(4 * number**0.5), number // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = max(1, min(64, num_lists // 4))
    return index


_KINDS: dict[str, Callable[[int, int], Any]] = {
    "exact": lambda number, width: faiss.IndexFlatIP(width),
    "hnsw": _hnsw,
    "ivf": _ivf,
}


def read_index(
    store: Store, generation: Generation, kind: IndexKind = "auto", similarity: SimilarityName = "centred"
) -> Index:
    """Read the vectors of a generation into an index, and compare them by their own statistics.

    Raises:
      StoreError: if it has no vectors, or is removed meanwhile.
    """
    keys: list[str] = []
    vectors: list[NDArray[Any]] = []
    for record in store.scan(generation):
        if record.vector is not None:
            keys.append(record.key)
            vectors.append(record.vector)
    if not keys:
        raise StoreError(f"{store.uri}: generation {generation.number} holds no vector")
    stacked = np.stack(vectors)
    vectors.clear()  # a copy of all of them
    return Index(keys, stacked, kind, fit(similarity, stacked))


def neighbours(
    store: Store,
    generation: Generation,
    index: Index,
    query: Query,
    top_k: int,
    among: NDArray[Any] | None = None,
) -> list[Neighbour]:
    """Return the items nearest to a query, nearest first, except itself.

    Args:
      store: the store of the index.
      generation: the generation of the index.
      index: of all vectors of the generation.
      query: what to look for.
      top_k: number of items.
      among: rows of the index that come into question; None for all.

    Raises:
      StoreError: if the generation is removed meanwhile.
    """
    nearest = index.nearest(query.vector, top_k, query.key, among)
    keys = [key for key, _ in nearest]
    vectors = store.get_many(keys, generation).vectors
    hashes = store.hashes(generation, keys)
    return marked(query.vector, query.content_hash, nearest, vectors, hashes)


def marked(
    query: NDArray[Any],
    content_hash: bytes,
    nearest: Sequence[tuple[str, float]],
    vectors: NDArray[Any],
    hashes: Sequence[bytes | None],
) -> list[Neighbour]:
    """Return neighbours, those marked that equal the query or one that is nearer.

    Args:
      query: the query's vector `[D]`.
      content_hash: hash of the query's content.
      nearest: key and cosine of each neighbour, nearest first.
      vectors: their vectors `[k, D]` as they are stored.
      hashes: hashes of their contents; None or NO_CONTENT if unknown.
    """
    # Content or vector -> where it came first.
    contents, seen = {content_hash: "the query"}, {_bytes(query): "the query"}
    result: list[Neighbour] = []
    for rank, ((key, cosine), vector, content) in enumerate(zip(nearest, vectors, hashes, strict=True), 1):
        place = f"rank {rank}"
        same_content = place if content in (None, NO_CONTENT) else contents.setdefault(content, place)
        same_vector = seen.setdefault(_bytes(vector), place)
        duplicate = ""
        if same_content != place:
            duplicate = f"same content as {same_content}"
        elif same_vector != place:
            duplicate = f"same vector as {same_vector}"
        distance = float(np.linalg.norm(vector.astype(np.float64) - query))
        result.append(Neighbour(key, cosine, distance, duplicate))
    return result


def _bytes(vector: NDArray[Any]) -> bytes:
    """Return the bytes of a vector, the same for vectors of equal numbers."""
    return np.asarray(vector + 0.0, np.float32).tobytes()  # of -0.0, too


def evaluate(index: Index, labels_file: str, top_k: int) -> Evaluation:
    """Search for every labelled item among the other labelled items, and measure how often they share its label.

    They are compared by the similarity of the index, thus by the statistics of all its items.

    mMP@5: Google Universal Image Embedding challenge (Kaggle, 2022), there called modified mean precision at 5.

    Args:
      index: of all items.
      labels_file: CSV with the columns key and label.
      top_k: k at which recall is measured, in addition to 1.

    Raises:
      UserError: if the file is not such a CSV, or no two of its items share a label.
    """
    labels = _read_labels(labels_file)
    row_of = {key: row for row, key in enumerate(index.keys)}
    rows = [row_of[key] for key in labels if key in row_of]
    names = [labels[index.keys[row]] for row in rows]
    counts = Counter(names)
    queries = [i for i, name in enumerate(names) if counts[name] > 1]
    if not queries:
        raise UserError(
            f"--eval {labels_file}: no two of its items in the store ({len(rows)} of {len(labels)}) share a label"
        )
    gallery = Index([index.keys[row] for row in rows], index.vectors[rows], index.kind)
    label_of = np.unique(names, return_inverse=True)[1]
    hits_at: dict[int, int] = dict.fromkeys(sorted({1, top_k}), 0)
    precision = 0.0
    depth = max(top_k, _PRECISION_AT)
    for start in range(0, len(queries), _QUERIES_AT_A_TIME):
        portion = np.array(queries[start : start + _QUERIES_AT_A_TIME])
        neighbour_rows, _ = gallery.search(gallery.vectors[portion], depth + 1)
        for query, nearest in zip(portion, neighbour_rows, strict=True):
            candidates = nearest[(nearest != query) & (nearest >= 0)][:depth]
            is_hit = label_of[candidates] == label_of[query]
            for k in hits_at:
                hits_at[k] += bool(is_hit[:k].any())
            most = min(counts[names[query]] - 1, _PRECISION_AT)
            precision += is_hit[:most].sum() / most
    number = len(queries)
    recall = {k: hits / number for k, hits in hits_at.items()}
    return Evaluation(recall, precision / number, number, len(rows) - number, len(labels) - len(rows))


def _read_labels(path: str) -> dict[str, str]:
    try:
        reader = csv.DictReader(io.StringIO(read(path).decode("utf-8-sig"), newline=""))
        if not {"key", "label"} <= set(reader.fieldnames or ()):
            raise UserError(f"--eval {path}: has the columns {reader.fieldnames}; give one with key and label")
        return {row["key"]: row["label"] for row in reader if row["label"]}
    except (OSError, StorageError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--eval {path}: cannot be read: {error}") from error


def write_page(
    path: str,
    query: str,
    query_path: str,
    neighbours: Sequence[Neighbour],
    image_root: str,
    about: Sequence[str],
    thumbnail_of: Callable[[bytes], bytes | None],
    path_of: Mapping[str, str],
) -> None:
    """Write a self-contained page of pictures, which embeds them as thumbnails.

    Args:
      path: file to write.
      query: name of the query.
      query_path: path of the query's picture.
      neighbours: the found items.
      image_root: folder in which relative paths start.
      about: what the figures mean, a paragraph each.
      thumbnail_of: a picture file -> a small JPEG; None for a file that is not a good picture.
      path_of: key of an item -> path of its picture.

    Raises:
      UserError: if the page cannot be written.
    """
    figures = [{"key": query, "rank": 0, "picture": _thumbnail(query_path, thumbnail_of)}]
    for rank, neighbour in enumerate(neighbours, 1):
        picture = _thumbnail(join(image_root, path_of[neighbour.key]), thumbnail_of)
        figures.append(neighbour._asdict() | {"rank": rank, "picture": picture})
    page = render("search.html", title=f"Nearest to {query}", side=THUMBNAIL, about=about, figures=figures)
    try:
        put_text(path, page)
    except OSError as error:
        raise UserError(f"--html {path}: cannot be written: {error.strerror}") from error


def _thumbnail(path: str, thumbnail_of: Callable[[bytes], bytes | None]) -> bytes | None:
    """Return a picture as a small JPEG; None if the path has no good picture."""
    try:
        return thumbnail_of(read(path))
    except (OSError, StorageError, ValueError):
        return None
