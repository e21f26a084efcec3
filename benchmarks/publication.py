"""Time from publication to the first picture, while requests for the version before continue.

`python -m benchmarks.publication --rounds 5 --json` starts `onbrand up` with the tiny sd15. Every round publishes a new
version as a worker does, requests a picture of it at once, and meanwhile draws with the version before. Each of those
requests must succeed, with the same picture as before. `published_to_picture_s` is the median time and
`published_to_picture_max_s` the maximum; `old_over_before` is the median time of old requests during publications over
that without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tools.harness.colour_adapters import COLOURS, SIDE, Paint, Painter, colour_of
from tools.harness.load_client import LoadClient, Manners, secrets_of
from tools.harness.platform_process import Running
from tools.harness.tiny_families import family_of

MOST_DIFFERENCE = 2
"""Allowed difference (of 255) between two drawings of one picture, as batches of other sizes round differently."""
_WISHES = {"prompt": "photo of [brand] logo", "num_images": 1, "width": SIDE, "height": SIDE, "seed": 11}
_STEPS, _AT_ONCE, _RANK = 4, 2, 8


@dataclass
class Figures:
    """Measured times in seconds, and errors."""

    rounds: int
    published_to_picture: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    manners: Manners = field(default_factory=Manners)

    def as_json(self) -> dict[str, Any]:
        """The results to print."""
        return {
            "rounds": self.rounds,
            "published_to_picture_s": round(statistics.median(self.published_to_picture), 2),
            "published_to_picture_max_s": round(max(self.published_to_picture), 2),
            "old_requests": len(self.before) + len(self.during),
            "old_wrong": len(self.wrong),
            "old_over_before": round(statistics.median(self.during) / statistics.median(self.before), 2),
            "retried": self.manners.retried,
            "unclean": len(self.manners.unclean),
            "examples": [*self.wrong, *self.manners.unclean][:5],
        }


class Publication:
    """Runs the rounds on a running platform."""

    def __init__(self, running: Running, rounds: int) -> None:
        self._running, self._secrets = running, secrets_of(running.data_dir)
        self._painter = Painter(family_of("sd15"))
        self.figures = Figures(rounds)
        self._first: dict[str, np.ndarray] = {}

    async def run(self) -> Figures:
        """Publish a first version and measure it alone, then run the rounds."""
        figures = self.figures
        client = await LoadClient.join(self._running.url, figures.manners)
        old, paint = await self._publish(client, 0)
        for _ in range(_AT_ONCE * figures.rounds):
            figures.before.append(await self._draw(client, old, paint))
        for number in range(1, figures.rounds + 1):
            old, paint = await self._round(client, old, paint, number)
        await client.http.aclose()
        return figures

    async def _round(self, client: LoadClient, old: str, paint: Paint, number: int) -> tuple[str, Paint]:
        going = asyncio.Event()
        drawing = [asyncio.create_task(self._draw_until(going, client, old, paint)) for _ in range(_AT_ONCE)]
        new, other = await self._publish(client, number)
        began = time.monotonic()
        await self._draw(client, new, other)
        self.figures.published_to_picture.append(time.monotonic() - began)
        going.set()
        await asyncio.gather(*drawing)
        return new, other

    async def _publish(self, client: LoadClient, number: int) -> tuple[str, Paint]:
        """Publish a version with another colour; returns its name and adapter."""
        paint = await asyncio.to_thread(self._painter.paint, COLOURS[5 * number % len(COLOURS)], _RANK, number)
        url, revision = f"{self._running.url}/internal", family_of("sd15").revision
        return await client.publish(paint, url, self._secrets, revision), paint

    async def _draw_until(self, end: asyncio.Event, client: LoadClient, model: str, paint: Paint) -> None:
        while not end.is_set():
            self.figures.during.append(await self._draw(client, model, paint))

    async def _draw(self, client: LoadClient, model: str, paint: Paint) -> float:
        """Seconds until the picture is served; failed and wrong pictures are recorded."""
        began = time.monotonic()
        done = await client.ask(_WISHES | {"model": model, "num_inference_steps": _STEPS})
        seconds = time.monotonic() - began
        if done is None or done["status"] != "completed":
            self.figures.wrong.append(f"{model}: {done and done['status']}")
            return seconds
        [drawn] = await client.drawn(done)
        before = self._first.setdefault(model, drawn.pixels_HWC)
        if colour_of(drawn.pixels_HWC) != paint.colour or abs(before - drawn.pixels_HWC).max() > MOST_DIFFERENCE:
            self.figures.wrong.append(f"{model}: another picture")
        return seconds


def main(arguments: list[str] | None = None) -> int:
    """Start a platform, run, print; the exit status is 1 if an old request was not answered as before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="onbrand-test-", ignore_cleanup_errors=True) as folder:
        running = Running(Path(folder) / "data", more={"ONBRAND_TRAIN_JOBS": "0"})
        try:
            running.start()
            figures = asyncio.run(Publication(running, chosen.rounds).run())
        finally:
            if running.process is not None:
                running.send(signal.SIGTERM)
    print(json.dumps(figures.as_json(), indent=None if chosen.json else 1))
    return 1 if figures.wrong or figures.manners.unclean else 0


if __name__ == "__main__":
    sys.exit(main())
