"""Checks the task towers and their labels, and derives the Tasks. Never imports TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from easyrec_mm.config.image import PLACE, image_losses
from easyrec_mm.config.pretraining import heads_of
from easyrec_mm.errors import Problems
from easyrec_mm.protos import options_pb2
from easyrec_mm.protos.image_pb2 import ImgModel
from easyrec_mm.protos.loss_pb2 import LossType
from easyrec_mm.protos.model_pb2 import BayesTaskTower
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Activation, Task


def tasks_of(config: EasyRecConfig, labels: tuple[str, ...], problems: Problems) -> tuple[Task, ...]:
    """Return one task per tower, and note the labels that are not used."""
    tasks = []
    towers = config.model_config.e2e_mm_dbmtl.task_towers
    for i, tower in enumerate(towers):
        place = f"model_config.e2e_mm_dbmtl.task_towers[{i}]"
        label = tower.label_name or (labels[i] if i < len(labels) else "")
        if label not in labels:
            problems.unknown(f"{place}.label_name", "label", label, labels)
        tasks.append(Task(tower.tower_name, label, _activation(tower, place, problems), tower.num_class))
    used = {task.label for task in tasks} | {t.task_space_indicator_label for t in towers}
    used.add(config.data_config.sample_weight)
    used |= {loss.label_name for loss in image_losses(config.model_config.e2e_mm_dbmtl.img_model)}
    used |= {head.field for head in heads_of(config)}
    for i, label in enumerate(labels):
        if label not in used:
            problems.note(f"data_config.label_fields[{i}]", f"label '{label}' is read and checked; no tower uses it")
    return tuple(tasks)


def _activation(tower: BayesTaskTower, place: str, problems: Problems) -> Activation:
    losses = [(f"{place}.losses[{i}].loss_type", loss.loss_type) for i, loss in enumerate(tower.losses)]
    losses = losses or [(f"{place}.loss_type", tower.loss_type)]
    if tower.losses and tower.HasField("loss_type") and tower.loss_type not in [kind for _, kind in losses]:
        problems.add(f"{place}.loss_type", "has no effect beside losses; remove it")
    activation = _output_of_loss(losses[0][1])
    for where, kind in losses:
        if _output_of_loss(kind) != activation:
            first, this = LossType.Name(losses[0][1]), LossType.Name(kind)
            problems.add(where, f"{this} needs another output than {first}; a tower has one, split it in two towers")
    if tower.num_class > 1:
        if activation != "binary" or any(kind != LossType.CLASSIFICATION for _, kind in losses):
            problems.add(f"{place}.num_class", f"{tower.num_class} classes go with CLASSIFICATION alone; remove it")
        return "multiclass"
    return activation


def _output_of_loss(kind: int) -> Activation:
    """Return the kind of output of a tower with this loss."""
    options = LossType.DESCRIPTOR.values_by_number[kind].GetOptions()
    output: Activation = options.Extensions[options_pb2.output]
    return output


def image_labels(tower: ImgModel, tasks: Sequence[Task], problems: Problems) -> tuple[tuple[str, int], ...]:
    """Return the labels of the losses on image vectors, with their numbers of classes."""
    classes: dict[str, int] = {}
    of_tasks = {task.label: max(task.num_class, 2) for task in tasks if task.activation in ("binary", "multiclass")}
    for i, loss in enumerate(image_losses(tower)):
        if loss.label_name:
            other = classes.get(loss.label_name, of_tasks.get(loss.label_name, loss.num_class))
            if other != loss.num_class:
                is_short = i == len(tower.image_losses)
                place = f"{PLACE}.{'img_loss_weight' if is_short else f'image_losses[{i}].num_class'}"
                problems.add(place, f"{loss.num_class}, but '{loss.label_name}' has {other} elsewhere; make them equal")
            classes[loss.label_name] = loss.num_class
    return tuple(classes.items())
