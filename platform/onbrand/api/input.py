"""What bodies may be: JSON objects of known fields, and text that a database and a log can hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from onbrand.errors import InvalidInput

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL and half surrogates: no text of ours has them, and PostgreSQL refuses them."""


PLACE_CHARS = 200
"""So much of a place is said in an error."""


class Input(BaseModel):
    """A body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def must_be_storable(value: Any, place: str) -> None:
    """Raise InvalidInput naming the place in `value` that holds such a character, in at most PLACE_CHARS characters."""
    names = _way_to_unstorable(value)
    if names is not None:
        where = place_of(names if names and place == "body" else (place, *names))
        raise InvalidInput(f"{where} holds a character that text cannot have", param=where)


def place_of(names: Sequence[str]) -> str:
    """``more_models.0.model``, cut: names are a caller's, and may be long."""
    return ".".join(name[:PLACE_CHARS] for name in names)[:PLACE_CHARS]


def _way_to_unstorable(value: Any) -> tuple[str, ...] | None:
    """The names and indexes that lead to such a character, put together only where there is one."""
    if isinstance(value, str):
        return () if _UNSTORABLE.search(value) else None
    if isinstance(value, dict):
        if any(_UNSTORABLE.search(name) for name in value):
            return ()  # a name with such a character cannot be said; what it is a name in can
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
