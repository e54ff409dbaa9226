"""What a server answers with: a rec model and the vectors that belong to it, exchanged together while it runs.

A `Release` is one rec model with one generation of the store, both of the same image tower. A request is answered by
one release from beginning to end. `Service.reload` loads what is new, tries it on recorded requests and only then
exchanges it; a release that fails stays out and the old one serves on.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import ExportError, StoreError, UserError
from easyrec_mm.files import is_remote, join, place_of
from easyrec_mm.manifest import MANIFEST, local_export, read_header
from easyrec_mm.serving.feature_lookup import FeatureLookup
from easyrec_mm.serving.predictor import Predictor, Runtime, load_predictor
from easyrec_mm.serving.request import Candidates, RequestError, RequestReader
from easyrec_mm.store import Generation, State, Store

MissingVector = Literal["mean", "compute", "error", "no_image"]
# Vectors of the store that the mean is taken over.
_NUM_OF_MEAN = 10_000
_SCANNED_AT_A_TIME = 100
_NUM_RECORDED = 20
_NUM_COMPUTED_KEPT = 10_000
# A store that failed is left alone for this long, so that requests do not wait for it one after the other.
_STORE_PAUSE_S = 1.0


class ServingError(UserError):
    """A request that is right but cannot be answered now."""


class MissingVectorError(ServingError):
    """A vector that the store lacks where that is an error; `number` candidates are without one."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Embedder(Protocol):
    """An image model that computes the vectors which the store lacks."""

    fingerprint: str
    # Fields that it needs beside the keys.
    fields: tuple[str, ...]

    def __call__(
        self, keys: Sequence[str], fields: Mapping[str, Sequence[Any]] | None = None
    ) -> Sequence[NDArray[Any] | None]:
        """Vectors `[D]` of the pictures of some keys, None for one that cannot be had."""


class Source(IntEnum):
    """Where a candidate's image vector comes from."""

    STORE = 0
    REQUEST = 1
    MEAN = 2
    COMPUTED = 3
    NO_IMAGE = 4


@dataclass(frozen=True)
class ServiceOptions:
    """rec_model_dir: an export, or a folder of exports named by numbers, of which the greatest counts; missing_vector:
    None takes the model's no-image vector if it has one, else the mean; vector_stores: feature -> store of its vectors,
    where it is another than in the config.
    """

    rec_model_dir: str
    key_field: str = ""
    missing_vector: MissingVector | None = None
    runtime: Runtime = "onnx"
    num_threads: int = 1
    max_instances: int = 10_000
    vector_stores: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """outputs: name -> `[S]` or `[S, classes]`; sources: `[S]`, a Source each; release: what it was computed by;
    missing_vectors: feature -> keys of which its store has no vector.
    """

    outputs: dict[str, NDArray[Any]]
    sources: NDArray[Any]
    release: Release
    missing_vectors: Mapping[str, int]


@dataclass(frozen=True)
class Release:
    """A rec model and its vectors.

    identity   changes when the folder or the generation does
    stand_in   float32 `[D]` that takes the place of a missing vector, and what it is
    no_image   float32 `[D]` that the network was trained to take for no picture; None if it was not
    embedder   of the same image tower, where missing vectors are computed
    computed   vectors that it has computed, by key and fields, the last used one last
    lookup     vectors of features, where they name them by key
    copy       of a remote folder, from which it was loaded; else ""
    """

    folder: str
    identity: tuple[object, ...]
    predictor: Predictor
    reader: RequestReader
    generation: Generation
    stand_in: tuple[NDArray[Any], Source]
    no_image: NDArray[Any] | None
    embedder: Embedder | None
    computed: OrderedDict[tuple[Any, ...], NDArray[Any]]
    lookup: FeatureLookup
    copy: str = ""

    def version(self) -> dict[str, Any]:
        """What it is, for answers, metrics and logs."""
        manifest = self.predictor.manifest
        return {
            "checkpoint": Path(manifest.checkpoint).name,
            "step": manifest.step,
            "generation": self.generation.number,
            "image_tower": manifest.image_tower_fingerprint[:12],
        }


class Service:
    """Answers requests. `answer` and `reload` may be called from different threads.

    Args:
      options: which model, and how.
      store: open for reading.
      load_embedder: loads the image model; for "compute".

    Raises:
      ExportError, StoreError, ServingError: if there is nothing to serve with.
    """

    def __init__(
        self,
        options: ServiceOptions,
        store: Store,
        load_embedder: Callable[[], Embedder] | None = None,
    ) -> None:
        self._options, self._store, self._load_embedder = options, store, load_embedder
        if options.missing_vector == "compute" and load_embedder is None:
            raise ServingError("--missing_vector compute: give the image model with --img_model_dir")
        self._store_lock = threading.Lock()
        self._computed_lock = threading.Lock()
        self._store_pause_until = 0.0
        self._recorded: deque[Any] = deque(maxlen=_NUM_RECORDED)
        self._release: Release | None = None
        release = self._load(*self._newest())
        self._try(release)
        self._release = release

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
        folder, by_tower = self._newest()
        last = self.release
        if _identity(folder, self._generation_of(folder, by_tower)) == last.identity and last.lookup.is_newest():
            return None
        last = self.release
        release = self._load(folder, by_tower)
        self._try(release)
        self._release = release
        if last.copy:
            # What is mapped of it stays until its last request is answered.
            shutil.rmtree(last.copy, ignore_errors=True)
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
        generation = self._generation_of(folder, by_tower)
        identity = _identity(folder, generation)
        if not is_remote(folder):
            return self._load_copy(folder, folder, generation, identity)
        copy = local_export(folder)
        try:
            return replace(self._load_copy(folder, copy, generation, identity), copy=copy)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise

    def _load_copy(self, folder: str, copy: str, generation: Generation, identity: tuple[object, ...]) -> Release:
        options = self._options
        predictor = load_predictor(copy, options.runtime, options.num_threads)
        manifest = predictor.manifest
        if _identity(folder, generation) != identity:
            raise ExportError(f"{folder}: was replaced while it was loaded; it is loaded again")
        if generation.width != manifest.image_width:
            raise ServingError(
                f"{folder} takes vectors of {manifest.image_width} numbers, generation {generation.number} of "
                f"{self._store.uri} has {generation.width}"
            )
        no_image = np.array(manifest.no_image_vector, np.float32) if manifest.no_image_vector else None
        reader = RequestReader(
            manifest.schema, manifest.image_width, options.key_field, options.max_instances, no_image is not None
        )
        embedder = self._embedder(generation, reader)
        if no_image is None and options.missing_vector == "no_image":
            raise ServingError(
                f"--missing_vector no_image: {folder} was trained without a no-image vector (no_image_vector); choose "
                "another"
            )
        stand_in: tuple[NDArray[Any], Source]
        if no_image is None or options.missing_vector == "mean":
            stand_in = (self._mean(generation), Source.MEAN)
        else:
            stand_in = (no_image, Source.NO_IMAGE)
        last = self._release.lookup if self._release else None
        lookup = FeatureLookup(manifest, options.vector_stores, options.missing_vector == "error", last)
        return Release(
            folder, identity, predictor, reader, generation, stand_in, no_image, embedder, OrderedDict(), lookup
        )

    def _embedder(self, generation: Generation, reader: RequestReader) -> Embedder | None:
        """The image model of the generation's tower, the one that is loaded if it is that."""
        if self._load_embedder is None or self._options.missing_vector != "compute":
            return None
        last = self._release.embedder if self._release else None
        embedder = last if last and last.fingerprint == generation.fingerprint else self._load_embedder()
        if embedder.fingerprint != generation.fingerprint:
            raise ServingError(
                f"--img_model_dir holds image tower {embedder.fingerprint[:12]}, the rec model belongs to "
                f"{generation.fingerprint[:12]}; give the image model of the same export"
            )
        if lacking := [name for name in embedder.fields if name not in reader.blank_fields()]:
            raise ServingError(
                f"--missing_vector compute: the image model also takes {', '.join(lacking)}, which no feature "
                "of the rec model reads; choose another, or add it to the feature group 'all'"
            )
        return embedder

    def _mean(self, generation: Generation) -> NDArray[Any]:
        records = islice(self._store.scan(generation), _NUM_OF_MEAN)
        vectors: list[NDArray[Any]] = []
        while True:
            with self._store_lock:  # not for the whole scan: requests wait for it
                some = list(islice(records, _SCANNED_AT_A_TIME))
            if not some:
                break
            vectors += [record.vector for record in some if record.vector is not None]
        if not vectors:
            return np.zeros(generation.width, np.float32)
        return np.asarray(np.mean(vectors, axis=0), np.float32)

    def _try(self, release: Release) -> None:
        """Run a release on blank fields, then on recorded requests, of which it must answer at least one.

        Raises:
          ServingError: if it cannot, or gives what is not finite.
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
            raise ServingError(f"{release.folder}: answers none of the last requests: {problems[0]}")

    def _answer(self, release: Release, body: object) -> Answer:
        candidates = release.reader.read(body)
        vectors, sources = self._vectors(release, candidates)
        of_features, num_missing = release.lookup(candidates.fields)
        outputs = release.predictor(candidates.fields, vectors, of_features)
        _require_finite(outputs)
        return Answer(outputs, sources, release, num_missing)

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
            self._fill(release, candidates, missing, found, sources)
        return found, sources

    def _look_up(self, release: Release, keys: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """What the store has: vectors `[S, D]` and states `[S]`; nothing while it is down, unless that is an error."""
        with self._store_lock:
            problem = f"the store {self._store.uri} is down"
            if time.monotonic() >= self._store_pause_until:
                try:
                    found = self._store.get_many(keys, release.generation)
                    return np.array(found.vectors), found.states
                except StoreError as error:
                    self._store_pause_until = time.monotonic() + _STORE_PAUSE_S
                    problem = str(error)
        if self._options.missing_vector == "error":
            raise MissingVectorError(problem, len(keys))
        return np.zeros((len(keys), release.generation.width), np.float32), np.full(len(keys), State.MISSING, np.int8)

    def _fill(
        self,
        release: Release,
        candidates: Candidates,
        missing: NDArray[Any],
        vectors: NDArray[Any],
        sources: NDArray[Any],
    ) -> None:
        """Put something in the place of missing vectors, as the options say."""
        keys = candidates.keys
        if release.no_image is not None:
            # Known to have no picture, which the network was trained for: nothing is missing.
            without = [i for i in missing if not keys[i]]
            vectors[without], sources[without] = release.no_image, Source.NO_IMAGE
            missing = np.array([i for i in missing if keys[i]], np.int64)
        if not len(missing):
            return
        if self._options.missing_vector == "error":
            first = missing[0]
            raise MissingVectorError(f"instance {first}: the store has no vector of '{keys[first]}'", len(missing))
        computed: dict[tuple[Any, ...], NDArray[Any]] = {}
        wanted: list[tuple[Any, ...]] = []
        if release.embedder is not None:
            beside = [candidates.fields[name] for name in release.embedder.fields]
            wanted = [(keys[i], *(some[i if len(some) > 1 else 0] for some in beside)) for i in missing]
            computed = self._computed(release, release.embedder, sorted(set(wanted)))
        stand_in, source = release.stand_in
        for at, i in enumerate(missing):
            vector = computed.get(wanted[at]) if wanted else None
            vectors[i] = stand_in if vector is None else vector
            sources[i] = source if vector is None else Source.COMPUTED

    def _computed(
        self, release: Release, embedder: Embedder, wanted: list[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], NDArray[Any]]:
        """Vectors by key and fields, if they can be had; what was computed lately is not computed again."""
        with self._computed_lock:
            known = {key: release.computed[key] for key in wanted if key in release.computed}
            unknown = [key for key in wanted if key not in known]
            if unknown:
                fields = {name: [key[i] for key in unknown] for i, name in enumerate(embedder.fields, 1)}
                vectors = zip(unknown, embedder([key[0] for key in unknown], fields), strict=True)
                known |= {key: vector for key, vector in vectors if vector is not None}
            for key, vector in known.items():
                release.computed[key] = vector
                release.computed.move_to_end(key)
            while len(release.computed) > _NUM_COMPUTED_KEPT:
                release.computed.popitem(last=False)
        return known


def _require_finite(outputs: dict[str, NDArray[Any]]) -> None:
    for name, values in outputs.items():
        finite = np.isfinite(values)
        if not finite.all():
            instance = int(np.argwhere(~finite)[0][0])
            raise ServingError(f"instance {instance}: the model's {name} is {values[instance]}")


def newest_export(folder: str) -> str:
    """The folder itself if it is an export, else the one in it with the greatest number for a name.

    Raises:
      ExportError: if there is none.
    """
    if is_remote(folder):
        inner = len(folder.rstrip("/")) + 1
        found = [info.path[inner:].rpartition("/") for info in place_of(folder).below(folder)]
        names = {name for name, _, file in found if file == MANIFEST}
    else:
        names = {str(path.parent.relative_to(folder)) for path in Path(folder).glob(f"*/{MANIFEST}")}
        names |= {"" for _ in Path(folder).glob(MANIFEST)}
    if "" in names:
        return folder
    numbered = [name for name in names if name.isdigit()]
    if not numbered:
        raise ExportError(f"{folder}: no {MANIFEST}; give a folder that easyrec-mm export has written, or one of such")
    return join(folder, max(numbered, key=int))


def _identity(folder: str, generation: Generation) -> tuple[object, ...]:
    return (*_status(folder), generation.number, generation.begun_s)


def _status(folder: str) -> tuple[object, ...]:
    """Changes when the export in a folder is replaced."""
    if is_remote(folder):
        info = place_of(folder).stat(join(folder, MANIFEST))
        return folder, info.version, info.size
    try:
        status = (Path(folder) / MANIFEST).stat()
    except OSError as error:
        raise ExportError(f"{folder}: {error.strerror}") from error
    return folder, status.st_mtime_ns, status.st_ino
