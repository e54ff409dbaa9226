"""Losses of a task. To add one, add a function here, its key in LOSSES and a LossType value in protos/loss.proto."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.layers.together import are_many
from easyrec_mm.protos.loss_pb2 import LossType
from easyrec_mm.protos.model_pb2 import BayesTaskTower
from easyrec_mm.schema import Task

# (labels [S], logits [S, num_class], parameters) -> loss per sample [S].
SampleLoss = Callable[..., tf.Tensor]


def classification(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the cross entropy: sigmoid for one logit, softmax for several (labels are then class indices)."""
    if logits.shape[1] == 1:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels, logits[:, 0])
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def squared_error(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return (y - label)^2."""
    return tf.square(logits[:, 0] - labels)


def sigmoid_squared_error(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return (sigmoid(x) - label)^2."""
    return tf.square(tf.sigmoid(logits[:, 0]) - labels)


def binary_focal(labels: tf.Tensor, logits: tf.Tensor, gamma: float = 2.0, alpha: float | None = None) -> tf.Tensor:
    """Return the focal loss (Lin et al., ICCV 2017, equation 5): alpha_t (1 - p_t)^gamma * cross entropy."""
    logits = logits[:, 0]
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    probability = tf.sigmoid(logits)
    probability_of_label = labels * probability + (1.0 - labels) * (1.0 - probability)
    # For gamma < 1 the gradient of the power is infinite at 0 and would make the total gradient NaN.
    loss = tf.pow(tf.maximum(1.0 - probability_of_label, 1e-7), gamma) * cross_entropy
    if alpha is not None:
        loss *= labels * alpha + (1.0 - labels) * (1.0 - alpha)
    return loss


LOSSES: dict[str, SampleLoss] = {
    "CLASSIFICATION": classification,
    "L2_LOSS": squared_error,
    "SIGMOID_L2_LOSS": sigmoid_squared_error,
    "BINARY_FOCAL_LOSS": binary_focal,
}


def weighted_mean(losses: tf.Tensor, weights: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """Return sum(weight * loss) / number of samples with a nonzero weight; 0 if there are no such samples.

    Args:
      losses: `[..., S]`.
      weights: `[..., S]`.
      replicas: the replicas whose samples are counted; the sum of their results is the mean over all samples.
    """
    num_present = replicas.sum(tf.math.count_nonzero(weights, axis=-1, dtype=tf.float32))
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights, axis=-1), num_present)


def tower_losses(
    towers: Sequence[BayesTaskTower],
    tasks: Sequence[Task],
    logits: Mapping[str, tf.Tensor],
    labels: Mapping[str, tf.Tensor],
    sample_weight: tf.Tensor,
    replicas: Replicas,
) -> dict[str, tf.Tensor]:
    """Return the scalar loss of every task by name.

    Many towers of a kind are computed together, because the time to compile a step, and to begin it, grows with its
    operations. A few are not, because the last bits of a sample's loss depend on its place in the tensor.

    Args:
      towers: the settings of the towers.
      tasks: their tasks.
      logits: task name -> `[S, num_class]`.
      labels: label name -> `[S]`.
      sample_weight: `[S]`.
      replicas: as for `weighted_mean`.
    """
    kinds: dict[Hashable, list[tuple[BayesTaskTower, Task]]] = {}
    for tower, task in zip(towers, tasks, strict=True):
        kinds.setdefault(_kind(tower, task), []).append((tower, task))
    losses: dict[str, tf.Tensor] = {}
    for members in (part for kind in kinds.values() for part in ([kind] if are_many(len(kind)) else zip(kind))):
        settings, num_class = members[0][0], members[0][1].num_class
        label = _stacked([labels[task.label] for _, task in members])  # [S] of a single tower, or [T, S]
        flat_logits = tf.reshape(_stacked([logits[task.name] for _, task in members]), [-1, num_class])
        of_towers = tf.constant([tower.weight for tower, _ in members])
        weight = tf.broadcast_to(of_towers if len(members) == 1 else of_towers[:, None], tf.shape(label))
        if settings.use_sample_weight:
            weight *= sample_weight
        if settings.task_space_indicator_label:
            is_inside = labels[settings.task_space_indicator_label] > 0
            weight *= tf.where(is_inside, settings.in_task_space_weight, settings.out_task_space_weight)

        def mean_of(name: str, **parameters: float | None) -> tf.Tensor:
            of_samples = LOSSES[name](tf.reshape(label, [-1]), flat_logits, **parameters)  # noqa: B023
            return weighted_mean(tf.reshape(of_samples, tf.shape(label)), weight, replicas)  # noqa: B023

        total = _total(settings, mean_of)
        totals = [total] if len(members) == 1 else tf.unstack(total, len(members))
        losses |= zip([task.name for _, task in members], totals, strict=True)
    return {task.name: losses[task.name] for task in tasks}


def _stacked(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return tensors in one; a single one as it is, so that its rows remain those of the samples."""
    return parts[0] if len(parts) == 1 else tf.stack(parts)


def _kind(tower: BayesTaskTower, task: Task) -> Hashable:
    """Return what the towers have in common whose losses are computed together."""
    weights = tower.use_sample_weight, tower.in_task_space_weight, tower.out_task_space_weight
    losses = tower.loss_type, tuple(loss.SerializeToString() for loss in tower.losses)
    return task.num_class, losses, tower.task_space_indicator_label, weights


def _total(tower: BayesTaskTower, mean_of: Callable[..., tf.Tensor]) -> tf.Tensor:
    """Return the weighted sum of the losses of a tower; `mean_of` returns the loss with a name."""
    if not tower.losses:
        return mean_of(LossType.Name(tower.loss_type))
    total = tf.constant(0.0)
    for loss in tower.losses:
        focal = loss.binary_focal_loss
        parameters = {}
        if loss.loss_type == LossType.BINARY_FOCAL_LOSS:
            parameters = {"gamma": focal.gamma, "alpha": focal.alpha if focal.HasField("alpha") else None}
        total += loss.weight * mean_of(LossType.Name(loss.loss_type), **parameters)
    return total
