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
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import UserError
from easyrec_mm.features.numpy_back_end import Values
from easyrec_mm.files import is_remote
from easyrec_mm.serving.computed_vectors import ComputedVectors
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.image_vectors import FoundVectors, ImageVectors
from easyrec_mm.serving.list_sizes import Ints
from easyrec_mm.serving.picture_source import PictureSource
from easyrec_mm.serving.release import Embedder, Release, Releases, ServiceOptions, ServingError, image_model_of
from easyrec_mm.serving.request import Candidates, is_small_size
from easyrec_mm.store import Store, open_store
from easyrec_mm.store.generations import RENEW_S
from easyrec_mm.tensorflow_import import import_tensorflow

_LOG = logging.getLogger("easyrec_mm.serving")
# Seconds until reading a picture is given up, unless requests wait longer.
_READING_S = 10.0
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


def make_service(options: ServiceOptions, store: str, image_model_dir: str) -> Service:
    """Return the service of a model and a store, with the image model if missing vectors are computed.

    Raises:
      ExportError, StoreError, ServingError: if no release can be loaded.
    """

    def load_embedder(fingerprint: str) -> Embedder:
        import_tensorflow()
        from easyrec_mm.embedding.image_model import PictureEmbedder  # imports TensorFlow, needed only here

        return PictureEmbedder(image_model_of(fingerprint, image_model_dir), options.vector_stores)

    return Service(options, open_store(store), load_embedder if image_model_dir else None)


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
        computed = None
        if options.missing_vector == "compute":
            # A picture that arrives after its request was answered is there for later requests.
            limit_s = max(_READING_S, options.picture_timeout_s)
            pictures = PictureSource(options.image_root, options.image_hosts, limit_s)
            computed = ComputedVectors(pictures, options.picture_timeout_s)
        self._vectors = ImageVectors(self._store_lock, options.missing_vector, computed)
        self._recorded: deque[Any] = deque(maxlen=_NUM_RECORDED)
        self._release: Release = self._newest(store, None)

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
                asked = Asked(release, release.reader.read(body))
                self.finish(asked, self.find_vectors(asked))
            except RequestError as error:
                problems.append(error)
        if recorded and len(problems) == len(recorded):
            if last is not None:
                last.reader.ignore(release.reader.known_names)
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
