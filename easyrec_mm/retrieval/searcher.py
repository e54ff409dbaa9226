"""An opened store that is searched: its index, and what queries, filters and ranking need, each loaded once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from easyrec_mm.errors import UserError
from easyrec_mm.retrieval.filter import Filter
from easyrec_mm.retrieval.metadata import Metadata
from easyrec_mm.retrieval.query import Encoder, Sought, query_of_key
from easyrec_mm.store import open_store
from easyrec_mm.store.generations import require_generation
from easyrec_mm.store.search import Index, IndexKind, Neighbour, Query, neighbours, read_index
from easyrec_mm.store.similarity import SimilarityName

if TYPE_CHECKING:
    from easyrec_mm.retrieval.ranking import Ranker


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and with what.

    store          URI of the store
    img_model_dir  the image model of its vectors, for pictures and texts; "" searches by keys alone
    rec_model_dir  the rec model that ranks; "" ranks by similarity alone
    similarity     how vectors are compared
    kind           kind of the index
    metadata       columns of the items, for filters, for the rec model and to be shown; None without
    vector_stores  feature of a model -> URI of the store of its vectors, if it differs from that in the config
    """

    store: str
    img_model_dir: str = ""
    rec_model_dir: str = ""
    similarity: SimilarityName = "centred"
    kind: IndexKind = "auto"
    metadata: Metadata | None = None
    vector_stores: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """How the nearest items are ranked by the rec model.

    request     fields that all of them have in common, as those of the user
    candidates  how many of the nearest are scored
    output      output of the model by which they are sorted, the greatest first; "" for the first probability
    """

    request: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = 100
    output: str = ""


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    neighbour  how near it is
    score      output of the rec model; None without ranking
    values     its columns in the metadata that are shown
    """

    neighbour: Neighbour
    score: float | None
    values: Mapping[str, Any]


class Searcher:
    """Searches the current generation of a store as it is now; may be used from several threads.

    Args:
      options: what is searched.

    Raises:
      UserError: if the store, a model or the metadata cannot be used.
    """

    def __init__(self, options: SearchOptions) -> None:
        self.options = options
        self._lock = threading.Lock()
        self._store = open_store(options.store)
        try:
            if options.img_model_dir:
                self.encoder: Encoder | None = Encoder(options.img_model_dir, options.vector_stores)
                self.encoder.require_origin(self._store.meta().current_generation, self._store.uri)
            else:
                self.encoder = None
            self.generation = require_generation(self._store.meta(), None, self._store.uri)
        except BaseException:
            self.close()
            raise

    @cached_property
    def index(self) -> Index:
        """The index, which is read when it is first used: the query of a command is checked before."""
        return read_index(self._store, self.generation, self.options.kind, self.options.similarity)

    @cached_property
    def ranker(self) -> Ranker | None:
        """The rec model, if there is one."""
        if not self.options.rec_model_dir:
            return None
        from easyrec_mm.retrieval.ranking import Ranker

        options = self.options
        return Ranker(options.rec_model_dir, self._store, self.generation, options.vector_stores)

    def load(self) -> None:
        """Load all that a search may need."""
        with self._lock:
            _ = self.ranker, self.index, self._rows, self._metadata_of_rows

    def search(self, sought: Sought, top_k: int, condition: str = "", ranking: Ranking | None = None) -> list[Hit]:
        """Return the items nearest to a query, except itself, nearest first or in the order of the rec model.

        Args:
          sought: what is looked for.
          top_k: number of items.
          condition: a filter on the metadata; "" for none. The nearest of the items that fulfil it are returned.
          ranking: how the rec model ranks the nearest; None without.

        Raises:
          UserError: if what is sought does not exist, or cannot be embedded, filtered or ranked.
        """
        with self._lock:
            query = self._query(sought)
            condition_of = self._filter(condition)
            output = self._output(ranking)
            among = None
            if condition_of is not None:
                # An item without a row fulfils no condition, not even that a column is missing.
                among = np.flatnonzero(condition_of.mask(self._metadata_of_rows) & (self._rows >= 0))
            number = max(top_k, ranking.candidates) if ranking else top_k
            nearest = neighbours(self._store, self.generation, self.index, query, number, among)
            return self._ranked(nearest, ranking, output)[:top_k]

    def has(self, key: str) -> bool:
        """Return whether the index has an item."""
        return key in self._row_of_key

    @cached_property
    def num_without_metadata(self) -> int:
        """How many items have no row in the metadata."""
        return int((self._rows < 0).sum()) if self.options.metadata else 0

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    @cached_property
    def _rows(self) -> Any:
        metadata = self.options.metadata
        return np.zeros(0, np.int64) if metadata is None else metadata.rows(self.index.keys)

    @cached_property
    def _metadata_of_rows(self) -> Any:
        """The metadata in the order of the index."""
        return self.options.metadata.table(self.index.keys) if self.options.metadata else None

    @cached_property
    def _row_of_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.index.keys)}

    def _query(self, sought: Sought) -> Query:
        if sought.key:
            if sought.is_embedded or sought.fields:
                raise UserError(
                    "--key: give either the key of an item, or a picture or a text with its fields, not both"
                )
            return query_of_key(sought.key, self._store, self.generation)
        if not sought.is_embedded:
            raise UserError("give what to look for: --picture or --text with --img_model_dir, or --key")
        if self.encoder is None:
            flag = "--picture" if sought.picture else "--text"
            raise UserError(f"{flag}: give the image model with --img_model_dir")
        return self.encoder.query(sought)

    def _filter(self, condition: str) -> Filter | None:
        if not condition.strip():
            return None
        if self.options.metadata is None:
            raise UserError("--filter: has columns of a table; give the table with --metadata")
        return Filter(condition, self.options.metadata)

    def _output(self, ranking: Ranking | None) -> str:
        if ranking is None:
            return ""
        if self.ranker is None:
            raise UserError("--request: is for the rec model; give its folder with --rec_model_dir")
        return self.ranker.require_output(ranking.output)

    def _ranked(self, nearest: list[Neighbour], ranking: Ranking | None, output: str) -> list[Hit]:
        metadata, keys = self.options.metadata, [neighbour.key for neighbour in nearest]
        values = metadata.values(keys, metadata.columns) if metadata else [{} for _ in keys]
        if ranking is None or self.ranker is None or not keys:
            return [Hit(neighbour, None, row) for neighbour, row in zip(nearest, values, strict=True)]
        scores = self.ranker.scores(keys, metadata, ranking.request, output).tolist()
        hits = [Hit(*parts) for parts in zip(nearest, scores, values, strict=True)]
        return sorted(hits, key=lambda hit: -(hit.score or 0.0))  # stable: equal scores stay in the order of nearness
