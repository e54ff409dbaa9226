"""Answers requests with a rec model and the vectors that belong to it; both are replaced together at run time.

A `Release` is one rec model with one generation of the store, both of the same image tower. A request is answered by
one release from beginning to end. `Service.reload` loads a new release, tries it on recorded requests and only then
switches to it; if the new release fails, the old one continues to serve.

A new model may need a field that requests do not have yet. It then waits until requests have it, and meanwhile the
release that serves ignores that field, so that clients can begin to send it.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote
from easyrec_mm.serving.image_vectors import ImageVectors
from easyrec_mm.serving.release import Embedder, Release, Releases, ServiceOptions, ServingError
from easyrec_mm.serving.request import RequestError
from easyrec_mm.store import Store
from easyrec_mm.store.generations import RENEW_S

_LOG = logging.getLogger("easyrec_mm.serving")
_NUM_RECORDED = 20


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
      load_embedder: loads the image model of a fingerprint; needed for "compute".

    Raises:
      ExportError, StoreError, ServingError: if no release can be loaded.
    """

    def __init__(
        self,
        options: ServiceOptions,
        store: Store,
        load_embedder: Callable[[str], Embedder] | None = None,
    ) -> None:
        self._store_lock = threading.Lock()
        self._releases = Releases(options, self._store_lock, load_embedder)
        self._vectors = ImageVectors(self._store_lock, options.missing_vector)
        self._recorded: deque[Any] = deque(maxlen=_NUM_RECORDED)
        self._release: Release = self._newest(store, None)

    @property
    def release(self) -> Release:
        """The release that answers requests now."""
        return self._release

    def answer(self, body: object) -> Answer:
        """Answer a request that has the form of RequestReader.read.

        Raises:
          RequestError: if the request is invalid.
          ServingError: if it cannot be answered now: a vector is missing or the store is down where that is an error,
            or an output of the model is not finite.
        """
        answer = self._answer(self.release, body)
        self._recorded.append(body)
        return answer

    def reload(self) -> Release | None:
        """Switch to a newer release if one exists, and return it; return None if no newer release exists.

        Raises:
          ExportError, StoreError, ServingError: if the newer one cannot be served; the old one stays.
        """
        last = self._release
        release = self._newest(last.store, last)
        if release is last:
            return None
        self._release = release
        if (release.store, release.generation) != (last.store, last.generation):
            with self._store_lock:
                last.store.let_go([last.generation.number])
        if release.copy != last.copy:
            # Memory-mapped files of the old release stay readable until its last request is answered.
            shutil.rmtree(last.copy, ignore_errors=True)
        return release

    def keep_for_ever(self) -> None:
        """Keep the vectors that are served from being pruned."""
        while True:
            time.sleep(RENEW_S)
            with suppress(UserError):  # requests tell what is wrong with a store
                release = self._release
                with self._store_lock:
                    release.store.keep(release.generation)
                release.lookup.keep()

    def _newest(self, store: Store, last: Release | None) -> Release:
        """Return the newest release that can be served, which may be `last`; log why a newer one cannot.

        Raises:
          ExportError, StoreError, ServingError: if none can be served, or if those that are newer than `last` cannot.
        """
        problems: list[Exception] = []
        for folder in self._releases.folders():
            try:
                release = self._loaded(folder, store, last)
            except (UserError, OSError) as error:
                problems.append(error)
                if last is not None and folder == last.folder:
                    break  # what is older is for a rollback, for which this one is removed
                continue
            if release is last:
                break
            if problems:
                _LOG.warning("%s is served, because a newer one is refused: %s", folder, problems[0])
            return release
        if last is None or problems:
            raise problems[0]
        return last

    def _loaded(self, folder: str, store: Store, last: Release | None) -> Release:
        """Load the release of a folder and try it, unless it is `last`."""
        found = self._releases.find(folder, store, last)
        if last is not None and found.identity == last.identity and last.lookup.is_newest():
            return last
        try:
            release = self._releases.load(found, last)
            try:
                self._try(release, last)
            except ServingError:
                if is_remote(folder):
                    shutil.rmtree(release.copy, ignore_errors=True)
                raise
        except UserError:
            if last is None or found.generation != last.generation:
                with self._store_lock:
                    found.store.let_go([found.generation.number])
            raise
        return release

    def _try(self, release: Release, last: Release | None) -> None:
        """Run a release on blank fields, then on the recorded requests; it must answer at least one of them.

        If it cannot, `last` accepts the release's fields from now on.

        Raises:
          ServingError: if it cannot, or an output is not finite.
        """
        blank = release.reader.blank_fields()
        _require_finite(release.predictor(blank, release.stand_in[0][None], release.lookup(blank)[0]))
        problems: list[UserError] = []
        recorded = list(self._recorded)
        for body in recorded:
            try:
                self._answer(release, body)
            except RequestError as error:
                problems.append(error)
        if recorded and len(problems) == len(recorded):
            if last is not None:
                last.reader.ignore(release.reader.names)
            raise ServingError(
                f"{release.folder}: cannot answer any of the last requests; the first problem is: {problems[0]}"
            )

    def _answer(self, release: Release, body: object) -> Answer:
        candidates = release.reader.read(body)
        vectors, sources = self._vectors.of(release, candidates)
        of_features, num_missing = release.lookup(candidates.fields)
        outputs = release.predictor(candidates.fields, vectors, of_features)
        _require_finite(outputs)
        return Answer(outputs, sources, release, num_missing)


def _require_finite(outputs: dict[str, NDArray[Any]]) -> None:
    for name, values in outputs.items():
        finite = np.isfinite(values)
        if not finite.all():
            instance = int(np.argwhere(~finite)[0][0])
            raise ServingError(f"instance {instance}: the model's {name} is {values[instance]}")
