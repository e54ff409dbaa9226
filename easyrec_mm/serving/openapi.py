"""Describes the server's REST interface for the model that it serves: an OpenAPI document."""

from __future__ import annotations

from typing import Any

from easyrec_mm import __version__
from easyrec_mm.features.field import LARGEST_NUMBER, Dtype
from easyrec_mm.manifest import IMAGE_TEXT, IMAGE_VECTOR, VECTOR, Manifest
from easyrec_mm.serving.protocols import VECTOR_SOURCE
from easyrec_mm.serving.release import Release, Source
from easyrec_mm.serving.request import RequestReader
from easyrec_mm.serving.tensors import BINARY_SIZE, DATATYPES, input_tensors, output_tensors

Json = dict[str, Any]
_LIST: Json = {"type": "array", "description": "its values, joined by the separator of the feature"}
# Without float32, whose limits depend on the field.
_TYPES: dict[Dtype, list[Json]] = {
    "string": [{"type": "string"}, _LIST],
    "int64": [{"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}],
    "bool": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}],
}
_NUMBER_OR_NUMBERS = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]}
_MODEL: Json = {
    "type": "object",
    "description": "what computed the answer",
    "properties": {name: {"type": "string"} for name in ("checkpoint", "image_tower")}
    | {name: {"type": "integer"} for name in ("step", "generation")},
}
_PART = {"$ref": "#/components/schemas/Part"}
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_ERRORS = {
    "400": "The request is invalid; the message names the instance and the field.",
    "401": "The token is missing or wrong, if the server was started with tokens.",
    "408": "The request arrives too slowly.",
    "413": "The body is larger than --max_request_bytes, also after decompression.",
    "415": "The body is compressed otherwise than with gzip.",
    "431": "The head of the request is too large.",
    "500": "A fault of the server; its log has more.",
    "503": "The request cannot be answered now.",
}


def document(release: Release, model_name: str) -> Json:
    """Return the OpenAPI document of the routes, with the fields and outputs of a release."""
    manifest, reader = release.predictor.manifest, release.reader
    model = f"/models/{model_name}"
    return {
        "openapi": "3.1.0",
        "info": {"title": "easyrec-mm", "version": __version__, "description": f"The rec model {manifest.checkpoint}"},
        "paths": {
            f"/v1{model}:predict": {"post": _post("Predict, V1", _body_v1(manifest, reader), _answer_v1(manifest))},
            f"/v2{model}/infer": {"post": _post("Predict, V2", _body_v2(manifest, reader), _answer_v2(manifest))},
            "/": {"get": _get("Whether the server lives", {"status": {"type": "string"}})},
            "/metrics": {"get": _get("Metrics for Prometheus")},
            "/v1/models": {"get": _get("The models", {"models": _texts()})},
            f"/v1{model}": {"get": _get("Whether the model is ready", {"name": {"type": "string"}, "ready": {}})},
            "/v2": {"get": _get("The server", {"name": {"type": "string"}, "extensions": _texts()})},
            "/v2/health/live": {"get": _get("Whether the server lives", {"live": {"type": "boolean"}})},
            "/v2/health/ready": {"get": _get("Whether the server is ready", {"ready": {"type": "boolean"}})},
            "/v2/models": {"get": _get("The models", {"models": _texts()})},
            f"/v2{model}": {"get": _get("Inputs and outputs", {"inputs": {"type": "array"}, "outputs": {}})},
            f"/v2{model}/ready": {"get": _get("Whether the model is ready", {"ready": {"type": "boolean"}})},
        },
        "components": {
            "schemas": {
                "Error": _ERROR,
                "Model": _MODEL,
                "Candidate": _candidate(manifest, reader),
                "Part": {
                    "type": "object",
                    "description": "a candidate, or what several share",
                    "properties": _properties(manifest, reader),
                    "additionalProperties": False,
                },
            }
        },
    }


def _texts() -> Json:
    return {"type": "array", "items": {"type": "string"}}


def _get(summary: str, properties: Json | None = None) -> Json:
    content = {"application/json": {"schema": {"type": "object", "properties": properties}}} if properties else {}
    answer = {"description": summary, "content": content or {"text/plain": {"schema": {"type": "string"}}}}
    errors = {status: _error(status) for status in ("401", "503")}
    return {"summary": summary, "responses": {"200": answer, **errors}}


def _post(summary: str, body: Json, answer: Json) -> Json:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "The predictions", "content": {"application/json": {"schema": answer}}},
            **{status: _error(status) for status in _ERRORS},
        },
    }


def _error(status: str) -> Json:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": _ERRORS[status], "content": {"application/json": {"schema": schema}}}


def _properties(manifest: Manifest, reader: RequestReader) -> Json:
    """Return the schemas of what a candidate may have, by name."""
    schema = manifest.schema
    patterns = schema.text_patterns()
    properties: Json = {name: {} for name in sorted(reader.known_names)}
    for name in schema.request_fields():
        field = schema.field(name)
        is_number = field.dtype == "float32"
        choices = [_number(schema.largest_number(name)[0])] if is_number else list(_TYPES[field.dtype])
        choices += [{"type": "null"}] if field.optional else []
        if field.dtype == "string" and name in patterns:
            choices[0] = {**choices[0], "pattern": f"^(?:{patterns[name][0]})?$"}
        properties[name] = {"anyOf": choices}
    types = sorted("string" if kind is str else "integer" for kind in reader.key_types)
    for name in reader.content_fields:
        text = "a content of the item, of which its vector is computed if the store has none"
        properties[name] = {"anyOf": [*_TYPES["string"], {"type": "null"}], "description": text}
    of_what = "item" if schema.contents else "picture"
    properties[reader.key_field] = {
        "type": types,
        "description": f"the key of the {of_what}, unless {IMAGE_TEXT} is given",
    }
    width = manifest.image_width
    numbers = {"type": "array", "items": _number(LARGEST_NUMBER), "minItems": width, "maxItems": width}
    properties[IMAGE_TEXT] = {"anyOf": [numbers, {"type": "string", "pattern": f"^[^,]+(?:,[^,]+){{{width - 1}}}$"}]}
    return properties


def _number(largest: float) -> Json:
    return {"type": "number", "minimum": -largest, "maximum": largest}


def _candidate(manifest: Manifest, reader: RequestReader) -> Json:
    """Return the schema of a candidate that shares nothing with others."""
    schema = manifest.schema
    needed = [name for name in schema.request_fields() if not schema.field(name).optional]
    candidate: Json = {
        "type": "object",
        "properties": _properties(manifest, reader),
        "required": needed,
        "additionalProperties": False,
    }
    if not reader.key_optional:
        candidate["anyOf"] = [{"required": [reader.key_field]}, {"required": [IMAGE_TEXT]}]
    return candidate


def _body_v1(manifest: Manifest, reader: RequestReader) -> Json:
    def body(candidate: str, needed: list[str], **more: Json) -> Json:
        items = {"$ref": f"#/components/schemas/{candidate}"}
        instances = {"type": "array", "items": items, "minItems": 1, "maxItems": reader.limits.max_instances}
        properties = {"instances": instances, **more}
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}

    shared = {**_PART, "description": "values that all candidates have, each in place of one in all instances"}
    return {"anyOf": [body("Candidate", ["instances"]), body("Part", ["instances", "shared"], shared=shared)]}


def _answer_v1(manifest: Manifest) -> Json:
    outputs: Json = dict.fromkeys(manifest.signatures[VECTOR]["outputs"], _NUMBER_OR_NUMBERS)
    outputs[VECTOR_SOURCE] = {"type": "string", "enum": [source.name.lower() for source in Source]}
    prediction = {"type": "object", "properties": outputs, "required": sorted(outputs)}
    properties = {
        "predictions": {"type": "array", "items": prediction},
        "model": {"$ref": "#/components/schemas/Model"},
    }
    return {"type": "object", "properties": properties, "required": ["predictions", "model"]}


def _body_v2(manifest: Manifest, reader: RequestReader) -> Json:
    names = [tensor["name"] for tensor in input_tensors(manifest, reader.key_field, reader.content_fields)]
    properties: Json = {
        "name": {"type": "string", "enum": [*names, IMAGE_VECTOR]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": sorted({*DATATYPES.values(), "FP64", "INT8", "INT16"})},
        "data": {"type": "array", "description": f"or bytes after the JSON, of the size {BINARY_SIZE}"},
        "parameters": {"type": "object"},
    }
    tensor = {"type": "object", "properties": properties, "required": ["name", "shape", "datatype"]}
    names_of_outputs = [output["name"] for output in output_tensors(manifest)]
    output = {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": names_of_outputs}},
        "required": ["name"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {"type": "array", "items": output, "description": "the outputs to return; all if left out"},
            "parameters": {"type": "object"},
        },
        "required": ["inputs"],
    }


def _answer_v2(manifest: Manifest) -> Json:
    properties: Json = {
        "name": {"type": "string", "enum": [output["name"] for output in output_tensors(manifest)]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "data": {"type": "array"},
    }
    output = {"type": "object", "properties": properties, "required": ["name", "shape", "datatype"]}
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "outputs": {"type": "array", "items": output},
            "parameters": {"$ref": "#/components/schemas/Model"},
        },
        "required": ["model_name", "outputs"],
    }
