"""Runs a step again whose numbers were not finite, and tells where they come from.

The step runs operation by operation with the weights, the batch and the states of random numbers that it had. With
several workers, the part of each runs by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import UserError
from easyrec_mm.features.outliers import is_far
from easyrec_mm.network.item_tower import build_model
from easyrec_mm.network.layers.embedding import table_ids
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.training.plan import Phase, build_phases
from easyrec_mm.training.replay_folder import Step, WorkerPart, read_step
from easyrec_mm.training.tensor_trace import BACKWARD, Operation, TensorTrace, largest

_MOST_SHOWN = 5


def replay(model_dir: str, number: int | None) -> list[str]:
    """Run a step of a model_dir again, by default the last one that was written; return the lines of the report.

    Raises:
      UserError: if there is no such step, or all its numbers are finite when it runs again.
    """
    model, phase, step = open_step(model_dir, number)
    values = ", ".join(f"{name} {value:.6g}" for name, value in step.values.items() if name.startswith("loss"))
    lines = [f"step {step.number} computed {values}"]
    for worker, part in enumerate(step.parts):
        report = _report(model, phase, step, part)
        if report:
            of_worker = [f"worker {worker} of {len(step.parts)}:"] if len(step.parts) > 1 else []
            return lines + of_worker + report
    raise UserError(
        f"step {step.number}: all its numbers are finite when it runs again; another version of TensorFlow or another "
        "processor may round differently, and with several workers their sums are not repeated"
    )


def open_step(model_dir: str, number: int | None) -> tuple[MultimodalModel, Phase, Step]:
    """Return a step of a model_dir, the model with the weights that it had, and the phase of the training.

    Raises:
      UserError: if there is no such step, or its config no longer loads.
    """
    step = read_step(ModelDir(model_dir).open(), number)
    pipeline = load_pipeline(step.config)
    # What saves memory runs only in a compiled step, and changes no number but the statistics of micro batches.
    settings = pipeline.config.model_config.e2e_mm_dbmtl.img_model
    settings.rematerialize, settings.image_micro_batch = False, 0
    model = build_model(pipeline.config, pipeline.schema, step.dtype)
    phases = build_phases(model, pipeline.config)
    phase = [phase for phase in phases if phase.first_step < step.number][-1]
    model.train_part(phase.trainable)
    _load(model, step)
    return model, phase, step


def _load(model: MultimodalModel, step: Step) -> None:
    for name, variable in model.weights().items():
        value = step.weights[name]
        if name in step.rows:
            variable.scatter_update(tf.IndexedSlices(tf.constant(value), tf.constant(step.rows[name])))
        else:
            variable.assign(value)


def _report(model: MultimodalModel, phase: Phase, step: Step, part: WorkerPart) -> list[str]:
    """Return the lines about the first tensor of a worker's part that is not finite; [] if there is none."""
    for name, value in step.weights.items():
        if not np.isfinite(value).all():
            return _of_weights(name, value, step, model, part)
    for name, value in _numbers(part):
        if not np.isfinite(value).all():
            samples = [sample for row in _bad_rows(value) if (sample := _sample_of(part, name, row)) is not None]
            return [f"first tensor that is not finite: {name}, an input", *_of_samples(part, samples)]
    trace, losses, gradients = run_part(model, phase, step, part)
    bad_losses = {name: value for name, value in losses.items() if not math.isfinite(float(value))}
    tensors = {name: _values(gradient) for name, gradient in gradients.items()}
    bad_gradients = {name: t for name, t in tensors.items() if not np.isfinite(t.numpy()).all()}
    if not bad_losses and not bad_gradients and _has_finite_weights(model):
        norm = float(tf.linalg.global_norm(list(tensors.values())))
        return [] if math.isfinite(norm) else [*_of_norm(tensors), *_suspicious(step, part)]
    cause = trace.first_cause(list((bad_losses or bad_gradients).values()))
    if cause is None:
        return []
    results = [f"loss {name}" for name in bad_losses] or [f"gradient of {name}" for name in bad_gradients]
    return [
        *_of_operation(cause, list(bad_losses)),
        f"not finite because of it: {_listed(results or ['moving statistics'])}",
        *_of_cause(cause, part),
        *_suspicious(step, part),
    ]


def run_part(
    model: MultimodalModel, phase: Phase, step: Step, part: WorkerPart
) -> tuple[TensorTrace, dict[str, tf.Tensor], dict[str, tf.Tensor | tf.IndexedSlices]]:
    """Run a worker's part of a step; return its trace, its losses and the gradients of its trained weights."""
    named = model.named_variables()
    for name, value in part.random_states.items():
        named[name].assign(value)
    for name, bank in phase.banks.items():
        bank.vectors.assign(part.banks[name])
    trace = TensorTrace(_tensors(part), model.weights())
    variables = {name: v.value for name, v in phase.trained.items()}
    with trace.following():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(variables.values()))
            losses = model.losses(part.batch, training=True, banks=phase.banks)
            loss = tf.add_n(list(losses.values())) * step.loss_scale
        trace.part = BACKWARD
        gradients = tape.gradient(loss, list(variables.values()))
    by_name = zip(variables, gradients, strict=True)
    return trace, losses, {name: gradient for name, gradient in by_name if gradient is not None}


# --- Lines of the report


def _of_weights(
    name: str, value: NDArray[np.float32], step: Step, model: MultimodalModel, part: WorkerPart
) -> list[str]:
    lines = [f"first tensor that is not finite: weights {name}, before the step"]
    if name not in step.rows:
        return lines
    bad = step.rows[name][_bad_rows(value)]
    lines.append(f"rows of the table: {_listed([str(row) for row in bad])}")
    samples: list[int] = []
    for feature in model.schema.features:
        ids = part.batch.features.get(feature.name)
        if feature.table and name == f"embedding/{feature.table}" and ids is not None and not feature.multiplies_rows:
            lines.append(f"feature '{feature.name}' reads the table")
            flat = table_ids(feature, ids).numpy()
            is_ragged = isinstance(ids, tf.RaggedTensor)
            # A sample has one id, or as many as there are levels of codes.
            sample_of = (
                ids.value_rowids().numpy() if is_ragged else np.arange(len(flat)) * len(ids) // max(len(flat), 1)
            )
            samples += sample_of[np.isin(flat, bad)].tolist()
    return lines + _of_samples(part, sorted(set(samples)))


def _of_operation(cause: Operation, bad_losses: list[str]) -> list[str]:
    rows = cause.output.shape[0] if cause.output.ndim else 0
    shape = "x".join(map(str, cause.output.shape)) or "a single number"
    place = cause.place or (f"loss {_listed(bad_losses)}" if bad_losses else "the losses")
    what = "gradient in" if cause.part == BACKWARD else "output of"
    bad = f"; {len(_bad_rows(cause.output))} of {rows} rows" if rows else ""
    lines = [f"first tensor that is not finite: {what} {place} ({cause.kind}, {cause.part}): {shape}{bad}"]
    for operand in cause.operands:
        if operand.value.size:
            lines.append(f"  computed from {operand.name}: largest number {operand.largest:.6g}")
        elif operand.name:
            lines.append(f"  computed from {operand.name}")
    return lines


def _of_norm(gradients: dict[str, tf.Tensor]) -> list[str]:
    sizes = sorted(((largest(t.numpy()), name) for name, t in gradients.items()), reverse=True)
    shown = [f"  gradient of {name}: largest number {size:.6g}" for size, name in sizes[:_MOST_SHOWN]]
    return ["first tensor that is not finite: the sum of the squares of the gradients", *shown]


def _of_samples(part: WorkerPart, samples: list[int]) -> list[str]:
    if not samples:
        return []
    num = part.batch.num_samples
    if len(samples) == num > 1:
        return [f"all {num} samples of the batch are concerned"]
    more = f" and {len(samples) - _MOST_SHOWN} more" if len(samples) > _MOST_SHOWN else ""
    return ["samples:", *(f"  {_described(part, sample)}" for sample in samples[:_MOST_SHOWN]), *filter(None, [more])]


def _of_cause(cause: Operation, part: WorkerPart) -> list[str]:
    """Return the samples of the rows that are not finite; if these are all or no rows, those of the largest inputs."""
    bad = _samples_of_rows(_bad_rows(cause.output), cause.output, cause.place, part)
    if bad and len(bad) < part.batch.num_samples:
        return _of_samples(part, bad)
    lines = _of_samples(part, bad or [])
    for operand in cause.operands:
        if operand.value.ndim and operand.value.size and not operand.is_weight:
            sizes = np.abs(_by_rows(operand.value.astype(np.float64))).max(axis=1)
            rows = np.flatnonzero(sizes >= sizes.max() / 2)
            largest_samples = _samples_of_rows(rows, operand.value, cause.place, part)
            if largest_samples and len(largest_samples) < part.batch.num_samples:
                return [*lines, f"largest numbers of {operand.name}:", *_of_samples(part, largest_samples)[1:]]
    return lines


def _suspicious(step: Step, part: WorkerPart) -> list[str]:
    """Return the numbers of the batch and of the weights that are far from what is usual, the farthest first."""
    lines = []
    for name, value in _numbers(part):
        rows = np.abs(_by_rows(value)).max(axis=1, initial=0.0)
        usual = float(np.median(np.abs(value))) if value.size else 0.0
        for row in np.argsort(-rows, kind="stable")[:_MOST_SHOWN]:
            sample = _sample_of(part, name, int(row))
            if is_far(float(rows[row]), usual) and sample is not None:
                number = _by_rows(value)[row]
                far = float(number[np.abs(number).argmax()])
                lines.append((float(rows[row]), f"  {name}: {far:.6g} in {_described(part, sample)}"))
    for name, value in step.weights.items():
        size = largest(value)
        if is_far(size, 0.0):
            lines.append((size, f"  weights {name}: largest number {size:.6g}"))
    far_lines = [line for _, line in sorted(lines, key=lambda line: -line[0])[: 2 * _MOST_SHOWN]]
    return ["numbers far beyond the usual ones:", *far_lines] if far_lines else []


def _described(part: WorkerPart, sample: int) -> str:
    """Return where a sample comes from: file, row, its number within its group, and its pictures."""
    group, number = part.group_of(sample)
    images = part.batch.images
    image = int(part.batch.sample_image[sample])
    pictures = images.link_picture.numpy()[images.link_image.numpy() == image] if len(part.picture_path) else []
    paths = f" ({', '.join(part.picture_path[pictures])})" if len(pictures) else ""
    return f"{part.file[group]}:{part.row[group]}, sample {number + 1} of {part.size[group]}{paths}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more


# --- Rows and samples


def _tensors(part: WorkerPart) -> Iterator[tuple[str, tf.Tensor]]:
    """Yield the float tensors of a batch with their names."""
    for name, value in part.batch.features.items():
        flat = value.flat_values if isinstance(value, tf.RaggedTensor) else value
        if flat.dtype.is_floating:
            yield f"feature '{name}'", flat
    for name, value in part.batch.labels.items():
        yield f"label '{name}'", value
    yield "the weights of samples", part.batch.sample_weight


def _numbers(part: WorkerPart) -> Iterator[tuple[str, NDArray[np.float32]]]:
    return ((name, tensor.numpy()) for name, tensor in _tensors(part))


def _sample_of(part: WorkerPart, name: str, row: int) -> int | None:
    """Return the sample of a row of one of `_tensors`; None for an element of a list within a list."""
    value = part.batch.features.get(name.removeprefix("feature '")[:-1])
    if not isinstance(value, tf.RaggedTensor):
        return row
    return int(value.value_rowids()[row]) if value.ragged_rank == 1 else None


def _samples_of_rows(
    rows: NDArray[np.int64], values: NDArray[np.float32], place: str, part: WorkerPart
) -> list[int] | None:
    """Return the samples of rows of a tensor; None if its rows are not those of samples, images or pictures."""
    num = len(values) if values.ndim else 0
    images = part.batch.images
    sample_image = part.batch.sample_image.numpy()
    encoded, num_images = images.encoded.numpy(), int(images.has_picture.shape[0])
    is_image = place.startswith("image")
    if is_image and num == len(encoded):
        link_picture, link_image = images.link_picture.numpy(), images.link_image.numpy()
        of_rows = link_image[np.isin(link_picture, encoded[rows])]
        return np.flatnonzero(np.isin(sample_image, of_rows)).tolist()
    if is_image and num == num_images:
        return np.flatnonzero(np.isin(sample_image, rows)).tolist()
    return rows.tolist() if not is_image and num == len(sample_image) else None


def _bad_rows(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rows with a number that is not finite."""
    if not values.ndim:
        return np.zeros(0, np.int64)
    return np.flatnonzero(~np.isfinite(_by_rows(values)).all(axis=1))


def _by_rows(values: NDArray[Any]) -> NDArray[Any]:
    """Return values `[N, ...]` as `[N, M]`, also of the empty batch of a worker."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _values(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _has_finite_weights(model: MultimodalModel) -> bool:
    return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in model.weights().values() if v.dtype.is_floating)
