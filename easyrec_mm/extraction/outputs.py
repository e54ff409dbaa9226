"""Where vectors go: a generation of a store, or a file, Parquet or .npy with the keys beside it.

A file is written from a store beside it, which holds the vectors until all are there: a killed run finds there what it
has done, by the same rules as in any other store. A file of the same origin and items is kept as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from easyrec_mm import __version__
from easyrec_mm.embedding.items import Item
from easyrec_mm.embedding.writing import Refresh, Target, description_of
from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.extraction.encoders import fingerprint_of
from easyrec_mm.extraction.preprocessing import read_text
from easyrec_mm.files import is_remote, place_of, plain
from easyrec_mm.files.work_folder import work_folder
from easyrec_mm.files.written_file import written_file
from easyrec_mm.store import State, Store, open_store
from easyrec_mm.store.dump import dump
from easyrec_mm.store.generations import Tasks, VectorDtype
from easyrec_mm.tasks import Task

_KEYS_AT_A_TIME = 5_000
NPY = ".npy"


@dataclass(frozen=True)
class Vectors:
    """What is written to an output.

    encoder  name of the encoder, for readers
    origin   of the vectors; see Encoder.origin
    dtype    their number format
    items    the items of all tasks
    task     the task that writes; None for the only one
    """

    encoder: str
    origin: dict[str, Any]
    dtype: VectorDtype
    items: Sequence[Item]
    task: Task | None

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the origin."""
        return fingerprint_of(self.origin)


class Output(ABC):
    """Where the vectors of a layer go.

    Attributes:
      place: the URI or path, for messages.
      target: what is written; None if everything is there.
    """

    place: str
    target: Target | None

    @abstractmethod
    def finish(self) -> str:
        """Put what was written in place; return what it still waits for, or ""."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


class StoreOutput(Output):
    """A generation of a store, which has the fingerprint of the vectors, so that those of two origins never mix.

    Args:
      uri: URI of the store.
      vectors: what is written.
    """

    def __init__(self, uri: str, vectors: Vectors) -> None:
        self._store = open_store(uri, writable=True)
        self.place, self._task = self._store.uri, vectors.task
        task = vectors.task
        self.target: Target = _begin(
            self._store, vectors, Tasks(task.num, description_of(vectors.items)) if task else None
        )

    def finish(self) -> str:
        """Make the generation current; see Output."""
        task = self._task
        return self._store.complete(self.target.generation, (task.index + 1, task.num) if task else None)

    def close(self) -> None:
        """See Output."""
        self._store.close()


class FileOutput(Output):
    """A file with vectors, and beside it a .yaml with their origin.

    Args:
      path: path of the file, .parquet or .npy; a task adds its number.
      vectors: what is written.
      refresh: "new" keeps a file that is complete.
    """

    def __init__(self, path: str, vectors: Vectors, refresh: Refresh) -> None:
        stem, ending = os.path.splitext(path)
        self.place = vectors.task.file_name(stem, ending) if vectors.task else path
        task = vectors.task
        self._items = [vectors.items[i] for i in task.part_of(len(vectors.items))] if task else vectors.items
        self._record = {
            "easyrec_mm": __version__,
            "fingerprint": vectors.fingerprint,
            "encoder": vectors.encoder,
            "items": description_of(self._items),
            "dtype": vectors.dtype,
            **vectors.origin,
        }
        self.target: Target | None = None
        self._store: Store | None = None
        if refresh == "new" and self._is_complete():
            return
        self._folder = self._work_folder()
        self._store = open_store(f"lmdb://{self._folder}", writable=True)
        self.target = _begin(self._store, vectors, None)

    def _is_complete(self) -> bool:
        """Return whether the file is there, with the same origin and items."""
        is_there = bool(place_of(self.place).find(self.place)) if is_remote(self.place) else os.path.exists(self.place)
        try:
            record = yaml.safe_load(read_text(self._beside(".yaml"))) if is_there else None
        except (ConfigError, yaml.YAMLError):
            return False
        names = ("fingerprint", "items", "dtype")
        return isinstance(record, dict) and all(record.get(name) == self._record[name] for name in names)

    def _beside(self, ending: str) -> str:
        return os.path.splitext(self.place)[0] + ending

    def _work_folder(self) -> str:
        """Return the folder of the store, which is that of the same origin and items alone."""
        digest = hashlib.sha256(f"{self._record}".encode()).hexdigest()[:16]
        if is_remote(self.place):
            return os.path.join(work_folder(), digest)
        folder, name = os.path.split(plain(self.place))
        try:
            os.makedirs(folder or ".", exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {self.place}: cannot be written: {error.strerror}") from error
        own = Path(folder or ".") / f".{name}.{digest}.part"
        for other in own.parent.glob(f".{name}.*.part"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        return str(own)

    def finish(self) -> str:
        """Write the file from the store; see Output."""
        if self._store is None or self.target is None:
            return ""
        self._store.complete(self.target.generation)
        with written_file(self._beside(".yaml")) as path:
            text = yaml.safe_dump(self._record, sort_keys=False, allow_unicode=True)
            Path(path).write_text(text, encoding="utf-8")
        if self.place.endswith(NPY):
            self._write_npy(self._store, self.target)
        else:
            dump(self._store, self.target.generation, self.place)
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return ""

    def _write_npy(self, store: Store, target: Target) -> None:
        """Write the vectors in the order of the items, and their keys, one a line."""
        keys = [item.key for item in self._items]
        with_break = next((key for key in keys if len(key.splitlines()) > 1), None)
        if with_break is not None:
            raise UserError(f"--output {self.place}: the key {with_break!r} has a line break; write Parquet instead")
        portions = [keys[i : i + _KEYS_AT_A_TIME] for i in range(0, len(keys), _KEYS_AT_A_TIME)]
        states = [store.get_many(portion, target.generation).states == State.PRESENT for portion in portions]
        present = sum(int(state.sum()) for state in states)
        with written_file(self._beside(".ids.txt")) as path, open(path, "w", encoding="utf-8") as file:
            for portion, is_present in zip(portions, states, strict=True):
                file.writelines(f"{key}\n" for key, one in zip(portion, is_present, strict=True) if one)
        with written_file(self.place) as path:
            shape, row = (present, target.generation.width), 0
            array = np.lib.format.open_memmap(path, "w+", target.generation.dtype, shape)
            for portion, is_present in zip(portions, states, strict=True):
                vectors = store.get_many(portion, target.generation).vectors[is_present]
                array[row : row + len(vectors)] = vectors
                row += len(vectors)
            array.flush()

    def close(self) -> None:
        """See Output."""
        if self._store is not None:
            self._store.close()
            self._store = None


def _begin(store: Store, vectors: Vectors, tasks: Tasks | None) -> Target:
    return Target(store, store.begin(vectors.fingerprint, vectors.origin["width"], vectors.dtype, tasks))
