"""The rec network of a config: features and image vectors -> logits of every task, and the outputs of the model.

Shapes: S samples, D width of the image vector, F width of the features, T tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import keras
import numpy as np
import tensorflow as tf

from easyrec_mm.config.feature_groups import wide_name
from easyrec_mm.config.network import activation_name, relation_order
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.layers.batch_norm import BatchNorm
from easyrec_mm.network.layers.composite import Composite
from easyrec_mm.network.layers.dnn import DNN, ExpertMixture, dense, dnn_together
from easyrec_mm.network.layers.embedding import FeatureEmbedding
from easyrec_mm.network.layers.interaction import DotInteraction
from easyrec_mm.network.layers.target_attention import TargetAttention
from easyrec_mm.network.layers.together import are_many, are_together, dense_together, stacked
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.protos.model_pb2 import E2E_MM_DBMTL, BayesTaskTower, EasyRecModel, FeatureGroupConfig
from easyrec_mm.schema import Attention, Schema, Task

# Units of the score network of an attention whose seq_dnn sets none, as in EasyRec.
DEFAULT_SCORE_UNITS = (128, 64, 32, 1)
# Fields of a tower with dense layers.
_DNNS = ("dnn", "relation_dnn")


class RecModel(Composite):
    """The rec network, which maps features and image vectors to the logits of every task.

    Features are embedded and batch-normalised. The image vector is joined to them before or after the shared bottom
    layers, products of features before these layers. Optional experts and one tower per task follow. A task's relation
    layers also see the relation outputs of its relation_tower_names (DBMTL, Wang et al., 2019: P(task | input, related
    tasks)). The numbers of wide features are added to the logits of the towers.
    """

    def __init__(
        self, model: EasyRecModel, schema: Schema, dtype: str, replicas: Replicas, divided: Collection[str] = ()
    ) -> None:
        # float32, so that numbers and image vectors reach the batch norm unrounded whatever dtype the layers use.
        super().__init__(name="rec", dtype=FLOAT32)
        self._replicas = replicas
        network = model.e2e_mm_dbmtl
        l2 = network.l2_regularization
        attentions = _attentions(model, schema, dtype)
        self.feature_embedding = FeatureEmbedding(
            schema.features, schema.tables, attentions, divided=divided, replicas=replicas
        )
        self._feature_bn = None
        if network.use_feature_bn:
            self._feature_bn = BatchNorm(name="features_bn", dtype=FLOAT32)
        self._image_joins_first = network.image_fusion == E2E_MM_DBMTL.BEFORE_BOTTOM
        self._interaction = None
        if network.HasField("dot_interaction"):
            num_features = len(schema.joined_widths()) + (schema.has_item_vector and self._image_joins_first)
            config = network.dot_interaction
            self._interaction = DotInteraction(num_features, config.dim, config.scale, l2, "dot_interaction", dtype)
        self._bottom = build_dnn(network, "bottom_dnn", "bottom_dnn", l2, dtype)
        self._experts = None
        if network.HasField("expert_dnn"):
            built = [build_dnn(network, "expert_dnn", f"expert_{e}", l2, dtype) for e in range(network.num_expert)]
            experts = [expert for expert in built if expert is not None]
            self._experts = ExpertMixture(experts, len(schema.tasks), l2, dtype=dtype)
        self._towers = [
            TaskTower(tower, task, l2, dtype) for tower, task in zip(network.task_towers, schema.tasks, strict=True)
        ]
        self._tasks = schema.tasks
        self._widths = schema.joined_widths()
        self._embedding_regularization = model.embedding_regularization
        self._wide_penalties = _wide_penalties(model, schema)  # [Schema.wide_width]
        self._relations = [list(tower.relation_tower_names) for tower in network.task_towers]
        self._parts = _parts(list(network.task_towers), schema.tasks)

    def call(
        self, features: dict[str, tf.Tensor | tf.RaggedTensor], image_vector: tf.Tensor | None, training: bool = False
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Return the logits of a batch.

        Args:
          features: output of FeatureTransform for S samples.
          image_vector: float32 `[S, D]`; None for a model without pictures.

        Returns:
          task name -> logits float32 `[S, num_class]`; and the scalar regularisation of the values from tables.
        """
        x, squares = self.feature_embedding(features, image_vector, training=training)  # [S, F + W]
        penalty = 0.5 * self._embedding_regularization * squares
        if len(self._wide_penalties):
            squares = tf.reduce_sum(tf.square(x[:, sum(self._widths) :]), axis=0)
            mean_squares = tf.math.divide_no_nan(squares, self._replicas.sum(tf.cast(tf.shape(x)[0], tf.float32)))
            penalty += 0.5 * tf.reduce_sum(self._wide_penalties * mean_squares)
        return self.logits(x, image_vector, training), penalty

    def logits(self, x: tf.Tensor, image_vector: tf.Tensor | None, training: bool = False) -> dict[str, tf.Tensor]:
        """Return logits as `call` does, from the output `x` of FeatureEmbedding and the image vectors."""
        x, wide = x[:, : sum(self._widths)], x[:, sum(self._widths) :]
        if self._feature_bn is not None:
            x = self._feature_bn(x, training=training)
        vectors = tf.split(x, self._widths, axis=1) if self._interaction is not None else []
        if image_vector is not None and self._image_joins_first:
            x = tf.concat([x, image_vector], axis=1)
            vectors.append(image_vector)
        if self._interaction is not None:
            x = tf.concat([x, self._interaction(vectors)], axis=1)
        if self._bottom is not None:
            x = self._bottom(x, training=training)
        if image_vector is not None and not self._image_joins_first:
            x = tf.concat([tf.cast(x, tf.float32), image_vector], axis=1)
        inputs = self._experts(x, training=training) if self._experts else [x] * len(self._towers)
        relations: dict[str, tf.Tensor] = {}
        logits: dict[str, tf.Tensor] = {}
        for members in self._parts:
            related = [[relations[other] for other in self._relations[i]] for i in members]
            call = _towers_together if are_together(len(members)) else _towers_one_by_one
            outputs = call([self._towers[i] for i in members], [inputs[i] for i in members], related, training)
            for i, (relation, of_task) in zip(members, outputs, strict=True):
                relations[self._tasks[i].name], logits[self._tasks[i].name] = relation, of_task
        if len(self._wide_penalties):
            self._add_wide(logits, wide)
        return {task.name: logits[task.name] for task in self._tasks}

    def variables_together(self) -> list[list[keras.Variable]]:
        """Return the trained variables of the layers that are computed together: those of a role in one list."""
        kinds = [[self._towers[i] for i in members] for members in self._parts]
        if self._experts is not None:
            kinds.append(self._experts.gates)
        return [
            list(of_role)
            for layers in kinds
            if are_many(len(layers))
            for of_role in zip(*[layer.trainable_variables for layer in layers], strict=True)
        ]

    def penalties(self) -> list[tf.Tensor]:
        """Return scalars whose sum is the regularisation of all kernels."""
        together = self.variables_together()
        if not together:
            return list(self.losses)
        single = {id(v): v for v in self.trainable_variables}
        for v in (v for of_role in together for v in of_role):
            del single[id(v)]
        of_roles = [
            (of_role[0].regularizer, stacked(of_role, FLOAT32)) for of_role in together if of_role[0].regularizer
        ]
        return [regularizer(value) for regularizer, value in of_roles] + [
            v.regularizer(v) for v in single.values() if v.regularizer
        ]

    def _add_wide(self, logits: dict[str, tf.Tensor], wide: tf.Tensor) -> None:
        """Add the numbers of wide features to the logits; in `wide` each feature has one number per logit, in order."""
        num_classes = [task.num_class for task in self._tasks]
        added = tf.reduce_sum(tf.reshape(wide, [-1, wide.shape[1] // sum(num_classes), sum(num_classes)]), axis=1)
        for task, part in zip(self._tasks, tf.split(added, num_classes, axis=1), strict=True):
            logits[task.name] += part


def _wide_penalties(model: EasyRecModel, schema: Schema) -> np.ndarray:
    """Return the wide_regularization of each number that wide features contribute."""
    by_name = {
        wide_name(name): group.wide_regularization
        for group in model.feature_groups
        for name in group.feature_names
        if group.wide_deep != FeatureGroupConfig.DEEP
    }
    wide = [feature for feature in schema.features if feature.is_wide]
    return np.repeat([by_name[feature.name] for feature in wide], [feature.width for feature in wide]).astype(
        np.float32
    )


def _attentions(model: EasyRecModel, schema: Schema, dtype: str) -> list[tuple[Attention, TargetAttention]]:
    """Return the attentions of the schema, each with its layer."""
    configs = {config.group_name: config for group in model.feature_groups for config in group.sequence_features}
    attentions = []
    for attention in schema.attentions:
        config = configs[attention.name].seq_dnn
        score = DNN(
            config.hidden_units or DEFAULT_SCORE_UNITS,
            config.dropout_ratio,
            activation_name(config.activation),
            config.use_bn,
            model.e2e_mm_dbmtl.l2_regularization,
            "seq_dnn",
            dtype,
            ends_linear=True,
        )
        attentions.append((attention, TargetAttention(score, f"attention_{attention.name}")))
    return attentions


class TaskTower(Composite):
    """The tower of one task: its own layers, the relation layers and the output layer."""

    def __init__(self, tower: BayesTaskTower, task: Task, l2: float, dtype: str) -> None:
        super().__init__(name=f"tower_{task.name}", dtype=dtype)
        self._dnn = build_dnn(tower, "dnn", "dnn", l2, dtype)
        self._relation_dnn = build_dnn(tower, "relation_dnn", "relation_dnn", l2, dtype)
        self._output = dense(task.num_class, "output", l2, dtype=FLOAT32)

    def call(self, x: tf.Tensor, related: list[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Map `[S, F]` and other towers' relation outputs to this tower's relation output `[S, units]` and logits."""
        if self._dnn is not None:
            x = self._dnn(x, training=training)
        x = tf.concat([x, *related], axis=1) if related else x
        if self._relation_dnn is not None:
            x = self._relation_dnn(x, training=training)
        return x, self._output(x)


# Relation output and logits of each tower.
TowerOutputs = list[tuple[tf.Tensor, tf.Tensor]]


def _towers_one_by_one(
    towers: Sequence[TaskTower], inputs: Sequence[tf.Tensor], related: Sequence[list[tf.Tensor]], training: bool
) -> TowerOutputs:
    """Return the outputs of towers, each of which gets its input and relation outputs of other towers."""
    return [tower(x, of_tower, training=training) for tower, x, of_tower in zip(towers, inputs, related, strict=True)]


def _towers_together(
    towers: Sequence[TaskTower], inputs: Sequence[tf.Tensor], related: Sequence[list[tf.Tensor]], training: bool
) -> TowerOutputs:
    """Return what `_towers_one_by_one` does for T towers of a kind, except for rounding."""
    first = towers[0]
    is_shared = all(x is inputs[0] for x in inputs)
    x = tf.cast(inputs[0] if is_shared else tf.stack(inputs, axis=1), first.compute_dtype)  # [S, F] or [S, T, F]
    if first._dnn is not None:
        x = dnn_together([tower._dnn for tower in towers if tower._dnn is not None], x, training)
    if related[0]:
        x = tf.stack([x] * len(towers), axis=1) if x.shape.rank == 2 else x
        others = [tf.stack(of_place, axis=1) for of_place in zip(*related, strict=True)]
        x = tf.concat([x, *others], axis=2)
    if first._relation_dnn is not None:
        x = dnn_together([tower._relation_dnn for tower in towers if tower._relation_dnn is not None], x, training)
    logits = tf.unstack(dense_together([tower._output for tower in towers], x), axis=1)
    relations = [x] * len(towers) if x.shape.rank == 2 else tf.unstack(x, axis=1)
    return list(zip(relations, logits, strict=True))


def _parts(towers: list[BayesTaskTower], tasks: Sequence[Task]) -> list[list[int]]:
    """Return the indices of the towers, many of a kind in one list, so that each follows the towers it is related to.

    Towers of a kind have equal settings and are related to towers of equal kinds, hence not to each other.
    """
    order = relation_order(towers)
    numbers: dict[Hashable, int] = {}
    kind_of: dict[str, int] = {}
    members: list[list[int]] = []
    for i in order:
        tower = towers[i]
        dnns = [getattr(tower, name).SerializeToString() if tower.HasField(name) else None for name in _DNNS]
        related = tuple(kind_of[name] for name in tower.relation_tower_names)
        kind = numbers.setdefault((*dnns, related, tasks[i].num_class), len(members))
        if kind == len(members):
            members.append([])
        kind_of[tower.tower_name] = kind
        members[kind].append(i)
    # Many of a kind come where the first of them does. The towers that the others are related to come before it, too,
    # because the order is one of levels.
    kinds = [(i, members[kind_of[towers[i].tower_name]]) for i in order]
    return [kind if are_many(len(kind)) else [i] for i, kind in kinds if not are_many(len(kind)) or kind[0] == i]


def task_outputs(task: Task, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return the named outputs of a task: `[S]`, or `[S, num_class]` for logits and probabilities of many classes."""
    values: tuple[tf.Tensor, ...]
    if task.activation == "binary":
        values = (logits[:, 0], tf.sigmoid(logits[:, 0]))
    elif task.activation == "multiclass":
        values = (logits, tf.nn.softmax(logits), tf.argmax(logits, axis=1))
    elif task.activation == "sigmoid_value":
        values = (tf.sigmoid(logits[:, 0]),)
    else:
        values = (logits[:, 0],)
    return dict(zip(task.output_names, values, strict=True))


def build_dnn(parent: E2E_MM_DBMTL | BayesTaskTower, field: str, name: str, l2: float, dtype: str) -> DNN | None:
    """Build the DNN of a config field; return None if the field is not set."""
    if not parent.HasField(field):
        return None
    config = getattr(parent, field)
    activation = activation_name(config.activation)
    return DNN(config.hidden_units, config.dropout_ratio, activation, config.use_bn, l2, name, dtype)
