"""The three models that a trained network is cut into, as functions of named tensors that need no Python code.

    image   pixels, or the bytes of a picture -> image vector
    rec     raw fields of samples and their image vectors -> outputs of every task
    total   raw fields and pictures -> outputs of every task, to prove the cut

Each part is a tf.Module that tracks only its own variables, with its signatures. Shapes: N pictures, S samples, D width
of the image vector. Fields are named as in `input_fields`; one given for a single sample counts for all S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from easyrec_mm.data.decode import decode_pictures
from easyrec_mm.data.transform import FeatureTransform
from easyrec_mm.manifest import DECODE, DEFAULT, ENCODED, IMAGE_TEXT, IMAGE_VECTOR, PIXELS, VECTOR
from easyrec_mm.model import MultimodalModel, task_outputs
from easyrec_mm.schema import Field, Schema

TEXT_SEPARATOR = ","
# Decimal digits from which every float32 is read back exactly.
_FLOAT32_DIGITS = 9

# What the names of the rec model's variables start with.
_REC_WEIGHTS = ("rec/", "embedding/")
_DTYPES = {"int64": tf.int64, "bool": tf.bool, "float32": tf.float32, "string": tf.string}


class Part(NamedTuple):
    """A model to export: what it tracks, and its functions by signature name."""

    module: tf.Module
    signatures: dict[str, tf.types.experimental.ConcreteFunction]


def image_part(model: MultimodalModel, image_input: str) -> Part:
    """Pictures -> `img_emb` (text of numbers between commas) and `img_emb_vector` float32 `[N, D]`.

    Args:
      model: the trained network, in float32.
      image_input: name of the input: pixels float32 `[N, H, W, C]` of 0-255 in RGB, or string `[N]` with the contents
        of picture files in the signature "encoded". "decode" returns the pixels of files, uint8.
    """
    image = model.schema.image

    def outputs(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        vector = model.image(pixels, training=False)  # [N, D]
        return {IMAGE_TEXT: vector_text(vector), IMAGE_VECTOR: vector}

    pixels, contents = _picture_specs(model.schema, image_input)
    functions = {
        DEFAULT: (lambda **inputs: outputs(inputs[image_input]), pixels),
        ENCODED: (lambda **inputs: outputs(decode_pictures(inputs[image_input], image)), contents),
        DECODE: (lambda **inputs: {PIXELS: decode_pictures(inputs[image_input], image)}, contents),
    }
    return _part(model, ("image/",), functions)


def rec_part(model: MultimodalModel) -> Part:
    """Fields `[S]` and image vectors -> outputs `[S]` (`[S, classes]` for the probabilities of several classes).

    Image vectors are text as the image model writes it, string `[S]`; in the signature "vector" float32 `[S, D]`.
    """
    schema = model.schema
    transform = FeatureTransform(schema.features)
    width = model.image_width

    def outputs(fields: dict[str, tf.Tensor], vector: tf.Tensor) -> dict[str, tf.Tensor]:
        fields, num_samples = broadcast_fields(schema, fields, tf.shape(vector)[0])
        return _outputs(model, transform, fields, tf.broadcast_to(vector, [num_samples, width]))

    fields = field_specs(schema)
    functions = {
        DEFAULT: (
            lambda **inputs: outputs(inputs, text_vector(inputs.pop(IMAGE_TEXT), width)),
            {**fields, IMAGE_TEXT: tf.TensorSpec([None], tf.string)},
        ),
        VECTOR: (
            lambda **inputs: outputs(inputs, inputs.pop(IMAGE_VECTOR)),
            {**fields, IMAGE_VECTOR: tf.TensorSpec([None, width], tf.float32)},
        ),
    }
    return _part(model, _REC_WEIGHTS, functions, transform)


def total_part(model: MultimodalModel, image_input: str) -> Part:
    """Fields `[S]` and a picture a sample, or one for all -> outputs as of rec_part; inputs of both parts."""
    schema = model.schema
    transform = FeatureTransform(schema.features)

    def outputs(inputs: dict[str, tf.Tensor], pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        vector = model.image(pixels, training=False)  # [N, D]
        fields, num_samples = broadcast_fields(schema, inputs, tf.shape(vector)[0])
        return _outputs(model, transform, fields, tf.broadcast_to(vector, [num_samples, model.image_width]))

    fields = field_specs(schema)
    pixels, contents = _picture_specs(schema, image_input)
    functions = {
        DEFAULT: (lambda **inputs: outputs(inputs, inputs.pop(image_input)), {**fields, **pixels}),
        ENCODED: (
            lambda **inputs: outputs(inputs, decode_pictures(inputs.pop(image_input), schema.image)),
            {**fields, **contents},
        ),
    }
    return _part(model, ("image/", *_REC_WEIGHTS), functions, transform)


def field_specs(schema: Schema) -> dict[str, tf.TensorSpec]:
    """The fields that the features read: name -> `[S]` of its dtype."""
    return {name: tf.TensorSpec([None], _DTYPES[schema.field(name).dtype]) for name in schema.feature_fields()}


def broadcast_fields(
    schema: Schema, fields: dict[str, tf.Tensor], num_vectors: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Fields as training has them, all of S samples, and S: empty text is the default, bool is int64."""
    num_samples = tf.reduce_max([num_vectors, *[tf.shape(value)[0] for value in fields.values()]])
    ready = {name: _with_default(value, schema.field(name)) for name, value in fields.items()}
    return {name: tf.broadcast_to(value, [num_samples]) for name, value in ready.items()}, num_samples


def vector_text(vector: tf.Tensor) -> tf.Tensor:
    """float32 `[N, D]` -> text `[N]`, numbers between commas, from which `text_vector` gets the same float32."""
    numbers = tf.strings.as_string(vector, precision=_FLOAT32_DIGITS, shortest=True)
    return tf.strings.reduce_join(numbers, axis=1, separator=TEXT_SEPARATOR)


def text_vector(text: tf.Tensor, width: int) -> tf.Tensor:
    """Text `[N]` of `width` numbers between commas -> float32 `[N, width]`."""
    parts = tf.strings.split(text, TEXT_SEPARATOR)
    message = f"{IMAGE_TEXT} must hold {width} numbers between commas"
    whole = tf.debugging.Assert(tf.reduce_all(tf.equal(parts.row_lengths(), width)), [message])
    with tf.control_dependencies([whole]):
        return tf.reshape(tf.strings.to_number(parts.flat_values, tf.float32), [-1, width])


def _with_default(value: tf.Tensor, field: Field) -> tf.Tensor:
    if field.dtype == "bool":
        return tf.cast(value, tf.int64)
    if field.dtype == "string" and field.default:
        return tf.where(tf.equal(value, ""), field.default, value)
    return value


def _outputs(
    model: MultimodalModel, transform: FeatureTransform, fields: dict[str, tf.Tensor], vector: tf.Tensor
) -> dict[str, tf.Tensor]:
    logits, _ = model.rec(transform(fields), vector, training=False)
    outputs: dict[str, tf.Tensor] = {}
    for task in model.schema.tasks:
        outputs.update(task_outputs(task, logits[task.name]))
    return outputs


def _picture_specs(schema: Schema, image_input: str) -> tuple[dict[str, tf.TensorSpec], dict[str, tf.TensorSpec]]:
    image = schema.image
    shape = [None, image.height, image.width, image.channels]
    return {image_input: tf.TensorSpec(shape, tf.float32)}, {image_input: tf.TensorSpec([None], tf.string)}


def _part(
    model: MultimodalModel,
    prefixes: tuple[str, ...],
    functions: dict[str, tuple[Callable[..., dict[str, tf.Tensor]], dict[str, tf.TensorSpec]]],
    transform: FeatureTransform | None = None,
) -> Part:
    """A module with the variables under these names and the vocabularies of the transform."""
    module = tf.Module()
    module.weights = {name: weight for name, weight in model.weights().items() if name.startswith(prefixes)}
    module.vocabularies = transform.vocabularies if transform else {}
    signatures = {
        name: tf.function(function, autograph=False).get_concrete_function(**specs)
        for name, (function, specs) in functions.items()
    }
    return Part(module, signatures)
