"""Limits the cost of a JSON body: counts its values before parsing, and refuses it at its first unknown field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from onbrand.api.input import place_of
from onbrand.errors import InvalidInput, TooLarge

_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[,:\[\]{}]', re.DOTALL)
"""Strings (the last may be unterminated) and punctuation. Possessive quantifiers, so matching takes linear time."""
NAME_BYTES = 800
"""The most bytes of a name in JSON text, as written (with escapes)."""


def must_be_few_values(text: bytes, most: int, levels_max: int, param: str = "body") -> None:
    """Raise TooLarge for more than `most` names and values, nesting deeper than `levels_max` or a name of more than
    NAME_BYTES; InvalidInput for a NUL byte, as in UTF-16.

    Counts strings, and commas, colons and opening brackets outside strings; stops at the first excess.

    Args:
        param: the name for the error: ``body``, or a field of a form.
    """
    what = "the body" if param == "body" else param
    if b"\x00" in text:
        raise InvalidInput(f"{what} is not JSON in UTF-8", param=param)
    is_plain = sum(text.count(mark) for mark in (b",", b":", b"[", b"{")) <= min(most, levels_max)
    if is_plain and len(text) <= NAME_BYTES:
        return
    num_marks = num_texts = level = num_bytes = 0
    for found in _TOKENS.finditer(text):
        token = text[found.start() : found.start() + 1]
        num_texts += token == b'"'
        num_marks += token in b",:[{"
        level += (token in b"[{") - (token in b"]}")
        if max(num_marks, num_texts - 1) > most:
            raise TooLarge(f"{what} has more than {most} names and values", param=param)
        if level > levels_max:
            raise TooLarge(f"{what} is nested deeper than {levels_max} levels", param=param)
        if token == b":" and num_bytes > NAME_BYTES:
            raise TooLarge(f"{what} has a name of more than {NAME_BYTES} bytes", param=param)
        num_bytes = found.end() - found.start() - 2


def parsed(text: str, param: str, most: int, levels_max: int) -> Any:
    """Parse a form's field as JSON after `must_be_few_values`. Raises TooLarge, and InvalidInput for invalid JSON."""
    must_be_few_values(text.encode("utf-8", "surrogatepass"), most, levels_max, param)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{param} is not valid JSON", param=param) from None


def must_have_known_fields(kind: Any, sent: Any) -> None:
    """Raise InvalidInput naming the first field, at any level, that `kind` does not have.

    pydantic would describe every unknown field, which takes a second for 90,000 of them.
    """
    for place in _unknown(kind, sent, ()):
        param = place_of(place)
        raise InvalidInput(f"{param} is not a field of this input; leave it out", param=param)


def _unknown(kind: Any, sent: Any, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    model = _model_in(kind)
    if model is None or model.model_config.get("extra") != "forbid":
        return
    if isinstance(sent, list):
        for index, each in enumerate(sent):
            yield from _unknown(model, each, (*place, str(index)))
    elif isinstance(sent, dict):
        known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        for name, value in sent.items():
            if name not in known:
                yield (*place, name)
            else:
                yield from _unknown(known[name], value, (*place, name))


def _model_in(kind: Any) -> type[BaseModel] | None:
    """The first model in an annotation such as ``tuple[Model, ...] | None``, or None."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    found = (_model_in(part) for part in get_args(kind))
    return next((model for model in found if model is not None), None)
