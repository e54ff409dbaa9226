"""The built-in space `texts`: how the text tower learns, how wide its vectors are, what is frozen, its fusion."""

from __future__ import annotations

from collections.abc import Iterator

from easyrec_mm.config.item import FUSION, TEXT
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.tuning.built_in import choices, fitting, log_range, number_range
from easyrec_mm.tuning.space import Entry

TEXTS = "texts"
_SOURCE = f"--space {TEXTS}"


def text_space(pipeline: Pipeline) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries that fit a config, and why others are left out, by setting.

    Raises:
      ConfigError: if the config has no texts of items.
    """
    if pipeline.schema.text is None:
        raise ConfigError(
            f"{_SOURCE}: {pipeline.path} has no texts of items (no feature group of a TextFeature); give a space of "
            "your own, as docs/tuning.md describes"
        )
    return fitting(list(_candidates(pipeline)), pipeline)


def _candidates(pipeline: Pipeline) -> Iterator[Entry]:
    network = pipeline.config.model_config.e2e_mm_dbmtl
    text = network.text_model
    is_pretrained = bool(text.preset)
    low, high = (0.01, 1.0) if is_pretrained else (0.1, 3.0)
    yield log_range(_SOURCE, f"{TEXT}.learning_rate_multiplier", low, high)
    yield choices(_SOURCE, f"{TEXT}.dim", *sorted({8, 16, 32, 64, text.dim} - {0}))
    yield number_range(_SOURCE, f"{TEXT}.modality_dropout", 0.0, 0.4)
    if is_pretrained:
        yield choices(_SOURCE, f"{TEXT}.trainable", "HEAD", "ALL")
    else:
        yield choices(_SOURCE, f"{TEXT}.embedding_dim", *sorted({32, 64, 128, text.embedding_dim}))
        yield choices(_SOURCE, f"{TEXT}.word_ngrams", 1, 2)
    kind = network.item_fusion.WhichOneof("fusion")
    if kind is not None and kind != "concat":
        width = getattr(network.item_fusion, kind).dim
        yield choices(_SOURCE, f"{FUSION}.{kind}.dim", *sorted({16, 32, 64, width}))
