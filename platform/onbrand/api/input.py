"""Validation of bodies: JSON objects of known fields, and text that a database and a log can store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from onbrand.errors import InvalidInput

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL and lone surrogates, which PostgreSQL refuses."""
PLACE_CHARS = 200
"""The most characters of a field's path in an error."""


class Input(BaseModel):
    """Base class of request bodies; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def must_be_storable(value: Any, place: str) -> None:
    """Raise InvalidInput with the path (at most PLACE_CHARS long) of a text in `value` with a NUL or lone surrogate."""
    names = _way_to_unstorable(value)
    if names is not None:
        where = place_of(names if names and place == "body" else (place, *names))
        raise InvalidInput(f"{where} holds a character that text cannot have", param=where)


def place_of(names: Sequence[str]) -> str:
    """The path ``more_models.0.model`` of a field, cut to PLACE_CHARS, since a caller's names may be long."""
    return ".".join(name[:PLACE_CHARS] for name in names)[:PLACE_CHARS]


def _way_to_unstorable(value: Any) -> tuple[str, ...] | None:
    """The names and indexes that lead to the first such character, or None."""
    if isinstance(value, str):
        return () if _UNSTORABLE.search(value) else None
    if isinstance(value, dict):
        if any(_UNSTORABLE.search(name) for name in value):
            return ()  # an error cannot contain such a name, so it names the object that has it
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    else:
        return None
    for name, each in inner:
        found = _way_to_unstorable(each)
        if found is not None:
            return (str(name), *found)
    return None
