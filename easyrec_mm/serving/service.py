"""Answers requests with a rec model and the vectors that belong to it; both are replaced together at run time.

A `Release` is one rec model with one generation of the store, both of the same image tower. A request is answered by
one release from beginning to end. `Service.reload` loads a new release, tries it on recorded requests and only then
switches to it; if the new release fails, the old one continues to serve.
"""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import UserError
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.serving.computed_vectors import ComputedVectors
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.image_vectors import FoundVectors, ImageVectors
from easyrec_mm.serving.list_sizes import Ints
from easyrec_mm.serving.picture_source import PictureSource
from easyrec_mm.serving.release import Embedder, Release, Releases, ServiceOptions, ServingError
from easyrec_mm.serving.request import Candidates, is_small_size
from easyrec_mm.store import Store

_NUM_RECORDED = 20


@dataclass(frozen=True)
class Asked:
    """A request that was read, and the release that answers it."""

    release: Release
    candidates: Candidates


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    outputs          name -> `[S]` or `[S, classes]`
    sources          the Source of each candidate's image vector `[S]`
    release          the release that computed the answer
    missing_vectors  feature -> number of keys that are missing from its store
    """

    outputs: dict[str, NDArray[Any]]
    sources: NDArray[Any]
    release: Release
    missing_vectors: Mapping[str, int]


class Service:
    """Answers requests. `answer` and `reload` may be called from different threads.

    Args:
      options: which model to serve, and how.
      store: a store that is open for reading.
      load_embedder: loads the image model; needed for "compute".

    Raises:
      ExportError, StoreError, ServingError: if no release can be loaded.
    """

    def __init__(
        self,
        options: ServiceOptions,
        store: Store,
        load_embedder: Callable[[], Embedder] | None = None,
    ) -> None:
        store_lock = threading.Lock()
        self._releases = Releases(options, store, store_lock, load_embedder)
        computed = None
        if options.missing_vector == "compute":
            pictures = PictureSource(options.image_root, options.image_hosts, options.picture_timeout_s)
            computed = ComputedVectors(pictures, options.picture_timeout_s)
        self._vectors = ImageVectors(store, store_lock, options.missing_vector, computed)
        self._recorded: deque[Any] = deque(maxlen=_NUM_RECORDED)
        release = self._releases.load(self._releases.newest(None), None)
        self._try(release)
        self._release = release

    @property
    def release(self) -> Release:
        """The release that answers requests now."""
        return self._release

    def answer(self, body: object) -> Answer:
        """Answer a request: `read`, `find_vectors` and `finish`.

        Raises:
          RequestError: if the request is invalid.
          ServingError: if it cannot be answered now: a vector is missing or the store is down where that is an error,
            or an output of the model is not finite.
        """
        asked = self.read(body)
        return self.finish(asked, self.find_vectors(asked))

    def read(self, body: object) -> Asked:
        """Read a request that has the form of RequestReader.read; see `answer`."""
        release = self.release
        asked = Asked(release, release.reader.read(body))
        is_small = asked.candidates.is_small and (not isinstance(body, bytes) or is_small_size(len(body)))
        if is_small or not self._recorded:  # twenty large ones would take much memory
            self._recorded.append(body)
        return asked

    def find_vectors(self, asked: Asked) -> FoundVectors:
        """Find the image vectors; those that are computed come later, see `answer`."""
        return self._vectors.find(asked.release, asked.candidates)

    def finish(self, asked: Asked, found: FoundVectors) -> Answer:
        """Compute the answer; waits for vectors that are being computed, see `answer`."""
        found.complete()
        release, candidates = asked.release, asked.candidates
        parts = candidates.sizes.parts()
        if not parts:
            outputs, num_missing = _computed(release, candidates.fields, found.vectors)
        else:
            several = [_computed(release, candidates.fields_of(part), found.vectors[part]) for part in parts]
            outputs, num_missing = _together(parts, several, candidates.sizes.repeated)
        _require_finite(outputs)
        return Answer(outputs, found.sources, release, num_missing)

    def reload(self) -> Release | None:
        """Switch to a newer release if one exists, and return it; return None if no newer release exists.

        Raises:
          ExportError, StoreError, ServingError: if the newer one cannot be served; the old one stays.
        """
        last = self._release
        newest = self._releases.newest(last)
        if newest.identity == last.identity and last.lookup.is_newest():
            return None
        release = self._releases.load(newest, last)
        self._try(release)
        self._release = release
        if last.copy:
            # Memory-mapped files of the old release stay readable until its last request is answered.
            shutil.rmtree(last.copy, ignore_errors=True)
        return release

    def _try(self, release: Release) -> None:
        """Run a release on blank fields, then on the recorded requests; it must answer at least one of them.

        Raises:
          ServingError: if it cannot, or an output is not finite.
        """
        blank = release.reader.blank_fields()
        _require_finite(release.predictor(blank, release.stand_in[0][None], release.lookup(blank)[0]))
        problems: list[UserError] = []
        recorded = list(self._recorded)
        for body in recorded:
            try:
                asked = Asked(release, release.reader.read(body))
                self.finish(asked, self.find_vectors(asked))
            except RequestError as error:
                problems.append(error)
        if recorded and len(problems) == len(recorded):
            raise ServingError(
                f"{release.folder}: cannot answer any of the last requests; the first problem is: {problems[0]}"
            )


Computed = tuple[dict[str, NDArray[Any]], dict[str, int]]


def _computed(release: Release, fields: dict[str, Values], vectors: NDArray[Any]) -> Computed:
    """Return the outputs for some candidates, and the numbers of missing vectors by feature."""
    of_features, num_missing = release.lookup(fields)
    return release.predictor(fields, vectors, of_features), num_missing


def _together(parts: Sequence[Ints], several: Sequence[Computed], repeated: Container[str]) -> Computed:
    """Put the results for parts of the candidates together, in the order of the candidates.

    `repeated` names the features of which each part has the same keys.
    """
    order = np.argsort(np.concatenate(parts))
    outputs = {name: np.concatenate([part[name] for part, _ in several])[order] for name in several[0][0]}
    num_missing = {
        name: count if name in repeated else sum(counts[name] for _, counts in several)
        for name, count in several[0][1].items()
    }
    return outputs, num_missing


def _require_finite(outputs: dict[str, NDArray[Any]]) -> None:
    for name, values in outputs.items():
        finite = np.isfinite(values)
        if not finite.all():
            instance = int(np.argwhere(~finite)[0][0])
            raise ServingError(f"instance {instance}: the model's {name} is {values[instance]}")
