"""The command `check`: a report on how a config reads a sample of its data, as text for a person."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from dataclasses import field as attribute
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import NUM_SHOWN, BadRecord, BadRecords
from easyrec_mm.data.first_pictures import paths_of, require_pictures
from easyrec_mm.data.input import Input
from easyrec_mm.data.packed_pictures import packed_path
from easyrec_mm.data.picture_reader import picture_reader
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.data.plain_pictures import format_of
from easyrec_mm.data.whole_pictures import decode_whole
from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.plan import evaluation_fields
from easyrec_mm.features.feature import Feature
from easyrec_mm.features.field import Field
from easyrec_mm.features.numpy_back_end import NumpyBackEnd, Values
from easyrec_mm.features.outliers import OUTLIER_ADVICE, is_far, usual_size
from easyrec_mm.features.raw_feature import RawFeature
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.rtp_graph import label_value
from easyrec_mm.network.image import image_tower
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.schema import Schema
from easyrec_mm.stats.batches import variety_lines
from easyrec_mm.stats.item_texts import text_lines_of, text_tower_lines
from easyrec_mm.store.feature_vectors import VectorStores
from easyrec_mm.training.memory import require_memory

NUM_EXAMPLES = 3
NUM_PICTURES = 200


@dataclass
class _Sample:
    """Texts of the valid groups that were read."""

    num_files: int
    values: dict[str, list[str]]  # by field, one per sample
    group_sizes: list[int] = attribute(default_factory=list)
    pictures: dict[bytes, tuple[str, int]] = attribute(default_factory=dict)  # path -> first (file, row)
    items: list[str] = attribute(default_factory=list)  # the text of the item of each group, if the model takes one
    bad: list[BadRecord] = attribute(default_factory=list)
    num_groups: int = 0

    def extent(self) -> str:
        """Return how much was read, as text."""
        return f"{self.num_files} file(s), {self.num_groups} groups read, {sum(self.group_sizes)} samples"


class CheckResult(NamedTuple):
    """A report, and why training would stop; "" if it would not."""

    report: str
    problem: str


def check(pipeline: Pipeline, num_groups: int) -> CheckResult:
    """Report on the first groups of the training data, and of the evaluation data.

    Raises:
      UserError: if there is no data to read, or if the model does not fit the pictures or the memory.
    """
    config, schema = pipeline.config, pipeline.schema
    settings = [name for name in ("train_input_path", "eval_input_path") if getattr(config, name)]
    if not settings:
        raise UserError(f"{pipeline.path}: train_input_path: is missing; give the files of the training data")
    require_memory(config, schema, pipeline.path, num_workers=None)
    vectors = VectorStores(schema.in_stores())
    with closing(vectors):
        samples = {setting: _read(pipeline, setting, num_groups, vectors) for setting in settings}
        sample = samples[settings[0]]
        feature_lines = _feature_lines(schema, sample, vectors)
    picture_lines = ["  not used: no feature group of an ImgFeature"]
    if schema.uses_image:
        picture_lines = _check_pictures(sample, pipeline)
    text_lines = (
        [f"\ntexts of items: {schema.text.name}", *text_lines_of(schema.text, sample.items)] if schema.text else []
    )
    lines = [
        f"{pipeline.path}: the config is valid",
        f"\ndata: {sample.extent()}",
        *_group_lines(sample.group_sizes),
        "\nlabels",
        *_label_lines(schema, sample),
        "\nfeatures",
        *feature_lines,
        "\npictures",
        *picture_lines,
        *text_lines,
        *(["\nbatches", *variety_lines(pipeline, num_groups)] if config.train_input_path else []),
        *_tower_lines(pipeline),
        *text_tower_lines(pipeline),
        *_bad_lines(sample),
    ]
    for other in settings[1:]:
        lines += [f"\nevaluation data: {samples[other].extent()}", *_bad_lines(samples[other])]
    share = config.data_config.max_bad_record_share
    problems = (_too_many_bad(part, share) for part in samples.values())
    return CheckResult("\n".join(lines), next(filter(None, problems), ""))


def _read(pipeline: Pipeline, setting: str, num_groups: int, vectors: VectorStores) -> _Sample:
    """Read the first groups of a setting's files as training would, with what an evaluation needs beside it."""
    config, schema = pipeline.config, pipeline.schema
    path, records = getattr(config, setting), BadRecords(None, 1.0)
    fields = evaluation_fields(config, schema) if setting == "eval_input_path" else ()
    inputs = Input(config.data_config, schema, path, setting, records, kept_fields=fields, vectors=vectors)
    sample = _read_sample(inputs, schema, num_groups)
    if schema.uses_image:
        require_pictures(pipeline.path, config.data_config, sample.pictures)
    return sample


def _read_sample(inputs: Input, schema: Schema, num_groups: int) -> _Sample:
    fields = (*schema.layout.sample_fields, *schema.labels)
    sample = _Sample(len(inputs.source.files), {name: [] for name in fields})
    for file, row, group in islice(inputs.source.texts(), num_groups):
        sample.num_groups += 1
        if isinstance(group, Problem):
            sample.bad.append(BadRecord("group", file, row, *group))
            continue
        sample.group_sizes.append(group.size)
        for picture in _pictures(group.image, schema):
            sample.pictures.setdefault(picture, (file, row))
        if schema.text is not None:
            sample.items.append(schema.text.joined({name: group.values[name][0] for name in schema.text.inputs}))
        for name, texts in group.values.items():
            sample.values[name] += texts
    return sample


def _pictures(image: bytes, schema: Schema) -> list[bytes]:
    """Return the paths in an image field; without any, one empty path, which is bad, unless pictures are optional."""
    return paths_of(image, schema) or ([] if schema.has_no_image_vector else [b""])


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _group_lines(sizes: list[int]) -> list[str]:
    if not sizes:
        return ["  no good group"]
    array = np.array(sizes)
    return [f"  group size: {array.min()} to {array.max()}, mean {array.mean():.1f}, median {np.median(array):.0f}"]


def _label_lines(schema: Schema, sample: _Sample) -> list[str]:
    lines = []
    for label in schema.labels:
        field = schema.field(label)
        values = np.array([label_value(text, field) for text in sample.values[label]])
        towers = [task.name for task in schema.tasks if task.label == label]
        use = f"tower {', '.join(towers)}" if towers else "no tower"
        figures = "no value"
        if len(values):
            extent = f"mean {values.mean():.4g}, {values.min():.4g} to {values.max():.4g}"
            figures = f"{extent}, missing {_missing(sample.values[label]):.1%}"
        lines.append(f"  {label}: {figures}; {use}")
    return lines


def _feature_lines(schema: Schema, sample: _Sample, vectors: VectorStores) -> list[str]:
    rows = [("name", "kind", "width", "table rows", "missing", "unknown", "examples")]
    table_rows = {table.name: table.rows for table in schema.tables}
    for feature in (*schema.features, *schema.item_vectors):
        texts = sample.values[feature.inputs[0]]
        if len(feature.inputs) > 1:
            texts = [" x ".join(parts) for parts in zip(*(sample.values[i] for i in feature.inputs), strict=True)]
        common = [text for text, _ in Counter(filter(None, texts)).most_common(NUM_EXAMPLES)]
        numbers = _numbers(feature, schema, sample)
        limits = f"{numbers.min():g} to {numbers.max():g}, such as " if numbers.size else ""
        rows.append(
            (
                feature.name,
                _kind(feature) + (", of items" if feature in schema.item_vectors else ""),
                str(feature.width),
                f"{table_rows[feature.table]:,}" if feature.table else "-",
                f"{_missing_share(feature, schema, sample):.1%}",
                _unknown(feature, _keys(feature, schema, sample), vectors),
                limits + ", ".join(text if len(text) <= 24 else text[:21] + "..." for text in common),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)) + f"  {row[-1]}" for row in rows
    ]
    return [*lines, f"  in all {schema.width} numbers a sample", *_outlier_lines(schema, sample)]


def _numbers(feature: Feature, schema: Schema, sample: _Sample) -> NDArray[np.float64]:
    """Return the numbers of a RawFeature of one number; none of other features."""
    field = schema.field(feature.inputs[0])
    is_number = isinstance(feature, RawFeature) and field.dtype != "string"
    texts = sample.values[field.name] if is_number else []
    return np.array([float(field.value(text)) for text in texts if text], np.float64)


def _outlier_lines(schema: Schema, sample: _Sample) -> list[str]:
    """Warn of numbers that are so far from the others that the network would see no difference between these."""
    lines = []
    for feature in schema.features:
        if not isinstance(feature, RawFeature) or feature.numbers.boundaries or feature.numbers.log1p:
            continue
        numbers = _numbers(feature, schema, sample)
        usual, largest = usual_size(numbers), float(np.abs(numbers).max(initial=0.0))
        if is_far(largest, usual):
            lines.append(
                f"  warning: {feature.name}: {largest:g} is far beyond the other numbers, 99 % of which are within "
                f"{usual:g}; {OUTLIER_ADVICE}"
            )
    return lines


def _kind(feature: Feature) -> str:
    """Return the type of a feature, and the kind of its values."""
    name = type(feature).__name__
    if feature.stored:
        return f"{name} (store)"
    if feature.categories:
        return f"{name} ({feature.categories.encoding})"
    return f"{name} (numbers)" if feature.is_list else name


def _keys(feature: Feature, schema: Schema, sample: _Sample) -> list[list[str]]:
    """Return each sample's texts by which rows of the feature's table, or vectors of its store, are looked up."""
    if not feature.is_list:
        texts = sample.values[feature.inputs[0]]
        values = texts
        if feature.categories:  # the texts by which values are looked up: 1 for true, 7 for 007
            column = _column(schema.field(feature.inputs[0]), texts)
            values = list(NumpyBackEnd({}).texts(column, feature.categories.precision))
        return [[value] if text else [] for text, value in zip(texts, values, strict=True)]
    fields = {name: _column(schema.field(name), sample.values[name]) for name in feature.inputs}
    return [list(texts) for texts in feature.keys(fields, NumpyBackEnd({})).to_list()]


def _column(field: Field, texts: list[str]) -> Values:
    """Return a field's values in the form that feature types take."""
    return texts if field.dtype == "string" else np.array([field.value(text) for text in texts])


def _missing_share(feature: Feature, schema: Schema, sample: _Sample) -> float:
    """Return the share of the samples without a value for the feature."""
    if feature.is_list:
        return _missing(["".join(texts) for texts in _keys(feature, schema, sample)])
    return _missing(sample.values[feature.inputs[0]])


def _unknown(feature: Feature, keys: list[list[str]], vectors: VectorStores) -> str:
    """Return the share of values that the feature cannot distinguish: outside num_buckets, vocabulary or store."""
    present = [text for texts in keys for text in texts]
    if feature.stored and present:
        distinct = list(dict.fromkeys(present))
        lacks = dict(zip(distinct, vectors.look_up(feature, distinct).is_missing.tolist(), strict=True))
        return f"{np.mean([lacks[text] for text in present]):.1%}"
    categories = feature.categories
    if not present or categories is None or categories.encoding == "hash":
        return "-"
    if categories.encoding == "vocabulary":
        vocabulary = set(categories.vocabulary)
        return f"{np.mean([text not in vocabulary for text in present]):.1%}"
    return f"{np.mean([not 0 <= int(text) < categories.num_ids for text in present]):.1%}"


def _check_pictures(sample: _Sample, pipeline: Pipeline) -> list[str]:
    """Load some pictures as training would, add those that fail to the bad records, and describe the pictures."""
    image, data = pipeline.schema.image, pipeline.config.data_config
    paths = list(sample.pictures)[:NUM_PICTURES]
    loader = PictureLoader(image, picture_reader(data))
    contents, unreadable = loader.read(
        [packed_path(sample.pictures[path][0], path) if data.packed_images else path for path in paths]
    )
    problems = loader.decode(contents, unreadable).problems
    for row, problem in problems.items():
        sample.bad.append(BadRecord("picture", *sample.pictures[paths[row]], _text(paths[row]), problem))
    good = [content for row, content in enumerate(contents) if row not in problems]
    formats = Counter(map(format_of, good))
    shapes = (decode_whole(content, image).shape for content in good)
    sizes = Counter(f"{width} x {height}" for height, width, _ in shapes)
    return [
        f"  {len(sample.pictures)} distinct in {len(sample.group_sizes)} groups; {len(paths)} opened, "
        f"{len(problems)} of them bad",
        f"  formats: {_counts(formats)}",
        f"  sizes: {_counts(sizes)}; the network sees {image.width} x {image.height} x {image.channels}",
    ]


def _tower_lines(pipeline: Pipeline) -> list[str]:
    """Describe the image tower, which is built for this because only then its layers, stages and weights are known."""
    if not pipeline.schema.uses_image:
        return []
    tower = image_tower(pipeline.config, pipeline.schema, FLOAT32)
    num_weights = sum(math.prod(variable.shape) for variable in tower.backbone.variables)
    return [
        f"\nimage tower: backbone of {num_weights:,} weights in {len(tower.stages)} stages "
        f"({', '.join(stage.name for stage in tower.stages)})",
        f"  output: {tower.backbone.layers[-1].name}, {tower.backbone.output.shape[-1]} features"
        + (f" of each of {tower.length} positions" if tower.length else ""),
    ]


def _counts(counter: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in counter.most_common(5))
    return shown + (f" and {len(counter) - 5} more" if len(counter) > 5 else "") or "none"


def _missing(texts: list[str]) -> float:
    return sum(not text for text in texts) / len(texts) if texts else 0.0


def _bad_lines(sample: _Sample) -> list[str]:
    if not sample.bad:
        return ["\nbad records: none"]
    more = len(sample.bad) - NUM_SHOWN
    shown = [f"  {record}" for record in sample.bad[:NUM_SHOWN]]
    return ["\nbad records", *shown, *([f"  and {more} more"] if more > 0 else [])]


def _too_many_bad(sample: _Sample, max_share: float) -> str:
    """Return why training would stop at the bad records of a sample; "" if it would not."""
    num_pictures = min(len(sample.pictures), NUM_PICTURES)
    for kind, total in (("group", sample.num_groups), ("picture", num_pictures)):
        bad = sum(record.kind == kind for record in sample.bad)
        if bad > max_share * total:
            return (
                f"{bad} of {total} {kind}s are bad, more than data_config.max_bad_record_share ({max_share:g}): "
                "training would stop. Correct the data or raise the share."
            )
    return ""
