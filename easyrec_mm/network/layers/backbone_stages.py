"""What a backbone is made of: stages that are frozen, unfrozen or recomputed as one, and names for its variables.

Knows convolutional backbones, whose stages work at one resolution each, and transformers, whose stages are their
blocks; by their structure and by how keras-hub and keras.applications name layers. Which ones there are, and where
they come from, stands in backbones.py.
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

# What the names of the layers of one convolution block begin with, in keras-hub and keras.applications.
_BLOCK_NAME = re.compile(r"(.*?(?:block_?\d+[a-z]?|expanded_conv(?:_\d+)?))_")
# Side of the pictures by which a backbone that takes any size is divided.
_PROBE_SIZE = 256


@dataclass(frozen=True)
class Stage:
    """A part of a backbone: what works at one resolution, or a block of a transformer. The first is the stem.

    name         for messages
    layers       what its weights are in
    block_ends   outputs of its convolution blocks, the last of them that of the stage; () within a transformer
    """

    name: str
    layers: tuple[keras.layers.Layer, ...]
    block_ends: tuple[keras.KerasTensor, ...]


def stages_of(model: keras.Model) -> tuple[Stage, ...]:
    """The stages of a functional model of pictures, in the order of the data; each weight is in one of them."""
    blocks = _transformer_blocks(model)
    return tuple(_token_stages(model, blocks) if blocks else _map_stages(model))


def variable_names(model: keras.Model) -> dict[int, str]:
    """id of each variable of a model -> its name, the same in every process.

    A name is the path of layers to the variable. Keras numbers the layers of a process that are given no name
    (`layer_normalization_3`); here such are numbered among those that stand beside them.
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
        # A class may stand in for the one that the layer was made of.
        kinds = {_snake_case(kind.__name__) for kind in type(part).__mro__}
        # keras-hub before 0.26 misspelled it; checkpoints have one name.
        name = (bare if bare in kinds else part.name).replace("tranformer", "transformer")
        names.append(f"{name}_{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return names


def _snake_case(name: str) -> str:
    """As Keras makes a name of a class: "Conv2DTranspose" -> "conv2d_transpose"."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _layers_within(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Each layer below a layer, before those that it holds, in the order in which they were made.

    That is the order of the data. Layer._flatten_layers goes through the parts of a layer from the last to the first.
    """
    for part in layer._layers:
        yield part
        yield from _layers_within(part)


def _transformer_blocks(model: keras.Model) -> list[keras.layers.Layer]:
    """The smallest layers that hold an attention layer and dense layers beside it."""
    found: list[keras.layers.Layer] = []
    for layer in _layers_within(model):
        below = list(_layers_within(layer))
        attention = [part for part in below if "attention" in type(part).__name__.lower()]
        in_attention = {id(part) for one in attention for part in _layers_within(one)}
        dense = [part for part in below if isinstance(part, keras.layers.Dense) and id(part) not in in_attention]
        if attention and dense:
            found.append(layer)
    holds = {id(layer): {id(part) for part in _layers_within(layer)} for layer in found}
    return [layer for layer in found if not any(id(other) in holds[id(layer)] for other in found)]


def _token_stages(model: keras.Model, blocks: list[keras.layers.Layer]) -> list[Stage]:
    """The blocks, each with what stands behind it; the stem is what stands before the first one."""
    index = {id(part): i for i, block in enumerate(blocks, 1) for part in (block, *_layers_within(block))}
    members: list[list[keras.layers.Layer]] = [[] for _ in range(len(blocks) + 1)]
    current = 0
    for layer in _layers_within(model):
        current = index.get(id(layer), current)
        members[current].append(layer)
    names = ["stem", *[f"block {i}" for i in range(1, len(blocks) + 1)]]
    return [Stage(name, tuple(layers), ()) for name, layers in zip(names, members, strict=True)]


def _map_stages(model: keras.Model) -> list[Stage]:
    """The stem, and then the blocks of one resolution together; what stands behind the last block belongs to it."""
    operations = [op for op in model.operations if not isinstance(op, keras.layers.InputLayer)]
    # The last operation may have more outputs than the one that the model takes.
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
    """Where each convolution block ends, and how often the picture is halved there; the stem first."""
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
            # What halves the picture between two blocks belongs to the second one.
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
    """How often each output is halved; None for what is not a feature map."""
    shape = model.inputs[0].shape
    size = shape[1] or _PROBE_SIZE
    probe = keras.Model(model.inputs[0], outputs)
    specs = probe.compute_output_spec(keras.KerasTensor((1, size, shape[2] or _PROBE_SIZE, shape[3])))
    is_map = [isinstance(x, keras.KerasTensor) and len(x.shape) == 4 and bool(x.shape[1]) for x in specs]
    return [round(math.log2(size / x.shape[1])) if ok else None for x, ok in zip(specs, is_map, strict=True)]


def _cuts(model: keras.Model, operations: list[keras.Operation], outputs: list[Any]) -> list[bool]:
    """For each operation whether its output is one tensor, and all that follows depends on that alone."""
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
