"""Changes that the image tower makes to a backbone: cutting it into parts, low-rank updates, recomputed blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import keras
import tensorflow as tf

from easyrec_mm.network.layers.backbone_stages import Stage
from easyrec_mm.network.layers.backbones import Backbone, BackboneError
from easyrec_mm.network.layers.category_attention import CategoryAttention
from easyrec_mm.network.layers.recompute import recompute


def attended_ends(stages: Sequence[Stage], places: str) -> list[Any]:
    """Return the outputs after which attention to the category is applied.

    Args:
      stages: stages of the backbone.
      places: EACH_STAGE or EACH_BLOCK.

    Raises:
      BackboneError: if the backbone has no feature maps.
    """
    # Not after the stem, unless the stem is the only stage.
    behind = stages[1:] or stages
    ends = [end for stage in behind for end in (stage.block_ends[-1:] if places == "EACH_STAGE" else stage.block_ends)]
    if not ends:
        raise BackboneError("category_feature", "this backbone has no feature maps for its attention")
    return ends


def divided(
    backbone: Backbone, shape: tuple[int, int, int], attended: Sequence[Any], dtype: str
) -> tuple[list[keras.Model], list[CategoryAttention | None]]:
    """Cut the backbone at the ends of its stages and at attention; return the parts and the attention after each.

    Args:
      backbone: the backbone to cut; its stages must have block_ends.
      shape: height, width and channels of its pictures.
      attended: result of `attended_ends`; [] without attention.
      dtype: Keras dtype policy of the attention layers.
    """
    ends = [end for stage in backbone.stages for end in stage.block_ends[-1:]]
    cuts = [end for stage in backbone.stages for end in stage.block_ends if _is_among(end, [*ends, *attended])]
    segments = [keras.Model(start, end) for start, end in pairwise([backbone.model.input, *cuts])]
    size = (1, *shape)
    attention: list[CategoryAttention | None] = []
    for i, (segment, end) in enumerate(zip(segments, cuts, strict=True)):
        size = segment.compute_output_spec(keras.KerasTensor(size, dtype=end.dtype)).shape
        layer = None
        if _is_among(end, attended):
            layer = CategoryAttention(size[3], size[1], size[2], dtype=dtype, name=f"attention_{i}")
        attention.append(layer)
    return segments, attention


def add_low_rank_updates(stages: Sequence[Stage], rank: int, alpha: float) -> list[keras.layers.Layer]:
    """Give the dense layers within the blocks of a transformer low-rank updates; return those layers.

    Args:
      stages: stages of the backbone.
      rank: rank of the updates.
      alpha: the updates are scaled by alpha / rank; 0 for no scaling.

    Raises:
      BackboneError: if the backbone is not a transformer.
    """
    blocks = [layer for stage in stages[1:] if not stage.block_ends for layer in stage.layers]
    layers = [layer for layer in blocks if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense))]
    if not layers:
        problem = "this backbone is not a transformer: it has no blocks of attention and dense layers"
        raise BackboneError("lora_rank", problem)
    for layer in layers:
        layer.enable_lora(rank, lora_alpha=alpha or None)
    return layers


def recompute_blocks(stages: Sequence[Stage], is_on: Callable[[], bool]) -> None:
    """Make the blocks of a transformer run through `recompute` whenever `is_on()` is true.

    `is_on` is a function because the blocks are called within a functional model, which passes on only tensors.
    """
    for stage in stages[1:]:
        block = stage.layers[0]
        block.call = _recomputing(block.call, is_on)


def _recomputing(call: Callable[..., Any], is_on: Callable[[], bool]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not is_on():
            return call(*args, **kwargs)
        inputs, with_inputs = _tensors_of((args, kwargs))
        with_outputs: list[Callable[[Sequence[tf.Tensor]], Any]] = []

        def tensors(*inputs: tf.Tensor) -> list[tf.Tensor]:
            args, kwargs = with_inputs(inputs)
            outputs, put_back = _tensors_of(call(*args, **kwargs))
            with_outputs[:] = [put_back]
            return outputs

        outputs = recompute(tensors, *inputs)
        return with_outputs[0](outputs)

    return run


def _tensors_of(structure: Any) -> tuple[list[tf.Tensor], Callable[[Sequence[tf.Tensor]], Any]]:
    """Return the tensors in a structure, and a function that makes the same structure with other tensors."""
    parts = tf.nest.flatten(structure)

    def put_back(tensors: Sequence[tf.Tensor]) -> Any:
        remaining = iter(tensors)
        return tf.nest.pack_sequence_as(structure, [next(remaining) if tf.is_tensor(part) else part for part in parts])

    return [part for part in parts if tf.is_tensor(part)], put_back


def _is_among(tensor: Any, tensors: Sequence[Any]) -> bool:
    return any(tensor is other for other in tensors)
