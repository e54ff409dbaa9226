"""The plan of a training: which variables are trained, by which optimizer, and from which step on.

Without `unfreeze_at_step` a training has one phase; with it, a second phase trains the whole image tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from easyrec_mm.data.batch import Batch
from easyrec_mm.data.vector_bank import Banks, VectorBank
from easyrec_mm.errors import ConfigError
from easyrec_mm.network.item import FUSION_PREFIX
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.image_pb2 import ImgModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.train_pb2 import TrainConfig
from easyrec_mm.schema import IMAGE
from easyrec_mm.training.optimizers import RowOptimizer, build_optimizer
from easyrec_mm.training.stacked_gradients import StackedGradients


class Phase(NamedTuple):
    """A part of the training in which the same variables are trained.

    first_step   number of steps that are done before the phase begins
    trainable    a value of img_model.trainable
    trained      the trained variables by name
    banks        vectors of the pictures and other contents that the phase need not encode again
    kept_banks   those of them that checkpoints contain; the bank of a frozen tower is computed again instead
    gradients    stacks the gradients of the trained variables
    """

    first_step: int
    trainable: str
    trained: dict[str, keras.Variable]
    banks: Banks
    kept_banks: Banks
    gradients: StackedGradients

    def num_pictures(self, batch: Batch) -> tf.Tensor:
        """Return how many pictures of a batch the normalisation in the trained part of the image tower sees."""
        if IMAGE in self.banks and self.trainable == "HEAD":
            return tf.size(batch.images.category)  # also those of which the bank has the features
        return tf.shape(batch.pixels)[0]


def build_phases(model: MultimodalModel, config: EasyRecConfig) -> list[Phase]:
    """Return the phases in their order, and freeze the model as the first phase requires.

    Raises:
      ConfigError: if freeze_gradient matches nothing, or leaves nothing to train.
    """
    settings = config.model_config.e2e_mm_dbmtl.img_model
    uses_image = model.schema.uses_image
    kinds = [(0, ImgModel.Trainable.Name(settings.trainable))]
    if settings.unfreeze_at_step:
        kinds.append((settings.unfreeze_at_step, "ALL"))
    shared_bank = None
    if uses_image and settings.encode_ratio < 1:
        # One bank for all phases, because a checkpoint has room for one bank.
        width, seed = model.bank_width("ALL"), config.data_config.seed
        shared_bank = VectorBank(width, settings.encode_ratio, settings.max_staleness_steps, seed)
    of_contents = model.parts.banks()
    phases = []
    for first_step, kind in kinds:
        model.train_part(kind)
        bank = shared_bank
        if kind in ("HEAD", "NONE"):
            has_bank = uses_image and not (kind == "HEAD" and settings.HasField("augmentation"))
            bank = VectorBank(model.bank_width(kind)) if has_bank else None
        of_pictures = {} if bank is None else {IMAGE: bank}
        kept = of_pictures if bank is shared_bank else {}
        trained = _trained_variables(model, config.train_config.freeze_gradient)
        gradients = StackedGradients(trained, model.rec.variables_together())
        phases.append(Phase(first_step, kind, trained, {**of_pictures, **of_contents}, kept, gradients))
    model.train_part(kinds[0][1])
    return phases


def _rate_factors(model: MultimodalModel) -> dict[str, float]:
    """Return name -> factor of the learning rate, for the variables whose factor is not 1."""
    settings = model.img_model
    num_stages, stages = (len(model.image.stages), model.image.variable_stages()) if model.image else (0, {})
    factors = {}
    for name, variable in model.named_variables().items():
        part = model.parts.part_of(name)
        if part is not None:
            factors[name] = part.learning_rate_multiplier
        elif name.startswith("image/") and not name.startswith(FUSION_PREFIX):
            depth = num_stages - stages[id(variable)] if id(variable) in stages else 0
            factors[name] = settings.learning_rate_multiplier * settings.layer_decay**depth
    return {name: factor for name, factor in factors.items() if factor != 1.0}


def build_optimizers(
    model: MultimodalModel,
    trained: dict[str, keras.Variable],
    phases: Sequence[Phase],
    config: TrainConfig,
    end: tf.Variable,
) -> list[tuple[RowOptimizer, list[str]]]:
    """Return the optimizers, each with the names of its variables.

    An optimizer gets the variables that its patterns match; the optimizers without patterns share the other variables
    by part of the model. `end` is the step at which the training ends.

    Raises:
      ConfigError: if an optimizer has no variable, or a variable has no optimizer.
    """
    configs = list(config.optimizer_config)
    tables = model.tables()
    named = model.named_variables()
    factors = {id(named[name].value): factor for name, factor in _rate_factors(model).items()}
    first_steps = {id(v.value): phase.first_step for phase in reversed(phases) for v in phase.trained.values()}
    chosen = {name: optimizer_of(name, name in tables, config) for name in trained}
    for name in (name for name, index in chosen.items() if index is None):
        raise ConfigError(
            f"train_config.optimizer_config: no optimizer applies to variable {name}; add one without `variables`"
        )
    optimizers = []
    for i, settings in enumerate(configs):
        names = [name for name, number in chosen.items() if number == i]
        if settings.variables and not names:
            raise ConfigError(
                f"train_config.optimizer_config[{i}].variables: no variable matches "
                f"{', '.join(settings.variables)}, except those of earlier entries; variables are, for example, "
                f"{_examples(list(chosen))}"
            )
        optimizer = build_optimizer(settings, list(tables.values()), factors, first_steps, end)
        optimizer.build([trained[name] for name in names])
        optimizers.append((optimizer, names))
    return optimizers


def optimizer_of(name: str, is_table: bool, config: TrainConfig) -> int | None:
    """Return the index of the optimizer of a variable; None if no optimizer applies to it."""
    for i, optimizer in enumerate(config.optimizer_config):
        if any(re.search(pattern, name) for pattern in optimizer.variables):
            return i
    by_part = [i for i, optimizer in enumerate(config.optimizer_config) if not optimizer.variables]
    if len(by_part) <= 1 or is_table:
        return by_part[0] if by_part else None
    return by_part[2 if len(by_part) == 3 and name.startswith("image/") else 1]


def _trained_variables(model: MultimodalModel, freeze_gradient: Iterable[str]) -> dict[str, keras.Variable]:
    """Return the model's trained variables except for those that match a pattern of freeze_gradient."""
    trained = model.trained_variables()
    for pattern in freeze_gradient:
        frozen = [name for name in model.all_trainable() if re.search(pattern, name)]
        if not frozen:
            raise ConfigError(
                f"train_config.freeze_gradient: '{pattern}' matches no variable; variables are, for example, "
                f"{_examples(list(trained))}"
            )
        trained = {name: v for name, v in trained.items() if name not in frozen}
    if not trained:
        raise ConfigError("train_config.freeze_gradient: freezes every variable; leave at least one to train")
    return trained


def _examples(names: list[str]) -> str:
    """Return up to five names, taken evenly from the whole list, as text."""
    return ", ".join(names[:: max(1, len(names) // 5)][:5])
