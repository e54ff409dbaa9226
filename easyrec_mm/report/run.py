"""A training that the report shows: its config, its checkpoint, its model, and what its folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from easyrec_mm.config.overrides import Override
from easyrec_mm.config.pipeline import Pipeline, load_pipeline
from easyrec_mm.errors import CheckpointError, UserError
from easyrec_mm.evaluation.evaluator import load_model, vectors_of
from easyrec_mm.files.folders import shown
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.runs.best_checkpoint import choose_checkpoint, step_of
from easyrec_mm.runs.evaluations import METRICS, START, read_lines
from easyrec_mm.runs.model_dir import PIPELINE_CONFIG, ModelDir
from easyrec_mm.store.feature_vectors import VectorStores


@dataclass
class Run:
    """A training.

    name        short name on the page, different from those of the other trainings
    path        its model_dir
    pipeline    its config, as training has written it, with the changes of the command line
    folder      model_dir, or its local copy
    checkpoint  path of the checkpoint that is shown
    note        what the user should know about the choice of the checkpoint, or ""
    """

    name: str
    path: str
    pipeline: Pipeline
    folder: ModelDir
    checkpoint: str
    note: str = ""

    @property
    def step(self) -> int:
        """Return the step of the checkpoint, by its name; -1 if that does not tell."""
        return step_of(self.checkpoint)

    @cached_property
    def model(self) -> MultimodalModel:
        """The trained model, which computes as exported models do; loaded when it is first needed."""
        return load_model(self.pipeline.config, self.pipeline.schema, self.checkpoint)[0]

    @cached_property
    def vectors(self) -> VectorStores:
        """The stores of the vectors with which the model was trained."""
        return vectors_of(self.pipeline.schema, self.checkpoint)

    def close(self) -> None:
        """Close the stores of vectors, if they were opened."""
        if "vectors" in self.__dict__:
            self.vectors.close()

    @cached_property
    def all_lines(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, oldest first."""
        return list(read_lines(self.folder.local / METRICS))

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that count: those of steps that a later start did again are left out."""
        kept: list[dict[str, Any]] = []
        for line in self.all_lines:
            if line["kind"] == START:
                kept = [earlier for earlier in kept if earlier["step"] <= line["step"]]
            kept.append(line)
        return kept


def open_run(
    path: str,
    setting: str,
    name: str,
    overrides: Sequence[str] = (),
    ignore_unsupported: bool = False,
    checkpoint: str | None = None,
) -> Run:
    """Open a training by its model_dir.

    Args:
      path: its model_dir.
      setting: the flag that `path` is from, for messages.
      name: its name on the page.
      overrides: changes of its config, as with --set.
      ignore_unsupported: whether to skip settings of EasyRec's language that are not supported.
      checkpoint: the checkpoint to show; by default `choose_checkpoint` chooses one.

    Raises:
      UserError: if the folder has no config or no checkpoint.
    """
    folder = ModelDir(path).open()
    if not folder.local.is_dir():
        raise UserError(f"{setting} {path}: is not a folder; give the model_dir of a training")
    config_path = folder.local / PIPELINE_CONFIG
    if not config_path.exists():
        raise UserError(
            f"{setting} {path}: has no {PIPELINE_CONFIG}, which a training writes; give the model_dir of a training"
        )
    # The folder may have been moved since the training.
    moved = Override(f"{setting} {path}", "model_dir", path)
    pipeline = load_pipeline(str(config_path), [moved, *overrides], ignore_unsupported)
    try:
        choice = choose_checkpoint(pipeline, checkpoint or None, folder)
    except CheckpointError as error:
        if checkpoint:
            raise
        raise CheckpointError(f"{setting} {path}: {error}") from error
    return Run(name, path, pipeline, folder, choice.path, shown(choice.note))


def names_of(paths: Sequence[str]) -> list[str]:
    """Return a different name for each model_dir: the end of its path, as short as that allows."""
    parts = [Path(path.rstrip("/")).parts or (path,) for path in paths]
    names = []
    for i, own in enumerate(parts):
        others = [other for j, other in enumerate(parts) if j != i]
        count = next((n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others)), 0)
        names.append("/".join(own[-count:]) if count else f"{paths[i]} ({i + 1})")
    return names
