"""What bodies may be: JSON objects of known fields, and text that a database and a log can hold."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from onbrand.errors import InvalidInput


class Input(BaseModel):
    """A body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


async def must_be_plain_text(request: Request) -> None:
    """Refuse NUL and half surrogates anywhere in a JSON body: no text of ours has them, and PostgreSQL refuses them."""
    is_file = request.url.path.startswith("/v1/files/")
    if is_file or not request.headers.get("content-type", "").startswith("application/json"):
        return
    try:
        sent = await request.json()
    except (ValueError, RecursionError):
        return  # the route says it better
    must_be_storable(sent, "body")


def must_be_storable(value: Any, place: str) -> None:
    """Raise InvalidInput naming the place in `value` that holds such a character."""
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise InvalidInput(f"{place} holds a character that text cannot have", param=place)
    elif isinstance(value, dict):
        for name, inner in value.items():
            must_be_storable(name, place)
            must_be_storable(inner, name if place == "body" else f"{place}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            must_be_storable(inner, f"{place}.{index}")
