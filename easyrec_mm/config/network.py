"""Checks `model_config`: the parts of the network, its towers and their relations. Never imports TensorFlow."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter

from google.protobuf.message import Message

from easyrec_mm.config.evaluation import check_metrics
from easyrec_mm.config.feature_groups import NO_IMAGE_GROUP
from easyrec_mm.config.image import check_image_tower
from easyrec_mm.config.item import check_contents_and_fusion
from easyrec_mm.config.pretraining import is_pretraining
from easyrec_mm.errors import Problems
from easyrec_mm.protos.model_pb2 import DNN, BayesTaskTower, SeqAttGroupConfig
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema

ACTIVATION_NAMES = (
    "relu", "gelu", "selu", "elu", "leaky_relu", "tanh", "sigmoid", "swish", "softplus", "linear",
)  # fmt: skip
# Names under which the parts of the loss other than those of the towers are logged.
REGULARIZATION_LOSSES = ("embedding_regularization", "l2_regularization")


def activation_name(name: str) -> str:
    """Return Keras's name of an activation that may be written as TensorFlow's: "tf.nn.relu" -> "relu"."""
    return re.sub(r"^(tf\.)?(nn\.|math\.|keras\.activations\.)?", "", name.strip()).lower() or "linear"


def relation_order(towers: list[BayesTaskTower]) -> list[int]:
    """Return the indices of the towers in an order in which each follows the towers of its relation_tower_names.

    Raises:
      CycleError: if the relations form a cycle.
    """
    index = {tower.tower_name: i for i, tower in enumerate(towers)}
    graph = {i: [index[name] for name in tower.relation_tower_names] for i, tower in enumerate(towers)}
    return list(TopologicalSorter(graph).static_order())


def check_network(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    """Add every problem of model_config."""
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
    if not network.task_towers and not is_pretraining(config):
        problems.add(f"{place}.task_towers", "is empty; the model needs a task")
    _check_towers(list(network.task_towers), schema, problems)


def _check_image_part(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    network = config.model_config.e2e_mm_dbmtl
    place = "model_config.e2e_mm_dbmtl"
    check_contents_and_fusion(network, schema, problems)
    if not schema.uses_image:
        of_items = () if schema.has_item_vector else ("image_fusion",)
        for name in ("img_model", "img_dnn", "highway_dnn", *of_items):
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
        problems.add(
            f"{place}.seq_dnn.hidden_units",
            f"{units} ends in {units[-1]}; the last layer is the score and must have 1 unit; append 1",
        )


def _check_dnn(parent: Message, name: str, place: str, problems: Problems) -> None:
    if not parent.HasField(name):
        return
    dnn: DNN = getattr(parent, name)
    place = f"{place}.{name}"
    if not dnn.hidden_units:
        problems.add(f"{place}.hidden_units", "is empty; give the units of each layer, or remove this network")
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
            problems.add(f"{place}.tower_name", f"'{tower.tower_name}' is not a valid name; use letters, digits and _")
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
            problems.add(place, f"relation_tower_names form a cycle: {cycle}; remove one of them")


def _check_indicator(tower: BayesTaskTower, place: str, schema: Schema, problems: Problems) -> None:
    indicator = tower.task_space_indicator_label
    if indicator and indicator not in schema.labels:
        problems.unknown(f"{place}.task_space_indicator_label", "label", indicator, schema.labels)
