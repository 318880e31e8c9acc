"""The OpenAPI 3.1 description, made from the route table and the message types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

import agentina
from agentina.control.api import routing
from agentina.protocol import jobs as protocol_jobs

_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "remedy", "context"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "remedy": {"type": "string"},
                "context": {"type": "object"},
                "request_id": {"type": "string"},
            },
        }
    },
}
_TYPES: Final = {int: "integer", float: "number", str: "string"}


def document(routes: Sequence[routing.Route]) -> dict[str, Any]:
    """The whole document."""
    typed = [kind for route in routes for kind in (route.request, route.answer) if kind not in {None, bytes, str}]
    schemas, components = msgspec.json.schema_components(typed, ref_template="#/components/schemas/{name}")
    references = {str(kind): schema for kind, schema in zip(typed, schemas, strict=True)}
    # What people may write (sizes as text) is wider than the struct.
    components = {**components, **_job_components(), "Error": _ERROR}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentina control plane", "version": agentina.__version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer"},
                "agent": {
                    "type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "Agentina <assertion>; see docs/reference/protocol.md",
                },
            },
        },
    }  # fmt: skip


def _job_components() -> dict[str, Any]:
    """The definitions of the published job schema, pointing at each other where they are in this document."""
    definitions = msgspec.json.encode(protocol_jobs.schema()["$defs"])
    components: dict[str, Any] = msgspec.json.decode(definitions.replace(b'"#/$defs/', b'"#/components/schemas/'))
    return components


def _operation(route: routing.Route, references: dict[str, Any]) -> dict[str, Any]:
    failure = {"description": "An error of the catalogue", "content": {"application/json": {"schema": {
        "$ref": "#/components/schemas/Error"}}}}  # fmt: skip
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}_{route.path.strip('/').translate(_IDENTIFIER)}",
        "parameters": _parameters(route),
        "responses": {str(route.status): _answer(route, references), "4XX": failure, "5XX": failure},
    }
    if route.auth != "public":
        operation["security"] = [{"agent" if route.auth == "agent" else "operator": []}]
    if route.auth in {"viewer", "operator", "admin"}:
        operation["description"] = f"Needs the role {route.auth}."
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.request, references)}
    return operation


_IDENTIFIER: Final = str.maketrans({"/": "_", "{": "", "}": "", ":": "_", "-": "_"})


def _parameters(route: routing.Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in route.parameters
    ]
    for query in route.query:
        schema: dict[str, Any] = {"type": _TYPES[query.kind]}
        if query.kind is not str:
            schema |= {"minimum": query.minimum, "maximum": query.maximum}
        if query.default is not None:
            schema["default"] = query.default
        parameters.append({"name": query.name, "in": "query", "required": query.required, "schema": schema})
    return parameters


def _answer(route: routing.Route, references: dict[str, Any]) -> dict[str, Any]:
    if route.answer is None:
        return {"description": "Done"}
    return {"description": "The answer", "content": _content(route.answer, references)}


def _content(kind: Any, references: dict[str, Any]) -> dict[str, Any]:
    if kind is bytes:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if kind is str:
        return {"text/plain": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": references[str(kind)]}}
