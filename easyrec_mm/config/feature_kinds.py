"""Checks the settings of each type of feature, and derives its Feature.

Each function takes one feature of the config and gives the Feature and the rows of its table (0 without one). Problems
are collected with their config path. Never imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from easyrec_mm.errors import Problems, did_you_mean
from easyrec_mm.features.expression import ExpressionError, parse_expression
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.schema import Encoding, Feature, Field, Log1p

# Those of store.SCHEMES, which would import NumPy.
STORE_SCHEMES = ("lmdb", "redis", "rediss", "postgresql", "postgres")
# Values of normalizer_fn.
LOG1P_NAMES = ("tf.math.log1p", "tf.log1p", "log1p")
# Inputs of exported models beside fields and vectors of features.
_IMAGE_NAMES = ("img_emb_vector",)
COMBINERS, POOLINGS = ("mean", "sum", "sqrtn"), ("mean", "sum", "max")


@dataclass(frozen=True)
class Given:
    """A feature of a config.

    name      of the feature
    place     its config path
    item      its settings
    fields    input fields by name
    data      the config's data section
    problems  where mistakes go
    """

    name: str
    place: str
    item: FeatureConfig
    fields: dict[str, Field]
    data: DatasetConfig
    problems: Problems

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the fields that it reads."""
        return tuple(self.item.input_names)

    @property
    def table(self) -> str:
        """The name of its table, if it has one."""
        return self.item.embedding_name or self.name

    def add(self, setting: str, message: str) -> None:
        """Add a problem of a setting."""
        self.problems.add(f"{self.place}.{setting}", message)

    def require_inputs(self, what: str, least: int, most: int) -> bool:
        """Check the number of fields."""
        if least <= len(self.inputs) <= most:
            return True
        number = str(least) if least == most else f"{least} to {most}"
        self.add(
            "input_names", f"{what} reads {'one field' if most == 1 else f'{number} fields'}, not {len(self.inputs)}"
        )
        return False

    def require_string(self, name: str, why: str) -> None:
        """Check that a field holds text."""
        if self.fields[name].dtype != "string":
            self.add("input_names", f"'{name}' must be a STRING field to hold {why}")


def number_feature(given: Given) -> tuple[Feature, int]:
    """RawFeature and ExprFeature."""
    item = given.item
    expression = ""
    if item.feature_type == FeatureConfig.ExprFeature:
        expression = _expression(given)
    elif given.require_inputs("RawFeature", 1, 1) and item.raw_input_dim > 1:
        _check_inner_separator(given, "separator")
        if given.fields[given.inputs[0]].dtype != "string":
            given.add("raw_input_dim", f"more than one number needs a STRING field, '{given.name}' is not")
    feature, rows = _numbers(given)
    separator = item.separator if item.raw_input_dim > 1 else ""
    return replace(feature, separator=separator, expression=expression), rows


def _numbers(given: Given) -> tuple[Feature, int]:
    """A raw feature without what says how the numbers are read."""
    item = given.item
    limits = tuple(item.boundaries)
    if any(a >= b for a, b in pairwise(limits)):
        given.add("boundaries", f"{list(limits)} does not ascend; sort it, without repeats")
    if item.raw_input_dim > 1 and limits:
        given.add("boundaries", "go with raw_input_dim 1; split the vector into several features")
    if (item.HasField("min_val") or item.HasField("max_val")) and item.max_val <= item.min_val:
        given.add("max_val", f"{item.max_val} is not above min_val {item.min_val}; swap or remove them")
    if (item.embedding_name or item.HasField("initializer")) and not item.embedding_dim:
        given.add("embedding_dim", "is 0, so the feature has no table; set it, or remove embedding_name")
    rows = (len(limits) + 1 if limits else item.raw_input_dim) if item.embedding_dim else 0
    feature = Feature(
        name=given.name,
        kind="raw",
        inputs=given.inputs,
        width=item.embedding_dim or (len(limits) + 1 if limits else item.raw_input_dim),
        table=given.table if rows else None,
        raw_dim=item.raw_input_dim,
        boundaries=limits,
        min_value=item.min_val,
        max_value=item.max_val,
        log1p=_log1p(given),
    )
    return feature, rows


def _log1p(given: Given) -> Log1p:
    item = given.item
    if not item.HasField("normalizer_fn"):
        return "before" if item.numeric_transform == FeatureConfig.LOG1P else ""
    if item.normalizer_fn not in LOG1P_NAMES:
        choice = f"choose {LOG1P_NAMES[0]}, or write an ExprFeature"
        given.add("normalizer_fn", f"'{item.normalizer_fn}' is not supported; {choice}")
    if item.numeric_transform:
        given.add("normalizer_fn", "numeric_transform is set too; keep one of the two")
    return "after"


def vector_feature(given: Given) -> tuple[Feature, int]:
    """VectorFeature."""
    item = given.item
    if not item.vector_dim:
        given.add("vector_dim", "is 0; give the numbers of a vector")
    if item.embedding_dim:
        given.add("embedding_dim", "has no effect on a vector, which stays as it is; remove it")
    has_input = given.require_inputs("VectorFeature", 1, 1)
    feature = Feature(given.name, "raw", given.inputs, item.vector_dim, raw_dim=item.vector_dim)
    if item.HasField("vector_store"):
        _check_store(given)
        if has_input and given.fields[given.inputs[0]].dtype == "float32":
            given.add("input_names", f"'{given.inputs[0]}' is a FLOAT; a key is text or a whole number")
        return replace(feature, store=item.vector_store, max_missing_share=item.max_missing_share), 0
    if item.HasField("max_missing_share"):
        given.add("max_missing_share", "has no effect without vector_store; set it or remove this")
    if has_input:
        given.require_string(given.inputs[0], "a vector; or set vector_store, if it holds a key")
    if item.vector_dim > 1:
        _check_inner_separator(given, "separator")
        feature = replace(feature, separator=item.separator)
    return feature, 0


def _check_store(given: Given) -> None:
    item = given.item
    scheme = urlsplit(item.vector_store).scheme
    if scheme not in STORE_SCHEMES:
        known = did_you_mean(scheme, STORE_SCHEMES)
        given.add("vector_store", f"'{item.vector_store}': no store has the scheme '{scheme}://'; {known}")
    for key in (f"{given.name}_vector", f"{given.name}_length"):
        if key in given.fields or key in _IMAGE_NAMES:
            given.add(
                "feature_name", f"'{given.name}' gives an input '{key}', which there is already; name it otherwise"
            )


def _expression(given: Given) -> str:
    """The text of a checked expression, with all its parentheses."""
    if not given.item.expression.strip():
        given.add("expression", 'is empty; give one over input_names, as in "log1p(clicks) - log1p(shows)"')
        return ""
    try:
        expression = parse_expression(given.item.expression)
        expression.require_truths(frozenset(name for name in given.inputs if given.fields[name].dtype == "bool"))
    except ExpressionError as error:
        given.add("expression", str(error))
        return ""
    read = expression.fields()
    unknown = [name for name in read if name not in given.inputs]
    for name in unknown:
        if name in given.fields:
            given.add("expression", f"reads '{name}', which is not among input_names; add it there")
        else:
            given.problems.unknown(f"{given.place}.expression", "input name", name, given.inputs)
    for name in given.inputs:
        if name not in read and not unknown:
            given.add("expression", f"does not read '{name}'; use it, or remove it from input_names")
    return str(expression)


def id_feature(given: Given) -> tuple[Feature, int]:
    """IdFeature."""
    given.require_inputs("IdFeature", 1, 1)
    feature, rows = _categories(given)
    _check_precision(given, feature)
    return replace(feature, precision=given.item.precision), rows


def combo_feature(given: Given) -> tuple[Feature, int]:
    """ComboFeature."""
    given.require_inputs("ComboFeature", 2, 64)
    feature, rows = _categories(given)
    _check_precision(given, feature)
    return replace(feature, kind="combo", precision=given.item.precision), rows


def tag_feature(given: Given) -> tuple[Feature, int]:
    """TagFeature."""
    item = given.item
    given.require_inputs("TagFeature", 1, 2)
    for name, what in zip(given.inputs, ("several tags", "several weights"), strict=False):
        given.require_string(name, what)
    if item.HasField("kv_separator") and len(given.inputs) == 2:
        given.add("kv_separator", "the second input name holds the weights already; remove one")
    _check_pairs(given)
    _check_combiner(given, COMBINERS)
    feature, rows = _categories(given)
    settings = {"separator": item.separator, "kv_separator": item.kv_separator, "combiner": item.combiner}
    return replace(feature, kind="tag", **settings), rows  # type: ignore[arg-type]


def lookup_feature(given: Given) -> tuple[Feature, int]:
    """LookupFeature: a tag feature whose tags are what a map has for a key."""
    item = given.item
    if given.require_inputs("LookupFeature", 2, 2):
        key, values = given.inputs
        if given.fields[key].dtype == "float32":
            given.add("input_names", f"'{key}' is a FLOAT; a key is text or a whole number")
        given.require_string(values, "a map")
    if not item.HasField("kv_separator"):
        given.add("kv_separator", 'is missing; give the character between key and value, such as ":"')
    _check_pairs(given)
    _check_combiner(given, COMBINERS)
    feature, rows = _categories(given)
    tags = replace(feature, kind="tag", separator=item.separator, kv_separator=item.kv_separator)
    return replace(tags, combiner=item.combiner, max_selected=item.lookup_max_sel_elem_num), rows


def sequence_feature(given: Given) -> tuple[Feature, int]:
    """SequenceFeature."""
    item = given.item
    if given.require_inputs("SequenceFeature", 1, 1):
        given.require_string(given.inputs[0], "a sequence")
    _check_inner_separator(given, "separator")
    _check_combiner(given, POOLINGS)
    if item.sub_feature_type == FeatureConfig.IdFeature:
        feature, rows = _categories(given)
    elif item.sub_feature_type == FeatureConfig.RawFeature:
        feature, rows = _numbers(given)
        _check_number_separator(given)
    elif item.sub_feature_type == FeatureConfig.VectorFeature:
        feature, rows = _vectors_of_keys(given), 0
    else:
        kind = FeatureConfig.FeatureType.Name(item.sub_feature_type)
        choices = "choose IdFeature, RawFeature or VectorFeature"
        given.add("sub_feature_type", f"a sequence has no elements of {kind}; {choices}")
        return Feature(given.name, "sequence", given.inputs, 1, elements="raw"), 0
    sequence = replace(
        feature,
        kind="sequence",
        elements="raw" if feature.kind == "raw" else "id",
        separator=item.separator,
        number_separator=item.seq_multi_sep if item.raw_input_dim > 1 else "",
        combiner=item.combiner,
        max_length=item.max_seq_len,
        keeps_last=item.kept_end == FeatureConfig.LAST,
    )
    return sequence, rows


def _vectors_of_keys(given: Given) -> Feature:
    """A raw feature of the elements of a sequence of keys."""
    item = given.item
    if not item.vector_dim:
        given.add("vector_dim", "is 0; give the numbers of a vector")
    if item.embedding_dim:
        given.add("embedding_dim", "has no effect on vectors, which stay as they are; remove it")
    if item.HasField("vector_store"):
        _check_store(given)
    else:
        other = "for vectors in the row choose RawFeature with raw_input_dim"
        given.add("vector_store", f"is missing; name the store of the vectors, or {other}")
    feature = Feature(given.name, "raw", given.inputs, item.vector_dim, raw_dim=item.vector_dim)
    return replace(feature, store=item.vector_store, max_missing_share=item.max_missing_share)


def _check_number_separator(given: Given) -> None:
    """Check the separator between the numbers of an element of a sequence."""
    item = given.item
    if item.raw_input_dim <= 1:
        if item.HasField("seq_multi_sep"):
            given.add("seq_multi_sep", "has no effect on elements of one number; set raw_input_dim or remove this")
        return
    if not item.HasField("seq_multi_sep"):
        given.add("seq_multi_sep", 'is missing; give the character between the numbers of an element, such as ","')
        return
    _check_inner_separator(given, "seq_multi_sep")
    if item.seq_multi_sep == item.separator:
        given.add("seq_multi_sep", f"{item.seq_multi_sep!r} is also separator; change one")


def _categories(given: Given) -> tuple[Feature, int]:
    """An id feature without what says how its values are read."""
    if not given.item.embedding_dim:
        given.add("embedding_dim", f"is 0; give the width of the embedding of '{given.name}'")
    encoding, vocabulary, num_ids = _encoding(given)
    feature = Feature(
        name=given.name,
        kind="id",
        inputs=given.inputs,
        width=given.item.embedding_dim,
        table=given.table,
        encoding=encoding,
        num_ids=num_ids,
        vocabulary=vocabulary,
    )
    return feature, num_ids


def _check_precision(given: Given, feature: Feature) -> None:
    for name in (name for name in given.inputs if given.fields[name].dtype == "float32"):
        if feature.encoding == "identity":
            given.add("num_buckets", f"'{name}' is a FLOAT; an id by num_buckets is an integer")
        elif given.item.precision < 0:
            given.add("precision", f"'{name}' is a FLOAT; set the digits with which it becomes an id")


def _check_pairs(given: Given) -> None:
    item = given.item
    _check_inner_separator(given, "separator")
    if item.HasField("kv_separator"):
        _check_inner_separator(given, "kv_separator")
        if item.kv_separator == item.separator:
            given.add("kv_separator", f"{item.kv_separator!r} is also separator; change one")


def _check_combiner(given: Given, choices: tuple[str, ...]) -> None:
    if given.item.combiner not in choices:
        given.add("combiner", f"'{given.item.combiner}' is unknown; choose {', '.join(choices[:-1])} or {choices[-1]}")


def _encoding(given: Given) -> tuple[Encoding, tuple[str, ...], int]:
    """How values become rows: encoding, vocabulary, number of rows."""
    item = given.item
    found = [s for s in ("hash_bucket_size", "num_buckets", "vocab_list", "vocab_file") if getattr(item, s)]
    allowed = (
        "hash_bucket_size"
        if item.feature_type == FeatureConfig.ComboFeature
        else "hash_bucket_size, num_buckets, vocab_list or vocab_file"
    )
    if len(found) != 1:
        what = f"'{given.name}' has {', '.join(found) or 'no number of ids'}; give one of {allowed}"
        given.problems.add(given.place, what)
        return "hash", (), 1
    if found[0] == "hash_bucket_size":
        return "hash", (), item.hash_bucket_size
    if found[0] == "num_buckets":
        return "identity", (), item.num_buckets
    values = tuple(item.vocab_list)
    if found[0] == "vocab_file":
        try:
            values = tuple(Path(item.vocab_file).read_text(encoding="utf-8").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            given.add("vocab_file", f"'{item.vocab_file}' cannot be read: {error}")
        values = tuple(value.rstrip("\r") for value in (values[:-1] if values and not values[-1] else values))
    if len(set(values)) != len(values):
        repeated = next(v for i, v in enumerate(values) if v in values[:i])
        given.add(found[0], f"holds '{repeated}' twice; each value has one row")
    return "vocabulary", values, len(values) + 1


def _check_inner_separator(given: Given, setting: str) -> None:
    """A separator within a value is there, and is not one that has split the row before."""
    separator, data = getattr(given.item, setting), given.data
    names = ("rtp_separator", "group_sample_separator", "separator")
    is_text = data.input_type == DatasetConfig.GroupRTPInput
    outer = {f"data_config.{name}": getattr(data, name) for name in names if is_text}
    if not separator:
        given.add(setting, "is empty; give the character between values")
    for name, value in outer.items():
        if separator and separator == value:
            given.add(setting, f"{separator!r} is also {name}, which splits the line first; choose another")


KINDS: dict[int, Callable[[Given], tuple[Feature, int]]] = {
    FeatureConfig.IdFeature: id_feature,
    FeatureConfig.RawFeature: number_feature,
    FeatureConfig.TagFeature: tag_feature,
    FeatureConfig.ComboFeature: combo_feature,
    FeatureConfig.LookupFeature: lookup_feature,
    FeatureConfig.SequenceFeature: sequence_feature,
    FeatureConfig.ExprFeature: number_feature,
    FeatureConfig.VectorFeature: vector_feature,
}
