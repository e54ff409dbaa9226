"""Manifests of a training on several workers for Kubernetes: an Indexed Job, or a TFJob of Kubeflow.

A training goes on only if all workers run. When one is lost, the others end, and all are started again: what is written
here about restarts has this one purpose. docs/scaling.md describes it; the tests of the manifests hold the API's rules.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import yaml

from easyrec_mm.exit_status import LOST_WORKER
from easyrec_mm.safe_text import printable

Document = dict[str, Any]

# `kubectl apply` keeps each object, as JSON, in an annotation of it. Annotations may have 256 KiB, and kubectl adds the
# namespace to the object.
MOST_ANNOTATION_BYTES = (1 << 18) - (1 << 10)
# Linux starts no command with a longer argument, such as the one with TF_CONFIG.
MOST_ARGUMENT_BYTES = 1 << 17

PORT = 2222
# Where a config from a ConfigMap lies.
CONFIG_FOLDER, CONFIG_FILE = "/etc/easyrec-mm", "pipeline.config"
# The user of the image, see Dockerfile.
_USER = 1000
# TensorFlow counts the cores of the machine, not those that a container may use.
_NUM_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
# Time to finish a step and to write a checkpoint after SIGTERM.
_GRACE_S = 300
_INVALID_FLAGS, _CANNOT_BE_RUN, _NOT_FOUND, _AFTER_SIGTERM = 2, 126, 127, 143


@dataclass(frozen=True)
class Training:
    """A training to be started.

    name             of all that belongs to it
    image            with easyrec-mm installed
    workers          their number
    arguments        what follows easyrec-mm in the containers
    config           text for CONFIG_FILE in CONFIG_FOLDER; None if the containers find their config elsewhere
    gpus             of each worker, which has a process and a port for each
    cpu              cores of each worker, as Kubernetes writes them; None for any
    memory           of each worker, as Kubernetes writes it; None for any
    claims           persistent volume claims: folder in the containers -> name; the first is the working folder
    secret           Secret whose entries become environment variables
    service_account  of the workers; None for the default one
    max_restarts     how often the training is started again after failures
    """

    name: str
    image: str
    workers: int
    arguments: tuple[str, ...]
    config: str | None = None
    gpus: int = 0
    cpu: str | None = None
    memory: str | None = None
    claims: tuple[tuple[str, str], ...] = ()
    secret: str | None = None
    service_account: str | None = None
    max_restarts: int = 10


def job_documents(training: Training) -> list[Document]:
    """Return a Service without an address, which gives the workers names, and an Indexed Job of the workers."""
    labels, ports = _labels(training), _ports(training, "workers")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": training.name, "labels": labels},
        "spec": {
            "clusterIP": "None",
            # A worker is ready when it has met the others, for which it needs their names.
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": port["name"], "port": port["containerPort"]} for port in ports],
        },
    }
    container = _container(training, "train", ["sh", "-c", _script(training), "sh"], ports)
    pod = {"subdomain": training.name, "restartPolicy": "Never", **_pod(training, container)}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": training.name, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": training.workers,
            "parallelism": training.workers,
            # The first worker writes the results: when it has ended well, the training is done.
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            # Each worker counts its own failures, not those of the others, see _failure_rules.
            "backoffLimitPerIndex": training.max_restarts,
            "maxFailedIndexes": 0,
            # Never two workers with one number.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    return [*_config_map(training), service, job]


def tfjob_documents(training: Training) -> list[Document]:
    """Return a TFJob; its operator gives the workers their names and TF_CONFIG."""
    labels = _labels(training)
    # The operator knows container and port by these names.
    ports = _ports(training, "tfjob-port")
    container = _container(training, "tensorflow", ["easyrec-mm"], ports)
    template = {"metadata": {"labels": labels}, "spec": _pod(training, container)}
    # Not ExitCode: that restarts only after statuses above 127, which that of a lost worker is not.
    workers = {"replicas": training.workers, "restartPolicy": "OnFailure", "template": template}
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": training.name, "labels": labels},
        "spec": {
            # The operator adds up the restarts of all workers.
            "runPolicy": {"backoffLimit": training.max_restarts * training.workers, "cleanPodPolicy": "Running"},
            "tfReplicaSpecs": {"Worker": workers},
        },
    }
    return [*_config_map(training), job]


# Kind -> its documents, and what its workers are called beside their number.
KINDS = {"job": (job_documents, "{name}-{number}"), "tfjob": (tfjob_documents, "{name}-worker-{number}")}


def to_yaml(documents: list[Document]) -> str:
    """Return documents as YAML that a console does not change."""
    text, escaped = (
        yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1 << 20, allow_unicode=allowed)
        for allowed in (True, False)
    )
    return str(text if printable(text) == text else escaped)


def num_annotation_bytes(document: Document) -> int:
    """Return the size of a document in the annotation in which `kubectl apply` keeps it."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    # As Go writes JSON.
    return len(text.encode()) + sum(5 * text.count(sign) for sign in "<>&")


def _ports(training: Training, name: str) -> list[Document]:
    """Return the ports of the processes of a worker; the first has this name."""
    numbers = range(max(training.gpus, 1))
    return [{"name": f"{name}-{i}" if i else name, "containerPort": PORT + i} for i in numbers]


def _labels(training: Training) -> dict[str, str]:
    return {"app": "easyrec-mm-train", "training": training.name}


def _script(training: Training) -> str:
    """Return a shell script that sets TF_CONFIG for the number of the worker, and becomes easyrec-mm.

    It becomes that program, so that SIGTERM reaches it.
    """
    workers = [f"{training.name}-{number}.{training.name}:{PORT}" for number in range(training.workers)]
    before, after = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": 0}}).rsplit("0", 1)
    return f"""export TF_CONFIG='{before}'"$JOB_COMPLETION_INDEX"'{after}'\nexec easyrec-mm "$@"\n"""


def _failure_rules() -> list[Document]:
    """Return what failures of workers mean; the first rule that fits a failure counts, and all others are retried."""
    status = {"containerName": "train", "operator": "In"}
    return [
        # Nothing that a restart changes.
        {"action": "FailJob", "onExitCodes": {**status, "values": [_INVALID_FLAGS, _CANNOT_BE_RUN, _NOT_FOUND]}},
        # A node was emptied, and all workers have written a checkpoint and ended. This does not count as a failure.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        # These workers ended because another one was lost, and only the failure of that one counts.
        {"action": "Ignore", "onExitCodes": {**status, "values": [LOST_WORKER, _AFTER_SIGTERM]}},
    ]


def _container(training: Training, name: str, command: list[str], ports: list[Document]) -> Document:
    mounts: list[Document] = [
        {"name": f"claim-{i}", "mountPath": folder} for i, (folder, _) in enumerate(training.claims)
    ]
    if training.config is not None:
        mounts.append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
    container: Document = {
        "name": name,
        "image": training.image,
        "command": command,
        # Kubernetes reads $(NAME) as the value of a variable, and $$ as $.
        "args": [argument.replace("$", "$$") for argument in training.arguments],
        "ports": ports,
    }
    if training.claims:
        container["workingDir"] = training.claims[0][0]
    if training.cpu:
        threads = [
            {"name": name, "value": str(_cores_of_process(training.cpu, training.gpus))} for name in _NUM_THREADS
        ]
        container["env"] = threads
    if training.secret:
        container["envFrom"] = [{"secretRef": {"name": training.secret}}]
    sizes = {
        "cpu": training.cpu,
        "memory": training.memory,
        "nvidia.com/gpu": str(training.gpus) if training.gpus else None,
    }
    if amounts := {name: amount for name, amount in sizes.items() if amount}:
        container["resources"] = {"requests": amounts, "limits": amounts}
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if mounts:
        container["volumeMounts"] = mounts
    return container


def _cores_of_process(cpu: str, gpus: int) -> int:
    """Return the cores of each process of a container, rounded up."""
    cores = float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
    return math.ceil(cores / max(gpus, 1))


def _pod(training: Training, container: Document) -> Document:
    volumes: list[Document] = [
        {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": name}}
        for i, (_, name) in enumerate(training.claims)
    ]
    if training.config is not None:
        volumes.append({"name": "config", "configMap": {"name": f"{training.name}-config"}})
    pod: Document = {
        "terminationGracePeriodSeconds": _GRACE_S,
        # Else the program is the first process of its container, which SIGTERM does not end before training begins.
        "shareProcessNamespace": True,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if training.service_account:
        pod["serviceAccountName"] = training.service_account
    else:
        pod["automountServiceAccountToken"] = False
    if volumes:
        pod["volumes"] = volumes
    return pod


def _config_map(training: Training) -> list[Document]:
    if training.config is None:
        return []
    metadata = {"name": f"{training.name}-config", "labels": _labels(training)}
    return [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {CONFIG_FILE: training.config}}]


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and everything in full where it occurs."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
