"""What a JSON body may cost: its values are counted before it is parsed, and its first unknown field ends it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from onbrand.api.input import place_of
from onbrand.errors import InvalidInput, TooLarge

_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[,:\[\]{}]', re.DOTALL)
"""Texts, the last perhaps without its end, and marks: possessive, and never in vain, so that it takes linear time."""


NAME_BYTES = 800
"""A name in a JSON text, as it is written there."""


def must_be_few_values(text: bytes, most: int, levels_max: int, param: str = "body") -> None:
    """Raise TooLarge for more than `most` names and values, deeper nesting or a name of more than NAME_BYTES;
    InvalidInput for what is not UTF-8.

    Counts commas, colons and opening brackets outside texts, and texts, and ends with the first that is too many.

    Args:
        param: what is counted, for the error: the body, or a field of a form.
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
    """A form's field as JSON, counted first as a body is. Raises TooLarge, and InvalidInput for what is not JSON."""
    must_be_few_values(text.encode("utf-8", "surrogatepass"), most, levels_max, param)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{param} is not valid JSON", param=param) from None


def must_have_known_fields(kind: Any, sent: Any) -> None:
    """Raise InvalidInput that names the first field, at any level, that `kind` does not have.

    pydantic would look for all of them and describe each, which takes a second where there are 90,000.
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
    """The one model that an annotation such as ``tuple[Model, ...] | None`` speaks of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    found = (_model_in(part) for part in get_args(kind))
    return next((model for model in found if model is not None), None)
