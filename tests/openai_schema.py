"""Holds JSON to OpenAI's published schemas (``tests/data/openai``), and to nothing beside them.

The published schemas let every object have more fields. Here answers may have those alone that
``OURS`` names: what a client of OpenAI's does not know is said on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "openai" / "schemas.json").read_text()
)["components"]["schemas"]
OURS = {
    "ChatCompletionResponseMessage": ("reasoning_content", "reasoning"),
    "ChatCompletionStreamResponseDelta": ("reasoning_content", "reasoning"),
    "Model": ("max_model_len",),
}
"""Fields of ours: reasoning as DeepSeek and as vLLM name it, the context as vLLM does."""


def check(name: str, value: Any) -> None:
    """Hold a value to a schema, every object in it to the fields that the schema names.

    Raises:
        jsonschema.ValidationError: It is none of that.
    """
    _validator(name, _CLOSED).validate(value)


def check_request(name: str, value: Any) -> None:
    """Hold a request to a schema as it is published."""
    _validator(name, _AS_PUBLISHED).validate(value)


def fields(name: str) -> set[str]:
    """Return the names of a schema's properties, those of what it is composed of included."""
    if "$ref" in (schema := SCHEMAS[name]):
        return fields(schema["$ref"].rsplit("/", 1)[1])
    found = set(schema.get("properties", ()))
    for part in schema.get("allOf", ()):
        found |= set(part.get("properties", ()))
        if "$ref" in part:
            found |= fields(part["$ref"].rsplit("/", 1)[1])
    return found


def _validator(name: str, schemas: dict[str, Any]) -> jsonschema.Draft202012Validator:
    root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    return jsonschema.Draft202012Validator(root)


def _with_null(schema: Any) -> Any:
    """Return a schema in which OpenAPI 3.0's ``nullable`` is written as JSON Schema has it."""
    if isinstance(schema, list):
        return [_with_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _with_null(value) for key, value in schema.items() if key != "nullable"}
    if schema.get("nullable") is True:
        return {"anyOf": [found, {"type": "null"}]}
    return found


def _closed(schema: Any, more: tuple[str, ...] = ()) -> Any:
    """Return a schema whose objects have no fields but those it names, and some more."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        found["properties"] |= dict.fromkeys(more, True)
        found["additionalProperties"] = False
    return found


def _corrected(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas and one that is not published: of a streamed completion's chunk.

    OpenAI describes it as the whole reply, whose ``finish_reason`` is never null; its own server
    and its clients' examples have null in all chunks but the last.
    """
    choice = schemas["CreateCompletionResponse"]["properties"]["choices"]["items"]
    reason = choice["properties"]["finish_reason"]
    streamed = json.loads(json.dumps(schemas["CreateCompletionResponse"]))
    streamed["properties"]["choices"]["items"]["properties"]["finish_reason"] = {
        "anyOf": [reason, {"type": "null"}]
    }
    return {**schemas, "StreamedCompletionResponse": streamed}


_AS_PUBLISHED = _corrected(_with_null(SCHEMAS))
_CLOSED = {name: _closed(schema, OURS.get(name, ())) for name, schema in _AS_PUBLISHED.items()}
