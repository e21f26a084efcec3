"""Previews for open event streams: the newest preview of each image, kept in memory until the image is drawn.

No authorization here: the route reads the generation's row first and decides who may see previews.
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

from onbrand.internal.generation import Generator, RenderEvent
from onbrand.services.generations import Generation

log = logging.getLogger(__name__)

ASK_AGAIN_SECONDS = 2.0
"""Pause before asking again which replica draws a generation, if none was found or it is gone."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A small version of an unfinished image; `serial` increases over all previews of this process."""

    serial: int
    data: Mapping[str, Any] = field(repr=False)


class Previews:
    """The newest preview of each image of one generation that is not drawn yet.

    Args:
        serials: numbers for all previews of this process.
    """

    def __init__(self, serials: Iterator[int]) -> None:
        self._serials = serials
        self._newest: dict[int, Preview] = {}

    def take(self, event: RenderEvent) -> None:
        """Store a preview, or drop that of a finished image; ignore other events."""
        if event.kind == "preview":
            self._newest[int(event.data["index"])] = Preview(next(self._serials), event.data)
        elif event.kind == "image":
            self._newest.pop(int(event.data["index"]), None)

    def after(self, serial: int) -> list[Preview]:
        """Previews with a higher serial number, in order."""
        return sorted((each for each in self._newest.values() if each.serial > serial), key=lambda each: each.serial)


class Viewer:
    """Tracks which previews of a generation one open stream has sent.

    If another process runs the generation, it subscribes to the replica that draws while the stream is open.

    Args:
        here: returns the previews of a generation that this process runs, None for any other.
        tell: called with the `previews_name` of the generation when another process has sent a preview.
    """

    def __init__(
        self,
        generator: Generator,
        here: Callable[[str], Previews | None],
        serials: Iterator[int],
        tell: Callable[[str], object],
    ) -> None:
        self._generator, self._here, self._tell = generator, here, tell
        self._afar = Previews(serials)
        self._listening: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._shown = 0

    def news(self, generation: Generation) -> list[Preview]:
        """Previews that were not sent yet. The caller must have checked that the member may see the generation."""
        previews = self._here(generation.id)
        if previews is None:
            self._listen(generation)
            previews = self._afar
        found = previews.after(self._shown)
        self._shown = found[-1].serial if found else self._shown
        return found

    async def close(self) -> None:
        """Stop listening; call it when the stream is closed."""
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
                self._tell(previews_name(generation.id))
        except Exception as problem:
            log.info("generation %s: no previews are available (%s)", generation.id, type(problem).__name__)


def previews_name(generation_id: str) -> str:
    """The name of new previews of a generation, for waiters of this process (`onbrand.db.changes`)."""
    return f"previews of {generation_id}"


def serials() -> Iterator[int]:
    """Serial numbers for the previews of one process, from 1."""
    return itertools.count(1)
