"""The stages of a backbone, which are frozen, unfrozen or recomputed as units, and the names of its variables.

Convolutional backbones have one stage per resolution, transformers one stage per block. Stages are recognised by the
structure of the model and by the layer names of keras-hub and keras.applications. The available backbones are defined
in backbones.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import keras

# Prefix of the names of the layers of one convolution block in keras-hub and keras.applications.
_BLOCK_NAME = re.compile(r"(.*?(?:block_?\d+[a-z]?|expanded_conv(?:_\d+)?))_")
# Side of the pictures by which a backbone that takes any size is divided into stages.
_PROBE_SIZE = 256


@dataclass(frozen=True)
class Stage:
    """A part of a backbone: the layers at one resolution, or a block of a transformer. The first stage is the stem.

    name         name for messages
    layers       layers that contain its weights
    block_ends   outputs of its convolution blocks, the last one being the output of the stage; () in a transformer
    """

    name: str
    layers: tuple[keras.layers.Layer, ...]
    block_ends: tuple[keras.KerasTensor, ...]


def stages_of(model: keras.Model) -> tuple[Stage, ...]:
    """Return the stages of a functional image model in the order of the data flow; they contain every weight."""
    blocks = _transformer_blocks(model)
    return tuple(_token_stages(model, blocks) if blocks else _map_stages(model))


def variable_names(model: keras.Model) -> dict[int, str]:
    """Return id of each variable of a model -> its name, which is the same in every process.

    A name is the path of layers to the variable. Keras numbers layers without a given name per process
    (`layer_normalization_3`); here they are numbered among their siblings.
    """
    names: dict[int, str] = {}

    def visit(layer: keras.layers.Layer, path: str) -> None:
        states = [generator.state for generator in layer._seed_generators]
        variables = [*layer._trainable_variables, *layer._non_trainable_variables, *states]
        for variable, name in zip(variables, _names_of_siblings(variables), strict=True):
            names.setdefault(id(variable), path + name)
        for part, name in zip(layer._layers, _names_of_siblings(layer._layers), strict=True):
            visit(part, f"{path}{name}/")

    visit(model, "")
    return names


def _names_of_siblings(parts: Sequence[keras.layers.Layer | keras.Variable]) -> list[str]:
    names, counts = [], Counter[str]()
    for part in parts:
        bare = re.sub(r"_\d+$", "", part.name)
        # Base classes count too, because a subclass may replace the class from which Keras made the name.
        kinds = {_snake_case(kind.__name__) for kind in type(part).__mro__}
        # keras-hub before 0.26 misspelled "transformer"; checkpoints use one spelling.
        name = (bare if bare in kinds else part.name).replace("tranformer", "transformer")
        names.append(f"{name}_{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return names


def _snake_case(name: str) -> str:
    """Make a layer name of a class name as Keras does: "Conv2DTranspose" -> "conv2d_transpose"."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _layers_within(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield each layer inside a layer, parents before their children, in the order in which they were made.

    That is the order of the data flow. Layer._flatten_layers visits the parts of a layer from the last to the first.
    """
    for part in layer._layers:
        yield part
        yield from _layers_within(part)


def _transformer_blocks(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the smallest layers that contain an attention layer and dense layers outside that attention layer."""
    blocks: list[keras.layers.Layer] = []
    for layer in _layers_within(model):
        below = list(_layers_within(layer))
        attention = [part for part in below if "attention" in type(part).__name__.lower()]
        in_attention = {id(part) for attention_layer in attention for part in _layers_within(attention_layer)}
        dense = [part for part in below if isinstance(part, keras.layers.Dense) and id(part) not in in_attention]
        if attention and dense:
            blocks.append(layer)
    holds = {id(layer): {id(part) for part in _layers_within(layer)} for layer in blocks}
    return [layer for layer in blocks if not any(id(other) in holds[id(layer)] for other in blocks)]


def _token_stages(model: keras.Model, blocks: list[keras.layers.Layer]) -> list[Stage]:
    """Return the blocks, each with the layers that follow it, after the stem (the layers before the first block)."""
    index = {id(part): i for i, block in enumerate(blocks, 1) for part in (block, *_layers_within(block))}
    members: list[list[keras.layers.Layer]] = [[] for _ in range(len(blocks) + 1)]
    current = 0
    for layer in _layers_within(model):
        current = index.get(id(layer), current)
        members[current].append(layer)
    names = ["stem", *[f"block {i}" for i in range(1, len(blocks) + 1)]]
    return [Stage(name, tuple(layers), ()) for name, layers in zip(names, members, strict=True)]


def _map_stages(model: keras.Model) -> list[Stage]:
    """Return the stem, then one stage per resolution; layers after the last block belong to that block."""
    operations = [op for op in model.operations if not isinstance(op, keras.layers.InputLayer)]
    # The last operation may have several outputs; the model uses one of them.
    outputs = [*[op.output for op in operations[:-1]], model.output]
    stages: list[list[int]] = []
    before: int | None = None
    for i, (end, level) in enumerate(_blocks(operations, _cuts(model, operations, outputs), _levels(model, outputs))):
        if i < 2 or level != before:
            stages.append([])
        stages[-1].append(end)
        before = level
    limits = pairwise([0, *[block_ends[-1] + 1 for block_ends in stages]])
    made = []
    for number, ((start, stop), block_ends) in enumerate(zip(limits, stages, strict=True)):
        inside = [op for op in operations[start:stop] if isinstance(op, keras.layers.Layer)]
        layers = tuple(layer for op in inside for layer in (op, *_layers_within(op)))
        name = "stem" if number == 0 else f"stage {number}"
        made.append(Stage(name, layers, tuple(outputs[end] for end in block_ends)))
    return made


def _blocks(
    operations: list[keras.Operation], is_cut: list[bool], levels: list[int | None]
) -> list[tuple[int, int | None]]:
    """Return where each convolution block ends, and how often the picture is halved there; the stem comes first."""
    last = len(operations) - 1
    matches = [_BLOCK_NAME.match(operation.name) for operation in operations]
    if not any(matches):
        ends = [i for i in range(last) if is_cut[i] and _is_halved(levels[i], levels[i + 1])]
        return [(end, levels[end]) for end in [*ends, last]]
    blocks: list[tuple[int, int | None]] = []
    name, level, start = "", None, 0
    for i, match in enumerate(matches):
        if match is None:
            continue
        if match[1] != name:
            cuts = [j for j in range(start, i) if is_cut[j]]
            # Layers between two blocks that halve the picture belong to the second block.
            ends = [j for j in cuts if levels[j] == level] if name else cuts
            if cuts:
                blocks.append(((ends or cuts)[-1], level))
                start = blocks[-1][0] + 1
            name = match[1]
        level = levels[i]
    return [*blocks, (last, level)]


def _is_halved(level: int | None, following: int | None) -> bool:
    return level is not None and following is not None and following > level


def _levels(model: keras.Model, outputs: list[Any]) -> list[int | None]:
    """Return how often the picture is halved at each output; None for outputs that are not feature maps."""
    shape = model.inputs[0].shape
    size = shape[1] or _PROBE_SIZE
    probe = keras.Model(model.inputs[0], outputs)
    specs = probe.compute_output_spec(keras.KerasTensor((1, size, shape[2] or _PROBE_SIZE, shape[3])))
    is_map = [isinstance(x, keras.KerasTensor) and len(x.shape) == 4 and bool(x.shape[1]) for x in specs]
    return [round(math.log2(size / x.shape[1])) if ok else None for x, ok in zip(specs, is_map, strict=True)]


def _cuts(model: keras.Model, operations: list[keras.Operation], outputs: list[Any]) -> list[bool]:
    """Return for each operation whether its output is one tensor and all that follows depends on that tensor alone."""
    last_use = {
        id(tensor._keras_history.operation): i
        for i, operation in enumerate(operations)
        for tensor in keras.tree.flatten(operation.input)
    }
    cuts, reach = [], last_use[id(model.inputs[0]._keras_history.operation)]
    for i, (operation, output) in enumerate(zip(operations, outputs, strict=True)):
        cuts.append(reach <= i and isinstance(output, keras.KerasTensor))
        reach = max(reach, last_use.get(id(operation), i))
    return cuts
