"""The image tower: pixels -> vectors of pictures.

Shape legend: P pictures, D width of a vector, F filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from easyrec_mm.network.layers.augmentation import Augmentation
from easyrec_mm.network.layers.backbone_parts import (
    add_low_rank_updates,
    attended_ends,
    divided,
    recompute_blocks,
)
from easyrec_mm.network.layers.backbone_stages import variable_names
from easyrec_mm.network.layers.backbones import Backbone, BackboneError
from easyrec_mm.network.layers.batch_norm import BatchNorm, is_synchronized
from easyrec_mm.network.layers.category_attention import CategoryAttention, CategoryEmbeddings
from easyrec_mm.network.layers.composite import Composite
from easyrec_mm.network.layers.descriptors import Descriptors
from easyrec_mm.network.layers.dnn import DNN, Highway, RunningNorm, dense
from easyrec_mm.network.layers.recompute import in_micro_batches, recompute
from easyrec_mm.network.layers.sequences import packed, packed_width

# Instead of a pooling: the positions of the feature map, as a packed sequence (sequences.py).
POSITIONS = "POSITIONS"
_GEM_POWER = 3.0
_GEM_EPSILON = 1e-6


@dataclass(frozen=True)
class TowerOptions:
    """Options of an image tower; the defaults give the plain tower.

    pooling             AVG, MAX, GEM or CLS_TOKEN, or POSITIONS
    num_categories      number of ids of the category that attention sees; 0 for no attention
    category_dim        width of the category embeddings
    attention_places    EACH_STAGE or EACH_BLOCK
    lora_rank           rank of the updates of a transformer's layers; 0 for no updates
    lora_alpha          the updates are scaled by lora_alpha / lora_rank
    augmentation        changes of training pictures
    upscale             factor by which the sides of the pictures are enlarged for the backbone
    descriptors         descriptors of a picture that are appended to the features of the backbone
    normalizes          whether the features are normalised before the projection
    rematerialize       whether the stages of the backbone are computed again for the gradient
    micro_batch         number of pictures encoded at a time in training; 0 for all
    """

    pooling: str = "AVG"
    num_categories: int = 0
    category_dim: int = 0
    attention_places: str = "EACH_STAGE"
    lora_rank: int = 0
    lora_alpha: float = 0.0
    augmentation: Augmentation | None = None
    upscale: int = 1
    descriptors: Descriptors | None = None
    normalizes: bool = False
    rematerialize: bool = False
    micro_batch: int = 0


class ImageTower(Composite):
    """Pixels -> normalised -> backbone, with attention between its stages -> pooled -> projection -> head.

    Args:
      backbone: the backbone, which computes the features of pictures.
      shape: height, width and channels of the pictures that the backbone sees.
      projection: width of the projection; 0 for no projection.
      head: further layer after the projection, or None.
      dtype: Keras dtype policy of the whole tower; the backbone has the same.
      options: further settings.

    Attributes:
      width, num_features: D and F.
      length: positions of the packed sequences that the features are; 0 for pooled features.

    Raises:
      BackboneError: if the backbone lacks what an option needs.
    """

    def __init__(
        self,
        backbone: Backbone,
        shape: tuple[int, int, int],
        projection: int,
        head: DNN | Highway | None,
        dtype: str,
        options: TowerOptions | None = None,
        name: str = "image",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._options = options or TowerOptions()
        self.backbone = backbone.model
        self.stages, self.source = backbone.stages, backbone.source
        self.normalisation = backbone.normalisation
        # Arrays instead of tensors, which a traced function would capture as additional inputs.
        self._scale, self._shift = (np.array(v[: shape[2]], np.float32) for v in backbone.normalisation)
        self.num_special = backbone.num_special
        _check_pooling(self._options.pooling, backbone)
        self._norm = RunningNorm(name="features_norm") if self._options.normalizes else None
        self.length, self.num_features = _sizes(backbone, shape, self._options)
        self.width = head.width if head is not None else projection or self.num_features
        self.projection = dense(projection, "projection", 0.0, dtype=dtype) if projection else None
        self.head = head
        self._augmentation = self._options.augmentation
        attended = attended_ends(self.stages, self._options.attention_places) if self._options.num_categories else []
        self._segments: list[keras.Model] = [self.backbone]
        self.attention: list[CategoryAttention | None] = [None]
        if any(stage.block_ends for stage in self.stages) and (attended or self._options.rematerialize):
            self._segments, self.attention = divided(backbone, shape, attended, dtype)
        self._categories = None
        if self._options.num_categories:
            self._categories = CategoryEmbeddings(self._options.num_categories, self._options.category_dim, "category")
        if self._options.pooling == "GEM":
            start = keras.initializers.Constant(_GEM_POWER)
            self._gem_power = self.add_weight(
                shape=(), initializer=start, dtype="float32", autocast=False, name="gem_power"
            )
        self._lora_layers: list[keras.layers.Layer] = []
        if self._options.lora_rank:
            self._lora_layers = add_low_rank_updates(self.stages, self._options.lora_rank, self._options.lora_alpha)
        self._is_recomputing = False
        if self._options.rematerialize and backbone.is_transformer:
            recompute_blocks(self.stages, lambda: self._is_recomputing)
        # Number of last stages of the backbone that are trained.
        self.num_trained_stages = len(self.stages)

    def call(
        self,
        pixels: tf.Tensor,
        category: tf.Tensor | None = None,
        training: bool = False,
        may_be_empty: bool = False,
    ) -> tf.Tensor:
        """Return the vectors of pictures, float32 `[P, D]`.

        Args:
          pixels: `[P, H, W, C]`, 0-255, uint8 or float.
          category: category ids int64 `[P]`, if the tower uses them.
          training: whether the trained parts run in training mode.
          may_be_empty: whether P may be 0.
        """
        features = self.features(pixels, category, training, may_be_empty)
        return self.vectors(features, training, may_be_empty)

    def features(
        self,
        pixels: tf.Tensor,
        category: tf.Tensor | None = None,
        training: bool = False,
        may_be_empty: bool = False,
    ) -> tf.Tensor:
        """Return the pooled features `[P, F]`: the first part of `call`, with the same arguments."""
        if self._augmentation is not None:
            pixels = self._augmentation(pixels, training=training)
        embeddings = self._categories(category) if self._categories is not None else ()  # a pair of [P, E]
        is_trained = training and self.num_trained_stages > 0

        def encode(pixels: tf.Tensor, *embeddings: tf.Tensor) -> tf.Tensor:
            return self.pooled(self._mapped(pixels, embeddings, is_trained), pixels)

        self._is_recomputing = is_trained and self._options.rematerialize
        try:
            if training and self._options.micro_batch:
                return in_micro_batches(encode, self._options.micro_batch, pixels, *embeddings)
            if not may_be_empty or pixels.shape[0]:  # a number that the graph knows
                return encode(pixels, *embeddings)
            # The kernels of convolutions and batch norm reject an empty batch.
            if is_trained:
                return _or_of_zeros(encode, _own_averages(self.backbone), pixels, *embeddings)
            nothing = tf.zeros([0, self.num_features], self.compute_dtype)
            return tf.cond(tf.shape(pixels)[0] > 0, lambda: encode(pixels, *embeddings), lambda: nothing)
        finally:
            self._is_recomputing = False

    def vectors(self, features: tf.Tensor, training: bool = False, may_be_empty: bool = False) -> tf.Tensor:
        """Map pooled features `[P, F]` to vectors float32 `[P, D]`: the second part of `call`."""

        def all_vectors() -> tf.Tensor:
            x = features
            if self._norm is not None:
                x = tf.cast(self._norm(x, training=training), self.compute_dtype)
            if self.projection is not None:
                x = self.projection(x)
            if self.head is not None:
                x = self.head(x, training=training)
            return tf.cast(x, tf.float32)

        # Of several replicas, all compute the layers in which they meet; these leave their averages as they are.
        if not (training and may_be_empty) or is_synchronized(self):
            return all_vectors()
        # The moments of an empty batch are NaN and would stay in batch norm's averages forever.
        nothing = tf.zeros([0, self.width])
        return tf.cond(tf.shape(features)[0] > 0, all_vectors, lambda: nothing)

    def require_stages(self, number: int) -> None:
        """Check that the backbone has at least `number` stages.

        Raises:
          BackboneError: if it has fewer.
        """
        if number > len(self.stages):
            names = ", ".join(stage.name for stage in self.stages)
            raise BackboneError("last_n_stages", f"{number}, but the backbone has {len(self.stages)} stages: {names}")

    def train_last_stages(self, number: int | None) -> None:
        """Train only the last `number` stages of the backbone, None for all, in functions that are traced later.

        Raises:
          BackboneError: if the backbone has fewer stages.
        """
        number = len(self.stages) if number is None else number
        self.require_stages(number)
        self.num_trained_stages = number
        for i, stage in enumerate(self.stages):
            for layer in stage.layers:
                # A batch norm that is not trainable uses its averages.
                layer.trainable = i >= len(self.stages) - number

    def variable_names(self) -> dict[int, str]:
        """Return id of each variable of the backbone -> its name in the backbone."""
        return variable_names(self.backbone)

    def variable_stages(self) -> dict[int, int]:
        """Return id of each variable of the backbone -> the number of its stage, from 0."""
        stages: dict[int, int] = {}
        for number, stage in enumerate(self.stages):
            for layer in stage.layers:
                stages |= {id(variable): number for variable in layer.variables}
        # A layer that contains other layers may be in an earlier stage than they are, so innermost layers decide.
        for number, stage in enumerate(self.stages):
            for layer in stage.layers:
                if not any(True for _ in layer._flatten_layers(include_self=False)):
                    stages |= {id(variable): number for variable in layer.variables}
        return stages

    def lora_variables(self) -> dict[int, keras.Variable]:
        """Return the trained factors of low-rank updates by id."""
        return {
            id(variable): variable
            for layer in self._lora_layers
            for variable in (layer.lora_kernel_a, layer.lora_kernel_b)
        }

    def kernels_with_updates(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Return each kernel that has a low-rank update, and its value with the update."""
        return [(layer._kernel, layer.kernel) for layer in self._lora_layers]

    def category_tables(self) -> dict[str, keras.Variable]:
        """Return the embedding tables of the category by name."""
        if self._categories is None:
            return {}
        return {"channel": self._categories.channel, "spatial": self._categories.spatial}

    def feature_map(self, pixels: tf.Tensor, category: tf.Tensor | None = None) -> tf.Tensor:
        """Return what `pooled` pools, in inference mode: a map `[P, h, w, F]`, tokens `[P, T, F]` or vectors `[P, F]`.

        Arguments as for `call`.
        """
        embeddings = self._categories(category) if self._categories is not None else ()
        return self._mapped(pixels, embeddings, training=False)

    def pooled(self, x: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
        """Return the features `[P, F]`, pooled or not, of a `feature_map` and the pixels of which it was made."""
        x = self._pooled(x)
        if self._options.descriptors is not None:
            x = tf.concat([x, tf.cast(self._options.descriptors(pixels), x.dtype)], axis=1)
        return x

    def _mapped(self, pixels: tf.Tensor, embeddings: tuple[tf.Tensor, ...], training: bool) -> tf.Tensor:
        # Repeated along a row of pixels, because a product with only one number per channel takes five times as long.
        row = tf.shape(pixels)[2:]
        x = tf.cast(pixels, tf.float32) * tf.broadcast_to(self._scale, row) + tf.broadcast_to(self._shift, row)
        if self._options.upscale > 1:
            size = [side * self._options.upscale for side in pixels.shape[1:3]]
            x = tf.image.resize(x, size, method="bicubic")
        x = tf.cast(x, self.compute_dtype)
        for segment, attention in zip(self._segments, self.attention, strict=True):
            run = _step(segment, attention, training)
            x = (
                recompute(run, x, *embeddings)
                if self._is_recomputing and len(self._segments) > 1
                else run(x, *embeddings)
            )
        return x

    def _pooled(self, x: tf.Tensor) -> tf.Tensor:
        """Pool a feature map `[P, h, w, F]`, tokens `[P, T, F]` or vectors to `[P, F]`."""
        if self.length:
            x = x[:, self.num_special :] if x.shape.rank == 3 else x
            return packed(tf.reshape(x, [-1, self.length, x.shape[-1]]))
        if x.shape.rank == 2:
            return x
        if self._options.pooling == "CLS_TOKEN":
            return x[:, 0]
        axes = [1, 2] if x.shape.rank == 4 else [1]
        if x.shape.rank == 3:
            x = x[:, self.num_special :]
        if self._options.pooling == "MAX":
            return tf.reduce_max(x, axis=axes)
        if self._options.pooling == "GEM":
            power = tf.convert_to_tensor(self._gem_power)
            positive = tf.maximum(tf.cast(x, tf.float32), _GEM_EPSILON)
            mean = tf.reduce_mean(tf.pow(positive, power), axis=axes)
            return tf.cast(tf.pow(mean, 1.0 / power), x.dtype)
        return tf.reduce_mean(x, axis=axes)


def _sizes(backbone: Backbone, shape: tuple[int, int, int], options: TowerOptions) -> tuple[int, int]:
    """Return the number of positions of a sequence, 0 for pooled features, and the number of features of a picture."""
    filters = int(backbone.model.output.shape[-1])
    if options.pooling == POSITIONS:
        _, *places, _ = backbone.model.compute_output_shape((1, *shape))
        length = int(math.prod(places)) - (backbone.num_special if len(places) == 1 else 0)
        return length, packed_width(length, filters)
    return 0, filters + (options.descriptors.width(shape[2]) if options.descriptors is not None else 0)


def _check_pooling(pooling: str, backbone: Backbone) -> None:
    rank = len(backbone.model.output.shape)
    if pooling == "CLS_TOKEN" and not (rank == 3 and backbone.num_special):
        raise BackboneError("pooling", "this backbone has no class token; choose AVG, MAX or GEM")
    if rank == 2 and pooling not in ("AVG", POSITIONS):
        raise BackboneError(
            "pooling", f"{pooling} has no effect: the output of this backbone is already one vector per picture"
        )


def _step(segment: keras.Model, attention: keras.layers.Layer | None, training: bool) -> Callable[..., tf.Tensor]:
    def run(x: tf.Tensor, *embeddings: tf.Tensor) -> tf.Tensor:
        x = segment(x, training=training)
        return x if attention is None else attention(x, *embeddings)

    return run


def _own_averages(backbone: keras.Model) -> list[keras.Variable]:
    """Return the moving averages of batch norm that follow the pictures of this replica alone."""
    norms = [layer for layer in backbone._flatten_layers() if isinstance(layer, BatchNorm)]
    common = {id(v) for layer in norms if layer.replicas is not None for v in layer.variables}
    averages = [v for v in backbone.variables if v.name in ("moving_mean", "moving_variance")]
    return [v for v in averages if id(v) not in common]


def _or_of_zeros(encode: Callable[..., tf.Tensor], averages: list[keras.Variable], *inputs: tf.Tensor) -> tf.Tensor:
    """Return `encode(*inputs)` in training; if P is 0, run it on one picture of zeros and discard the result.

    Args:
      encode: the encoder; it is not put in a tf.cond, where it would have no gradient if it recomputes.
      averages: the moving averages that the encoder changes; they are restored if P is 0.
      inputs: `[P, ...]` each.
    """
    num_pictures = tf.shape(inputs[0])[0]
    is_empty = tf.equal(num_pictures, 0)
    before = [tf.convert_to_tensor(v.value) for v in averages]
    encoder_inputs = [
        tf.cond(is_empty, lambda x=x: tf.zeros([1, *x.shape[1:]], x.dtype), lambda x=x: x) for x in inputs
    ]
    features = encode(*encoder_inputs)
    for variable, value in zip(averages, before, strict=True):
        variable.assign(tf.where(is_empty, value, variable))
    return features[:num_pictures]
