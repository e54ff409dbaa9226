"""Loads the model of a checkpoint, and what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from easyrec_mm.console import warn
from easyrec_mm.errors import UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.data.bad_records import BadRecords
    from easyrec_mm.distribution.replicas import Replicas
    from easyrec_mm.network.model import MultimodalModel
    from easyrec_mm.runs.model_dir import ModelDir
    from easyrec_mm.store.feature_vectors import VectorStores

FLOAT32 = "FLOAT32"


@dataclass(frozen=True)
class Chosen:
    """The choice of a model's weights, and of the number format in which it computes.

    checkpoint_path  checkpoint, or folder of checkpoints; "": the newest in model_dir, or the best where the config's
                     exporter_type is best
    precision        number format, as train_config.precision
    """

    checkpoint_path: str = ""
    precision: str = FLOAT32

    @property
    def dtype(self) -> str:
        """Return the Keras dtype policy of the precision.

        Raises:
          UserError: if it does not exist.
        """
        from easyrec_mm.network.precision import dtype_policy
        from easyrec_mm.protos.train_pb2 import Precision

        if self.precision not in Precision.keys():  # noqa: SIM118
            raise UserError(f"--precision {self.precision}: choose one of {', '.join(Precision.keys())}")
        return dtype_policy(Precision.Value(self.precision))


NEWEST = Chosen()


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


def load_trained(
    pipeline: Pipeline,
    chosen: Chosen,
    bad_records_file: str,
    replicas: Replicas | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Trained:
    """Load the model of a checkpoint.

    Args:
      pipeline: the config of the training.
      chosen: which checkpoint, and the number format.
      bad_records_file: name of the file in model_dir that lists invalid records.
      replicas: the workers that use the model together; the first one chooses the checkpoint, and writes to model_dir.
      names: path of a file -> its name in the list of invalid records.
    """
    from easyrec_mm.data.shared_bad_records import SharedBadRecords
    from easyrec_mm.distribution.replicas import Replicas
    from easyrec_mm.evaluation.evaluator import load_model, vectors_of
    from easyrec_mm.runs.model_dir import ModelDir
    from easyrec_mm.runs.same_values import require_same_values

    config = pipeline.config
    replicas = replicas or Replicas()
    folder = ModelDir(config.model_dir).open()
    checkpoint = find_checkpoint(pipeline, replicas.texts(chosen.checkpoint_path)[0], folder)
    model, step = load_model(config, pipeline.schema, checkpoint, chosen.dtype, replicas)
    require_same_values(model.weights(), replicas)
    file = str(folder.local / bad_records_file) if replicas.number == 0 else None
    bad_records = SharedBadRecords(file, config.data_config.max_bad_record_share, replicas, names)
    name = f"{shown(checkpoint)} (step {step})"
    return Trained(model, folder, bad_records, vectors_of(pipeline.schema, checkpoint), name)


def reading(pipeline: Pipeline, settings: Mapping[str, Any] | None) -> Pipeline:
    """Return a pipeline that reads data as these settings say."""
    if not settings:
        return pipeline
    from easyrec_mm.config.overrides import apply_override, edits_of
    from easyrec_mm.config.pipeline import check_config

    config = type(pipeline.config)()
    config.CopyFrom(pipeline.config)
    for change in edits_of(settings, "settings"):
        apply_override(config, change)
    schema, notes = check_config(config, pipeline.path)
    return replace(pipeline, config=config, schema=schema, notes=tuple(notes))


def find_checkpoint(pipeline: Pipeline, path: str, folder: ModelDir | None = None) -> str:
    """Return the path found by choose_checkpoint, and print its note on the choice as a warning."""
    import_tensorflow()
    from easyrec_mm.runs.best_checkpoint import choose_checkpoint

    choice = choose_checkpoint(pipeline, path or None, folder)
    if choice.note:
        warn(f"warning: {shown(choice.note)}")
    return choice.path


def require_path(path: str, pipeline: Pipeline, setting: str, contents: str) -> None:
    """Check that a path of the config is set.

    Raises:
      UserError: if it is not.
    """
    if not path:
        raise UserError(f"{pipeline.path}: {setting}: is missing; give the files of {contents}")
