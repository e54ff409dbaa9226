"""The three models into which a trained network is divided, as functions of named tensors that need no Python code.

    image   pixels, or the bytes of a picture -> image vector
    rec     raw fields of samples and their image vectors -> outputs of every task
    total   raw fields and pictures -> outputs of every task, to verify the other two

Each part is a tf.Module that tracks only its own variables, with its signatures. Shapes: N pictures, S samples, D width
of the image vector, K items. Fields are named as in `input_fields`; a field with one value applies to all S. Fields
with a constant are not inputs.

A feature whose vectors are in a store takes these instead of its key, float32 `[S, numbers]`, under its name and
"_vector". A sequence of such features takes `[S, L, numbers]`, and under "_length" the number of vectors per sample,
int64 `[S]`.

An image tower that uses the item's category takes its field in addition to the pictures, and towers of other contents,
such as texts, their fields; the image vector is then the vector of the item, made of all. Vectors of items that are in
a store are taken as the rec model takes those of samples, float32 `[K, numbers]`. A tower for several pictures per item
also takes `picture_item`, int64 `[N]`: the item of each picture, from 0; image vectors are then `[K, D]`. So does one
for items that may have other contents and no picture. Without it, each picture is an item. If items may have no
picture, empty contents of a file stand for no picture. A model without pictures takes none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from easyrec_mm.data.decode import decode_pictures
from easyrec_mm.features.field import Field
from easyrec_mm.features.tensorflow_back_end import DTYPES
from easyrec_mm.features.tensorflow_transform import FeatureTransform
from easyrec_mm.manifest import (
    DECODE,
    DEFAULT,
    ENCODED,
    IMAGE_TEXT,
    IMAGE_VECTOR,
    PICTURE_ITEM,
    PIXELS,
    PREPARED,
    VECTOR,
)
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.rec import task_outputs
from easyrec_mm.schema import Schema

TEXT_SEPARATOR = ","
# Number of decimal digits from which every float32 is read back exactly.
_FLOAT32_DIGITS = 9

# Signature name -> function and specs of its inputs.
Functions = dict[str, tuple[Callable[..., dict[str, tf.Tensor]], dict[str, tf.TensorSpec]]]

# Prefixes of the names of the rec model's variables.
_REC_WEIGHTS = ("rec/", "embedding/")


class Part(NamedTuple):
    """A model to export: a module that tracks its variables, and its functions by signature name."""

    module: tf.Module
    signatures: dict[str, tf.types.experimental.ConcreteFunction]


def image_part(model: MultimodalModel, image_input: str) -> Part:
    """Return the model: pictures -> `img_emb` (text of comma-separated numbers) and `img_emb_vector` float32 `[N, D]`.

    Args:
      model: the trained network, in float32.
      image_input: name of the input: pixels float32 `[N, H, W, C]`, 0-255, RGB; in the signature "encoded", the
        contents of picture files, string `[N]`. The signature "decode" returns the pixels of files, uint8, and
        those of PREPARED what the ONNX model takes of other contents, such as the tokens of texts.
    """
    image = model.schema.image
    items = _Items(model, image_input)

    def outputs(vector: tf.Tensor) -> dict[str, tf.Tensor]:
        return {IMAGE_TEXT: vector_text(vector), IMAGE_VECTOR: vector}

    functions: Functions = {
        DEFAULT: (lambda **inputs: outputs(items.of_pixels(inputs)), {**items.pixel_spec, **items.side_specs}),
        ENCODED: (lambda **inputs: outputs(items.of_contents(inputs)), {**items.content_spec, **items.side_specs}),
    }
    if model.schema.uses_image:
        functions[DECODE] = lambda **inputs: {PIXELS: decode_pictures(inputs[image_input], image)}, items.content_spec
    for kind, feature in model.schema.contents.items():
        if kind in PREPARED:
            signature, name = PREPARED[kind]
            functions[signature] = items.preparation(kind, name), _specs(model.schema, feature.inputs)
    return _part(model, ("image/",), functions, items.transform)


def rec_part(model: MultimodalModel) -> Part:
    """Return the model: fields `[S]` and image vectors -> outputs `[S]` (`[S, classes]` for class probabilities).

    Image vectors are text as the image model writes it, string `[S]`; in the signature "vector", float32 `[S, D]`.
    """
    schema = model.schema
    transform = FeatureTransform(schema.features)
    width = model.item_width

    def outputs(inputs: dict[str, tf.Tensor], vector: tf.Tensor) -> dict[str, tf.Tensor]:
        return _outputs(model, transform, inputs, vector)

    fields = {**field_specs(schema), **vector_specs(schema)}
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
    """Return the model: inputs of both parts, with one picture per sample or one for all -> outputs of rec_part.

    In addition to these, `img_emb` is the image vector of each sample, as text.
    """
    schema = model.schema
    transform = FeatureTransform(schema.features)
    items = _Items(model, image_input)

    def outputs(inputs: dict[str, tf.Tensor], vector: tf.Tensor) -> dict[str, tf.Tensor]:
        predictions = _outputs(model, transform, inputs, vector)
        num_samples = tf.shape(next(iter(predictions.values())))[0]
        return {**predictions, IMAGE_TEXT: tf.broadcast_to(vector_text(vector), [num_samples])}

    specs = {
        **field_specs(schema),
        **vector_specs(schema),
        **items.side_specs,
    }
    functions: Functions = {
        DEFAULT: (lambda **inputs: outputs(inputs, items.of_pixels(inputs)), {**specs, **items.pixel_spec}),
        ENCODED: (lambda **inputs: outputs(inputs, items.of_contents(inputs)), {**specs, **items.content_spec}),
    }
    return _part(model, ("image/", *_REC_WEIGHTS), functions, transform, items.transform)


def field_specs(schema: Schema) -> dict[str, tf.TensorSpec]:
    """Return the fields that the features read and that are not constants: name -> `[S]` of its dtype."""
    return _specs(schema, schema.input_fields())


def constant_fields(schema: Schema) -> dict[str, tf.Tensor]:
    """Return the constants that exported models take for fields: name -> `[1]` of its dtype."""
    return {
        field.name: tf.constant([field.value(field.constant)], DTYPES[field.dtype])
        for field in schema.fields
        if field.constant is not None
    }


def vector_specs(schema: Schema) -> dict[str, tf.TensorSpec]:
    """Return the inputs for vectors of features that are in a store."""
    specs: dict[str, tf.TensorSpec] = {}
    for feature in schema.stored_features():
        is_list = feature.is_list
        specs[feature.vector_key] = tf.TensorSpec([None] * (1 + is_list) + [feature.num_numbers], tf.float32)
        if is_list:
            specs[feature.length_key] = tf.TensorSpec([None], tf.int64)
    return specs


def vector_inputs(schema: Schema, features: dict[str, tf.Tensor | tf.RaggedTensor]) -> dict[str, tf.Tensor]:
    """Return the inputs described by `vector_specs`, from the features of a batch."""
    inputs: dict[str, tf.Tensor] = {}
    for feature in schema.stored_features():
        value = features[feature.name]
        if isinstance(value, tf.RaggedTensor):
            inputs[feature.length_key] = tf.cast(value.row_lengths(), tf.int64)
            value = value.to_tensor()
        inputs[feature.vector_key] = value
    return inputs


def _vectors(schema: Schema, inputs: dict[str, tf.Tensor], num_samples: tf.Tensor) -> dict[str, Any]:
    """Return the features of a batch, from the inputs described by `vector_specs`."""
    features: dict[str, Any] = {}
    for feature in schema.stored_features():
        input_vectors = inputs[feature.vector_key]
        vectors = tf.broadcast_to(input_vectors, tf.concat([[num_samples], tf.shape(input_vectors)[1:]], 0))
        if feature.is_list:
            lengths = tf.broadcast_to(inputs[feature.length_key], [num_samples])
            vectors = tf.RaggedTensor.from_tensor(vectors, lengths)
        features[feature.name] = vectors
    return features


def _specs(schema: Schema, names: Iterable[str]) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None], DTYPES[schema.field(name).dtype]) for name in names}


def broadcast_fields(
    schema: Schema, fields: dict[str, tf.Tensor], num_vectors: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Return fields as training has them, all `[S]`, and S; empty text becomes the default, bool becomes int64."""
    num_samples = tf.reduce_max([num_vectors, *[tf.shape(value)[0] for value in fields.values()]])
    ready = {name: _with_default(value, schema.field(name)) for name, value in fields.items()}
    return {name: tf.broadcast_to(value, [num_samples]) for name, value in ready.items()}, num_samples


def vector_text(vector: tf.Tensor) -> tf.Tensor:
    """Convert float32 `[N, D]` to text `[N]`, comma-separated numbers; `text_vector` restores the same float32."""
    numbers = tf.strings.as_string(vector, precision=_FLOAT32_DIGITS, shortest=True)
    return tf.strings.reduce_join(numbers, axis=1, separator=TEXT_SEPARATOR)


def text_vector(text: tf.Tensor, width: int) -> tf.Tensor:
    """Convert text `[N]` of `width` comma-separated numbers to float32 `[N, width]`."""
    parts = tf.strings.split(text, TEXT_SEPARATOR)
    message = f"{IMAGE_TEXT} must hold {width} numbers between commas"
    width_check = tf.debugging.Assert(tf.reduce_all(tf.equal(parts.row_lengths(), width)), [message])
    with tf.control_dependencies([width_check]):
        return tf.reshape(tf.strings.to_number(parts.flat_values, tf.float32), [-1, width])


def _with_default(value: tf.Tensor, field: Field) -> tf.Tensor:
    if field.dtype == "bool":
        return tf.cast(value, tf.int64)
    if field.dtype == "string" and field.default:
        return tf.where(tf.equal(value, ""), field.default, value)
    return value


def _outputs(
    model: MultimodalModel, transform: FeatureTransform, inputs: dict[str, tf.Tensor], vector: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Return the outputs for all samples; inputs with a single row apply to all of them."""
    schema = model.schema
    sizes = [tf.shape(vector)[0], *(tf.shape(inputs[name])[0] for name in vector_specs(schema))]
    field_inputs = {name: inputs[name] for name in schema.input_fields()} | constant_fields(schema)
    fields, num_samples = broadcast_fields(schema, field_inputs, tf.reduce_max(sizes))
    features = {**transform(fields), **_vectors(schema, inputs, num_samples)}
    vector = tf.broadcast_to(vector, [num_samples, model.item_width])
    logits, _ = model.rec(features, vector, training=False)
    outputs: dict[str, tf.Tensor] = {}
    for task in model.schema.tasks:
        outputs.update(task_outputs(task, logits[task.name]))
    return outputs


class _Items:
    """Computes vectors of items `[K, D]` from inputs of the image model."""

    def __init__(self, model: MultimodalModel, image_input: str) -> None:
        self._model, self._schema, self._input = model, model.schema, image_input
        schema = model.schema
        self.transform = FeatureTransform([*([schema.category] if schema.category else []), *schema.contents.values()])
        image = schema.image
        shape = [None, image.height, image.width, image.channels]
        self.pixel_spec = {image_input: tf.TensorSpec(shape, tf.float32)} if schema.uses_image else {}
        self.content_spec = {image_input: tf.TensorSpec([None], tf.string)} if schema.uses_image else {}
        of_contents = [(f.vector_key, f.num_numbers) for f in schema.stored_contents().values()]
        self.side_specs = {
            **_specs(schema, schema.image_input_fields()),
            **{name: tf.TensorSpec([None, width], tf.float32) for name, width in of_contents},
            **({PICTURE_ITEM: tf.TensorSpec([None], tf.int64)} if schema.has_picture_item else {}),
        }

    def of_pixels(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Return the vectors for pixels float32 `[N, H, W, C]`, 0-255, and the other inputs."""
        category, contents = self._side(inputs)
        images = None
        if self._schema.uses_image:
            item, num_items = inputs.get(PICTURE_ITEM), None
            if item is not None and contents:
                num_items = _most([_num_items(item), *_numbers(contents)])
            may_be_empty = num_items is not None
            images = image_vectors(self._model, inputs[self._input], category, item, num_items, may_be_empty)
        return item_vectors(self._model, images, contents)

    def of_contents(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Return the vectors for contents of picture files, string `[N]`, and the other inputs."""
        if not self._schema.has_no_image_vector or not self._schema.uses_image:
            if self._schema.uses_image:
                inputs = {**inputs, self._input: decode_pictures(inputs[self._input], self._schema.image)}
            return self.of_pixels(inputs)
        files, item = inputs[self._input], inputs.get(PICTURE_ITEM)
        category, contents = self._side(inputs)
        num_items = _most([tf.size(files, tf.int64) if item is None else _num_items(item), *_numbers(contents)])
        item = tf.range(num_items) if item is None else item
        is_picture = tf.not_equal(files, "")
        pixels = decode_pictures(tf.boolean_mask(files, is_picture), self._schema.image)
        item = tf.boolean_mask(item, is_picture)
        images = image_vectors(self._model, pixels, category, item, num_items, may_be_empty=True)
        return item_vectors(self._model, images, contents)

    def preparation(self, kind: str, name: str) -> Callable[..., dict[str, tf.Tensor]]:
        """Return what prepares the contents of a kind: fields -> under the name, `[K, ...]`, see ContentEncoder."""
        feature, encoder = self._schema.contents[kind], self._model.parts.contents[kind].tower.encoder

        def prepare(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            fields, _ = broadcast_fields(self._schema, inputs, tf.constant(1))
            return {name: encoder.prepare(feature.values(fields, self.transform.back_end)[feature.name])}

        return prepare

    def _side(self, inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor | None, dict[str, tf.Tensor]]:
        """Return ids of categories, int64 `[K]`, and contents by kind, `[K, ...]`; K may be 1 in each, for all items.

        Without a category, its ids are None.
        """
        if not self._schema.image_fields():
            return None, {}
        field_inputs = {name: inputs[name] for name in self._schema.image_input_fields()}
        fields, _ = broadcast_fields(self._schema, field_inputs, tf.constant(1))
        values = self.transform(fields)
        category = self._schema.category
        contents = {
            kind: values[feature.name] if feature.stored is None else inputs[feature.vector_key]
            for kind, feature in self._schema.contents.items()
        }
        return values[category.name] if category else None, contents


def item_vectors(model: MultimodalModel, images: tf.Tensor | None, contents: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Return the vectors of items, float32 `[K, I]`, given their image vectors and other contents; each may be one."""
    parts = [*([] if images is None else [images]), *contents.values()]
    if len(parts) > 1:
        num_items = _most([tf.shape(part)[0] for part in parts])
        contents = {kind: _broadcast(values, num_items) for kind, values in contents.items()}
        images = None if images is None else tf.broadcast_to(images, [num_items, model.image_width])
    return model.parts.of_items(images, contents)


def image_vectors(
    model: MultimodalModel,
    pixels: tf.Tensor,
    category: tf.Tensor | None,
    item: tf.Tensor | None = None,
    num_items: tf.Tensor | None = None,
    may_be_empty: bool = False,
) -> tf.Tensor:
    """Return the image vectors of the items of some pictures, float32 `[K, D]`.

    Args:
      model: the trained network.
      pixels: `[N, H, W, C]`, 0-255.
      category: category ids int64 `[K]`, or `[1]` for all; None if the tower uses no category.
      item: int64 `[N]`, the item of each picture; None if each picture is an item.
      num_items: K, if items without a picture may follow the last item with a picture.
      may_be_empty: whether N may be 0, which requires `item`.
    """
    tower, items = model.image_side()
    if item is None:
        if category is not None:
            num_pictures = tf.maximum(tf.shape(pixels)[0], tf.size(category))
            pixels = tf.broadcast_to(pixels, [num_pictures, *pixels.shape[1:]])
            category = tf.broadcast_to(category, [num_pictures])
        return tower(pixels, category, training=False)  # [N, D]
    num_items = _num_items(item) if num_items is None else num_items
    if category is not None:
        num_items = tf.maximum(num_items, tf.size(category, tf.int64))
        category = tf.gather(tf.broadcast_to(category, [num_items]), item)
    vectors = tower(pixels, category, training=False, may_be_empty=may_be_empty)
    num_pictures_of = tf.math.unsorted_segment_sum(tf.ones_like(item), item, num_items)
    return items(items.pooled(vectors, item, num_items), num_pictures_of > 0, training=False)


def _broadcast(values: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(values, [number, *values.shape[1:]])


def _numbers(contents: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
    return [tf.shape(values, tf.int64)[0] for values in contents.values()]


def _most(numbers: Sequence[tf.Tensor]) -> tf.Tensor:
    return functools.reduce(tf.maximum, numbers)


def _num_items(item: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.concat([item, [-1]], 0)) + 1


def _part(
    model: MultimodalModel,
    prefixes: tuple[str, ...],
    functions: Functions,
    *transforms: FeatureTransform,
) -> Part:
    """Return a part whose module has the variables with these prefixes and the vocabularies of the transforms."""
    module = tf.Module()
    module.weights = {name: weight for name, weight in model.weights().items() if name.startswith(prefixes)}
    module.vocabularies = [transform.back_end.vocabularies for transform in transforms]
    signatures = {
        name: tf.function(function, autograph=False).get_concrete_function(**specs)
        for name, (function, specs) in functions.items()
    }
    return Part(module, signatures)
