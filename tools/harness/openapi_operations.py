"""The routes in an app's OpenAPI description, each with a valid request body. New routes are included automatically."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")
_TEXTS = {"email": "nobody@example.com", "uuid": "00000000-0000-4000-8000-000000000000"}
_FILE = "a file"
_FORMATS = {"binary": _FILE, "date-time": "2030-01-01T00:00:00Z", "uri": "https://example.com"} | _TEXTS
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAALUlEQVR4nGPkOiHHQEvARFPTRy0YtWDUglELRi0YtWDUglELRi0Y"
    "tWDUAioCAOzgATAQYJYJAAAAAElFTkSuQmCC"
)
"""A PNG of 32 by 32 pixels, for forms with a file."""


@dataclass(frozen=True)
class Operation:
    """A method and path, the parameters in the path, and a valid body (None: no body)."""

    method: str
    path: str
    names: tuple[str, ...]
    content_type: str | None = None
    body: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def at(self, values: Mapping[str, str]) -> str:
        """The path with a value for each parameter."""
        return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], self.path)

    def content(self, body: Any = None) -> dict[str, Any]:
        """Content arguments of an httpx request, with `body` or the generated body."""
        if self.content_type is None:
            return {}
        sent = self.body if body is None else body
        if self.content_type == "multipart/form-data":
            files = {name: ("a.png", PICTURE, "image/png") for name, value in sent.items() if value in (_FILE, [_FILE])}
            return {"files": files, "data": {name: value for name, value in sent.items() if name not in files}}
        if self.content_type == "application/json":
            return {"json": sent}
        return {"content": PICTURE, "headers": {"content-type": self.content_type}}


def operations(description: Mapping[str, Any]) -> list[Operation]:
    """Every method of every path, in the order of the description."""
    return [
        _operation(description, path, method, said)
        for path, methods in description["paths"].items()
        for method, said in methods.items()
        if method in _METHODS
    ]


def _operation(description: Mapping[str, Any], path: str, method: str, said: Mapping[str, Any]) -> Operation:
    names = tuple(re.findall(r"\{(\w+)\}", path))
    kinds = said.get("requestBody", {}).get("content", {})
    if not kinds:
        return Operation(method.upper(), path, names)
    kind = "application/json" if "application/json" in kinds else next(iter(kinds))
    return Operation(method.upper(), path, names, kind, example(description, kinds[kind].get("schema", {})))


def example(description: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """A valid value for a schema: its const, default or example, else a minimal value (required properties only, first
    of several alternatives)."""
    schema = _resolved(description, schema)
    for fixed in ("const", "default", "example"):
        if fixed in schema:
            return schema[fixed]
    if "enum" in schema:
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return example(description, schema[choice][0])
    make = {
        "object": _example_of_object,
        "array": lambda d, s: [example(d, s.get("items", {}))] * max(1, s.get("minItems", 1)),
        "string": lambda d, s: _FORMATS.get(s.get("format", ""), "x" * max(1, s.get("minLength", 1))),
        "integer": lambda d, s: int(s.get("minimum", 1)),
        "number": lambda d, s: s.get("minimum", 1.0),
        "boolean": lambda d, s: False,
    }
    return make.get(schema.get("type", ""), lambda d, s: None)(description, schema)


def _example_of_object(description: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties", {})
    return {name: example(description, properties.get(name, {})) for name in schema.get("required", [])}


def _resolved(description: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        place: Any = description
        for part in schema["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        schema = place
    return schema
