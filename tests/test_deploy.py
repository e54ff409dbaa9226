"""The manifests in configs/deploy: valid by the API's schema, with commands that the command line takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from manifest_helpers import problems_of

from easyrec_mm.cli import main as cli

FOLDER = Path(__file__).parents[1] / "configs" / "deploy"


def documents():
    paths = sorted(FOLDER.glob("*.yaml"))
    return [(path.name, document) for path in paths for document in yaml.safe_load_all(path.read_text())]


@pytest.mark.parametrize(("file", "document"), documents())
def test_a_manifest_is_valid(file, document):
    assert problems_of(document, file) == []


def test_what_is_wrong_is_found():
    document = next(document for _, document in documents() if document["kind"] == "Deployment")
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["prots"] = container.pop("ports")
    container["args"] = "--x"
    del document["spec"]["selector"]
    report = "\n".join(problems_of(document, "x"))
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
