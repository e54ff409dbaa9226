"""The manifests in configs/deploy: valid by the API's schema, with commands that the command line takes."""

from __future__ import annotations

import re
from pathlib import Path

import kserve
import kubernetes.client.models as kubernetes
import pytest
import yaml

from easyrec_mm.cli import main as cli

FOLDER = Path(__file__).parents[1] / "configs" / "deploy"
KINDS = {
    ("apps/v1", "Deployment"): "V1Deployment",
    ("v1", "Service"): "V1Service",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "V2HorizontalPodAutoscaler",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def documents():
    paths = sorted(FOLDER.glob("*.yaml"))
    return [(path.name, document) for path in paths for document in yaml.safe_load_all(path.read_text())]


def problems(value, kind, place):
    """What of a value does not fit a type of the API, whose models know their fields, types and what is required."""
    if match := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{place}: no list"]
        return [p for i, item in enumerate(value) for p in problems(item, match[1], f"{place}[{i}]")]
    if match := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind):
        return [p for name, item in value.items() for p in problems(item, match[1], f"{place}.{name}")]
    if kind == "object":  # a port by number or name
        return [] if isinstance(value, str | int) else [f"{place}: {value!r}"]
    if kind in SIMPLE:
        return [] if isinstance(value, SIMPLE[kind]) else [f"{place}: {value!r} is not a valid {kind}"]
    model = getattr(kubernetes, kind, None) or getattr(kserve, kind, None)
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
        faults += problems(item, model.openapi_types[attributes[name]], f"{place}.{name}")
    return faults


@pytest.mark.parametrize(("file", "document"), documents())
def test_a_manifest_is_valid(file, document):
    kind = KINDS[document["apiVersion"], document["kind"]]
    assert problems(document, kind, file) == []


def test_what_is_wrong_is_found():
    document = next(document for _, document in documents() if document["kind"] == "Deployment")
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["prots"] = container.pop("ports")
    container["args"] = "--x"
    del document["spec"]["selector"]
    report = "\n".join(problems(document, KINDS[document["apiVersion"], document["kind"]], "x"))
    for part in ("containers[0].prots: V1Container has no such field", "containers[0].args: no list", "selector"):
        assert part in report


def containers(document):
    spec = document.get("spec", {})
    spec = spec.get("predictor") or spec.get("template", {}).get("spec", {})
    return spec.get("containers", [])


def test_commands_are_known_and_probes_are_ports_of_theirs():
    commands = [c for _, document in documents() for c in containers(document)]
    assert len(commands) == 3
    for container in commands:
        ports = {port["containerPort"] for port in container["ports"]} | {port["name"] for port in container["ports"]}
        probes = [value for name, value in container.items() if name.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports
        if "command" in container:
            program, *arguments = [*container["command"], *container["args"]]
            assert program == "easyrec-mm"
            options = cli.make_parser().parse_args(arguments)
            assert options.workers == int(container["resources"]["limits"]["cpu"])
            assert options.http_port in ports
            assert options.host == "0.0.0.0"  # else only the container itself would reach it


def test_a_pod_waits_before_it_ends_and_has_time_to_end():
    found = 0
    for _, document in documents():
        spec = document.get("spec", {})
        pod = spec.get("predictor") or spec.get("template", {}).get("spec", {})
        for container in containers(document):
            if "command" in container:
                sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
                options = cli.make_parser().parse_args([container["command"][1], *container["args"]])
                assert pod["terminationGracePeriodSeconds"] >= sleep + options.drain_s + 5
                found += 1
    assert found == 2


def test_selectors_meet_labels():
    by_kind = {}
    for file, document in documents():
        by_kind.setdefault((file, document["kind"]), document)
    for (file, kind), document in by_kind.items():
        if kind == "Service":
            pods = by_kind[file, "Deployment"]["spec"]["template"]
            assert document["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
            names = {port["name"] for c in pods["spec"]["containers"] for port in c["ports"]}
            assert {port["targetPort"] for port in document["spec"]["ports"]} <= names
