"""Finds the newest rec model and the vectors that belong to it, and loads them together as a release."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import ExportError, UserError
from easyrec_mm.files import is_remote, join, place_of
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.manifest import MANIFEST, Manifest, local_export, read_header, require_unchanged
from easyrec_mm.ranges import NotNegative, Positive, Seconds
from easyrec_mm.schema import Schema
from easyrec_mm.serving.feature_lookup import FeatureLookup
from easyrec_mm.serving.predictor import Predictor, Runtime, files_of, load_predictor
from easyrec_mm.serving.private_copy import private_copy
from easyrec_mm.serving.request import Limits, RequestReader
from easyrec_mm.store import Generation, Store

_LOG = logging.getLogger("easyrec_mm.serving")
MissingVector = Literal["mean", "compute", "error", "no_image"]
# Number of the store's vectors over which the mean is taken.
_NUM_OF_MEAN = 10_000
_SCANNED_AT_A_TIME = 100


class ServingError(UserError):
    """A valid request cannot be answered now, or a release cannot be served."""


class NoVectorsError(ServingError):
    """The store has no vectors of a model's image tower, as before they have been embedded."""


class MissingVectorError(ServingError):
    """A vector is missing from the store, and that is an error; `number` candidates have no vector."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Embedder(Protocol):
    """An image model that computes the vectors which are missing from the store."""

    fingerprint: str
    # Fields that it needs in addition to the pictures.
    fields: tuple[str, ...]

    def paths(self, key: str) -> Sequence[str]:
        """Return the paths of the pictures that a key names."""

    def is_without_picture(self, values: Sequence[Any]) -> bool:
        """Return whether an item with these values of `fields` has a vector without a picture."""

    def embed(
        self, pictures: Sequence[Sequence[bytes]], fields: Mapping[str, Sequence[Any]] | None = None
    ) -> Sequence[NDArray[Any] | None]:
        """Return the vector `[D]` of each item, given the contents of its pictures; None if it cannot have one."""


class Source(IntEnum):
    """Where a candidate's image vector comes from."""

    STORE = 0
    REQUEST = 1
    MEAN = 2
    COMPUTED = 3
    NO_IMAGE = 4


@dataclass(frozen=True)
class ServiceOptions:
    """Options of the service.

    rec_model_dir      an export, or a folder of exports with numbers as names: the largest is used
    missing_vector     None takes the model's no-image vector if it has one, else the mean
    max_instances      maximum number of candidates per request
    max_list_values    maximum number of values in the lists of a request, see list_sizes.py
    vector_stores      feature -> URI of the store of its vectors, if it differs from that in the config
    image_root         folder of the pictures whose vectors are computed
    image_hosts        further places of such pictures, each a scheme and a host
    picture_timeout_s  seconds that a request waits for vectors that are computed
    copies             folder for copies of exports, which the processes of a server share; "": one of this process
    """

    rec_model_dir: str
    key_field: str = ""
    missing_vector: MissingVector | None = None
    runtime: Runtime = "onnx"
    num_threads: NotNegative = 1
    max_instances: Positive = 10_000
    max_list_values: Positive = 2_000_000
    vector_stores: Mapping[str, str] = field(default_factory=dict)
    image_root: str = ""
    image_hosts: tuple[str, ...] = ()
    picture_timeout_s: Seconds = 2.0
    copies: str = ""

    @property
    def limits(self) -> Limits:
        """Return the limits of a request."""
        return Limits(self.max_instances, self.max_list_values)


@dataclass(frozen=True)
class Release:
    """A rec model and its vectors.

    identity   changes when the folder, the store or the generation changes
    store      the store of the image vectors
    stand_in   float32 `[D]` that replaces a missing vector, and its Source
    no_image   float32 `[D]` that the network was trained to take for no picture; None if it was not
    embedder   image model of the same tower, if missing vectors are computed
    computed   vectors that the embedder has computed, by key and fields, the most recently used one last
    lookup     look-up of the vectors that features name by key
    copy       copy of the folder from which it was loaded
    """

    folder: str
    identity: tuple[object, ...]
    predictor: Predictor
    reader: RequestReader
    store: Store
    generation: Generation
    stand_in: tuple[NDArray[Any], Source]
    no_image: NDArray[Any] | None
    embedder: Embedder | None
    computed: OrderedDict[tuple[Any, ...], NDArray[Any]]
    lookup: FeatureLookup
    copy: str

    def version(self) -> dict[str, Any]:
        """Return what identifies the release in answers, metrics and logs."""
        manifest = self.predictor.manifest
        return {
            "checkpoint": Path(manifest.checkpoint).name,
            "step": manifest.step,
            "generation": self.generation.number,
            "image_tower": manifest.image_tower_fingerprint[:12],
        }


class Found(NamedTuple):
    """A rec model's folder with its manifest, the store and generation of its vectors, and the identity of them all."""

    folder: str
    manifest: Manifest
    store: Store
    generation: Generation
    identity: tuple[object, ...]


class Releases:
    """Finds and loads releases.

    Args:
      options: which model to serve, and how.
      store_lock: lock that is held while a store is used.
      load_embedder: loads the image model of a fingerprint; needed for "compute".

    Raises:
      ServingError: if `missing_vector` is "compute" and no image model is given.
    """

    def __init__(
        self,
        options: ServiceOptions,
        store_lock: threading.Lock,
        load_embedder: Callable[[str], Embedder] | None,
    ) -> None:
        if options.missing_vector == "compute" and load_embedder is None:
            raise ServingError("--missing_vector compute: give the image model with --img_model_dir")
        self._options, self._load_embedder = options, load_embedder
        self._store_lock = store_lock

    def folders(self) -> list[str]:
        """Return the folders of the rec models that there are, the newest one first; see `exports_of`."""
        return exports_of(self._options.rec_model_dir)

    def find(self, folder: str, store: Store, last: Release | None) -> Found:
        """Find the newest complete generation of a rec model's image tower.

        Args:
          folder: folder of the rec model.
          store: the store of the vectors; if another one has been put in its place, that is opened.
          last: the release that serves; None before the first.

        Raises:
          ExportError, StoreError: if the model or the store cannot be read.
          NoVectorsError: if the store has no vectors of the model's image tower.
        """
        with self._store_lock:
            store = store.reopened() or store
            meta = store.meta()
        # A manifest may contain vocabularies of megabytes, so it is not read again while the file is the same.
        is_same = last is not None and last.identity[:3] == _status(folder)
        manifest = last.predictor.manifest if last and is_same else read_header(folder, "rec")
        complete = {g.number: g for g in meta.generations.values() if g.completed_s}
        same = [g for g in complete.values() if g.fingerprint == manifest.image_tower_fingerprint]
        generation = max(same, key=lambda g: (g.number == meta.current, g.number), default=None)
        if generation is None:
            generations = ", ".join(f"generation {g.number} of {g.fingerprint[:12]}" for g in complete.values())
            raise NoVectorsError(
                f"{folder} ({manifest.checkpoint}) belongs to image tower {manifest.image_tower_fingerprint[:12]}, "
                f"but {store.uri} holds {generations or 'nothing'}; embed with the image model of the same export"
            )
        return Found(folder, manifest, store, generation, _identity(folder, store, generation))

    def load(self, found: Found, last: Release | None) -> Release:
        """Load a release.

        Args:
          found: what to load.
          last: the release that serves, whose image model is reused; None before the first.

        Raises:
          ExportError, StoreError, ServingError: if it cannot be served.
        """
        options, (folder, manifest, store, generation, identity) = self._options, found
        copy = self._copy_of(folder, manifest)
        predictor = load_predictor(copy, manifest, options.runtime, options.num_threads)
        if _identity(folder, store, generation) != identity:
            raise ExportError(f"{folder}: was replaced while it was being loaded; loading it again")
        if generation.width != manifest.image_width:
            raise ServingError(
                f"{folder} takes vectors of {manifest.image_width} numbers, but generation {generation.number} of "
                f"{store.uri} has vectors of {generation.width}; embed with the image model of the same export"
            )
        with self._store_lock:
            if not store.keep(generation):
                text = "generation %d of %s is not kept from easyrec-mm store prune: the server cannot write there"
                _LOG.warning(text, generation.number, store.uri)
        no_image = np.array(manifest.no_image_vector, np.float32) if manifest.no_image_vector else None
        schema = manifest.schema
        self._require_places(schema)
        is_computed = options.missing_vector == "compute"
        of_contents = [name for feature in schema.contents.values() for name in feature.inputs] if is_computed else []
        reader = RequestReader(
            schema, manifest.image_width, options.key_field, options.limits, no_image is not None, of_contents
        )
        embedder = self._embedder(generation, reader, last)
        stand_in = self._stand_in(found, no_image)
        of_last = last.lookup if last else None
        lookup = FeatureLookup(manifest, options.vector_stores, options.missing_vector == "error", of_last)
        return Release(
            folder,
            identity,
            predictor,
            reader,
            store,
            generation,
            stand_in,
            no_image,
            embedder,
            OrderedDict(),
            lookup,
            copy,
        )

    def _require_places(self, schema: Schema) -> None:
        """Check that the server knows the items of requests, and where their pictures may be."""
        options = self._options
        if not (options.key_field or schema.image.field):
            raise ServingError(
                "--key_field: is missing; the data have no pictures whose paths are the keys of items: name the field "
                "of requests that holds the keys under which embed has stored the vectors"
            )
        needs_places = options.missing_vector == "compute" and schema.uses_image
        if needs_places and not (options.image_root or options.image_hosts):
            raise ServingError(
                "--missing_vector compute: requests name files to read; say where they may be, with --image_root or "
                "--image_hosts"
            )

    def _copy_of(self, folder: str, manifest: Manifest) -> str:
        """Copy what the runtime reads of an export, and check that it is what the manifest lists."""
        if is_remote(folder):
            copy = local_export(folder)
            require_unchanged(manifest, Path(copy), folder, manifest.files)
            return copy
        place = self._options.copies or work_folder()
        return private_copy(folder, manifest, files_of(manifest, self._options.runtime), place)

    def _embedder(self, generation: Generation, reader: RequestReader, last: Release | None) -> Embedder | None:
        """Return the image model of the generation's tower, reusing a loaded one; None unless vectors are computed."""
        if self._load_embedder is None or self._options.missing_vector != "compute":
            return None
        loaded = last.embedder if last else None
        embedder = (
            loaded
            if loaded and loaded.fingerprint == generation.fingerprint
            else self._load_embedder(generation.fingerprint)
        )
        if embedder.fingerprint != generation.fingerprint:
            raise ServingError(
                f"--img_model_dir holds image tower {embedder.fingerprint[:12]}, but the rec model belongs to "
                f"{generation.fingerprint[:12]}; give the image model of the same export"
            )
        if lacking := [name for name in embedder.fields if name not in reader.blank_fields()]:
            raise ServingError(
                f"--missing_vector compute: the image model also takes {', '.join(lacking)}, which no feature "
                "of the rec model reads; choose another --missing_vector, or add it to a feature group of the model"
            )
        return embedder

    def _stand_in(self, found: Found, no_image: NDArray[Any] | None) -> tuple[NDArray[Any], Source]:
        """Return the vector `[D]` that replaces a missing one, and its Source."""
        if no_image is None and self._options.missing_vector == "no_image":
            raise ServingError(
                f"--missing_vector no_image: {found.folder} was trained without a no-image vector "
                "(no_image_vector); choose another --missing_vector"
            )
        if no_image is None or self._options.missing_vector == "mean":
            vectors = list(islice(self._vectors(found.store, found.generation), _NUM_OF_MEAN))
            return np.asarray(np.mean(vectors, axis=0), np.float32), Source.MEAN
        next(self._vectors(found.store, found.generation))
        return no_image, Source.NO_IMAGE

    def _vectors(self, store: Store, generation: Generation) -> Iterator[NDArray[Any]]:
        """Yield the vectors of a generation; one at least.

        Raises:
          ServingError: if it has no vector.
        """
        records = store.scan(generation)
        is_empty = True
        while True:
            with self._store_lock:  # not held for the whole scan, because requests wait for it
                portion = list(islice(records, _SCANNED_AT_A_TIME))
            for record in portion:
                if record.vector is not None:
                    is_empty = False
                    yield record.vector
            if not portion:
                break
        if is_empty:
            raise ServingError(
                f"generation {generation.number} of {store.uri} has no vectors; embed the pictures of the items"
            )


def exports_of(folder: str) -> list[str]:
    """Return the folder itself if it is an export, else the exports in it with numbers as names, the largest one first.

    Raises:
      ExportError: if the folder contains no export.
    """
    if is_remote(folder):
        inner = len(folder.rstrip("/")) + 1
        path_parts = [info.path[inner:].rpartition("/") for info in place_of(folder).below(folder)]
        names = {name for name, _, file in path_parts if file == MANIFEST}
    else:
        names = {str(path.parent.relative_to(folder)) for path in Path(folder).glob(f"*/{MANIFEST}")}
        names |= {"" for _ in Path(folder).glob(MANIFEST)}
    if "" in names:
        return [folder]
    numbered = [name for name in names if name.isascii() and name.isdigit()]
    if not numbered:
        choices = "a folder written by easyrec-mm export, or a folder of such folders with numbers as names"
        raise ExportError(f"{folder}: no {MANIFEST}; give {choices}")
    return [join(folder, name) for name in sorted(numbered, key=int, reverse=True)]


def image_model_of(fingerprint: str, folder: str) -> str:
    """Return the export of an image tower among those of `exports_of`; the newest one if it is not there.

    Raises:
      ExportError: if the folder contains no export, or one that is not of an image model.
    """
    folders = exports_of(folder)
    fingerprints = {export: read_header(export, "image").image_tower_fingerprint for export in folders}
    return next((export for export in folders if fingerprints[export] == fingerprint), folders[0])


def _identity(folder: str, store: Store, generation: Generation) -> tuple[object, ...]:
    return (*_status(folder), store.identity, generation.number, generation.begun_s)


def _status(folder: str) -> tuple[object, ...]:
    """Return values that change when the export in a folder is replaced."""
    if is_remote(folder):
        info = place_of(folder).stat(join(folder, MANIFEST))
        return folder, info.version, info.size
    try:
        status = (Path(folder) / MANIFEST).stat()
    except OSError as error:
        raise ExportError(f"{folder}: {error.strerror}") from error
    return folder, status.st_mtime_ns, status.st_ino
