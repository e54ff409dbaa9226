"""Dense layers: stacks, highway, mixture of experts. The formulas are EasyRec's, so that its configs mean the same."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.layers.batch_norm import BatchNorm, normalize_together
from easyrec_mm.network.layers.composite import Composite
from easyrec_mm.network.layers.together import are_together, dense_together


class _L2(keras.regularizers.Regularizer):
    """EasyRec's l2_regularization r, which adds r / 2 * sum(w^2), in few operations."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, kernel: keras.Variable) -> tf.Tensor:
        return self._factor * tf.nn.l2_loss(kernel)


def dense(units: int, name: str, l2: float, activation: str = "linear", dtype: str | None = None) -> keras.layers.Dense:
    """Build a dense layer with EasyRec's initial values (Glorot uniform, zeros) and regularisation of the kernel."""
    regularizer = _L2(l2) if l2 else None
    return keras.layers.Dense(units, activation, kernel_regularizer=regularizer, name=name, dtype=dtype)


class DNN(keras.layers.Layer):
    """Dense -> batch norm -> activation -> dropout, once for each of `hidden_units`: `[N, F]` -> `[N, units]`.

    With `ends_linear` the last dense layer has neither batch norm nor activation. `width` is the last of the units.
    """

    def __init__(
        self,
        hidden_units: Sequence[int],
        dropout: Sequence[float] = (),
        activation: str = "relu",
        use_bn: bool = True,
        l2: float = 0.0,
        name: str = "dnn",
        dtype: str | None = None,
        ends_linear: bool = False,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.width = hidden_units[-1]
        self._activation = keras.activations.get(activation)
        self._num_active = len(hidden_units) - ends_linear
        self._dense = [dense(units, f"dense_{i}", l2, dtype=dtype) for i, units in enumerate(hidden_units)]
        self._bn = [BatchNorm(name=f"bn_{i}", dtype=dtype) for i in range(self._num_active * use_bn)]
        self._dropout = list(dropout)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the random states of dropout."""
        # The names of keras.layers.Dropout's states depend on how many exist in the process, so another process (or a
        # second model in this process) would not find them in a checkpoint.
        self._seeds = {
            i: keras.random.SeedGenerator(name=f"dropout_{i}") for i, ratio in enumerate(self._dropout) if ratio
        }

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        for i, layer in enumerate(self._dense):
            x = layer(x)
            if i < self._num_active:
                if self._bn:
                    x = self._bn[i](x, training=training)
                x = self._activation(x)
            if training and i in self._seeds:
                x = keras.random.dropout(x, self._dropout[i], seed=self._seeds[i])
        return x


def dnn_together(dnns: Sequence[DNN], x: tf.Tensor, training: bool) -> tf.Tensor:
    """Return the outputs of T DNNs of equal settings: `[S, F]` for all, or `[S, T, F]` -> `[S, T, units]`."""
    first = dnns[0]
    for i in range(len(first._dense)):
        x = dense_together([dnn._dense[i] for dnn in dnns], x)
        if i < first._num_active:
            if first._bn:
                x = normalize_together([dnn._bn[i] for dnn in dnns], x, training)
            x = first._activation(x)
        if training and i in first._seeds:
            # One by one, each from its own random state, so that they drop the same numbers as alone.
            parts = zip(dnns, tf.unstack(x, axis=1), strict=True)
            dropped = [keras.random.dropout(part, dnn._dropout[i], seed=dnn._seeds[i]) for dnn, part in parts]
            x = tf.stack(dropped, axis=1)
    return x


class RunningNorm(keras.layers.Layer):
    """Normalisation by running averages of mean and deviation, in training too: `[N, F]` -> `[N, F]`.

    Unlike batch norm, it treats an input in training as it does later, however small the batch is.

    Attributes:
      replicas: the replicas that train together, so that all have the same averages; None for a replica alone.
    """

    replicas: Replicas | None = None

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3, name: str = "norm") -> None:
        super().__init__(name=name, dtype="float32")
        self._momentum, self._epsilon = momentum, epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the averages."""
        options = {"trainable": False, "dtype": "float32", "autocast": False}
        self._mean = self.add_weight(shape=input_shape[1:], initializer="zeros", name="mean", **options)
        self._square = self.add_weight(shape=input_shape[1:], initializer="ones", name="mean_of_square", **options)
        # Total weight of the batches so far: 0 at first, so that the first batch's moments replace the initial values.
        self._weight = self.add_weight(shape=(), initializer="zeros", name="weight", **options)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            weight = self._weight * self._momentum + (1.0 - self._momentum)
            share = (1.0 - self._momentum) / weight
            mean, square, is_empty = self._means(tf.stop_gradient(x))
            if is_empty is not None:
                weight, share = tf.where(is_empty, self._weight, weight), tf.where(is_empty, 0.0, share)
            self._weight.assign(weight)
            self._mean.assign_add(share * (mean - self._mean))
            self._square.assign_add(share * (square - self._square))
        mean, square = tf.convert_to_tensor(self._mean), tf.convert_to_tensor(self._square)
        variance = tf.maximum(square - tf.square(mean), 0.0)
        return (tf.cast(x, tf.float32) - mean) * tf.math.rsqrt(variance + self._epsilon)

    def _means(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Return the means of `[N, F]` and of its square, and of several replicas whether none has any rows."""
        if self.replicas is None:
            return tf.reduce_mean(x, axis=0), tf.reduce_mean(tf.square(x), axis=0), None
        mean, variance, number = self.replicas.moments(x, (0,))
        return mean, variance + tf.square(mean), tf.equal(number, 0)


class Highway(Composite):
    """Projection and one highway layer (Srivastava et al., 2015): `[N, F]` -> `[N, units]`.

    x = relu(W_p input), gate = sigmoid(W_g x), output = gate * relu(W_h x) + (1 - gate) * x; all layers have biases.
    """

    def __init__(self, units: int, name: str = "highway", dtype: str | None = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.width = units
        self._projection = dense(units, "input_projection", 0.0, "relu", dtype)
        self._gate = dense(units, "gate", 0.0, "sigmoid", dtype)
        self._transform = dense(units, "transform", 0.0, "relu", dtype)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = self._projection(x)
        gate = self._gate(x)
        return gate * self._transform(x) + (1.0 - gate) * x


class ExpertMixture(Composite):
    """Multi-gate mixture of experts (MMoE, Ma et al., KDD 2018): `[S, F]` -> T tensors `[S, units]`.

    The output for task t is the sum over experts e of softmax(W_t x)_e * expert_e(x). `gates` are the layers W_t.
    """

    def __init__(
        self, experts: Sequence[DNN], num_tasks: int, l2: float, name: str = "mmoe", dtype: str | None = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._experts = list(experts)
        self.gates = [dense(len(experts), f"gate_{t}", l2, "softmax", dtype) for t in range(num_tasks)]

    def call(self, x: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        outputs = tf.stack([expert(x, training=training) for expert in self._experts], axis=1)  # [S, experts, units]
        if are_together(len(self.gates)):
            gates = dense_together(self.gates, x)  # [S, T, experts]
            return list(tf.unstack(tf.matmul(gates, outputs), axis=1))
        return [tf.reduce_sum(outputs * gate(x)[:, :, None], axis=1) for gate in self.gates]
