"""What a server answers with: a rec model and the vectors that belong to it, exchanged together while it runs.

A `Release` is one rec model with one generation of the store, both of the same image tower. A request is answered by
one release from beginning to end. `Service.reload` loads what is new, tries it on recorded requests and only then
exchanges it; a release that fails stays out and the old one serves on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import ExportError, StoreError, UserError
from easyrec_mm.manifest import MANIFEST, read_header
from easyrec_mm.serving.predictor import Predictor, Runtime, load_predictor
from easyrec_mm.serving.request import Candidates, RequestError, RequestReader
from easyrec_mm.store import Generation, State, Store

MissingVector = Literal["mean", "compute", "error"]
# Vectors of the store that the mean is taken over.
_NUM_OF_MEAN = 10_000
_NUM_RECORDED = 20
# A store that failed is left alone for this long, so that requests do not wait for it one after the other.
_STORE_PAUSE_S = 1.0


class ServingError(UserError):
    """A request that is right but cannot be answered now."""


class Source(IntEnum):
    """Where a candidate's image vector comes from."""

    STORE = 0
    REQUEST = 1
    MEAN = 2
    COMPUTED = 3


@dataclass(frozen=True)
class ServiceOptions:
    """rec_model_dir: an export, or a folder of exports named by numbers, of which the greatest counts."""

    rec_model_dir: str
    key_field: str = ""
    missing_vector: MissingVector = "mean"
    runtime: Runtime = "onnx"
    num_threads: int = 1
    max_instances: int = 10_000


@dataclass(frozen=True)
class Answer:
    """outputs: name -> `[S]` or `[S, classes]`; sources: `[S]`, a Source each; release: what it was computed by."""

    outputs: dict[str, NDArray[Any]]
    sources: NDArray[Any]
    release: Release


@dataclass(frozen=True)
class Release:
    """A rec model and its vectors.

    identity   changes when the folder or the generation does
    mean       float32 `[D]`, of the generation's vectors
    """

    folder: str
    identity: tuple[object, ...]
    predictor: Predictor
    reader: RequestReader
    generation: Generation
    mean: NDArray[Any]

    @property
    def name(self) -> str:
        """For logs and answers."""
        return f"{self.predictor.manifest.checkpoint} with generation {self.generation.number}"


class Service:
    """Answers requests. `answer` and `reload` may be called from different threads.

    Args:
      options: which model, and how.
      store: open for reading.
      compute: keys of pictures -> their vectors `[K, D]`, None for one that cannot be had; for "compute".

    Raises:
      ExportError, StoreError, ServingError: if there is nothing to serve with.
    """

    def __init__(
        self,
        options: ServiceOptions,
        store: Store,
        compute: Callable[[list[str]], list[NDArray[Any] | None]] | None = None,
    ) -> None:
        self._options, self._store, self._compute = options, store, compute
        if options.missing_vector == "compute" and compute is None:
            raise ServingError("--missing_vector compute: give the image model with --img_model_dir")
        self._store_lock = threading.Lock()
        self._store_pause_until = 0.0
        self._recorded: deque[Any] = deque(maxlen=_NUM_RECORDED)
        self._release: Release | None = None
        self._release = self._load(*self._newest())

    @property
    def release(self) -> Release:
        """What requests are answered by now."""
        if self._release is None:
            raise ServingError("nothing is loaded yet")
        return self._release

    def answer(self, body: object) -> Answer:
        """Answer a request as RequestReader.read takes it.

        Raises:
          RequestError: if the request is wrong.
          ServingError: if it cannot be answered now: a vector is missing or the store is down where that is an error,
            or the model gives numbers that are not finite.
        """
        answer = self._answer(self.release, body)
        self._recorded.append(body)
        return answer

    def reload(self) -> Release | None:
        """Exchange the release if there is a newer one; the new one, or None if there is nothing new.

        Raises:
          ExportError, StoreError, ServingError: if the newer one cannot be served; the old one stays.
        """
        folder, generation_of = self._newest()
        candidate_identity = _identity(folder, self._generation_of(folder, generation_of))
        if candidate_identity == self.release.identity:
            return None
        release = self._load(folder, generation_of)
        self._try(release)
        self._release = release
        return release

    def _newest(self) -> tuple[str, dict[str, Generation]]:
        """The rec model's folder, and the newest complete generation of every image tower in the store."""
        with self._store_lock:
            meta = self._store.meta()
        complete = sorted((g for g in meta.generations.values() if g.completed_s), key=lambda g: g.number)
        by_tower = {generation.fingerprint: generation for generation in complete}
        current = meta.current_generation
        if current is not None:
            by_tower[current.fingerprint] = current
        return newest_export(self._options.rec_model_dir), by_tower

    def _generation_of(self, folder: str, by_tower: dict[str, Generation]) -> Generation:
        """The generation that belongs to the rec model of a folder."""
        # A manifest may hold vocabularies of megabytes: not read again while it is the same file.
        last = self._release
        is_same = last is not None and last.identity[:3] == _status(folder)
        header = last.predictor.manifest if last and is_same else read_header(folder, "rec")
        generation = by_tower.get(header.image_tower_fingerprint)
        if generation is None:
            others = ", ".join(f"generation {g.number} of {g.fingerprint[:12]}" for g in by_tower.values()) or "nothing"
            raise ServingError(
                f"{folder} ({header.checkpoint}) belongs to image tower {header.image_tower_fingerprint[:12]}, "
                f"{self._store.uri} holds {others}; embed with the image model of the same export"
            )
        return generation

    def _load(self, folder: str, by_tower: dict[str, Generation]) -> Release:
        options = self._options
        generation = self._generation_of(folder, by_tower)
        identity = _identity(folder, generation)
        predictor = load_predictor(folder, options.runtime, options.num_threads)
        manifest = predictor.manifest
        if _identity(folder, generation) != identity:
            raise ExportError(f"{folder}: was replaced while it was loaded; it is loaded again")
        if generation.width != manifest.image_width:
            raise ServingError(
                f"{folder} takes vectors of {manifest.image_width} numbers, generation {generation.number} of "
                f"{self._store.uri} has {generation.width}"
            )
        reader = RequestReader(manifest.schema, manifest.image_width, options.key_field, options.max_instances)
        return Release(folder, identity, predictor, reader, generation, self._mean(generation))

    def _mean(self, generation: Generation) -> NDArray[Any]:
        with self._store_lock:
            records = islice(self._store.scan(generation), _NUM_OF_MEAN)
            vectors = [record.vector for record in records if record.vector is not None]
        if not vectors:
            return np.zeros(generation.width, np.float32)
        return np.asarray(np.mean(vectors, axis=0), np.float32)

    def _try(self, release: Release) -> None:
        """Answer recorded requests with a release; it must manage one of them, and never give what is not finite."""
        problems: list[UserError] = []
        recorded = list(self._recorded)
        for body in recorded:
            try:
                self._answer(release, body)
            except RequestError as error:
                problems.append(error)
        if recorded and len(problems) == len(recorded):
            raise ServingError(f"{release.folder}: answers none of the last requests: {problems[0]}")

    def _answer(self, release: Release, body: object) -> Answer:
        candidates = release.reader.read(body)
        vectors, sources = self._vectors(release, candidates)
        outputs = release.predictor(candidates.fields, vectors)
        for name, values in outputs.items():
            finite = np.isfinite(values)
            if not finite.all():
                instance = int(np.argwhere(~finite)[0][0])
                raise ServingError(f"instance {instance}: the model's {name} is {values[instance]}")
        return Answer(outputs, sources, release)

    def _vectors(self, release: Release, candidates: Candidates) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image vectors `[S, D]` of candidates, and where they come from."""
        sources = np.full(candidates.number, Source.STORE, np.int8)
        if len(candidates.vectors) == candidates.number:
            sources[:] = Source.REQUEST
            return np.stack([candidates.vectors[i] for i in range(candidates.number)]), sources
        found, states = self._look_up(release, candidates.keys)
        for i, vector in candidates.vectors.items():
            found[i] = vector
            states[i] = State.PRESENT
            sources[i] = Source.REQUEST
        missing = np.flatnonzero(states != State.PRESENT)
        if len(missing):
            self._fill(release, candidates.keys, missing, found, sources)
        return found, sources

    def _look_up(self, release: Release, keys: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        nothing = np.zeros((len(keys), release.generation.width), np.float32), np.zeros(len(keys), np.int8)
        if time.monotonic() < self._store_pause_until:
            if self._options.missing_vector == "error":
                raise ServingError(f"the store {self._store.uri} is down")
            return nothing
        try:
            with self._store_lock:
                found = self._store.get_many(keys, release.generation)
        except StoreError as error:
            self._store_pause_until = time.monotonic() + _STORE_PAUSE_S
            if self._options.missing_vector == "error":
                raise ServingError(str(error)) from error
            return nothing
        return np.array(found.vectors), found.states

    def _fill(
        self, release: Release, keys: list[str], missing: NDArray[Any], vectors: NDArray[Any], sources: NDArray[Any]
    ) -> None:
        """Put something in the place of missing vectors, as the options say."""
        if self._options.missing_vector == "error":
            raise ServingError(f"instance {missing[0]}: the store has no vector of '{keys[missing[0]]}'")
        computed: list[NDArray[Any] | None] = [None] * len(missing)
        if self._compute is not None and self._options.missing_vector == "compute":
            computed = self._compute([keys[i] for i in missing])
        for i, vector in zip(missing, computed, strict=True):
            vectors[i] = release.mean if vector is None else vector
            sources[i] = Source.MEAN if vector is None else Source.COMPUTED


def newest_export(folder: str) -> str:
    """The folder itself if it is an export, else the one in it with the greatest number for a name.

    Raises:
      ExportError: if there is none.
    """
    if (Path(folder) / MANIFEST).exists():
        return folder
    numbered = [path for path in Path(folder).glob("*") if path.name.isdigit() and (path / MANIFEST).exists()]
    if not numbered:
        raise ExportError(f"{folder}: no {MANIFEST}; give a folder that easyrec-mm export has written, or one of such")
    return str(max(numbered, key=lambda path: int(path.name)))


def _identity(folder: str, generation: Generation) -> tuple[object, ...]:
    return (*_status(folder), generation.number, generation.begun_s)


def _status(folder: str) -> tuple[object, ...]:
    """Changes when the export in a folder is replaced."""
    try:
        status = (Path(folder) / MANIFEST).stat()
    except OSError as error:
        raise ExportError(f"{folder}: {error.strerror}") from error
    return folder, status.st_mtime_ns, status.st_ino
