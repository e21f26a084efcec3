"""What bodies may be: JSON objects of known fields, and text that a database and a log can hold."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from onbrand.errors import InvalidInput

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL and half surrogates: no text of ours has them, and PostgreSQL refuses them."""


class Input(BaseModel):
    """A body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def must_be_storable(value: Any, place: str) -> None:
    """Raise InvalidInput naming the place in `value` that holds such a character."""
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise InvalidInput(f"{place} holds a character that text cannot have", param=place)
    elif isinstance(value, dict):
        for name, inner in value.items():
            must_be_storable(name, place)
            must_be_storable(inner, name if place == "body" else f"{place}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            must_be_storable(inner, f"{place}.{index}")
