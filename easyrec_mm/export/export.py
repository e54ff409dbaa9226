"""The export: a checkpoint -> folders of the image, rec and total model, verified to agree, each with its manifest.

They are put in place after all checks have passed (folders.py). Models compute in float32, regardless of the precision
of the training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from easyrec_mm import __version__
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.errors import ExportError, tensorflow_reason
from easyrec_mm.evaluation.evaluator import load_model, vectors_of
from easyrec_mm.export.folders import ExportFolders, written
from easyrec_mm.export.onnx_models import write_image_onnx, write_rec_onnx
from easyrec_mm.export.parity import Exported, measure_parity
from easyrec_mm.export.parts import Part, image_part, rec_part, total_part
from easyrec_mm.export.sample_request import sample_request
from easyrec_mm.files import is_remote, plain
from easyrec_mm.files.local_copies import local_copy
from easyrec_mm.manifest import (
    IMAGE_ONNX,
    SAMPLE_REQUEST,
    Kind,
    Manifest,
    invalid_inputs,
    list_files,
    write_manifest,
)
from easyrec_mm.network.model import MultimodalModel, without_updates
from easyrec_mm.network.precision import FLOAT32, dtype_policy
from easyrec_mm.protos.image_pb2 import ImgModel
from easyrec_mm.schema import Schema
from easyrec_mm.store import Generation

NUM_PARITY_GROUPS = 100
_PACKAGES = ("tensorflow", "keras", "keras-hub", "numpy", "onnx", "tf2onnx", "onnxruntime")


def export(
    pipeline: Pipeline,
    checkpoint: str,
    folders: ExportFolders,
    data_path: str,
    asset_files: tuple[str, ...] = (),
    num_parity_groups: int = NUM_PARITY_GROUPS,
) -> dict[str, Any]:
    """Write the three models of a checkpoint; return the parity report.

    Args:
      pipeline: the config of the training.
      checkpoint: path of the checkpoint.
      folders: the folders to write; an export that they contain is replaced.
      data_path: files of samples on which the models are compared.
      asset_files: files to copy into the folder `assets` of every model.
      num_parity_groups: number of groups of the data to compare.

    Raises:
      ExportError: if the models disagree, or if a folder contains something other than an export or cannot be written.
      CheckpointError: if the checkpoint does not fit the config.
    """
    config, schema = pipeline.config, pipeline.schema
    _require_exportable(pipeline)
    with written(folders) as new, closing(vectors_of(schema, checkpoint)) as vectors:
        model, step = load_model(config, schema, checkpoint, FLOAT32)
        model = without_updates(model, config)
        dtype = dtype_policy(config.train_config.precision)
        trained = load_model(config, schema, checkpoint, dtype)[0] if dtype != FLOAT32 else None
        image_input = config.export_config.img_input_name or schema.image.field
        signatures, left_out = _write_models(model, image_input, new, asset_files)
        exported = Exported(new["image"], new["rec"], new["total"], image_input)
        parity = measure_parity(model, trained, exported, config.data_config, data_path, num_parity_groups, vectors)
        parity["left_out"] = left_out
        manifest_of = partial(
            Manifest, schema=schema.without_passwords(), image_input=image_input, image_width=model.item_width,
            checkpoint=Path(checkpoint).name, step=step, versions=_versions(), parity=parity,
            image_tower_fingerprint=image_tower_fingerprint(model, config.model_config.e2e_mm_dbmtl.img_model),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            no_image_vector=model.no_image_vector(),
            vectors={name: _origin(generation) for name, generation in vectors.generations.items()},
        )  # fmt: skip
        request = sample_request(config.data_config, schema, data_path, vectors)
        (new["rec"] / SAMPLE_REQUEST).write_text(json.dumps(request, indent=1, ensure_ascii=False) + "\n", "utf-8")
        for kind, folder in new.items():
            write_manifest(folder, manifest_of(kind=kind, signatures=signatures[kind], files=list_files(folder)))
    return parity


def _versions() -> dict[str, str]:
    return {"easyrec_mm": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


def image_tower_fingerprint(model: MultimodalModel, settings: ImgModel) -> str:
    """Return the SHA-256 of everything that decides the vector of a picture: preprocessing, architecture, weights."""
    schema = model.schema
    architecture: dict[str, Any] = {
        "image": asdict(schema.image),
        "backbone": model.image.source if model.image is not None else None,
        "normalisation": model.image.normalisation if model.image is not None else None,
        "feature_layer": settings.feature_layer,
        "pooling": settings.pooling,
        "category": asdict(schema.category) if schema.category else None,
        "attention": settings.category_attention,
        "item_pooling": settings.image_pooling if schema.image_separator else None,
    }
    # Only if they are set, so that a tower without them keeps the fingerprint that existing stores have.
    if settings.upscale > 1:
        architecture["upscale"] = settings.upscale
    if settings.min_map_size:
        architecture["min_map_size"] = settings.min_map_size
    if settings.HasField("descriptors"):
        grids = settings.descriptors
        architecture["descriptors"] = (grids.colour_grid, grids.colour_bins, grids.edge_grid)
    for kind, part in model.parts.contents.items():
        architecture[kind] = part.tower.encoder.source
    if model.parts.contents:
        architecture["fusion"] = type(model.parts.fusion).__name__
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, weight in sorted(model.weights().items()):
        if name.startswith("image/"):
            digest.update(f"{name} {list(weight.shape)}".encode())
            digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def _require_exportable(pipeline: Pipeline) -> None:
    schema = pipeline.schema
    if pipeline.config.data_config.shuffled_pictures:
        raise ExportError("data_config.shuffled_pictures: the model was trained with the pictures of other items")
    if not schema.has_item_vector:
        raise ExportError(
            "the model has neither pictures nor texts (no feature group of an ImgFeature or TextFeature), so it "
            "cannot be split; "
            "use its checkpoint with eval and predict"
        )
    problems = invalid_inputs(schema)
    if problems:
        raise ExportError("\n".join(problems))


def _write_models(
    model: MultimodalModel, image_input: str, folders: dict[Kind, Path], asset_files: tuple[str, ...]
) -> tuple[dict[Kind, dict[str, Any]], dict[str, str]]:
    """Write SavedModels, ONNX models and assets.

    Returns:
      The signatures of each model; file that could not be written -> reason.
    """
    written: dict[Kind, Part] = {
        "image": image_part(model, image_input),
        "rec": rec_part(model),
        "total": total_part(model, image_input),
    }
    for kind, part in written.items():
        try:
            _write_saved_model(part, model.schema, folders[kind])
        except tf.errors.OpError as error:  # such as a full disk
            place = folders[kind].parent
            raise ExportError(f"{place}: cannot be written: {tensorflow_reason(error.message)}") from error
        for file in asset_files:
            (folders[kind] / "assets").mkdir(exist_ok=True)
            shutil.copy(_asset(file), folders[kind] / "assets" / PurePath(file).name)
    problem = write_image_onnx(model, image_input, folders["image"])
    write_rec_onnx(model, folders["rec"])
    return {kind: _describe(part) for kind, part in written.items()}, {IMAGE_ONNX: problem} if problem else {}


def _asset(file: str) -> str:
    return local_copy(file) if is_remote(file) else plain(file)


def _origin(generation: Generation) -> dict[str, Any]:
    return {"fingerprint": generation.fingerprint, "generation": generation.number, "width": generation.width}


def _write_saved_model(part: Part, schema: Schema, folder: Path) -> None:
    # It warns about parts that it leaves out for TensorFlow 1.
    tf.get_logger().setLevel("ERROR")
    tf.saved_model.save(part.module, str(folder), signatures=part.signatures)
    # The file has a random number for each export, and nothing reads it.
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(path.read_bytes())
    # Defaults for fields that a request may leave out, in the form that TensorFlow Serving reads.
    for signature in saved.meta_graphs[0].signature_def.values():
        for name in set(signature.inputs) & {*schema.input_fields(), *schema.image_fields()}:
            field = schema.field(name)
            if field.optional:
                value = tf.make_tensor_proto([field.default_value], signature.inputs[name].dtype)
                signature.defaults[name].CopyFrom(value)
    path.write_bytes(saved.SerializeToString(deterministic=True))


def _describe(part: Part) -> dict[str, Any]:
    def describe(specs: dict[str, tf.TensorSpec]) -> dict[str, Any]:
        return {
            name: {"dtype": spec.dtype.name, "shape": [-1 if size is None else size for size in spec.shape]}
            for name, spec in sorted(specs.items())
        }

    return {
        name: {
            "inputs": describe(function.structured_input_signature[1]),
            "outputs": describe(function.structured_outputs),
        }
        for name, function in part.signatures.items()
    }
