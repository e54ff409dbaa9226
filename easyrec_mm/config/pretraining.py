"""Completes and checks `pretrain_config`: its data sets, heads and tables. Never imports TensorFlow.

`pretrain` makes one table of all data sets (pretraining/tables.py). It has the columns of pictures and texts and, for
each head, a column of classes: 0 for an item that the head has no label of, else the class + 1. The config is completed
so that this table is read like any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from easyrec_mm.config.item import is_joint
from easyrec_mm.errors import Problems
from easyrec_mm.files import join
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.image_pb2 import ImgModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.protos.pretrain_pb2 import ContrastivePretraining, PretrainDataSet, PretrainLoss
from easyrec_mm.schema import Schema

PLACE = "pretrain_config"
# Names of the metrics of a head, with "_" and the head behind them. Larger values are better.
RECALL_AT = (1, 5)
MMP_AT = 5
METRICS = (*(f"recall_at_{k}" for k in RECALL_AT), f"mmp_at_{MMP_AT}", "knn_accuracy")
CLASSIFIER_ACCURACY = "accuracy"
CONTRASTIVE = "contrastive"
# Kinds of losses that have a classifier.
CLASSIFIERS = ("softmax", "arcface", "cosface")
# Parts of e2e_mm_dbmtl that make item vectors.
_OF_TOWER = ("img_model", "img_dnn", "highway_dnn", "text_model", "item_fusion", "l2_regularization")
_CONTENTS = (FeatureConfig.ImgFeature, FeatureConfig.TextFeature)
_FOLDER = "pretrain_data"


@dataclass(frozen=True)
class Head:
    """What the items of one label space have in common.

    name       name of its first data set
    field      column of the classes in the table
    num_class  number of classes; 0 if only the data know it
    losses     the losses
    """

    name: str
    field: str
    num_class: int
    losses: tuple[PretrainLoss, ...]

    @property
    def has_classifier(self) -> bool:
        """Return whether one of the losses has a classifier."""
        return any(loss.WhichOneof("loss") in CLASSIFIERS for loss in self.losses)


def is_pretraining(config: EasyRecConfig) -> bool:
    """Return whether a config is one of pre-training."""
    return bool(config.HasField("pretrain_config"))


def head_name(data_set: PretrainDataSet) -> str:
    """Return the name of the head of a data set with labels."""
    return str(data_set.head or data_set.name)


def heads_of(config: EasyRecConfig) -> list[Head]:
    """Return the heads, in the order of their data sets."""
    heads: dict[str, Head] = {}
    for data_set in config.pretrain_config.data_sets:
        if data_set.label and not data_set.head:
            softmax = PretrainLoss()
            softmax.softmax.SetInParent()
            losses = tuple(data_set.losses) or (softmax,)
            heads.setdefault(
                data_set.name, Head(data_set.name, f"class_of_{data_set.name}", data_set.num_class, losses)
            )
    return list(heads.values())


def pretraining_metrics(config: EasyRecConfig) -> dict[str, str]:
    """Return the name of each metric of an evaluation -> its kind."""
    names: dict[str, str] = {}
    for head in heads_of(config):
        kinds = (*METRICS, CLASSIFIER_ACCURACY) if head.has_classifier else METRICS
        names |= {f"{kind}_{head.name}": kind for kind in kinds}
    return names


def content_fields(config: EasyRecConfig) -> dict[str, str]:
    """Return "image" and "text" -> the first field of the feature of that kind, and further text fields."""
    fields: dict[str, str] = {}
    for feature in [*config.feature_config.features, *config.feature_configs]:
        if feature.feature_type == FeatureConfig.ImgFeature:
            fields |= dict.fromkeys(feature.input_names, "image")
        elif feature.feature_type == FeatureConfig.TextFeature:
            fields |= dict.fromkeys(feature.input_names, "text")
    return fields


def tables_of(config: EasyRecConfig) -> tuple[str, str]:
    """Return the paths of the tables that pre-training makes: items to train on, and held-out items."""
    folder = join(config.model_dir, _FOLDER)
    return join(folder, "train.parquet"), join(folder, "held_out.parquet")


def complete_pretraining(config: EasyRecConfig, problems: Problems) -> None:
    """Fill in what reads the table, and add a problem for each of these settings that says something else."""
    data, (train, held_out) = config.data_config, tables_of(config)
    _check_data_sets(config, problems)
    if data.input_type != DatasetConfig.ParquetInput:
        kind = DatasetConfig.InputType.Name(data.input_type)
        advice = "set ParquetInput: pretrain makes a Parquet table of all data sets"
        problems.add("data_config.input_type", f"{kind} does not go with {PLACE}; {advice}")
    fields = [DatasetConfig.Field(input_name=name) for name in content_fields(config)]
    fields += [DatasetConfig.Field(input_name=head.field, input_type=DatasetConfig.INT64) for head in heads_of(config)]
    labels = [head.field for head in heads_of(config)]
    paths = {"train_input_path": train, "eval_input_path": held_out}
    for name, path in paths.items():
        if getattr(config, name) not in ("", path):
            problems.add(name, f"has no effect in pre-training, whose data are {PLACE}.data_sets; remove it")
    for name, now in {"input_fields": fields, "label_fields": labels}.items():
        if len(getattr(data, name)) and list(getattr(data, name)) != now:
            problems.add(f"data_config.{name}", "is derived from features and data sets in pre-training; remove it")
    for name in ("packed_images", "with_header", "sample_weight", "file_shard"):
        if getattr(data, name):
            problems.add(f"data_config.{name}", f"has no effect on {PLACE}.data_sets; remove it")
    config.train_input_path, config.eval_input_path = train, held_out
    del data.input_fields[:], data.label_fields[:]
    data.input_fields.extend(fields)
    data.label_fields.extend(labels)


def check_pretraining(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    """Add every problem of pretrain_config, and of parts of the model that do not go with it."""
    network, place = config.model_config.e2e_mm_dbmtl, "model_config.e2e_mm_dbmtl"
    for field, _ in network.ListFields():
        if field.name not in _OF_TOWER:
            problems.add(
                f"{place}.{field.name}", "has no effect in pre-training, which has the item tower alone; remove it"
            )
    if not schema.has_item_vector:
        problems.add("model_config.feature_groups", "has no group of an ImgFeature or a TextFeature to train; add one")
    if schema.features:
        names = ", ".join(feature.name for feature in schema.features)
        problems.add("model_config.feature_groups", f"pre-training reads pictures and texts alone; remove {names}")
    tower = network.img_model
    for name in ("image_losses", "img_loss_weight", "category_feature", "image_separator"):
        if getattr(tower, name):
            problems.add(f"{place}.img_model.{name}", f"does not go with {PLACE}; remove one of the two")
    settings = config.pretrain_config
    if not settings.data_sets:
        problems.add(f"{PLACE}.data_sets", "is empty; name the tables of items to train on")
    if settings.HasField("contrastive") and is_joint(network):
        problem = "compares vectors of parts, which item_fusion.joint_transformer does not make; remove one of the two"
        problems.add(f"{PLACE}.contrastive", problem)
    elif settings.HasField("contrastive"):
        _check_contrastive(settings.contrastive, tower, schema, problems)
    elif not heads_of(config):
        problems.add(f"{PLACE}.data_sets", "no data set has a label, and contrastive is not set; set one of the two")


def _check_data_sets(config: EasyRecConfig, problems: Problems) -> None:
    data_sets, image_root = list(config.pretrain_config.data_sets), config.data_config.image_root
    is_contrastive = config.pretrain_config.HasField("contrastive")
    names = [data_set.name for data_set in data_sets]
    own = [data_set.name for data_set in data_sets if data_set.label and not data_set.head]
    for i, data_set in enumerate(data_sets):
        place = f"{PLACE}.data_sets[{i}]"
        if data_set.name in names[:i]:
            problems.add(f"{place}.name", f"a second data set named '{data_set.name}'; rename one")
        if not re.fullmatch(r"\w+", data_set.name):
            problems.add(f"{place}.name", f"'{data_set.name}' is not a valid name; use letters, digits and _")
        if not data_set.label and not is_contrastive:
            problems.add(f"{place}.label", "is missing; name the column of the class, or set contrastive")
        if data_set.pictures and image_root:
            problems.add(f"{place}.pictures", "does not go with data_config.image_root; remove one of the two")
        if not data_set.head:
            continue
        if data_set.head not in own:
            problems.unknown(f"{place}.head", "data set with a head of its own", data_set.head, own)
            continue
        if data_set.losses:
            problems.add(f"{place}.losses", f"has no effect beside head; set them in '{data_set.head}'")
        first = data_sets[names.index(data_set.head)]
        if data_set.num_class and first.num_class and data_set.num_class != first.num_class:
            problems.add(
                f"{place}.num_class",
                f"{data_set.num_class}, but '{data_set.head}', whose head it shares, has {first.num_class} classes; "
                "give both the same classes, or this one a head of its own",
            )
    for i, data_set in enumerate(data_sets):
        for j, loss in enumerate(data_set.losses):
            if loss.WhichOneof("loss") is None:
                kinds = ", ".join(field.name for field in PretrainLoss.DESCRIPTOR.oneofs_by_name["loss"].fields)
                problems.add(f"{PLACE}.data_sets[{i}].losses[{j}]", f"does not set a loss; choose one of {kinds}")


def _check_contrastive(settings: ContrastivePretraining, tower: ImgModel, schema: Schema, problems: Problems) -> None:
    place, kind = f"{PLACE}.contrastive.pairs", ContrastivePretraining.Pairs.Name(settings.pairs)
    if settings.pairs == ContrastivePretraining.PICTURE_TEXT and not (schema.uses_image and schema.text is not None):
        problems.add(place, f"{kind} needs a feature group of an ImgFeature and one of a TextFeature; add them")
    if settings.pairs == ContrastivePretraining.VIEWS and not (schema.uses_image and tower.HasField("augmentation")):
        problems.add(place, f"{kind} needs an ImgFeature and img_model.augmentation, which makes the views; add them")
    if settings.pairs == ContrastivePretraining.VIEWS and tower.trainable == ImgModel.NONE:
        problems.add(place, f"{kind} has nothing to train with img_model.trainable: NONE; choose HEAD or ALL")
