"""Splits a trained network into the image, rec and total model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.loading import find_checkpoint, require_path
from easyrec_mm.console import warn
from easyrec_mm.errors import ExportError
from easyrec_mm.files import is_remote, plain

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline


@dataclass(frozen=True)
class Exported:
    """The models of a checkpoint.

    img_model_dir, rec_model_dir, total_model_dir  their folders
    checkpoint                                     the checkpoint
    parity                                         how exactly they agree, as in manifest.json
    """

    img_model_dir: str
    rec_model_dir: str
    total_model_dir: str
    checkpoint: str
    parity: dict[str, Any] = field(repr=False)


def export(
    pipeline: Pipeline,
    checkpoint_path: str,
    places: Mapping[str, str],
    path: str = "",
    asset_files: tuple[str, ...] = (),
    parity_groups: int = 100,
) -> Exported:
    """Write the three models, and compare them.

    Args:
      pipeline: the config of the training.
      checkpoint_path: see loading.Chosen.
      places: "img", "rec" and "total" -> folder of the model.
      path: files of samples on which they are compared; by default those of the evaluation, or else of the training.
      asset_files: files to add to the models' assets.
      parity_groups: number of groups to compare.

    Raises:
      UserError: if model_dir has no checkpoint, the models disagree, or a folder cannot be replaced.
    """
    from easyrec_mm.export.export import export as export_models
    from easyrec_mm.export.folders import ExportFolders

    _require_files(asset_files)
    path = path or pipeline.config.eval_input_path or pipeline.config.train_input_path
    require_path(path, pipeline, "eval_input_path", "the data on which the models are compared")
    checkpoint = find_checkpoint(pipeline, checkpoint_path)
    folders = ExportFolders(places["img"], places["rec"], places["total"])
    parity = export_models(pipeline, checkpoint, folders, path, asset_files, parity_groups)
    for name, reason in parity["left_out"].items():
        warn(f"warning: {name} was not written, so embed will use TensorFlow: {reason}")
    return Exported(folders.image, folders.rec, folders.total, checkpoint, parity)


def _require_files(asset_files: Iterable[str]) -> None:
    """Check that assets of this machine exist, before the models are written, which takes long.

    Raises:
      ExportError: if one does not.
    """
    for file in asset_files:
        if not is_remote(file) and not Path(plain(file)).is_file():
            raise ExportError(f"--asset_files {file}: is not a file; correct the path")
