"""Builds requests to an engine from keywords."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from onbrand.engine.request import Request
from onbrand.internal.generation import GenerationParameters

_OF_ENGINE = {each.name for each in fields(Request)}


def engine_request(id: str, brand_id: str, prompt: str, seed: int, **more: Any) -> Request:
    """A request; `more` are fields of `Request` and of `GenerationParameters`."""
    own = {name: value for name, value in more.items() if name in _OF_ENGINE}
    others = {name: value for name, value in more.items() if name not in _OF_ENGINE}
    return Request(id, brand_id, GenerationParameters(prompt=prompt, seed=seed, **others), **own)
