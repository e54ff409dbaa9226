"""Checks the network, training and export sections of a config against each other and the Schema.

Adds every problem to a Problems list with its config path. Never imports TensorFlow.
"""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter

from google.protobuf.message import Message

from easyrec_mm.config.best import check_best
from easyrec_mm.config.evaluation import check_evaluation, check_metrics, evaluation_metrics
from easyrec_mm.config.feature_groups import NO_IMAGE_GROUP
from easyrec_mm.config.image import check_image_tower
from easyrec_mm.config.learning_rates import check_ends, check_learning_rate
from easyrec_mm.errors import Problems
from easyrec_mm.protos.model_pb2 import DNN, BayesTaskTower, SeqAttGroupConfig
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema

ACTIVATION_NAMES = (
    "relu", "gelu", "selu", "elu", "leaky_relu", "tanh", "sigmoid", "swish", "softplus", "linear",
)  # fmt: skip
# Parts of the loss beside those of the towers, under which they are logged.
REGULARIZATION_LOSSES = ("embedding_regularization", "l2_regularization")


def check_model_and_training(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    """Add every problem of model_config, train_config, eval_config and export_config."""
    _check_model(config, schema, problems)
    _check_training(config, schema, problems)
    _check_export(config, schema, problems)
    check_evaluation(config, schema, problems)


def activation_name(name: str) -> str:
    """Keras's name of an activation that may be written as TensorFlow's: "tf.nn.relu" -> "relu"."""
    return re.sub(r"^(tf\.)?(nn\.|math\.|keras\.activations\.)?", "", name.strip()).lower() or "linear"


def relation_order(towers: list[BayesTaskTower]) -> list[int]:
    """Indices of the towers so that each stands behind the towers of its relation_tower_names.

    Raises:
      CycleError: if there is no such order.
    """
    index = {tower.tower_name: i for i, tower in enumerate(towers)}
    graph = {i: [index[name] for name in tower.relation_tower_names] for i, tower in enumerate(towers)}
    return list(TopologicalSorter(graph).static_order())


def _check_model(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    model = config.model_config
    network = model.e2e_mm_dbmtl
    place = "model_config.e2e_mm_dbmtl"
    if not model.HasField("e2e_mm_dbmtl"):
        problems.add(place, "is missing; it holds the network")
        return
    for name in ("img_dnn", "bottom_dnn", "expert_dnn"):
        _check_dnn(network, name, place, problems)
    for i, group in enumerate(model.feature_groups):
        for j, attention in enumerate(group.sequence_features):
            _check_score_dnn(attention, f"model_config.feature_groups[{i}].sequence_features[{j}]", problems)
    _check_image_part(config, schema, problems)
    if network.HasField("expert_dnn") != (network.num_expert > 0):
        missing = "num_expert" if network.HasField("expert_dnn") else "expert_dnn"
        problems.add(f"{place}.{missing}", "expert_dnn and num_expert go together; set both or neither")
    if not network.task_towers:
        problems.add(f"{place}.task_towers", "is empty; the model needs a task")
    _check_towers(list(network.task_towers), schema, problems)


def _check_image_part(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    network = config.model_config.e2e_mm_dbmtl
    place = "model_config.e2e_mm_dbmtl"
    if not schema.uses_image:
        for name in ("img_model", "img_dnn", "highway_dnn", "image_fusion"):
            if network.HasField(name):
                problems.add(f"{place}.{name}", f"has no effect: {NO_IMAGE_GROUP}; add one or remove this")
        return
    check_image_tower(config, schema, problems)
    if network.HasField("img_dnn") and network.HasField("highway_dnn"):
        problems.add(f"{place}.highway_dnn", "img_dnn is set too; keep one of the two")


def _check_score_dnn(attention: SeqAttGroupConfig, place: str, problems: Problems) -> None:
    _check_dnn(attention, "seq_dnn", place, problems)
    units = list(attention.seq_dnn.hidden_units)
    if units and units[-1] != 1:
        problems.add(f"{place}.seq_dnn.hidden_units", f"{units} ends in {units[-1]}; the last one is the score, add 1")


def _check_dnn(parent: Message, name: str, place: str, problems: Problems) -> None:
    if not parent.HasField(name):
        return
    dnn: DNN = getattr(parent, name)
    place = f"{place}.{name}"
    if not dnn.hidden_units:
        problems.add(f"{place}.hidden_units", "is empty; give the units of each layer, or remove the whole")
    if dnn.dropout_ratio and len(dnn.dropout_ratio) != len(dnn.hidden_units):
        problems.add(
            f"{place}.dropout_ratio",
            f"has {len(dnn.dropout_ratio)} values for {len(dnn.hidden_units)} layers; give one a layer, or none",
        )
    if activation_name(dnn.activation) not in ACTIVATION_NAMES:
        problems.unknown(f"{place}.activation", "activation", dnn.activation, ACTIVATION_NAMES)


def _check_towers(towers: list[BayesTaskTower], schema: Schema, problems: Problems) -> None:
    names = [tower.tower_name for tower in towers]
    relations_known = True
    for i, (tower, task) in enumerate(zip(towers, schema.tasks, strict=True)):
        place = f"model_config.e2e_mm_dbmtl.task_towers[{i}]"
        if tower.tower_name in names[:i]:
            problems.add(f"{place}.tower_name", f"a second tower named '{tower.tower_name}'; rename one")
        if not re.fullmatch(r"\w[\w.-]*", tower.tower_name):
            problems.add(f"{place}.tower_name", f"'{tower.tower_name}' is no name; use letters, digits and _")
        if tower.tower_name in REGULARIZATION_LOSSES:
            problems.add(f"{place}.tower_name", f"'{tower.tower_name}' names a part of the loss; rename the tower")
        for name in ("dnn", "relation_dnn"):
            _check_dnn(tower, name, place, problems)
        for relation in tower.relation_tower_names:
            if relation == tower.tower_name:
                problems.add(f"{place}.relation_tower_names", f"'{relation}' is the tower itself; name another")
                relations_known = False
            elif relation not in names:
                problems.unknown(f"{place}.relation_tower_names", "tower", relation, names)
                relations_known = False
        _check_indicator(tower, place, schema, problems)
        check_metrics(tower.metrics_set, f"{place}.metrics_set", task, schema, problems)
    if relations_known:
        try:
            relation_order(towers)
        except CycleError as error:
            cycle = " -> ".join(names[i] for i in reversed(error.args[1]))
            place = "model_config.e2e_mm_dbmtl.task_towers"
            problems.add(place, f"relation_tower_names go in a circle: {cycle}; remove one of them")


def _check_indicator(tower: BayesTaskTower, place: str, schema: Schema, problems: Problems) -> None:
    indicator = tower.task_space_indicator_label
    if indicator and indicator not in schema.labels:
        problems.unknown(f"{place}.task_space_indicator_label", "label", indicator, schema.labels)


def _check_training(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    train, data = config.train_config, config.data_config
    if not config.model_dir:
        problems.add("model_dir", "is empty; name a folder for checkpoints and metrics")
    if data.shuffle and data.shuffle_buffer_size < 1:
        problems.add("data_config.shuffle_buffer_size", f"{data.shuffle_buffer_size} is no size; or set shuffle: false")
    if train.num_epochs and data.num_epochs and train.num_epochs != data.num_epochs:
        problems.add("train_config.num_epochs", f"{train.num_epochs}, but data_config.num_epochs is {data.num_epochs}")
    if not train.optimizer_config:
        problems.add("train_config.optimizer_config", "is missing; choose an optimizer and its learning rate")
    by_part = [i for i, optimizer in enumerate(train.optimizer_config) if not optimizer.variables]
    if len(by_part) > 3:
        problems.add(
            "train_config.optimizer_config",
            f"has {len(by_part)} entries without `variables`; give 1 (all), 2 (embeddings, rest) or 3 (embeddings, "
            "dense, image tower)",
        )
    if len(by_part) > 1 and not schema.tables:
        place = f"train_config.optimizer_config[{by_part[0]}]"
        problems.add(place, "is for embedding tables and the model has none; remove it")
    if len(by_part) > 2 and not schema.uses_image:
        place = f"train_config.optimizer_config[{by_part[2]}]"
        problems.add(place, "is for the image tower and the model has none; remove it")
    for i, optimizer in enumerate(train.optimizer_config):
        place = f"train_config.optimizer_config[{i}]"
        kind = optimizer.WhichOneof("optimizer")
        if kind is None:
            problems.add(place, "names no optimizer; choose adam_optimizer, adagrad_optimizer, ...")
            continue
        check_learning_rate(getattr(optimizer, kind).learning_rate, f"{place}.{kind}.learning_rate", problems)
        for j, pattern in enumerate(optimizer.variables):
            _check_pattern(pattern, f"{place}.variables[{j}]", problems)
        if optimizer.use_moving_average and not 0 < optimizer.moving_average_decay < 1:
            problems.add(f"{place}.moving_average_decay", f"{optimizer.moving_average_decay:g} is not between 0 and 1")
    if len({(o.use_moving_average, o.moving_average_decay) for o in train.optimizer_config}) > 1:
        problems.add("train_config.optimizer_config", "use_moving_average differs; the average is of the whole model")
    if not (train.num_steps or train.num_epochs or data.num_epochs):
        check_ends(train, problems)
    for i, pattern in enumerate(train.freeze_gradient):
        _check_pattern(pattern, f"train_config.freeze_gradient[{i}]", problems)
    if not train.sync_replicas:
        problems.add("train_config.sync_replicas", "false is not supported: training is synchronous; remove it")


def _check_pattern(pattern: str, place: str, problems: Problems) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        problems.add(place, f"'{pattern}' is no regular expression: {error}")


def _check_export(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    export, image = config.export_config, schema.image
    if not export.multi_placeholder:
        problems.add("export_config.multi_placeholder", "false is not supported: inputs are named by field; remove it")
    check_best(config, evaluation_metrics(config, schema), problems)
    if not image.field:
        for name in ("img_input_name", "img_shape"):
            if export.HasField(name):
                problems.add(f"export_config.{name}", "has no effect: there is no ImgFeature; add one or remove this")
        return
    if export.HasField("img_input_name") and export.img_input_name != image.field:
        problems.unknown("export_config.img_input_name", "image field", export.img_input_name, [image.field])
    if export.HasField("img_shape"):
        shape = export.img_shape
        wanted = (image.width, image.height, image.channels)
        if (shape.width, shape.height, shape.channel) != wanted:
            problems.add(
                "export_config.img_shape",
                f"{shape.width} x {shape.height} x {shape.channel}, but the ImgFeature has "
                f"{wanted[0]} x {wanted[1]} x {wanted[2]}; make them equal",
            )
