"""Hostile files, made when they are asked for: each with where it is sent, and the reason that must be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Door = Literal["assets", "documents", "publish"]


@dataclass(frozen=True)
class Hostile:
    """One file.

    Args:
        name: what is hostile about it; unique.
        door: which route it is sent to.
        why: a pattern that the answer's reason must match.
        statuses: which of the 4xx it may be.
    """

    name: str
    door: Door
    filename: str
    make: Callable[[], bytes]
    why: str
    statuses: tuple[int, ...] = (413, 415, 422)


def corpus() -> list[Hostile]:
    """All of them."""
    from tests.isolation.hostile import archives, papers, pictures, weights

    return [*pictures.hostile(), *archives.hostile(), *papers.hostile(), *weights.hostile()]
