"""The tower of a kind of content of items, such as texts: values -> prepared -> features -> projected vector.

Shape legend: T contents, F features of the encoder, D width of the vector.
"""

from __future__ import annotations

from abc import abstractmethod

import keras
import tensorflow as tf

from easyrec_mm.network.layers.backbone_parts import add_low_rank_updates
from easyrec_mm.network.layers.backbone_stages import Stage, variable_names
from easyrec_mm.network.layers.composite import Composite
from easyrec_mm.network.layers.dnn import dense
from easyrec_mm.network.layers.sequences import packed, packed_width


class ContentEncoder(Composite):
    """Maps contents to features `[T, F]`, in two steps: `prepare` has what exports for ONNX Runtime compute before it.

    Attributes:
      num_features: F.
      prepared_shape: shape of a prepared content; None stands for any number.
      prepared_dtype: its dtype.
      stages: the parts of the encoder that can be frozen; () if it can only be trained as a whole.
      source: text that determines the architecture and the preparation, for fingerprints.
      length: positions of a content as a sequence, which `call` then returns if it is more than one.
      takes_nothing: whether kernels of ONNX Runtime compute it for contents that are all empty.
    """

    num_features: int
    prepared_shape: tuple[int | None, ...]
    prepared_dtype: tf.DType
    stages: tuple[Stage, ...] = ()
    source: str
    length: int = 1
    takes_nothing: bool = True

    @abstractmethod
    def empty(self) -> tf.Tensor:
        """Return a content without anything, as batches have it: `[1, ...]`."""

    @abstractmethod
    def prepare(self, values: tf.Tensor) -> tf.Tensor:
        """Return contents `[T, ...]`, as batches have them, in the form that `call` takes: `[T, *prepared_shape]`."""

    @abstractmethod
    def is_there(self, prepared: tf.Tensor) -> tf.Tensor:
        """Return whether prepared contents are those of something: bool `[T]`."""

    @abstractmethod
    def call(self, prepared: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return features `[T, F]` of prepared contents; T may be 0.

        An encoder of more than one position takes `as_sequence`, too, and then returns packed sequences of them.
        """

    def variable_names(self) -> dict[int, str]:
        """Return id of each variable -> its name within the encoder."""
        return variable_names(self)

    def table(self) -> keras.Variable | None:
        """Return the embedding table; None for an encoder without one."""
        return None


class ContentTower(Composite):
    """Vectors of contents of a kind.

    Args:
      kind: the kind of content, the name of the layer.
      encoder: computes features of contents.
      projection: D; 0 for no projection.
      dtype: Keras dtype policy of the projection.
      lora_rank: rank of low-rank updates of the encoder; 0 for none.
      lora_alpha: scales these updates.
      is_sequence: whether features and vectors are packed sequences of the encoder's positions, see sequences.py;
        without a projection.

    Attributes:
      width: D.
      num_features: F.
      length: positions of a sequence; 0 for a vector.
    """

    def __init__(
        self,
        kind: str,
        encoder: ContentEncoder,
        projection: int,
        dtype: str,
        lora_rank: int = 0,
        lora_alpha: float = 0.0,
        is_sequence: bool = False,
    ) -> None:
        super().__init__(name=kind, dtype=dtype)
        self.encoder = encoder
        self.length = encoder.length if is_sequence else 0
        self.num_features = packed_width(self.length, encoder.num_features) if is_sequence else encoder.num_features
        projection = 0 if is_sequence else projection
        self.width = projection or self.num_features
        self._projection = dense(projection, "projection", 0.0, dtype=dtype) if projection else None
        self._low_rank = add_low_rank_updates(encoder.stages, lora_rank, lora_alpha) if lora_rank else []
        # Whether any part of the encoder is trained, and so runs in training mode.
        self._trains_encoder = True

    def features(self, prepared: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the features `[T, F]` of prepared contents, see ContentEncoder; T may be 0."""
        training = training and self._trains_encoder
        if self.length > 1:
            return self.encoder(prepared, training=training, as_sequence=True)
        features = self.encoder(prepared, training=training)
        return packed(features[:, None]) if self.length else features

    def vectors(self, features: tf.Tensor) -> tf.Tensor:
        """Return the vectors float32 `[T, D]` of features `[T, F]`."""
        x = tf.cast(features, self.compute_dtype)
        return tf.cast(x if self._projection is None else self._projection(x), tf.float32)

    def call(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return the vectors float32 `[T, D]` of contents `[T, ...]`."""
        return self.vectors(self.features(self.encoder.prepare(values), training))

    def train_last_stages(self, number: int | None) -> None:
        """Train only the last `number` stages of the encoder, None for all, in functions that are traced later."""
        stages = self.encoder.stages
        self._trains_encoder = number != 0
        for i, stage in enumerate(stages):
            for layer in stage.layers:
                layer.trainable = number is None or i >= len(stages) - number

    def trained_in_encoder(self, number: int | None) -> set[int]:
        """Return the ids of the encoder's variables that are trained with the last `number` stages, None for all."""
        if self._low_rank:
            factors = [v for layer in self._low_rank for v in (layer.lora_kernel_a, layer.lora_kernel_b)]
            return {id(v) for v in factors}
        if number is None:
            return {id(v) for v in self.encoder.variables}
        last = self.encoder.stages[len(self.encoder.stages) - number :] if number else ()
        return {id(v) for stage in last for layer in stage.layers for v in layer.variables}

    def kernels_with_updates(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Return each kernel that has a low-rank update, and its value with the update."""
        return [(layer._kernel, layer.kernel) for layer in self._low_rank]

    def variable_names(self) -> dict[int, str]:
        """Return id of each variable -> its name within the tower."""
        own = {id(v): v.path.removeprefix(f"{self.name}/") for v in self.variables}
        inner = {key: f"{self.encoder.name}/{name}" for key, name in self.encoder.variable_names().items()}
        return own | inner
