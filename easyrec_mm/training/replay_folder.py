"""The folder of a step whose numbers were not finite: everything that is needed to run the step again.

    replay/step-<n>/step.json         the step, what it computed in, its losses, norms of its weights
    replay/step-<n>/weights.npz       the weights before the step; of a table only the rows that the batch names
    replay/step-<n>/worker-<i>.npz    the batch of a worker, where its groups come from, its states of random numbers
    replay/step-<n>/pipeline.config   the config

Such a step changes nothing, so that all this is written after it, and other steps cost nothing.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.config.pipeline import write_config
from easyrec_mm.data.batch import Batch, Contents, Images, InputBatch
from easyrec_mm.data.vector_bank import Banks
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shards import shard_of
from easyrec_mm.errors import CheckpointError, UserError
from easyrec_mm.network.layers.embedding import table_ids
from easyrec_mm.network.model import RANDOM_STATE, MultimodalModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.runs.model_dir import PIPELINE_CONFIG, REPLAY, ModelDir
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.schema import IMAGE

Arrays = dict[str, NDArray[Any]]
STEP, WEIGHTS, WORKER = "step.json", "weights.npz", "worker-{}.npz"
_NAME = re.compile(r"step-(\d+)")
# Parts of a batch that hold a value for each name, and the others.
_NESTS = ("features", "labels")
_TENSORS = ("sample_weight", "pixels", "sample_image")
_IMAGE_TENSORS = ("encoded", "category", "picture_key", "bank_row", "link_picture", "link_image", "has_picture", "key")


@dataclass(frozen=True)
class WorkerPart:
    """What one worker read for a step.

    batch          its batch; rows of banks are numbered from 0 in the order of its pictures and contents
    file           string [G]: file of each group
    row            int64 [G], from 1
    size           int64 [G]: number of samples
    picture_path   string [P]
    random_states  values of the states of random numbers, by name
    banks          name of a bank -> float32 [P, W], the vectors in it of the batch's pictures, or of other contents
    """

    batch: Batch
    file: NDArray[np.str_]
    row: NDArray[np.int64]
    size: NDArray[np.int64]
    picture_path: NDArray[np.str_]
    random_states: Arrays
    banks: Arrays

    @classmethod
    def of(cls, item: InputBatch, files: list[str], model: MultimodalModel, banks: Banks) -> WorkerPart:
        """Return the part of this worker."""
        batch = item.batch
        of_banks = batch.of_banks()
        vectors = {name: tf.gather(bank.vectors, of_banks[name].bank_row).numpy() for name, bank in banks.items()}
        for name in banks:
            rows = tf.range(tf.size(of_banks[name].bank_row))
            if name == IMAGE:
                batch = batch._replace(images=batch.images._replace(bank_row=rows))
            else:
                of_kind = batch.contents[name]._replace(bank_row=rows)
                batch = batch._replace(contents={**batch.contents, name: of_kind})
        origin = item.origin.numpy()
        return cls(
            batch,
            np.array([hide_secrets(files[i]) for i in origin[0]], np.str_),
            origin[1],
            origin[2],
            np.array([hide_secrets(path.decode("utf-8", "backslashreplace")) for path in item.picture_path], np.str_),
            {name: v.numpy() for name, v in model.named_variables().items() if RANDOM_STATE in name},
            vectors,
        )

    def content(self) -> bytes:
        """Return the part as an npz file."""
        arrays = _arrays(self.batch) | {f"random_states/{name}": value for name, value in self.random_states.items()}
        arrays |= {f"origin/{name}": getattr(self, name) for name in ("file", "row", "size", "picture_path")}
        arrays |= {f"bank/{name}": vectors for name, vectors in self.banks.items()}
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # NumPy's stubs take the names for other arguments
        return stream.getvalue()

    @classmethod
    def read(cls, source: Path | io.BytesIO) -> WorkerPart:
        """Return the part that `content` wrote."""
        with np.load(source) as file:
            arrays = dict(file)
        own: Any = _named(arrays, "origin")
        random_states = _named(arrays, "random_states")
        return cls(batch=_batch(arrays), **own, random_states=random_states, banks=_named(arrays, "bank"))

    def group_of(self, sample: int) -> tuple[int, int]:
        """Return the group of a sample, and the number of the sample within it, from 0."""
        ends = np.cumsum(self.size)
        group = int(np.searchsorted(ends, sample, "right"))
        return group, int(sample - (ends[group] - self.size[group]))


@dataclass(frozen=True)
class Step:
    """A step that can be run again.

    number      number of the step, from 1
    dtype       dtype policy of the model
    loss_scale  factor of the loss whose gradient was computed
    values      what the step returned, such as its losses by name
    parts       of each worker
    weights     by name; of a table with `rows` only these rows
    rows        name of a table -> its rows
    config      path of the config
    """

    number: int
    dtype: str
    loss_scale: float
    values: dict[str, float]
    parts: list[WorkerPart]
    weights: Arrays
    rows: Arrays
    config: str


def weights_of(model: MultimodalModel, parts: Collection[WorkerPart]) -> tuple[Arrays, Arrays]:
    """Return the weights that a step reads, and of tables the rows that they are; see Step.

    If there are divided tables, all workers call it together.
    """
    embedding = model.rec.feature_embedding
    used: dict[str, list[NDArray[Any]]] = {name: [] for name in embedding.tables}
    for batch in (part.batch for part in parts):
        for feature in model.schema.features:
            if feature.table:
                ids = [table_ids(feature, batch.features[feature.name])] if feature.name in batch.features else []
                ids += [values for name, values in batch.images.features.items() if name == feature.name]
                used[feature.table] += [values.numpy().reshape(-1) for values in ids]
    weights: Arrays = {}
    rows: Arrays = {}
    tables = {f"embedding/{name}": ids for name, ids in used.items()}
    for name, variable in model.weights().items():
        if name in tables:
            shard = shard_of(variable)
            first, stop = (0, variable.shape[0]) if shard is None else (shard.first, shard.stop)
            used_ids = np.unique(np.concatenate([np.zeros(0, np.int64), *tables[name]]))
            rows[name] = used_ids[(used_ids >= first) & (used_ids < stop)]
            weights[name] = tf.gather(variable, rows[name] - first).numpy()
            if shard is not None:
                rows[name], weights[name] = (_of_all(model.replicas, own) for own in (rows[name], weights[name]))
        else:
            weights[name] = variable.numpy()
    return weights, rows


def _of_all(replicas: Replicas, rows: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of all workers, in their order."""
    contents = replicas.contents(rows.tobytes())
    return np.concatenate([np.frombuffer(own, rows.dtype).reshape(-1, *rows.shape[1:]) for own in contents])


def write_step(folder: Path, step: Step, config: EasyRecConfig) -> None:
    """Write a step and its config to a folder, which appears only when it is complete.

    Raises:
      OSError: if it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for number, part in enumerate(step.parts):
            (temporary / WORKER.format(number)).write_bytes(part.content())
        arrays = {f"weights/{name}": value for name, value in step.weights.items()}
        arrays |= {f"rows/{name}": value for name, value in step.rows.items()}
        np.savez(temporary / WEIGHTS, **arrays)  # type: ignore[arg-type]
        norms = {name: _norm(value) for name, value in step.weights.items()}
        facts = {
            "step": step.number,
            "dtype": step.dtype,
            "loss_scale": step.loss_scale,
            "values": {name: repr(value) for name, value in step.values.items()},
            "num_workers": len(step.parts),
            "norms": {name: repr(value) for name, value in norms.items()},
        }
        (temporary / STEP).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        write_config(config, str(temporary / PIPELINE_CONFIG))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_step(model_dir: ModelDir, number: int | None) -> Step:
    """Return a step of a model_dir, by default the last one that was written.

    Raises:
      UserError: if there is no such step.
      CheckpointError: if its files are damaged.
    """
    model_dir.fetch_replays()
    steps = replay_steps(model_dir.local)
    if not steps:
        raise UserError(f"{model_dir.path}: has no {REPLAY}/step-<n>; a training writes it when a step is not finite")
    number = steps[-1] if number is None else number
    if number not in steps:
        raise UserError(f"--step {number}: is not in {model_dir.path}/{REPLAY}; there are {', '.join(map(str, steps))}")
    folder = model_dir.local / REPLAY / f"step-{number}"
    try:
        facts = json.loads((folder / STEP).read_text(encoding="utf-8"))
        parts = [WorkerPart.read(folder / WORKER.format(i)) for i in range(facts["num_workers"])]
        with np.load(folder / WEIGHTS) as file:
            arrays = dict(file)
        values = {name: float(text) for name, text in facts["values"].items()}
        return Step(
            number, facts["dtype"], facts["loss_scale"], values, parts, _named(arrays, "weights"),
            _named(arrays, "rows"), str(folder / PIPELINE_CONFIG),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}; give another --step") from error


def replay_steps(folder: Path) -> list[int]:
    """Return the steps in a local model_dir that can be run again, oldest first."""
    names = (_NAME.fullmatch(path.name) for path in (folder / REPLAY).glob("step-*"))
    return sorted(int(match[1]) for match in names if match)


def _arrays(batch: Batch) -> Arrays:
    """Return the tensors of a batch by name; the name of a feature or label comes last, because it may hold a slash."""
    arrays = {name: getattr(batch, name).numpy() for name in _TENSORS}
    arrays |= {f"images/{name}": getattr(batch.images, name).numpy() for name in _IMAGE_TENSORS}
    nests = {name: getattr(batch, name) for name in _NESTS}
    nests |= {f"image_{name}": getattr(batch.images, name) for name in _NESTS}
    for kind, contents in batch.contents.items():
        arrays |= {f"contents/{kind}/{name}": _storable(value.numpy()) for name, value in contents._asdict().items()}
    for nest, values in nests.items():
        for name, value in values.items():
            if isinstance(value, tf.RaggedTensor):
                arrays[f"{nest}/values/{name}"] = value.flat_values.numpy()
                for i, splits in enumerate(value.nested_row_splits):
                    arrays[f"{nest}/splits{i}/{name}"] = splits.numpy()
            else:
                arrays[f"{nest}/all/{name}"] = value.numpy()
    return arrays


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that npz can hold without pickling: texts of one length."""
    return array.astype(np.bytes_) if array.dtype == object else array


def _batch(arrays: Mapping[str, NDArray[Any]]) -> Batch:
    """Return the batch whose tensors `_arrays` returned."""

    def nest(name: str) -> dict[str, Any]:
        values: dict[str, Any] = {key: tf.constant(value) for key, value in _named(arrays, f"{name}/all").items()}
        for key, flat in _named(arrays, f"{name}/values").items():
            splits: list[tf.Tensor] = []
            while f"{name}/splits{len(splits)}/{key}" in arrays:
                splits.append(tf.constant(arrays[f"{name}/splits{len(splits)}/{key}"]))
            values[key] = tf.RaggedTensor.from_nested_row_splits(tf.constant(flat), splits)
        return values

    tensors = {name: tf.constant(arrays[name]) for name in _TENSORS}
    of_images = {name: tf.constant(arrays[f"images/{name}"]) for name in _IMAGE_TENSORS}
    images = Images(**of_images, **{name: nest(f"image_{name}") for name in _NESTS})
    kinds = {name.split("/")[0] for name in _named(arrays, "contents")}
    contents = {
        kind: Contents(**{name: tf.constant(value) for name, value in _named(arrays, f"contents/{kind}").items()})
        for kind in kinds
    }
    return Batch(**{name: nest(name) for name in _NESTS}, **tensors, images=images, contents=contents)


def _named(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """Return the arrays whose names begin with a prefix and a slash, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


def _norm(value: NDArray[Any]) -> float:
    return float(np.linalg.norm(value.astype(np.float64).reshape(-1)))
