"""The rows of a CodeFeature as operations of ONNX, for they are looked up before the converted network."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from easyrec_mm.features.code_feature import PRIME, CodeFeature


def prefix_id_nodes(feature: CodeFeature) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Return nodes that compute what CodeFeature.prefix_ids does, int64 `[S, levels]`, and their constants.

    The first takes the codes float32 `[S, levels]` under the name of the feature; the last one's output are the ids.
    """
    weights, offsets = (np.array(values, np.int64) for values in feature.hash_constants())
    # A prefix has the codes of its level and of those before.
    values = {
        "weights": np.triu(np.tile(weights[:, None], (1, len(weights)))),
        "offsets": offsets,
        "prime": np.array(PRIME, np.int64),
        "rows": np.array(feature.num_rows, np.int64),
    }
    constants = {name: numpy_helper.from_array(value, f"codes:{feature.name}:{name}") for name, value in values.items()}
    steps = [("Cast", ""), ("MatMul", "weights"), ("Add", "offsets"), ("Mod", "prime"), ("Mod", "rows")]
    nodes = []
    value = feature.name
    for number, (kind, constant) in enumerate(steps):
        name = f"codes:{feature.name}:{number}"
        inputs = [value, constants[constant].name] if constant else [value]
        nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}:{kind}"))
        value = name
    nodes[0].attribute.append(helper.make_attribute("to", TensorProto.INT64))
    return nodes, list(constants.values())
