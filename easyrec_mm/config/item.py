"""Checks `text_model` and `item_fusion`: how a text becomes a vector, and the vectors of an item one. No TensorFlow."""

from __future__ import annotations

from pathlib import Path

from easyrec_mm.config.feature_groups import NO_TEXT_GROUP, Named
from easyrec_mm.config.image import image_vector_width
from easyrec_mm.errors import Problems
from easyrec_mm.protos.item_pb2 import TextModel
from easyrec_mm.protos.model_pb2 import E2E_MM_DBMTL
from easyrec_mm.schema import Schema
from easyrec_mm.weights.catalog import CATALOG, preset_location

TEXT, FUSION = "model_config.e2e_mm_dbmtl.text_model", "model_config.e2e_mm_dbmtl.item_fusion"
# Settings of encoders from scratch, which a preset does not have.
_OF_WORDS = (
    "hash_bucket_size", "embedding_dim", "max_words", "word_ngrams", "min_letters", "max_letters", "transformer",
)  # fmt: skip


def check_contents_and_fusion(network: E2E_MM_DBMTL, schema: Schema, problems: Problems) -> None:
    """Add every problem of text_model and item_fusion; those of vector_model are found with the feature groups."""
    if schema.text is not None:
        _check_text_model(network.text_model, problems)
    elif network.HasField("text_model"):
        problems.add(TEXT, f"has no effect: {NO_TEXT_GROUP}; add one or remove this")
    fusion = network.item_fusion
    if network.HasField("item_fusion") and len(schema.contents) + schema.uses_image < 2:
        problems.add(FUSION, "has no effect, because items do not have two parts, such as picture and text; remove it")
        return
    kind = fusion.WhichOneof("fusion")
    if network.HasField("item_fusion") and kind is None:
        names = ", ".join(field.name for field in fusion.DESCRIPTOR.oneofs_by_name["fusion"].fields)
        problems.add(FUSION, f"does not set a kind; choose one of {names}")
    if kind in ("queries", "joint_transformer"):
        settings = getattr(fusion, kind)
        if settings.dim % settings.num_heads:
            problems.add(
                f"{FUSION}.{kind}.num_heads",
                f"{settings.num_heads} heads do not divide dim ({settings.dim}); give a divisor of it",
            )
    if kind == "joint_transformer":
        _check_joint(network, problems)


def is_joint(network: E2E_MM_DBMTL) -> bool:
    """Return whether the parts of items are fused as sequences of positions."""
    return bool(network.item_fusion.HasField("joint_transformer"))


# Settings of towers that make one vector of a sequence, or use it.
_OF_VECTORS = {
    "img_model": (
        "num_classes", "pooling", "normalize_features", "descriptors", "image_separator", "image_losses",
        "img_loss_weight",
    ),
    "text_model": ("dim", "pooling"),
    "vector_model": ("dim",),
}  # fmt: skip


def _check_joint(network: E2E_MM_DBMTL, problems: Problems) -> None:
    """Check that towers set nothing that a transformer over their positions does not have."""
    place, advice = "model_config.e2e_mm_dbmtl", "which takes positions of towers instead of vectors; remove one"
    set_here = {field.name for field, _ in network.ListFields()}
    for name in ("img_dnn", "highway_dnn"):
        if name in set_here:
            problems.add(f"{place}.{name}", f"does not go with item_fusion.joint_transformer, {advice}")
    for section, names in _OF_VECTORS.items():
        values = getattr(network, section)
        for own in values if section == "vector_model" else [values]:
            for name in {field.name for field, _ in own.ListFields()} & set(names):
                problems.add(f"{place}.{section}.{name}", f"does not go with item_fusion.joint_transformer, {advice}")
    for section, settings in (("img_model", network.img_model), ("text_model", network.text_model)):
        if settings.trainable == type(settings).HEAD:
            problem = "HEAD trains what stands behind the backbone, which is the fusion here; choose NONE"
            problems.add(f"{place}.{section}.trainable", problem)


def item_vector_width(network: E2E_MM_DBMTL, has_image: bool, has_text: bool, named: Named) -> int:
    """Return the width of an item vector; 0 if only the built network knows it."""
    text = network.text_model
    widths = [image_vector_width(network)] if has_image else []
    widths += [text.dim or (0 if text.preset else text.embedding_dim)] if has_text else []
    widths += [model.dim or named[model.feature_name][1].vector_dim for model in network.vector_model]
    kind = network.item_fusion.WhichOneof("fusion") or "concat"
    if kind == "concat" or len(widths) == 1:
        return sum(widths) if all(widths) else 0
    settings = getattr(network.item_fusion, kind)
    return int(settings.dim * (settings.num_queries if kind == "queries" else 1))


def _check_text_model(text: TextModel, problems: Problems) -> None:
    if text.preset:
        for name in _OF_WORDS:
            if text.HasField(name):
                problems.add(f"{TEXT}.{name}", "has no effect beside preset; remove one of the two")
        _check_preset(text.preset, problems)
    elif text.HasField("transformer") and text.embedding_dim % text.transformer.num_heads:
        problems.add(
            f"{TEXT}.transformer.num_heads",
            f"{text.transformer.num_heads} heads do not divide embedding_dim ({text.embedding_dim}); give a divisor",
        )
    if text.min_letters and text.max_letters < text.min_letters:
        problems.add(f"{TEXT}.max_letters", f"{text.max_letters} is below min_letters ({text.min_letters}); raise it")
    if not text.min_letters and text.HasField("max_letters"):
        problems.add(f"{TEXT}.max_letters", "has no effect with min_letters: 0; remove it")
    is_partial = text.trainable == TextModel.LAST_N_STAGES
    if is_partial != (text.last_n_stages > 0):
        problems.add(f"{TEXT}.last_n_stages", "works only together with trainable: LAST_N_STAGES; set both or neither")
    elif is_partial and not text.preset:
        problems.add(f"{TEXT}.trainable", "LAST_N_STAGES needs preset, whose blocks are the stages; choose ALL")
    if text.trainable in (TextModel.HEAD, TextModel.NONE) and text.lora_rank:
        kind = TextModel.Trainable.Name(text.trainable)
        problems.add(f"{TEXT}.lora_rank", f"has no effect with trainable: {kind}; remove one of the two")
    if text.trainable == TextModel.HEAD and not text.dim:
        problems.add(f"{TEXT}.trainable", "HEAD trains the projection, and dim: 0 means none; choose NONE, or set dim")


def _check_preset(preset: str, problems: Problems) -> None:
    folder, place = Path(preset_location(preset)), f"{TEXT}.preset"
    if preset in CATALOG and CATALOG[preset].kind != "text":
        problems.add(place, f"'{preset}' encodes pictures; use it in img_model, or choose a preset of texts")
    elif folder.is_dir():
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                there = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
                advice = "give a folder in which save_to_preset has written backbone and tokenizer"
                problems.add(place, f"'{preset}': {name} is missing (the folder contains {there}); {advice}")
    elif preset in CATALOG:
        problems.add(place, f"'{preset}' is not on this machine yet; run: easyrec-mm weights fetch {preset}")
    elif "/" in preset and "://" not in preset:
        problems.add(
            place, f"no folder '{preset}'; give a folder written by save_to_preset, or the name of a keras-hub preset"
        )
