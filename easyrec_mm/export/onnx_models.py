"""The image model and the rec model for ONNX Runtime.

The rec model takes ids and numbers, which NumpyTransform computes, because string hashing and bucketizing have no
exact ONNX operation. tf2onnx converts the network; then embedding tables are put before it as Gather nodes. Their
values are in a separate file, which is written in portions and may be larger than protobuf's limit of 2 GiB.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from easyrec_mm.export.code_ids import prefix_id_nodes
from easyrec_mm.export.ordered_sets import ordered_sets
from easyrec_mm.export.parts import image_vectors
from easyrec_mm.features.code_feature import CodeFeature
from easyrec_mm.features.feature import Feature
from easyrec_mm.manifest import IMAGE_ONNX, IMAGE_VECTOR, PICTURE_ITEM, REC_ONNX, TABLES_FILE, prepared_name
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.rec import task_outputs

_OPSET = 18
# Tables begin at memory pages, because ONNX Runtime maps the file.
_ALIGNMENT = 4096
_ROWS_AT_A_TIME = 1 << 16
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def write_image_onnx(model: MultimodalModel, image_input: str, folder: Path) -> str:
    """Write image.onnx: pixels float32 `[N, H, W, C]` -> `img_emb_vector` float32 `[K, D]`.

    Additional inputs, if the towers take them: ids int64 `[K]` under the name of the category feature, prepared
    contents `[K, ...]` (manifest.py), and `picture_item` (export/parts.py). Returns "", or the reason if they cannot be
    converted.
    """
    try:
        content = _image_network(model, image_input).SerializeToString()
        _try(content)
    except Exception as error:  # tf2onnx, protobuf (beyond 2 GiB) and ONNX Runtime have their own exception types
        return str(error).strip().partition("\n")[0] or type(error).__name__
    (folder / IMAGE_ONNX).write_bytes(content)
    return ""


def _image_network(model: MultimodalModel, image_input: str) -> onnx.ModelProto:
    schema, image = model.schema, model.schema.image
    specs: dict[str, tf.TensorSpec] = {}
    if schema.uses_image:
        specs[image_input] = tf.TensorSpec([None, image.height, image.width, image.channels], tf.float32)
    if schema.category:
        specs[schema.category.name] = tf.TensorSpec([None], tf.int64)
    if schema.has_picture_item:
        specs[PICTURE_ITEM] = tf.TensorSpec([None], tf.int64)
    contents = {prepared_name(schema, kind): part for kind, part in model.parts.contents.items()}
    for name, part in contents.items():
        encoder = part.tower.encoder
        specs[name] = tf.TensorSpec([None, *encoder.prepared_shape], encoder.prepared_dtype)

    def vectors(*tensors: tf.Tensor) -> tf.Tensor:
        inputs = dict(zip(specs, tensors, strict=True))
        category = inputs[schema.category.name] if schema.category else None
        images, item = None, inputs.get(PICTURE_ITEM)
        prepared = {part.kind: inputs[name] for name, part in contents.items()}
        if schema.uses_image:
            first = next(iter(prepared.values()), None)
            num_items = None if first is None or item is None else tf.shape(first, tf.int64)[0]
            images = image_vectors(model, inputs[image_input], category, item, num_items)
        return model.parts.of_prepared(images, prepared)

    numbered = [tf.TensorSpec(s.shape, s.dtype, name=f"input_{i}") for i, s in enumerate(specs.values())]
    network = _convert(vectors, numbered)
    names = dict(zip([spec.name for spec in numbered], specs, strict=True))
    _rename(network.graph, {**names, network.graph.output[0].name: IMAGE_VECTOR})
    return network


def _try(content: bytes) -> None:
    """Run an image model on one picture and on several, because some conversions work for one batch size only."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for number in (1, 3):
        inputs = {
            value.name: np.zeros([number, *value.shape[1:]], _NUMPY_TYPES[value.type]) for value in session.get_inputs()
        }
        session.run(None, inputs)


def write_rec_onnx(model: MultimodalModel, folder: Path) -> None:
    """Write rec.onnx and rec.tables: outputs of NumpyTransform and `img_emb_vector` -> outputs of every task."""
    features = model.schema.features
    specs: dict[str, tf.TensorSpec] = {}
    for feature in features:
        specs |= _network_inputs(feature)
    specs[IMAGE_VECTOR] = tf.TensorSpec([None, model.item_width], tf.float32)
    output_names = [name for task in model.schema.tasks for name in task.output_names]

    def outputs(*tensors: tf.Tensor) -> list[tf.Tensor]:
        values = dict(zip(specs, tensors, strict=True))
        rows = {feature.name: values.get(_rows_name(feature)) for feature in features}
        x, _ = model.rec.feature_embedding.join(values, rows, values[IMAGE_VECTOR])
        logits = model.rec.logits(x, values[IMAGE_VECTOR])
        by_name: dict[str, tf.Tensor] = {}
        for task in model.schema.tasks:
            by_name |= task_outputs(task, logits[task.name])
        return [by_name[name] for name in output_names]

    # tf2onnx does not accept all characters that the names of features may contain.
    numbered = [tf.TensorSpec(s.shape, s.dtype, name=f"input_{i}") for i, s in enumerate(specs.values())]
    network = _convert(outputs, numbered)
    names = dict(zip([spec.name for spec in numbered], specs, strict=True))
    names |= dict(zip([output.name for output in network.graph.output], output_names, strict=True))
    _rename(network.graph, names)
    _put_tables_before(network.graph, model, folder / TABLES_FILE)
    onnx.save(network, str(folder / REC_ONNX))


def _network_inputs(feature: Feature) -> dict[str, tf.TensorSpec]:
    """Return a feature's inputs of the network after the tables; `rows:` is for the rows that Gather returns."""
    rows = _rows_name(feature)
    dim = feature.width
    # S samples, and the L values of a list.
    shape: list[int | None] = [None, None] if feature.is_list else [None]
    inputs = {feature.weight_key: tf.TensorSpec(shape, tf.float32)} if feature.is_list else {}
    if isinstance(feature, CodeFeature):
        return {rows: tf.TensorSpec([None, feature.num_numbers, dim // feature.num_numbers], tf.float32)}
    if feature.num_numbers:
        inputs[feature.name] = tf.TensorSpec([*shape, feature.num_numbers], tf.float32)
    elif feature.table:
        inputs[rows] = tf.TensorSpec([*shape, dim], tf.float32)
    else:
        inputs[feature.name] = tf.TensorSpec(shape, tf.int64)
    if feature.multiplies_rows:
        inputs[rows] = tf.TensorSpec([feature.num_numbers, dim], tf.float32)
    return inputs


def _rows_name(feature: Feature) -> str:
    return f"rows:{feature.name}"


def _convert(function: object, specs: list[tf.TensorSpec]) -> onnx.ModelProto:
    """Convert a function of tensors to an ONNX model with the inputs' names, which includes the weights."""
    import tf2onnx  # the import takes five seconds, and only an export needs it

    # It logs every optimisation; operations that it cannot convert show when the model is loaded.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    compiled = tf.function(function, input_signature=specs, autograph=False)
    with ordered_sets():
        network, _ = tf2onnx.convert.from_function(
            compiled, input_signature=specs, opset=_OPSET, custom_op_handlers={"Erfc": (_as_erf, [])}
        )
    _hold_captured(network.graph, compiled.get_concrete_function().graph.captures)
    _number_names(network.graph)
    converted: onnx.ModelProto = network
    return converted


def _hold_captured(graph: onnx.GraphProto, captures: Iterable[tuple[tf.Tensor, tf.Tensor]]) -> None:
    """Make tensors kept by layers, such as a transformer's positions, initializers; tf2onnx takes them for inputs."""
    values = {inside.name: outside for outside, inside in captures if outside.dtype != tf.resource}
    used = {name for node in graph.node for name in node.input}
    for value in [value for value in graph.input if value.name in values]:
        graph.input.remove(value)
        if value.name in used:
            graph.initializer.append(numpy_helper.from_array(values[value.name].numpy(), value.name))


def _as_erf(graph: Any, node: Any, name: str, args: object) -> None:
    """Replace erfc(x) of GELU, which tf2onnx does not support, by 1 - erf(x)."""
    node.type = "Erf"
    unit = graph.make_const(f"{name}_one", np.array(1.0, np.float32))
    negative = graph.insert_new_node_on_output("Neg", node.output[0], name=f"{name}_negative")
    graph.insert_new_node_on_output(
        "Add", negative.output[0], name=f"{name}_complement", inputs=[negative.output[0], unit.output[0]]
    )


def _number_names(graph: onnx.GraphProto) -> None:
    """Name nodes, inner values and open dimensions by their order: tf2onnx's own names differ in every process."""
    fixed_names = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {}
    for i, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{i}"
        for name in (*node.input, *node.output):
            if name and name not in fixed_names:
                names.setdefault(name, f"value_{len(names)}")
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    ordered = sorted(graph.initializer, key=lambda initializer: initializer.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    del graph.value_info[:]
    _rename(graph, names)
    dim_names: dict[str, str] = {}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim_names.setdefault(dim.dim_param, f"dim_{len(dim_names)}")


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename inputs and outputs throughout a graph."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = names.get(name, name)


def _put_tables_before(graph: onnx.GraphProto, model: MultimodalModel, path: Path) -> None:
    """Replace the inputs `rows:*` by lookups of ids in tables; the ids become inputs."""
    # Not those of an item's contents, whose vectors are computed before.
    tables = {name: table for name, table in model.tables().items() if model.parts.part_of(name) is None}
    inputs = {value.name: value for value in graph.input}
    nodes: list[onnx.NodeProto] = []
    with path.open("wb") as file:
        initializers = {name: _write_table(file, name, table.value) for name, table in tables.items()}
        for feature in model.schema.features:
            rows = _rows_name(feature)
            if rows not in inputs:
                continue
            graph.input.remove(inputs[rows])
            table = f"embedding/{feature.table}"
            if feature.multiplies_rows:
                first = tables[table].value[: feature.num_numbers].numpy()
                graph.initializer.append(numpy_helper.from_array(first, rows))
                continue
            ids = feature.name
            if isinstance(feature, CodeFeature):
                of_codes, constants = prefix_id_nodes(feature)
                graph.input.append(
                    helper.make_tensor_value_info(feature.name, TensorProto.FLOAT, ("S", feature.num_levels))
                )
                graph.initializer.extend(constants)
                nodes += of_codes
                ids = of_codes[-1].output[0]
            else:
                # ONNX Runtime takes dimensions with the same name for equal, and shares memory accordingly.
                shape = ["S", f"L:{feature.name}"] if feature.is_list else ["S"]
                graph.input.append(helper.make_tensor_value_info(feature.name, TensorProto.INT64, shape))
            nodes.append(helper.make_node("Gather", [table, ids], [rows], name=f"gather:{feature.name}"))
        file.flush()
        os.fsync(file.fileno())
    used = {node.input[0] for node in nodes if node.op_type == "Gather"}
    graph.initializer.extend(initializer for name, initializer in initializers.items() if name in used)
    following = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *following])


def _write_table(file: IO[bytes], name: str, table: tf.Variable) -> TensorProto:
    """Append a table to a file; return the initializer that refers to it there."""
    file.write(b"\x00" * (-file.tell() % _ALIGNMENT))
    start = file.tell()
    rows, dim = table.shape
    for first in range(0, rows, _ROWS_AT_A_TIME):
        ids = tf.range(first, min(first + _ROWS_AT_A_TIME, rows))
        file.write(np.ascontiguousarray(tf.gather(table, ids).numpy()).data)
    initializer = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[rows, dim])
    initializer.data_location = TensorProto.EXTERNAL
    for key, value in (("location", TABLES_FILE), ("offset", start), ("length", file.tell() - start)):
        initializer.external_data.add(key=key, value=str(value))
    return initializer
