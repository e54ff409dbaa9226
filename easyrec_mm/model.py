"""The network of a config: an image tower, a rec network, and the two together.

The parts share weights: the total model is rec(features, image(pixels) of each sample's picture). Shapes: U distinct
pictures, S samples, D width of the image vector, F width of the features, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from easyrec_mm.config_checks import REGULARIZATION_LOSSES, activation_name, relation_order
from easyrec_mm.data.batch import Batch
from easyrec_mm.layers.dnn import DNN, ExpertMixture, Highway, dense
from easyrec_mm.layers.embedding import FeatureEmbedding
from easyrec_mm.layers.image_tower import ImageTower
from easyrec_mm.losses import LOSSES, weighted_mean
from easyrec_mm.protos.loss_pb2 import LossType
from easyrec_mm.protos.model_pb2 import E2E_MM_DBMTL, BayesTaskTower
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema, Task

FLOAT32, MIXED_BFLOAT16 = "float32", "mixed_bfloat16"
EMBEDDING_REGULARIZATION, L2_REGULARIZATION = REGULARIZATION_LOSSES


class RecModel(keras.layers.Layer):
    """Features and image vectors -> logits of every task.

    Features are embedded and batch-normalised, joined by the image vector before the shared bottom layers (or behind
    them), and go through optional experts into one tower a task. A task's relation layers also see the relation layers
    of its relation_tower_names (DBMTL, Wang et al., 2019: P(task | input, related tasks)).
    """

    def __init__(self, network: E2E_MM_DBMTL, schema: Schema, dtype: str) -> None:
        # float32: numbers and image vectors reach the batch norm unrounded, whatever the layers compute in.
        super().__init__(name="rec", dtype=FLOAT32)
        l2 = network.l2_regularization
        self.feature_embedding = FeatureEmbedding(schema.features, schema.tables)
        self._feature_bn = keras.layers.BatchNormalization(name="features_bn", dtype=FLOAT32)
        self._image_joins_first = network.image_fusion == E2E_MM_DBMTL.BEFORE_BOTTOM
        self._bottom = build_dnn(network, "bottom_dnn", "bottom_dnn", l2, dtype)
        self._experts = None
        if network.HasField("expert_dnn"):
            experts = [build_dnn(network, "expert_dnn", f"expert_{e}", l2, dtype) for e in range(network.num_expert)]
            self._experts = ExpertMixture(experts, len(schema.tasks), l2, dtype=dtype)
        self._towers = [
            TaskTower(tower, task, l2, dtype) for tower, task in zip(network.task_towers, schema.tasks, strict=True)
        ]
        self._tasks = schema.tasks
        self._relations = [list(tower.relation_tower_names) for tower in network.task_towers]
        self._order = relation_order(list(network.task_towers))

    def call(
        self, features: dict[str, tf.Tensor | tf.RaggedTensor], image_vector: tf.Tensor | None, training: bool = False
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Logits of a batch.

        Args:
          features: as data/transform.py makes them, S samples.
          image_vector: float32 `[S, D]`; None for a model without pictures.

        Returns:
          task name -> logits float32 `[S, num_class]`; and the sum of squares of the embedding vectors, a scalar.
        """
        x, squares = self.feature_embedding(features)  # [S, F]
        return self.logits(x, image_vector, training), squares

    def logits(self, x: tf.Tensor, image_vector: tf.Tensor | None, training: bool = False) -> dict[str, tf.Tensor]:
        """Embedded features `[S, F]` and image vectors -> logits as `call` returns them."""
        x = self._feature_bn(x, training=training)
        if image_vector is not None and self._image_joins_first:
            x = tf.concat([x, image_vector], axis=1)
        if self._bottom is not None:
            x = self._bottom(x, training=training)
        if image_vector is not None and not self._image_joins_first:
            x = tf.concat([tf.cast(x, tf.float32), image_vector], axis=1)
        inputs = self._experts(x, training=training) if self._experts else [x] * len(self._towers)
        relations: dict[str, tf.Tensor] = {}
        logits: dict[str, tf.Tensor] = {}
        for i in self._order:
            name = self._tasks[i].name
            related = [relations[other] for other in self._relations[i]]
            relations[name], logits[name] = self._towers[i](inputs[i], related, training=training)
        return {task.name: logits[task.name] for task in self._tasks}


class TaskTower(keras.layers.Layer):
    """One task: its own layers, the relation layers and the output layer."""

    def __init__(self, tower: BayesTaskTower, task: Task, l2: float, dtype: str) -> None:
        super().__init__(name=f"tower_{task.name}", dtype=dtype)
        self._dnn = build_dnn(tower, "dnn", "dnn", l2, dtype)
        self._relation_dnn = build_dnn(tower, "relation_dnn", "relation_dnn", l2, dtype)
        self._output = dense(task.num_class, "output", l2, dtype=FLOAT32)

    def call(self, x: tf.Tensor, related: list[tf.Tensor], training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """`[S, F]` and the relation outputs of other towers -> this relation output `[S, units]`, logits."""
        if self._dnn is not None:
            x = self._dnn(x, training=training)
        x = tf.concat([x, *related], axis=1) if related else x
        if self._relation_dnn is not None:
            x = self._relation_dnn(x, training=training)
        return x, self._output(x)


class MultimodalModel:
    """The trained whole: `image` (None without pictures), `rec`, and what they make of a batch.

    Args:
      config: a checked pipeline config.
      schema: its Schema.
      dtype: Keras dtype policy, FLOAT32 or MIXED_BFLOAT16. Embeddings, normalisation statistics, the output layers and
        losses are float32 in both.

    `image_width` is D, 0 without pictures.
    """

    image_width = 0

    def __init__(self, config: EasyRecConfig, schema: Schema, dtype: str = FLOAT32) -> None:
        network = config.model_config.e2e_mm_dbmtl
        keras.utils.set_random_seed(config.data_config.seed)
        self.schema = schema
        self.image = _image_tower(network, schema, dtype) if schema.uses_image else None
        self.rec = RecModel(network, schema, dtype)
        self._embedding_regularization = config.model_config.embedding_regularization
        self._towers = list(network.task_towers)
        self._prediction_functions: dict[str, Callable[[Batch], dict[str, tf.Tensor]]] = {}
        self._build()

    def logits(self, batch: Batch, training: bool = False) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """As RecModel.call: each distinct picture goes through the tower once, its vector to all its samples."""
        vector = None
        if self.image is not None:
            image_vector = self.image(batch.pixels, training=training)  # [U, D]
            vector = tf.gather(image_vector, batch.sample_image)  # [S, D]
        logits: tuple[dict[str, tf.Tensor], tf.Tensor] = self.rec(batch.features, vector, training=training)
        return logits

    def losses(self, batch: Batch, training: bool = True) -> dict[str, tf.Tensor]:
        """Scalars that add up to the loss: one a tower, the regularisation of embeddings, that of dense kernels."""
        logits, squares = self.logits(batch, training)
        losses = {}
        for tower, task in zip(self._towers, self.schema.tasks, strict=True):
            losses[task.name] = _tower_loss(tower, task, logits[task.name], batch)
        if self._embedding_regularization:
            losses[EMBEDDING_REGULARIZATION] = 0.5 * self._embedding_regularization * squares
        kernels = self.rec.losses + (self.image.losses if self.image else [])
        if kernels:
            losses[L2_REGULARIZATION] = tf.add_n(kernels)
        return losses

    def predict(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Outputs of every task by their names: logits_*, probs_*, y_*."""
        logits, _ = self.logits(batch, training=False)
        outputs: dict[str, tf.Tensor] = {}
        for task in self.schema.tasks:
            outputs.update(task_outputs(task, logits[task.name]))
        return outputs

    def prediction_function(self, spec: Batch) -> Callable[[Batch], dict[str, tf.Tensor]]:
        """`predict` compiled for batches of these shapes, once."""
        key = str(spec)
        if key not in self._prediction_functions:
            self._prediction_functions[key] = tf.function(self.predict, input_signature=[spec], autograph=False)
        return self._prediction_functions[key]

    def named_variables(self) -> dict[str, keras.Variable]:
        """Every variable, and the state of dropout, under the name that checkpoints, reports and freeze_gradient use:
        "embedding/user_id", "rec/tower_click/dnn/dense_0/kernel", "image/backbone/conv1_conv/kernel".
        """
        names = {id(table.embeddings): f"embedding/{name}" for name, table in self.rec.feature_embedding.tables.items()}
        parts: list[keras.layers.Layer] = [self.rec]
        if self.image is not None:
            # A functional model's variables do not carry the name of the layer that it is part of.
            names.update({id(v): f"image/backbone/{v.path}" for v in self.image.backbone.variables})
            parts.insert(0, self.image)
        return {names.get(id(v), v.path): v for part in parts for v in part.variables}

    def weights(self) -> dict[str, tf.Variable]:
        """named_variables() without the state of dropout, as TensorFlow's variables."""
        return {name: v.value for name, v in self.named_variables().items() if "seed_generator" not in name}

    def tables(self) -> dict[str, keras.Variable]:
        """The embedding tables among named_variables()."""
        return {f"embedding/{name}": t.embeddings for name, t in self.rec.feature_embedding.tables.items()}

    def _build(self) -> None:
        """Create all variables, by a batch of one sample."""
        features: dict[str, tf.Tensor | tf.RaggedTensor] = {}
        for feature in self.schema.features:
            if feature.kind == "tag":
                features[feature.name] = tf.RaggedTensor.from_row_splits(
                    tf.zeros([0], tf.int64), tf.constant([0, 0], tf.int64)
                )
            elif feature.kind == "raw" and not feature.boundaries:
                features[feature.name] = tf.zeros([1, feature.raw_dim])
            else:
                features[feature.name] = tf.zeros([1], tf.int64)
        image = self.schema.image
        vector = None
        if self.image is not None:
            vector = self.image(tf.zeros([1, image.height, image.width, image.channels], tf.uint8))
            self.image_width = int(vector.shape[1])
        self.rec(features, vector)


def task_outputs(task: Task, logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Named outputs of a task: `[S]`, or `[S, num_class]` for the logits and probabilities of several classes."""
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
    """The DNN of a config field, None where the field is not set."""
    if not parent.HasField(field):
        return None
    config = getattr(parent, field)
    activation = activation_name(config.activation)
    return DNN(config.hidden_units, config.dropout_ratio, activation, config.use_bn, l2, name, dtype)


def _image_tower(network: E2E_MM_DBMTL, schema: Schema, dtype: str) -> ImageTower:
    head: keras.layers.Layer | None = build_dnn(network, "img_dnn", "img_dnn", network.l2_regularization, dtype)
    if network.HasField("highway_dnn"):
        head = Highway(network.highway_dnn.emb_size, "highway_dnn", dtype)
    img_model = network.img_model
    return ImageTower(img_model.model_name, schema.image.channels, img_model.num_classes, head, dtype)


def _tower_loss(tower: BayesTaskTower, task: Task, logits: tf.Tensor, batch: Batch) -> tf.Tensor:
    labels = batch.labels[task.label]
    weights = tf.fill(tf.shape(labels), tower.weight)
    if tower.use_sample_weight:
        weights *= batch.sample_weight
    if tower.task_space_indicator_label:
        is_inside = batch.labels[tower.task_space_indicator_label] > 0
        weights *= tf.where(is_inside, tower.in_task_space_weight, tower.out_task_space_weight)
    if not tower.losses:
        return weighted_mean(LOSSES[LossType.Name(tower.loss_type)](labels, logits), weights)
    total = tf.constant(0.0)
    for loss in tower.losses:
        focal = loss.binary_focal_loss
        settings = {}
        if loss.loss_type == LossType.BINARY_FOCAL_LOSS:
            settings = {"gamma": focal.gamma, "alpha": focal.alpha if focal.HasField("alpha") else None}
        sample_losses = LOSSES[LossType.Name(loss.loss_type)](labels, logits, **settings)
        total += loss.weight * weighted_mean(sample_losses, weights)
    return total
