"""Evaluates the model of a checkpoint, and compares it with another one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.loading import NEWEST, Chosen, load_trained, reading
from easyrec_mm.errors import UserError

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.distribution.replicas import Replicas
    from easyrec_mm.evaluation.comparison import Contender
    from easyrec_mm.evaluation.summary import EvalResults


@dataclass(frozen=True)
class Compared:
    """Another model, with which one is compared.

    path                its model_dir, or a checkpoint; "" for none
    config              its config; "": pipeline.config of its model_dir
    ignore_unsupported  whether to skip settings of that config that are not supported
    """

    path: str = ""
    config: str = ""
    ignore_unsupported: bool = False


NOTHING = Compared()


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    name         checkpoint and step
    bad_records  says how many records could not be read; "" if all could
    """

    results: EvalResults
    name: str
    bad_records: str


def evaluate(
    pipeline: Pipeline,
    path: str,
    setting: str,
    chosen: Chosen = NEWEST,
    other: Compared = NOTHING,
    replicas: Replicas | None = None,
    data_settings: Mapping[str, Any] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Evaluation:
    """Evaluate a checkpoint with intervals, and write the results to model_dir; of several workers, the first writes.

    Args:
      pipeline: the config of the training.
      path: the evaluation data.
      setting: name of the setting or flag of `path`, for messages.
      chosen: which checkpoint, and the number format.
      other: the other model.
      replicas: the workers that evaluate together.
      data_settings: changes of the config with which the data are read.
      names: path of a file -> its name in the list of invalid records.

    Raises:
      UserError: if the data cannot be read or have no samples, or a model cannot be loaded.
    """
    from easyrec_mm.evaluation.evaluator import Evaluator
    from easyrec_mm.evaluation.report import write_result
    from easyrec_mm.runs.model_dir import EVAL_BAD_RECORDS, EVAL_RESULT

    pipeline = _prepared(pipeline, other, replicas)
    data = reading(pipeline, data_settings)
    trained = load_trained(pipeline, chosen, EVAL_BAD_RECORDS, replicas, names)
    with trained.folder.logs_put(), closing(trained.vectors):
        if other.path:
            from easyrec_mm.evaluation.comparison import Contender, evaluate_and_compare

            second = _open(other, chosen.dtype, data_settings)
            first = Contender(data, trained.model, trained.vectors, trained.name)
            with closing(second.vectors):
                results = evaluate_and_compare(first, second, path, setting, trained.bad_records)
        else:
            evaluated = trained.model, data.config, path, setting, trained.bad_records, trained.vectors
            results = Evaluator(*evaluated, confidence=True).run()
        if not results["num_samples"]:
            raise UserError(f"{setting} {path}: has no samples to evaluate; give other files")
        if replicas is None or replicas.number == 0:
            write_result(str(trained.folder.local / EVAL_RESULT), results)
    if replicas is not None:
        replicas.agree(0)  # a worker that ends while the first one still writes would be missed
    return Evaluation(results, trained.name, trained.bad_records.summary())


def _prepared(pipeline: Pipeline, other: Compared, replicas: Replicas | None) -> Pipeline:
    """Return a pipeline; that of a pre-training with what its data sets say, whose tables are written.

    Raises:
      UserError: if a pre-training is to be compared.
    """
    if not pipeline.config.HasField("pretrain_config"):
        return pipeline
    from easyrec_mm.pretraining.tables import prepared

    if other.path:
        raise UserError("--compare: compares predictions of clicks, which a pre-training does not make; remove it")
    return prepared(pipeline, writes=replicas is None or replicas.number == 0)


def _open(other: Compared, dtype: str, data_settings: Mapping[str, Any] | None) -> Contender:
    """Load the other model, which reads data as these settings say."""
    from easyrec_mm.evaluation.comparison import open_contender

    opened = open_contender(other.path, other.config, dtype, other.ignore_unsupported)
    return replace(opened, pipeline=reading(opened.pipeline, data_settings))
