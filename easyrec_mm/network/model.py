"""The network of a config: the towers of items and the rec network together, and the loss of a batch.

The parts share their weights: the total model is rec(features, item(contents of each sample's item)). Shapes:
P distinct pictures, E of them to encode, U distinct images (items), S samples, D width of the image vector, I width of
the item vector: of the image vector, the vectors of other contents such as texts, or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import keras
import tensorflow as tf

from easyrec_mm.config.network import REGULARIZATION_LOSSES
from easyrec_mm.config.training import divided_tables
from easyrec_mm.data.batch import Batch
from easyrec_mm.data.vector_bank import NO_BANKS, Banks, VectorBank
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.distribution.shared_pictures import encoded
from easyrec_mm.features.categories import Categories
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.table_rows import tables_of
from easyrec_mm.network.content import Encoded, from_bank
from easyrec_mm.network.image import ImageLosses, image_tower, item_image
from easyrec_mm.network.item import FUSION_PREFIX, ItemParts
from easyrec_mm.network.layers.batch_norm import BatchNorm, synchronize
from easyrec_mm.network.layers.dnn import RunningNorm
from easyrec_mm.network.layers.image_tower import ImageTower
from easyrec_mm.network.layers.item_image import ItemImage
from easyrec_mm.network.losses import tower_losses
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.network.rec import RecModel, task_outputs
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import IMAGE, TEXT, Schema

EMBEDDING_REGULARIZATION, L2_REGULARIZATION = REGULARIZATION_LOSSES
# Stands in for seed 0: with TensorFlow's global seed at 0, a dataset cannot be shuffled inside a graph.
_SEED_FOR_0 = 2**32 - 1
# Prefix of the names of the backbone's variables, and a part of the names of random states.
_BACKBONE, RANDOM_STATE = "image/backbone/", "seed_generator"


class MultimodalModel:
    """The whole model: `image` (None without pictures) and `rec`, with losses and predictions of a batch.

    Args:
      config: a checked pipeline config.
      schema: its Schema.
      dtype: Keras dtype policy: FLOAT32, MIXED_BFLOAT16 or MIXED_FLOAT16. Embeddings, normalisation statistics, the
        output layers and losses are float32 in each of them.
      replicas: the replicas that are trained together; by default this process alone.

    `image_width` is D, or 0 without pictures; `item` makes the image vector of an item from the vectors of its
    pictures; `img_model` holds the settings of both. `parts` makes the item vector of the image vector and other
    contents; `item_width` is its width, 0 without one.

    Raises:
      ConfigError: if the backbone cannot be loaded or lacks something that the config requires.
    """

    def __init__(
        self, config: EasyRecConfig, schema: Schema, dtype: str = FLOAT32, replicas: Replicas | None = None
    ) -> None:
        network = config.model_config.e2e_mm_dbmtl
        self.replicas = replicas or Replicas()
        self._seed = config.data_config.seed
        keras.utils.set_random_seed(self._seed or _SEED_FOR_0)
        self.schema = schema
        self.img_model = network.img_model
        self.image = image_tower(config, schema, dtype, self.replicas.num) if schema.uses_image else None
        self.image_width = self.image.width if self.image is not None else 0
        self.parts = ItemParts(network, schema, self.image, dtype, self._seed)
        self.item_width = self.parts.width
        divided = divided_tables(config.train_config, schema, self.replicas.num)
        self.rec = RecModel(config.model_config, schema, dtype, self.replicas, divided)
        self.item: ItemImage | None = None
        model = config.model_config
        self._regularizes_embeddings = bool(
            model.embedding_regularization or any(group.wide_regularization for group in model.feature_groups)
        )
        self._towers = list(network.task_towers)
        self._shares_pictures = config.train_config.share_pictures and self.replicas.num > 1
        self.predictions = Predictions(self)
        with self.replicas.scope("build"):
            self._build()
        text = self.parts.contents.get(TEXT)
        widths = (self.image_width, text.tower.width if text is not None else 0)
        self._image_losses = ImageLosses(self.img_model, schema, widths, self.rec.feature_embedding, self.replicas)
        if self.replicas.num > 1:
            kinds = (RunningNorm, BatchNorm) if config.train_config.sync_batch_norm else (RunningNorm,)
            synchronize([self.rec, *([self.image] if self.image is not None else [])], self.replicas, kinds)
        # Names of the variables that are trained if nothing is frozen.
        self._trainable = {name for name, variable in self.named_variables().items() if variable.trainable}
        self.parts.freeze()
        self.trained_part = "ALL"  # of the image tower, see `train_part`

    def logits(
        self, batch: Batch, training: bool = False, banks: Banks = NO_BANKS
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Return what RecModel.call returns; the towers encode each distinct content once, for all samples."""
        contents = self.parts.encoded(batch.contents, training, banks)
        return self._logits(batch, self.image_vectors(batch, training, banks), contents, training)

    def image_vectors(self, batch: Batch, training: bool = False, banks: Banks = NO_BANKS) -> tf.Tensor | None:
        """Return image vectors float32 `[U, D]`, zeros for images without a picture; None without an image tower.

        Args:
          batch: the batch; its pixels are those of the pictures to encode.
          training: whether the backbone, if it is trained, runs in training mode.
          banks: that of pictures provides what was computed for the other pictures and stores the new results; see
            `bank_width`.
        """
        if self.image is None or self.item is None:
            return None
        vectors = self._picture_vectors(self.image, batch, training, banks.get(IMAGE))
        if not self.schema.has_links:
            return vectors
        of_links = tf.gather(vectors, batch.images.link_picture)  # [L, D]
        return self.item.pooled(of_links, batch.images.link_image, tf.size(batch.images.has_picture))

    def _picture_vectors(self, tower: ImageTower, batch: Batch, training: bool, bank: VectorBank | None) -> tf.Tensor:
        """Return the vectors of the distinct pictures, float32 `[P, D]`."""
        images = batch.images
        category = tf.gather(images.category, images.encoded) if bank else images.category
        # The part of a worker in a step that is run again is known to have no pictures.
        is_empty = batch.pixels.shape[0] == 0
        may_be_empty = is_empty or bank is not None or self.schema.has_no_image_vector or self.replicas.num > 1
        each = partial(encoded, replicas=self.replicas, once=training and self._shares_pictures)
        keys = tf.gather(images.picture_key, images.encoded)
        if bank is not None and self.trains_part("HEAD"):
            encode = partial(tower.features, training=False, may_be_empty=may_be_empty)
            features = from_bank(each(encode, batch.pixels, category, keys), images, bank)  # [P, F]

            def head(features: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
                return tower.vectors(tf.cast(features, tower.compute_dtype), training, may_be_empty)

            return each(head, features, images.category, images.picture_key)
        is_training = training and not self.trains_part("NONE")
        encode = partial(tower.__call__, training=is_training, may_be_empty=may_be_empty)
        vectors = each(encode, batch.pixels, category, keys)  # [E, D]
        return vectors if bank is None else from_bank(vectors, images, bank)

    def losses(self, batch: Batch, training: bool = True, banks: Banks = NO_BANKS) -> dict[str, tf.Tensor]:
        """Return scalars of towers, image vectors and regularisation, whose sum over all replicas is the loss."""
        image_vectors = self.image_vectors(batch, training, banks)
        contents = self.parts.encoded(batch.contents, training, banks)
        logits, embedding_penalty = self._logits(batch, image_vectors, contents, training)
        losses = tower_losses(self._towers, self.schema.tasks, logits, batch.labels, batch.sample_weight, self.replicas)
        if image_vectors is not None:
            losses |= self._image_losses(image_vectors, batch.images, contents, training)
        if self._regularizes_embeddings:
            losses[EMBEDDING_REGULARIZATION] = embedding_penalty
        kernels = self.rec.penalties() + (self.image.losses if self.image else [])
        if kernels:
            losses[L2_REGULARIZATION] = tf.add_n(kernels) / self.replicas.num
        return losses

    def predict(self, batch: Batch, banks: Banks = NO_BANKS) -> dict[str, tf.Tensor]:
        """Return the outputs of every task by name: logits_*, probs_*, y_*."""
        with self.replicas.scope("predict"):
            logits, _ = self.logits(batch, training=False, banks=banks)
        tasks = self.schema.tasks
        return {name: value for task in tasks for name, value in task_outputs(task, logits[task.name]).items()}

    def image_side(self) -> tuple[ImageTower, ItemImage]:
        """Return the image tower and the layer that makes the vector of an item from the vectors of its pictures.

        Raises:
          ValueError: if the model has no pictures.
        """
        if self.image is None or self.item is None:
            raise ValueError("the model has no pictures")
        return self.image, self.item

    def train_part(self, trainable: str) -> None:
        """Choose the trained part of the image tower: ALL, HEAD, NONE or LAST_N_STAGES, see img_model.trainable.

        Functions that have already been traced do not change.
        """
        self.trained_part = trainable
        if self.image is not None:
            stages = {"ALL": None, "LAST_N_STAGES": self.img_model.last_n_stages}.get(trainable, 0)
            self.image.train_last_stages(stages)

    def trains_part(self, trainable: str) -> bool:
        """Return whether this is the trained part of the image tower."""
        return self.trained_part == trainable

    def bank_width(self, trainable: str) -> int:
        """Return the length of the vectors that a bank keeps if `trainable` is the trained part of the image tower.

        They are image vectors, or the features of the frozen backbone if the head after it is trained.
        """
        return self.image.num_features if self.image is not None and trainable == "HEAD" else self.image_width

    def trained_variables(self) -> dict[str, keras.Variable]:
        """Return the variables of named_variables() that are trained, given what is frozen."""
        return {
            name: v
            for name, v in self.named_variables().items()
            if name in self._trainable and self._is_trained(name, v)
        }

    def all_trainable(self) -> set[str]:
        """Return the names of the variables that are trained if nothing is frozen."""
        return self._trainable

    def named_variables(self) -> dict[str, keras.Variable]:
        """Return every variable, and the dropout state, by the name that checkpoints, reports and freeze_gradient use.

        Such as "embedding/user_id", "rec/tower_click/dnn/dense_0/kernel", "image/backbone/conv1_conv/kernel".
        """
        names = {id(table.embeddings): f"embedding/{name}" for name, table in self.rec.feature_embedding.tables.items()}
        parts: list[keras.layers.Layer] = [self.rec]
        if self.image is not None:
            # The variables of a functional model do not carry the name of the layer that contains the model.
            names |= {key: f"{_BACKBONE}{name}" for key, name in self.image.variable_names().items()}
            parts.insert(0, self.image)
        if self.item is not None:
            names |= {id(v): f"image/item/{v.path.removeprefix('item/')}" for v in self.item.variables}
            parts += [self.item, *self._image_losses.layers]
        names |= self.parts.variable_names()
        parts += self.parts.layers()
        return {names.get(id(v), v.path): v for part in parts for v in part.variables}

    def no_image_vector(self) -> tuple[float, ...]:
        """Return the vector of items without a picture and other contents; () if items must have a picture."""
        if self.item is not None and self.item.nothing is None:
            return ()
        image = self.item.in_place()[None] if self.item is not None else None
        return tuple(self.parts.of_items(image, self.parts.empty())[0].numpy().tolist())

    def weights(self) -> dict[str, tf.Variable]:
        """Return named_variables() without the dropout state, as TensorFlow variables."""
        return {name: v.value for name, v in self.named_variables().items() if RANDOM_STATE not in name}

    def tables(self) -> dict[str, keras.Variable]:
        """Return the embedding tables among named_variables()."""
        tables = {f"embedding/{name}": t.embeddings for name, t in self.rec.feature_embedding.tables.items()}
        if self.image is not None:
            tables |= {f"image/category/{name}": table for name, table in self.image.category_tables().items()}
        return tables | self.parts.tables()

    def _logits(
        self, batch: Batch, image_vectors: tf.Tensor | None, contents: Encoded, training: bool
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        items = self.item_vectors(batch, image_vectors, contents, training)  # [U, I]
        vector = None if items is None else tf.gather(items, batch.sample_image)  # [S, I]
        logits: tuple[dict[str, tf.Tensor], tf.Tensor] = self.rec(batch.features, vector, training=training)
        return logits

    def item_vectors(
        self, batch: Batch, image_vectors: tf.Tensor | None, contents: Encoded, training: bool = False
    ) -> tf.Tensor | None:
        """Return the vectors of a batch's items, float32 `[U, I]`, given those of its parts; None if there are none."""
        if image_vectors is not None and self.item is not None:
            image_vectors = self.item(image_vectors, batch.images.has_picture, training=training)  # [U, D]
        return self.parts.of_batch(image_vectors, contents, training)

    def _is_trained(self, name: str, variable: keras.Variable) -> bool:
        part = self.parts.part_of(name)
        if part is not None:
            return not part.is_frozen(name, variable)
        if self.image is None or not name.startswith("image/"):
            return True
        if name.startswith(("image/item/", FUSION_PREFIX)):
            return True
        if self.trains_part("NONE"):
            return False
        # With HEAD, a bank keeps pooled features, which would not follow a change of these variables.
        if name.startswith(("image/category/", "image/attention_", "image/gem_power")):
            return not self.trains_part("HEAD")
        if not name.startswith(_BACKBONE):
            return True
        if self.img_model.lora_rank and id(variable) not in self.image.lora_variables():
            return False
        stage = self.image.variable_stages()[id(variable)]
        return stage >= len(self.image.stages) - self.image.num_trained_stages

    def _build(self) -> None:
        """Create all variables by calling the layers on a batch of one sample."""
        vector = None
        if self.image is not None:
            image = self.schema.image
            pixels = tf.zeros([1, image.height, image.width, image.channels], tf.uint8)
            vector = self.image(pixels, tf.zeros([1], tf.int64))
            self.item = item_image(self.img_model, self.image, self._seed)
        if self.parts.contents:
            vector = self.parts.of_items(vector, self.parts.empty())
        if self.schema.tasks:
            self.rec({feature.name: _value_of_a_sample(feature) for feature in self.schema.features}, vector)


class Predictions:
    """The predictions of a model, which encode each picture, and each other content by a frozen encoder, once.

    What was computed of pictures is kept from one evaluation to the next only if the backbone is frozen.
    """

    def __init__(self, model: MultimodalModel) -> None:
        self._model = model
        # By the trained part of the image tower, which decides what the bank of pictures keeps.
        self._of_pictures: dict[str, VectorBank] = {}
        self._of_contents: Banks = NO_BANKS
        self._functions: dict[tuple[str, str], Callable[[Batch], dict[str, tf.Tensor]]] = {}

    def banks(self) -> Banks:
        """Return the banks for an evaluation that begins, by kind of content."""
        model, part = self._model, self._model.trained_part
        self._of_contents = self._of_contents or model.parts.banks()
        if model.image is not None:
            bank = self._of_pictures.setdefault(part, VectorBank(model.bank_width(part)))
            bank.forget(everything=part not in ("HEAD", "NONE"))
        for content_bank in self._of_contents.values():
            content_bank.forget(everything=False)
        return self._current()

    def function(self, spec: Batch) -> Callable[[Batch], dict[str, tf.Tensor]]:
        """Return `predict` with the banks of `banks`, compiled once for batches of these shapes."""
        key = (str(spec), self._model.trained_part)
        if key not in self._functions:
            banks = self._current()

            def predict(batch: Batch) -> dict[str, tf.Tensor]:
                return self._model.predict(batch, banks)

            self._functions[key] = tf.function(predict, input_signature=[spec], autograph=False)
        return self._functions[key]

    def picture_vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Return the vectors float32 `[N, D]` of pictures of the last evaluation, by their rows in the bank.

        Raises:
          ValueError: if the model has no pictures.
        """
        tower, _ = self._model.image_side()
        kept = tf.gather(self._of_pictures[self._model.trained_part].vectors, rows)
        return tower.vectors(tf.cast(kept, tower.compute_dtype)) if self._model.trains_part("HEAD") else kept

    def _current(self) -> Banks:
        of_pictures = self._of_pictures.get(self._model.trained_part)
        return self._of_contents if of_pictures is None else {IMAGE: of_pictures, **self._of_contents}


def table_categories(schema: Schema, names: Iterable[str]) -> dict[str, dict[str, Categories]]:
    """Return the variables among the tables `names` whose rows are chosen by categories, with these by feature."""
    by_table = {f"embedding/{table}": categories for table, categories in tables_of(schema.features).items()}
    category = schema.category
    if category is not None and category.categories is not None:
        of_images = {category.name: category.categories}
        by_table |= {name: of_images for name in names if name.startswith("image/category/")}
    return {name: by_table[name] for name in names if name in by_table}


def _value_of_a_sample(feature: Feature) -> tf.Tensor | tf.RaggedTensor:
    """Return the value zero of a feature for one sample, or an empty list."""
    num_values = 0 if feature.is_list else 1
    value = tf.zeros([num_values, feature.num_numbers]) if feature.num_numbers else tf.zeros([num_values], tf.int64)
    return tf.RaggedTensor.from_row_splits(value, tf.constant([0, 0], tf.int64)) if feature.is_list else value


def without_updates(model: MultimodalModel, config: EasyRecConfig) -> MultimodalModel:
    """Return the same network in float32 with low-rank updates merged into the weights that they update."""
    kernels = [*(model.image.kernels_with_updates() if model.image else []), *model.parts.kernels_with_updates()]
    if not kernels:
        return model
    plain_config = EasyRecConfig()
    plain_config.CopyFrom(config)
    network = plain_config.model_config.e2e_mm_dbmtl
    for settings in (network.img_model, network.text_model):
        for name in ("lora_rank", "lora_alpha"):
            settings.ClearField(name)
    plain = MultimodalModel(plain_config, model.schema, FLOAT32)
    merged = {id(kernel): value for kernel, value in kernels}
    named = model.named_variables()
    for name, variable in plain.named_variables().items():
        variable.assign(merged.get(id(named[name]), named[name]))
    return plain
