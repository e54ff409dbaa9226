"""What the command `check` says of the texts of items: examples, lengths, and the tower that reads them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import tensorflow as tf

from easyrec_mm.config.item import is_joint
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.features.text_feature import TextFeature
from easyrec_mm.network.content import text_tower
from easyrec_mm.network.layers.words import split_words
from easyrec_mm.network.precision import FLOAT32

_NUM_EXAMPLES, _MAX_TEXT = 3, 60


def text_lines_of(text: TextFeature, items: list[str]) -> list[str]:
    """Describe the texts of the items of groups: how many differ, are empty and how long they are, and some of them."""
    if not items:
        return ["  no good group"]
    words = split_words(tf.constant(items, tf.string)).row_lengths().numpy()
    is_there = words > 0
    shares = f"{np.mean(~is_there):.1%} empty"
    lines = [f"  {len(set(items)):,} distinct in {len(items):,} groups; {shares}"]
    if is_there.any():
        some = words[is_there]
        quantiles = f"median {np.median(some):.0f}, 95 % have at most {np.quantile(some, 0.95):.0f}"
        lines.append(f"  words: {some.min()} to {some.max()}, {quantiles}")
        common = Counter(item for item, has_words in zip(items, is_there, strict=True) if has_words)
        shown = [
            item if len(item) <= _MAX_TEXT else f"{item[:_MAX_TEXT]}..."
            for item, _ in common.most_common(_NUM_EXAMPLES)
        ]
        lines += [f"  such as: {item}" for item in shown]
    return [*lines, f"  read from: {', '.join(text.inputs)}"] if len(text.inputs) > 1 else lines


def text_tower_lines(pipeline: Pipeline) -> list[str]:
    """Describe the text tower, which is built for this because only then its stages and weights are known."""
    if pipeline.schema.text is None:
        return []
    network = pipeline.config.model_config.e2e_mm_dbmtl
    settings = network.text_model
    tower = text_tower(settings, FLOAT32, is_joint(network))
    if not settings.preset:
        tower(tf.constant(["text"]))  # makes the variables of blocks and projection
    num_weights = sum(math.prod(variable.shape) for variable in tower.encoder.variables)
    stages = f" in {len(tower.encoder.stages)} stages" if tower.encoder.stages else ""
    kind = f"the preset '{settings.preset}'" if settings.preset else "words and parts of words"
    at_most = f"{settings.max_tokens} tokens" if settings.preset else f"{settings.max_words} words"
    output = f"output: {tower.encoder.num_features} features"
    output += f" of each of {tower.length} positions" if tower.length else f", a vector of {tower.width} numbers"
    return [f"\ntext tower: {kind}, {num_weights:,} weights{stages}", f"  reads at most {at_most} of a text; {output}"]
