"""Previews on their way to a member who watches: kept in memory, the newest of each picture, until it is drawn.

Whose generation it is, and who asks, is decided by the route that reads its row first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from onbrand.services.images import Generation, Generator, RenderEvent

log = logging.getLogger(__name__)

ASK_AGAIN_SECONDS = 2.0
"""After no replica was found to draw a generation, or the one that did is gone."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture of what is being drawn; `serial` grows from one to the next in this process."""

    serial: int
    data: Mapping[str, Any] = field(repr=False)


class Previews:
    """The newest preview of each picture of one generation that is not drawn yet.

    Args:
        serials: counts all previews of this process.
    """

    def __init__(self, serials: Iterator[int]) -> None:
        self._serials = serials
        self._newest: dict[int, Preview] = {}

    def take(self, event: RenderEvent) -> None:
        """Remember a preview, or forget those of a picture that is drawn; other events change nothing."""
        if event.kind == "preview":
            self._newest[int(event.data["index"])] = Preview(next(self._serials), event.data)
        elif event.kind == "image":
            self._newest.pop(int(event.data["index"]), None)

    def after(self, serial: int) -> list[Preview]:
        """Those after a serial number, in their order."""
        return sorted((each for each in self._newest.values() if each.serial > serial), key=lambda each: each.serial)


class Viewer:
    """What one open stream has shown of a generation's previews, wherever it is drawn.

    An ingress that does not have it drawn itself listens to the replica that draws, for as long as the stream is open.

    Args:
        here: the previews of a generation that this process has drawn; None for any other.
    """

    def __init__(self, generator: Generator, here: Callable[[str], Previews | None], serials: Iterator[int]) -> None:
        self._generator, self._here = generator, here
        self._afar = Previews(serials)
        self._listening: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._shown = 0

    def news(self, generation: Generation) -> list[Preview]:
        """Previews that were not shown yet, of a generation whose row the stream's member may see."""
        previews = self._here(generation.id)
        if previews is None:
            self._listen(generation)
            previews = self._afar
        found = previews.after(self._shown)
        self._shown = found[-1].serial if found else self._shown
        return found

    async def close(self) -> None:
        """The stream is closed."""
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening

    def _listen(self, generation: Generation) -> None:
        is_listening = self._listening is not None and not self._listening.done()
        if is_listening or not generation.preview_every or generation.status != "running":
            return
        if time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + ASK_AGAIN_SECONDS
            self._listening = asyncio.create_task(self._hear(generation))

    async def _hear(self, generation: Generation) -> None:
        who = generation.brand_id, generation.user_id
        try:
            async for event in self._generator.watch(generation.model_type, generation.id, *who):
                self._afar.take(event)
        except Exception as problem:
            log.info("generation %s: no previews are heard (%s)", generation.id, type(problem).__name__)


def serials() -> Iterator[int]:
    """Numbers for the previews of one process."""
    return itertools.count(1)
