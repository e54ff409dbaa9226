"""How many floating point operations a training step has: those of its matrix products and convolutions.

They are counted in a trace of the forward pass, one a phase of the training. There each size of a batch (samples,
pictures, ...) is a prime number that no layer has as its width, so that the factors of a count say with which sizes it
grows, and the count of every batch follows. The gradient of a product costs the product once more for each of its two
factors that depends on a trained variable: a layer costs three times its forward pass, and a frozen one once. What is
computed again to save memory does not count, nor do products whose size only their values tell, such as those of the
losses on image vectors, which leave out images without a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from easyrec_mm.data.batch import Batch
from easyrec_mm.data.vector_bank import Banks
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.schema import IMAGE

# The first of the primes that stand for the sizes of a batch.
_FIRST_PRIME = 10_007
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_CONDITIONS = ("If", "StatelessIf")


class StepFlops:
    """The floating point operations of a step with the trained part of a model.

    Args:
      model: the model, whose trained part has been chosen.
      trained: the variables that are trained.
      banks: banks of the steps.
      batch: any batch of the training, for the names and dtypes of its tensors.
    """

    def __init__(self, model: MultimodalModel, trained: Sequence[tf.Variable], banks: Banks, batch: Batch) -> None:
        self._has_bank = IMAGE in banks
        self._has_links = model.schema.has_links
        # List -> the first one with the same lengths: those of a sequence always have them in common.
        self._first_list = _first_equal(batch)
        primes = list(_primes(len(self._sized(batch))))
        specs, pack = self._specs(batch, primes)

        def forward(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            with model.replicas.scope("floating point operations"):
                return model.losses(pack(tensors), training=False, banks=banks)

        graph = tf.function(forward, autograph=False).get_concrete_function(*specs).graph
        handles = {id(variable.handle) for variable in trained}
        is_trained = {inner.name: id(outer) in handles for outer, inner in graph.captures}
        # Powers of the sizes -> operations for each of their products.
        self._terms: dict[tuple[int, ...], int] = {}
        for count in _counts(graph, is_trained):
            powers, factor = _powers(count, primes)
            self._terms[powers] = self._terms.get(powers, 0) + factor
        self._used = [i for i in range(len(primes)) if any(powers[i] for powers in self._terms)]

    def of(self, batch: Batch) -> float:
        """Return the number of floating point operations of a step on a batch."""
        sized = self._sized(batch)
        # Only the sizes that matter: the shape of a tensor takes some microseconds.
        sizes = {i: int(sized[i].shape[0]) for i in self._used}
        return float(
            sum(
                factor * math.prod(size ** powers[i] for i, size in sizes.items())
                for powers, factor in self._terms.items()
            )
        )

    def _sized(self, batch: Batch) -> list[tf.Tensor]:
        """Return tensors of the sizes that may differ: S, U, P, E, L; E and C of contents; values of each list."""
        images = batch.images
        named = [batch.sample_image, images.has_picture, images.category, images.encoded, images.link_picture]
        lists = [batch.features[name].values for name in dict.fromkeys(self._first_list.values())]
        contents = [tensor for of_kind in batch.contents.values() for tensor in (of_kind.encoded, of_kind.key)]
        return [*named, *contents, *lists]

    def _specs(self, batch: Batch, primes: list[int]) -> tuple[list[tf.TensorSpec], Callable[..., Batch]]:
        """Return specs of the tensors of a batch with these sizes, and what makes a batch of such tensors."""
        samples, images, pictures, encoded, links, *others = primes
        lists = others[2 * len(batch.contents) :]
        # Sizes that are always equal have one prime: shapes would not fit otherwise.
        if not self._has_links:
            images = links = pictures
        if not self._has_bank:
            encoded = pictures
        specs: list[tf.TensorSpec] = []
        of_list = dict(zip(dict.fromkeys(self._first_list.values()), lists, strict=True))

        def placed(size: int) -> Callable[[tf.Tensor], Callable[[Sequence[tf.Tensor]], tf.Tensor]]:
            def place(tensor: tf.Tensor) -> Callable[[Sequence[tf.Tensor]], tf.Tensor]:
                specs.append(tf.TensorSpec([size, *tensor.shape[1:]], tensor.dtype))
                position = len(specs) - 1
                return lambda tensors: tensors[position]

            return place

        def feature(name: str, value: tf.Tensor | tf.RaggedTensor) -> Callable[[Sequence[tf.Tensor]], Any]:
            if not isinstance(value, tf.RaggedTensor):
                return placed(samples)(value)
            values, splits = (
                placed(of_list[self._first_list[name]])(value.values),
                placed(samples + 1)(value.row_splits),
            )
            return lambda tensors: tf.RaggedTensor.from_row_splits(values(tensors), splits(tensors), validate=False)

        def each(tensors: Any, sizes: dict[str, int]) -> Any:
            """Return a named tuple with makers in place of the tensors of these names."""
            return tensors._replace(**{name: placed(size)(getattr(tensors, name)) for name, size in sizes.items()})

        makers = Batch(
            features={name: feature(name, value) for name, value in batch.features.items()},
            labels={name: placed(samples)(label) for name, label in batch.labels.items()},
            sample_weight=placed(samples)(batch.sample_weight),
            pixels=placed(encoded)(batch.pixels),
            sample_image=placed(samples)(batch.sample_image),
            images=each(batch.images, _sizes_of_images(images, pictures, encoded, links))._replace(
                features={name: placed(images)(value) for name, value in batch.images.features.items()},
                labels={name: placed(images)(value) for name, value in batch.images.labels.items()},
            ),
            contents={
                kind: each(of_kind, _sizes_of_contents(images, others[2 * i], others[2 * i + 1]))
                for i, (kind, of_kind) in enumerate(batch.contents.items())
            },
        )
        return specs, lambda tensors: tf.nest.map_structure(lambda make: make(tensors), makers)


def _sizes_of_images(images: int, pictures: int, encoded: int, links: int) -> dict[str, int]:
    """Return the size of each tensor of Images, given U, P, E and L."""
    of_pictures = dict.fromkeys(("category", "picture_key", "bank_row"), pictures)
    of_links = dict.fromkeys(("link_picture", "link_image"), links)
    return {"encoded": encoded, **of_pictures, **of_links, "has_picture": images, "key": images}


def _sizes_of_contents(images: int, encoded: int, distinct: int) -> dict[str, int]:
    """Return the size of each tensor of Contents, given U, E and C."""
    of_all = dict.fromkeys(("key", "bank_row", "is_there"), distinct)
    return {"values": encoded, "encoded": encoded, "of_image": images, **of_all}


def _first_equal(batch: Batch) -> dict[str, str]:
    """Return of each list among the features the first one that has the same lengths in this batch."""
    first: dict[bytes, str] = {}
    lists = {name: value for name, value in batch.features.items() if isinstance(value, tf.RaggedTensor)}
    return {name: first.setdefault(value.row_splits.numpy().tobytes(), name) for name, value in lists.items()}


def _primes(number: int) -> Iterator[int]:
    """Return prime numbers, beginning with the first one."""
    candidate = _FIRST_PRIME
    while number:
        if all(candidate % divisor for divisor in range(3, math.isqrt(candidate) + 1, 2)):
            yield candidate
            number -= 1
        candidate += 2


def _powers(count: int, primes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Return how often each prime divides a count, and what remains of it."""
    powers = []
    for prime in primes:
        power = 0
        while count % prime == 0:
            count, power = count // prime, power + 1
        powers.append(power)
    return tuple(powers), count


def _counts(graph: tf.Graph, is_trained: dict[str, bool]) -> Iterator[int]:
    """Return the operations, forward and backward, of each product in a graph whose shapes are known.

    Args:
      graph: the graph of a function.
      is_trained: name of a tensor -> whether it depends on a trained variable; the tensors of the graph are added.
    """
    for operation in graph.get_operations():
        inputs = list(operation.inputs)
        depends = [is_trained.get(tensor.name, False) for tensor in inputs]
        if any(depends) and operation.type != "StopGradient":
            is_trained |= {output.name: output.dtype.is_floating for output in operation.outputs}
        if operation.type in _CALLS or operation.type in _CONDITIONS:
            is_condition = operation.type in _CONDITIONS
            names = ("then_branch", "else_branch") if is_condition else ("f",)
            bodies = [_body(graph, operation.get_attr(name).name) for name in names]
            arguments = depends[1:] if is_condition else depends
            # Of a condition, the branch that computes something.
            yield from max(
                (
                    list(_counts(body, {x.name: own for x, own in zip(body.inputs, arguments, strict=True)}))
                    for body in bodies
                ),
                key=sum,
            )
        elif operation.type in _PRODUCTS:
            dimensions = _PRODUCTS[operation.type](operation)
            known = [dimension for dimension in dimensions if dimension]
            if len(known) == len(dimensions):
                yield 2 * math.prod(known) * (1 + sum(depends[:2]))


def _body(graph: Any, name: str) -> Any:
    """Return the graph of a function that a graph calls."""
    return graph._get_function(name).graph


def _of_matmul(operation: tf.Operation) -> list[int | None]:
    inner = operation.inputs[0].shape[0 if operation.get_attr("transpose_a") else 1]
    return [*operation.outputs[0].shape, inner]


def _of_batch_matmul(operation: tf.Operation) -> list[int | None]:
    inner = operation.inputs[0].shape[-2 if operation.get_attr("adj_x") else -1]
    return [*operation.outputs[0].shape, inner]


def _of_einsum(operation: tf.Operation) -> list[int | None]:
    labels = operation.get_attr("equation").decode().partition("->")[0].split(",")
    sizes: dict[str, int | None] = {}
    for text, tensor in zip(labels, operation.inputs, strict=True):
        head, _, tail = text.partition("...")
        dimensions = list(tensor.shape)
        middle = len(dimensions) - len(head) - len(tail)
        named = [*head, *(f".{i}" for i in range(middle)), *tail]
        sizes |= dict(zip(named, dimensions, strict=True))
    return list(sizes.values())


def _of_convolution(operation: tf.Operation) -> list[int | None]:
    height, width, channels, _ = operation.inputs[1].shape
    return [*operation.outputs[0].shape, height, width, channels]


def _of_depthwise_convolution(operation: tf.Operation) -> list[int | None]:
    height, width, _, _ = operation.inputs[1].shape
    return [*operation.outputs[0].shape, height, width]


# Type of an operation -> the dimensions whose product is its number of multiplications.
_PRODUCTS: dict[str, Callable[[tf.Operation], list[int | None]]] = {
    "MatMul": _of_matmul,
    "BatchMatMul": _of_batch_matmul,
    "BatchMatMulV2": _of_batch_matmul,
    "BatchMatMulV3": _of_batch_matmul,
    "Einsum": _of_einsum,
    "Conv2D": _of_convolution,
    "DepthwiseConv2dNative": _of_depthwise_convolution,
}
