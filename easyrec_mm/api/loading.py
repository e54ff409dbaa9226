"""Loads a checked config, and the model of a checkpoint, for the commands that need them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from easyrec_mm.cli.flags import Flags
from easyrec_mm.errors import UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.config.overrides import Override
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.distribution.replicas import Replicas
    from easyrec_mm.network.model import MultimodalModel
    from easyrec_mm.runs.model_dir import ModelDir
    from easyrec_mm.store.feature_vectors import VectorStores


def load_config(flags: Flags, overrides: Sequence[Override] = ()) -> Pipeline:
    """Load and check the config, changed by `overrides` and then by --set; print notes; import TensorFlow."""
    pipeline = load_quietly(flags, overrides)
    go_on_with(pipeline)
    return pipeline


def load_quietly(flags: Flags, overrides: Sequence[Override] = ()) -> Pipeline:
    """Load and check the config, changed by `overrides` and then by --set, without notes and without TensorFlow."""
    from easyrec_mm.config.pipeline import load_pipeline

    return load_pipeline(flags.pipeline_config, [*overrides, *flags.set], flags.ignore_unsupported)


def go_on_with(pipeline: Pipeline) -> None:
    """Print the notes of a config that was loaded quietly, and import TensorFlow."""
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    import_tensorflow()


def require_path(path: str, pipeline: Pipeline, setting: str, contents: str) -> None:
    """Check that a path of the config is set.

    Raises:
      UserError: if it is not.
    """
    if not path:
        raise UserError(f"{pipeline.path}: {setting}: is missing; give the files of {contents}")


@dataclass
class Trained:
    """The model of a checkpoint.

    folder       model_dir
    bad_records  counts and lists invalid records
    vectors      vectors of features, from the stores with which the model was trained
    name         checkpoint and step, for messages
    """

    model: MultimodalModel
    folder: ModelDir
    bad_records: BadRecords
    vectors: VectorStores
    name: str


def load_trained(pipeline: Pipeline, flags: Flags, bad_records_file: str, replicas: Replicas | None = None) -> Trained:
    """Load the model of a checkpoint, as the flags say; by default `choose_checkpoint` chooses one in model_dir.

    Args:
      pipeline: the config.
      flags: --checkpoint_path and --precision.
      bad_records_file: name of the file in model_dir that lists invalid records.
      replicas: the workers that use the model together; the first one chooses the checkpoint, and writes to model_dir.
    """
    from easyrec_mm.data.shared_bad_records import SharedBadRecords
    from easyrec_mm.distribution.replicas import Replicas
    from easyrec_mm.evaluation.evaluator import load_model, vectors_of
    from easyrec_mm.runs.model_dir import ModelDir
    from easyrec_mm.runs.same_values import require_same_values

    config = pipeline.config
    replicas = replicas or Replicas()
    folder = ModelDir(config.model_dir).open()
    checkpoint = find_checkpoint(pipeline, replicas.texts(flags.checkpoint_path or "")[0], folder)
    model, step = load_model(config, pipeline.schema, checkpoint, dtype_of(flags), replicas)
    require_same_values(model.weights(), replicas)
    file = str(folder.local / bad_records_file) if replicas.number == 0 else None
    bad_records = SharedBadRecords(file, config.data_config.max_bad_record_share, replicas)
    name = f"{shown(checkpoint)} (step {step})"
    return Trained(model, folder, bad_records, vectors_of(pipeline.schema, checkpoint), name)


def dtype_of(flags: Flags) -> str:
    """Return the Keras dtype policy that --precision names."""
    from easyrec_mm.network.precision import dtype_policy
    from easyrec_mm.protos.train_pb2 import Precision

    return dtype_policy(Precision.Value(flags.precision))


def find_checkpoint(pipeline: Pipeline, path: str | None, folder: ModelDir | None = None) -> str:
    """Return the path found by choose_checkpoint, and print its note on the choice as a warning."""
    from easyrec_mm.runs.best_checkpoint import choose_checkpoint

    choice = choose_checkpoint(pipeline, path, folder)
    if choice.note:
        print(f"warning: {shown(choice.note)}", file=sys.stderr)
    return choice.path
