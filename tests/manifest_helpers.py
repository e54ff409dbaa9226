"""Checks manifests for Kubernetes by the models of the API's clients, which are made from its schemas."""

from __future__ import annotations

import re
from functools import cache

import yaml

from easyrec_mm.cli import main as cli

BUCKET = "--set=model_dir=s3://bucket/m"
KINDS = {
    ("apps/v1", "Deployment"): "V1Deployment",
    ("batch/v1", "Job"): "V1Job",
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("v1", "Service"): "V1Service",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "V2HorizontalPodAutoscaler",
    ("kubeflow.org/v1", "TFJob"): "KubeflowOrgV1TFJob",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float)}


@cache
def model_of(kind):
    """The class of a kind, or None. Importing all of them takes seconds, and not every process checks a manifest."""
    import kserve
    import kubernetes.client.models as kubernetes
    from kubeflow.training import models as kubeflow

    return next((getattr(models, kind) for models in (kubernetes, kserve, kubeflow) if hasattr(models, kind)), None)


def problems_of(document, place):
    """What of a manifest does not fit the API: fields, types, and what is required."""
    return _problems(document, KINDS[document["apiVersion"], document["kind"]], place)


def _problems(value, kind, place):
    """What of a value does not fit a type of the API, whose models know their fields, types and what is required."""
    if match := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{place}: no list"]
        return [p for i, item in enumerate(value) for p in _problems(item, match[1], f"{place}[{i}]")]
    if match := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind):
        return [p for name, item in value.items() for p in _problems(item, match[1], f"{place}.{name}")]
    if kind == "object":  # a port by number or name
        return [] if isinstance(value, str | int) else [f"{place}: {value!r}"]
    if kind in SIMPLE:
        return [] if isinstance(value, SIMPLE[kind]) else [f"{place}: {value!r} is not a valid {kind}"]
    model = model_of(kind)
    if model is None:
        return [f"{place}: no type {kind}"]
    if not isinstance(value, dict):
        return [f"{place}: {value!r} is not a valid {kind}"]
    attributes = {json_name: name for name, json_name in model.attribute_map.items()}
    faults = [f"{place}.{name}: {kind} has no such field" for name in value if name not in attributes]
    known = {name: item for name, item in value.items() if name in attributes}
    try:
        model(**{attributes[name]: item for name, item in known.items()})
    except ValueError as error:
        faults.append(f"{place}: {error}")
    for name, item in known.items():
        faults += _problems(item, model.openapi_types[attributes[name]], f"{place}.{name}")
    return faults


def deployed(capsys, *arguments, workers=3, config="x.config", train=(BUCKET,)):
    """Run `deploy`; return its documents, which are valid, by kind."""
    command = ["deploy", f"--workers={workers}", "--image=registry.example.com/t:1", f"--pipeline_config={config}"]
    assert cli.main([*command, *arguments, "--", *train]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    for document in documents:
        assert problems_of(document, document["kind"]) == []
    return {document["kind"]: document for document in documents}


def pod_of(documents):
    if "Job" in documents:
        return documents["Job"]["spec"]["template"]
    return documents["TFJob"]["spec"]["tfReplicaSpecs"]["Worker"]["template"]


def container_of(documents):
    (container,) = pod_of(documents)["spec"]["containers"]
    return container
