"""Finds the items nearest to a picture, a text, or another item."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.frames import is_frame, path_of, table_of
from easyrec_mm.api.options import path_text, require_choice
from easyrec_mm.errors import UserError
from easyrec_mm.ranges import POSITIVE

if TYPE_CHECKING:
    import pandas as pd

    from easyrec_mm.retrieval.metadata import Metadata
    from easyrec_mm.retrieval.query import Sought
    from easyrec_mm.retrieval.searcher import Hit, Ranking, Searcher, SearchOptions
    from easyrec_mm.store.search import IndexKind
    from easyrec_mm.store.similarity import SimilarityName


class Index:
    """The vectors of a store, loaded to be searched many times; a context manager.

    It searches the generation that is current when it is opened.

    Args:
      store: URI of the store.
      image_model: folder of the image model that computed its vectors, for pictures and texts; searching by keys needs
        none.
      rec_model: folder of the exported rec model, if that is to rank.
      metadata: columns of the items: a Parquet or CSV file, or a DataFrame.
      metadata_key: its column with the keys of the store; by default "key".
      similarity: "centred": cosine of the vectors less the mean of all; "whitened": also with the same variance in all
        directions; "cosine": as they are stored.
      kind: "exact", "hnsw", "ivf", or "auto": exact up to a million items, ivf above.
      vector_stores: feature of a model -> URI of the store of its vectors, if it differs from that in the config.

    Raises:
      UserError: if the store, a model or the metadata cannot be used.
    """

    def __init__(
        self,
        store: str,
        *,
        image_model: str | os.PathLike[str] = "",
        rec_model: str | os.PathLike[str] = "",
        metadata: str | os.PathLike[str] | pd.DataFrame | None = None,
        metadata_key: str = "",
        similarity: SimilarityName = "centred",
        kind: IndexKind = "auto",
        vector_stores: Mapping[str, str] | None = None,
    ) -> None:
        _require_choices(similarity, kind, "Index: kind")
        table = _table(metadata, metadata_key)
        self._searcher = _searcher(store, image_model, rec_model, similarity, kind, table, vector_stores)
        self._searcher.load()

    def search(
        self,
        *,
        picture: str | os.PathLike[str] | bytes = "",
        text: str | None = None,
        key: str | int = "",
        fields: Mapping[str, str] | None = None,
        k: int = 12,
        filter: str = "",  # noqa: A002 - the flag has this name
        request: Mapping[str, Any] | None = None,
        candidates: int = 100,
        rank_by: str = "",
    ) -> pd.DataFrame:
        """Return the items nearest to a picture, a text, both, or another item.

        Args:
          picture: a path, or the content of a picture file.
          text: a text, such as a title, if the image model takes texts; with or without a picture.
          key: key of an item in the store, in place of a picture or text.
          fields: further fields that the image model reads: field -> its text.
          k: how many items to return.
          filter: a condition on the columns of the metadata, such as "category == 'shoes' and price < 50"; the nearest
            k of the items that fulfil it are returned.
          request: fields that all items have in common, as those of a user: the rec model ranks for them.
          candidates: how many of the nearest the rec model scores.
          rank_by: output of the rec model by which they are sorted; by default the first probability.

        Returns:
          Columns key, cosine (by the similarity), distance (of the vectors as they are stored), duplicate (what the
          item is equal to, or ""), score (if the rec model ranks), and the columns of the metadata.

        Raises:
          UserError: if what is sought cannot be used.
        """
        from easyrec_mm.retrieval.query import Sought

        k = POSITIVE.checked(k, "search: k")
        content = picture if isinstance(picture, bytes) else path_text(picture, "search: picture")
        # The key of an item in a store is a text; in a log it may be a number.
        sought = Sought(str(key), content, text, _dict(fields, "fields"))
        ranking = ranking_of(request, candidates, rank_by)
        return _frame(self._searcher.search(sought, k, filter, ranking), self._searcher.options, ranking)

    def close(self) -> None:
        """Close the store."""
        self._searcher.close()

    def __len__(self) -> int:
        """Return the number of items with a vector."""
        return len(self._searcher.index.keys)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def search(
    store: str,
    *,
    key: str | int = "",
    picture: str | os.PathLike[str] = "",
    text: str | None = None,
    img_model_dir: str | os.PathLike[str] = "",
    fields: Mapping[str, str] | None = None,
    top_k: int = 12,
    metadata: str | os.PathLike[str] | pd.DataFrame | None = None,
    metadata_key: str = "",
    filter: str = "",  # noqa: A002
    rec_model_dir: str | os.PathLike[str] = "",
    request: Mapping[str, Any] | None = None,
    candidates: int = 100,
    rank_by: str = "",
    similarity: SimilarityName = "centred",
    index: IndexKind = "auto",
    image: str | os.PathLike[str] = "",
    vector_stores: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Return the items nearest to a picture, a text or an item, by an `Index` that is opened for one search.

    Args:
      store: URI of the store.
      key: key of an item in the store; or
      picture, text: one of them or both, and
      img_model_dir: folder of the image model that computed the store's vectors.
      top_k: how many items to return.
      metadata, metadata_key, similarity, vector_stores: see Index.
      fields, filter, request, candidates, rank_by: see Index.search.
      rec_model_dir: folder of the exported rec model, if that is to rank.
      index: kind of the index, see Index.
      image: another name of `picture`.

    Returns:
      The columns of Index.search.

    Raises:
      UserError: if the key, the picture, the model or the store cannot be used.
    """
    _require_choices(similarity, index, "search: index")
    sought = _sought(str(key), path_text(picture, "search: picture"), path_text(image, "search: image"), text, fields)
    top_k = POSITIVE.checked(top_k, "search: top_k")
    ranking = ranking_of(request, candidates, rank_by)
    table = _table(metadata, metadata_key)
    models = img_model_dir, rec_model_dir
    with closing(_searcher(store, *models, similarity, index, table, vector_stores)) as searcher:
        return _frame(searcher.search(sought, top_k, filter, ranking), searcher.options, ranking)


def ranking_of(request: Mapping[str, Any] | None, candidates: int, rank_by: str) -> Ranking | None:
    """Return how the rec model ranks; None without a request.

    Raises:
      UserError: if there are no candidates, or an output is named without a request.
    """
    from easyrec_mm.retrieval.searcher import Ranking

    if request is None:
        if rank_by:
            raise UserError("--rank_by: has no effect without --request; give the fields of the user")
        return None
    return Ranking(_dict(request, "request"), POSITIVE.checked(candidates, "search: candidates"), rank_by)


def metadata_of(metadata: str | os.PathLike[str] | pd.DataFrame, key: str) -> Metadata:
    """Return the columns of items from a file or a DataFrame.

    Raises:
      UserError: if they cannot be read.
    """
    from easyrec_mm.retrieval.metadata import DEFAULT_KEY, Metadata, read_metadata

    if not is_frame(metadata):
        return read_metadata(path_of(metadata, "metadata"), key)
    table = table_of(metadata, "metadata", [str(column) for column in metadata.columns])
    return Metadata(table, key or DEFAULT_KEY, "the DataFrame metadata")


def _sought(key: str, picture: str, image: str, text: str | None, fields: Mapping[str, str] | None) -> Sought:
    from easyrec_mm.retrieval.query import Sought

    if picture and image:
        raise UserError("search: image is another name of picture; give one of them")
    sought = Sought(key, picture or image, text, _dict(fields, "fields"))
    if bool(key) == sought.is_embedded:
        raise UserError("search: give what to look for: key, or picture or text with img_model_dir")
    return sought


def _dict(values: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    if values is not None and not isinstance(values, Mapping):
        raise UserError(f"search: {name}: is {values!r}; give a dict of fields and their values")
    return dict(values or {})


def _table(metadata: str | os.PathLike[str] | pd.DataFrame | None, key: str) -> Metadata | None:
    return None if metadata is None else metadata_of(metadata, key)


def _searcher(
    store: str,
    image_model: str | os.PathLike[str],
    rec_model: str | os.PathLike[str],
    similarity: SimilarityName,
    kind: IndexKind,
    metadata: Metadata | None,
    vector_stores: Mapping[str, str] | None,
) -> Searcher:
    from easyrec_mm.retrieval.searcher import Searcher, SearchOptions

    models = path_text(image_model, "search: image model"), path_text(rec_model, "search: rec model")
    uri, stores = path_text(store, "search: store"), _dict(vector_stores, "vector_stores")
    return Searcher(SearchOptions(uri, *models, similarity, kind, metadata, stores))


def _require_choices(similarity: object, kind: object, name: str) -> None:
    from easyrec_mm.store.search import IndexKind
    from easyrec_mm.store.similarity import SimilarityName

    require_choice(similarity, SimilarityName, f"{name.partition(':')[0]}: similarity")
    require_choice(kind, IndexKind, name)


def _frame(hits: list[Hit], options: SearchOptions, ranking: Ranking | None) -> pd.DataFrame:
    """Return hits as a table. A column of the metadata with a name of a figure is left out."""
    import pandas as pd

    from easyrec_mm.store.search import Neighbour

    frame = pd.DataFrame([hit.neighbour for hit in hits], columns=list(Neighbour._fields))
    if ranking is not None:
        frame["score"] = pd.Series([hit.score for hit in hits], dtype=float)
    for name in options.metadata.columns if options.metadata else ():
        if name not in frame.columns:
            frame[name] = [hit.values[name] for hit in hits]
    return frame
