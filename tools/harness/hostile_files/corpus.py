"""The corpus of hostile files. Each is made on demand, with its route and the expected reason of the refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FileRoute = Literal["assets", "documents", "publish"]


@dataclass(frozen=True)
class Hostile:
    """One file.

    Args:
        name: what is hostile about it; unique.
        route: which route it is sent to.
        why: a pattern that the answer's reason must match.
        statuses: which of the 4xx it may be.
    """

    name: str
    route: FileRoute
    filename: str
    make: Callable[[], bytes]
    why: str
    statuses: tuple[int, ...] = (413, 415, 422)


def corpus() -> list[Hostile]:
    """All hostile files."""
    from tools.harness.hostile_files import archives, documents, pictures, weights

    return [*pictures.hostile(), *archives.hostile(), *documents.hostile(), *weights.hostile()]
