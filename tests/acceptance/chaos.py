"""Kills engines of a real platform under load, while brands publish, replace and delete adapters.

`python -m tests.acceptance.chaos --requests 2000 --json` starts `onbrand up` with two engine replicas and checks every
response: each request ends once, every picture has the colour of its own adapter (`tools/harness/colour_adapters.py`),
a deleted model gives 404, and the only 5xx is a clean 503. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from onbrand.config import Settings
from onbrand.db.embedded import read_urls
from tools.harness.colour_adapters import COLOURS, MOST_STEPS, SIDE, Colour, Paint, Painter, colour_of
from tools.harness.load_client import Drawn, LoadClient, Manners, secrets_of
from tools.harness.platform_process import Running, command_line
from tools.harness.tiny_families import family_of

ENGINE, SYSTEM, INGRESS = "ServeReplica:engine-sd15:", "ServeReplica:internal:", "ServeReplica:onbrand:"
MOST_DIFFERENCE = 2
"""Allowed difference (of 255) of two drawings of one picture, as batches of other sizes round differently."""
RECOVERY_SECONDS = 240.0
NARROW = {"ONBRAND_ENGINE__NUM_SLOTS": "4", "ONBRAND_LIMITS__WAITING_PICTURES": "8", "ONBRAND_TRAIN_JOBS": "0"}
"""Settings with few slots and short queues, so that adapters are evicted and requests get 429."""
MOST_MIXED_DIFFERENCE = 60
"""Allowed difference (of 255) of a picture by two adapters from their mean colour, as a decoder is not linear."""
_RANKS, _SEEDS, _GUIDANCE, _SAMPLERS = (4, 8, 20, 40), range(11, 15), (1.0, 1.5), (None, None, "euler", "dpm++2m")
_PROMPTS = ("photo of [brand] logo", "a big yellow star on a wall", "[brand]")
_MOST_LIVE, _EVERY_MASSACRE = 4, 4
_KILLS_THAT_HIT = 8
"""With this many kills, at least one must interrupt a generation."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run.

    Args:
        kills: number of kills of replicas; every fourth one kills all engines at once.
        changes: adapters that are published, deleted or replaced during the run.
        at_once: concurrent requests.
        system_kills: number of kills of the internal routes' replica.
        ingress_kills: number of kills of the ingress; callers then repeat lost requests with the same key.
    """

    requests: int = 2000
    kills: int = 24
    changes: int = 100
    brands: int = 6
    at_once: int = 24
    system_kills: int = 2
    ingress_kills: int = 0
    seed: int = 0


@dataclass
class Verdict:
    """The result of a run. `wrong` and `lost` describe each case.

    Args:
        redrawn: generations that began again after their replica was lost.
        reseated: pictures whose adapter was in a slot that another adapter had before.
    """

    requests: int
    answered: int = 0
    killed: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    redrawn: int = 0
    pictures: int = 0
    reseated: int = 0
    compared: int = 0
    published: int = 0
    deleted: int = 0
    under_way_at_kills: list[int] = field(default_factory=list)
    manners: Manners = field(default_factory=Manners)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        was_hit = self.redrawn > 0 or self.killed < _KILLS_THAT_HIT
        return self.answered == self.requests and was_hit and not (self.wrong or self.lost or self.manners.unclean)

    def as_json(self) -> dict[str, Any]:
        """The result as JSON: numbers, and the first few errors."""
        lists = {"wrong": self.wrong, "lost": self.lost, "unclean": self.manners.unclean}
        return {
            "requests": self.requests,
            "answered": self.answered,
            "wrong": len(self.wrong),
            "retried": self.manners.retried,
            "killed": self.killed,
            "redrawn": self.redrawn,
            "lost": len(self.lost),
            "unclean": len(self.manners.unclean),
            "cut_off": self.manners.cut_off,
            "answers": dict(self.answers),
            "statuses": {str(status): num for status, num in sorted(self.manners.statuses.items())},
            "pictures": self.pictures,
            "reseated": self.reseated,
            "compared": self.compared,
            "published": self.published,
            "deleted": self.deleted,
            "under_way_at_kills": self.under_way_at_kills,
            "seconds": self.seconds,
            "examples": [f"{name}: {case}" for name, cases in lists.items() for case in cases[:5]],
        }


@dataclass
class Model:
    """A published colour adapter. `is_going` is true from the start of its deletion."""

    brand_id: str
    name: str
    paint: Paint
    is_going: bool = False
    is_gone: bool = False


class Validator:
    """Checks responses, and remembers pictures to compare equal ones."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._seen: dict[tuple[Any, ...], np.ndarray] = {}

    def must_be_painted(self, drawn: Drawn, models: Sequence[Model], options: Mapping[str, Any]) -> None:
        """Check a picture of a brand's models: brand, adapters, colour, and equal pixels when it is drawn again."""
        about = self.must_be_their_own(drawn, models)
        self.must_have_colour(drawn.pixels_HWC, [model.paint.colour for model in models], about)
        hashes = [model.paint.sha256 for model in models]
        self.must_be_as_before(drawn.pixels_HWC, (*hashes, *_facts(drawn, options)), about)

    def must_be_their_own(self, drawn: Drawn, models: Sequence[Model]) -> str:
        """Check brand and adapters in row and receipt; returns a name of the picture for error messages."""
        row, brand_id = drawn.row, models[0].brand_id
        about = f"{brand_id} {'+'.join(model.name for model in models)}"
        hashes = [model.paint.sha256 for model in models]
        if (row["brand_id"], row["receipt"]["brand_id"]) != (brand_id, brand_id):
            self._wrong(f"{about}: a picture of brand {row['brand_id']}")
        if [used["sha256"] for used in row["receipt"]["adapters"]] != hashes:
            self._wrong(f"{about}: drawn with other adapters than its own")
        self._verdict.reseated += row["receipt"]["slot_generation"] > 1
        return about

    def must_have_colour(self, pixels_HWC: np.ndarray, colours: Sequence[Colour], about: str) -> None:
        """Check the colour: with one adapter the nearest of the palette, with several about their mean."""
        wanted, found = np.mean(colours, axis=0), pixels_HWC.reshape(-1, 3).mean(axis=0)
        is_right = (
            abs(wanted - found).max() < MOST_MIXED_DIFFERENCE
            if len(colours) > 1
            else (colour_of(pixels_HWC) == colours[0])
        )
        if not is_right:
            self._wrong(f"{about}: painted {found.round().tolist()}, not {wanted.tolist()}")

    def must_be_as_before(self, pixels_HWC: np.ndarray, picture: tuple[Any, ...], about: str) -> None:
        before = self._seen.setdefault(picture, pixels_HWC)
        if before is not pixels_HWC:
            self._verdict.compared += 1
            if before.shape != pixels_HWC.shape or abs(before - pixels_HWC).max() > MOST_DIFFERENCE:
                self._wrong(f"{about}: not the picture that the same request got before")

    def must_be_whole(self, generation: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Check that all requested pictures exist once, each with its own seed."""
        num, seed = options["num_images"], options["seed"]
        found = sorted((image["index"], image["seed"]) for image in generation["images"])
        if found != [(index, seed + index) for index in range(num)]:
            self._wrong(f"generation {generation['id']}: {num} pictures from {seed} asked, {found} drawn")

    def must_have_been_told_once(
        self, events: list[tuple[str, dict[str, Any]]], end: str, num: int, about: str
    ) -> None:
        """Check that the events contain one end, and each of `num` pictures once, after any number of restarts."""
        ends = [data["status"] for kind, data in events if kind == "status" and data["status"] != "running"]
        told = sorted(data["index"] for kind, data in events if kind == "image")
        if ends != [end] or told != list(range(num)):
            self._wrong(f"{about}: told its ends as {ends}, its pictures as {told}")

    def must_be_missing(self, answer: Mapping[str, Any] | None, about: str) -> None:
        """Check that the response is 404."""
        if answer is not None:
            self._wrong(f"{about}: drawn, and not 404")

    def _wrong(self, case: str) -> None:
        self._verdict.wrong.append(case)


def _facts(drawn: Drawn, options: Mapping[str, Any]) -> tuple[Any, ...]:
    numbers = ("num_inference_steps", "guidance_scale", "sampler", "prompt")
    return drawn.row["seed"], *(options.get(name) for name in numbers)


class Chaos:
    """One run on a platform that is up.

    Args:
        system_url: the internal routes.
        replicas: pids of the processes of a Serve application, by the beginning of their titles.
    """

    def __init__(
        self, url: str, system_url: str, data_dir: Path, replicas: Callable[[str], list[int]], plan: Plan
    ) -> None:
        self._url, self._system_url = url, system_url
        self._secrets = secrets_of(data_dir)
        self._owner_url = read_urls(Settings(data_dir=data_dir)).owner_url
        self._replicas, self._plan = replicas, plan
        self._dice = random.Random(plan.seed)
        self._colours = self._all_colours()
        self._painter = Painter(family_of("sd15"))
        self.verdict = Verdict(plan.requests, manners=Manners(may_be_cut_off=plan.ingress_kills > 0))
        self._judge = Validator(self.verdict)
        self._clients: list[LoadClient] = []
        self._models: list[Model] = []
        self._asked: dict[str, set[str]] = {}
        self._num_begun = self._under_way = 0

    async def run(self) -> Verdict:
        """Prepare the brands, then run load, kills and changes at once."""
        began = time.monotonic()
        try:
            await self._settle()
            kills = {ENGINE: self._plan.kills, SYSTEM: self._plan.system_kills, INGRESS: self._plan.ingress_kills}
            async with self._beside(*(self._kill(title, num_kills) for title, num_kills in kills.items())):
                async with self._beside(self._change()), asyncio.TaskGroup() as group:
                    for _ in range(self._plan.at_once):
                        group.create_task(self._load())
            await self._must_have_asked_once()
            self.verdict.redrawn = self._num_redrawn()
        finally:
            for client in self._clients:
                await client.http.aclose()
        self.verdict.seconds = round(time.monotonic() - began, 1)
        return self.verdict

    def _num_redrawn(self) -> int:
        with psycopg.connect(self._owner_url) as connection:
            found = connection.execute("select coalesce(sum(num_lost), 0) from app.generations").fetchone()
        assert found is not None
        return int(found[0])

    @asynccontextmanager
    async def _beside(self, *work: Awaitable[None]) -> Any:
        """Run `work` in the background; it must end within the time that a replica needs to restart."""
        tasks = [asyncio.ensure_future(each) for each in work]
        try:
            yield
            await asyncio.wait_for(asyncio.gather(*tasks), RECOVERY_SECONDS)
        finally:
            for task in tasks:
                task.cancel()

    def _all_colours(self) -> Iterator[Colour]:
        while True:
            yield from self._dice.sample(COLOURS, len(COLOURS))

    # --- brands and their models --------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Create brands with two models each, after pictures of the base to compare with."""
        for _ in range(self._plan.brands):
            client = await LoadClient.join(self._url, self.verdict.manners)
            self._asked[client.brand_id] = set()
            self._clients.append(client)
        for seed in _SEEDS:
            await self._ask_base(self._clients[0], self._options(seed=seed))
        for client in self._clients * 2:
            await self._publish(client)

    async def _publish(self, client: LoadClient) -> None:
        colour, rank, seed = next(self._colours), self._dice.choice(_RANKS), self._dice.randrange(2**31)
        paint = await asyncio.to_thread(self._painter.paint, colour, rank, seed)
        revision = family_of("sd15").revision
        name = await client.publish(paint, self._system_url, self._secrets, revision)
        self._models.append(Model(client.brand_id, name, paint))
        self.verdict.published += 1

    async def _delete(self, client: LoadClient) -> None:
        model = self._dice.choice(self._of(client))
        model.is_going = True
        await client.delete(model.name)
        model.is_gone = True
        self.verdict.deleted += 1

    async def _change(self) -> None:
        """Publish, delete or replace adapters, evenly over the run."""
        for number in range(self._plan.changes):
            await self._until_begun((number + 1) / (self._plan.changes + 1))
            client = self._dice.choice(self._clients)
            deed = self._possible(("replace", "publish", "delete")[number % 3], len(self._of(client)))
            if deed != "delete":
                await self._publish(client)
            if deed != "publish":
                await self._delete(client)

    @staticmethod
    def _possible(deed: str, num_live: int) -> str:
        """Keep at least one model of a brand, so that it can be requested, and a few at most."""
        if num_live < 2:
            return "publish"
        return "replace" if num_live >= _MOST_LIVE else deed

    def _of(self, client: LoadClient) -> list[Model]:
        return [model for model in self._models if model.brand_id == client.brand_id and not model.is_going]

    # --- killing ------------------------------------------------------------------------------------------------

    async def _kill(self, title: str, num_kills: int) -> None:
        """Send SIGKILL evenly over the run, whenever all replicas are back."""
        if num_kills == 0:
            return
        num_replicas = len(self._replicas(title))
        for number in range(num_kills):
            await self._until_begun((number + 0.5) / num_kills)
            await until(lambda: len(self._replicas(title)) >= num_replicas, RECOVERY_SECONDS)
            pids = self._replicas(title)
            self.verdict.under_way_at_kills.append(self._under_way)
            is_massacre = number % _EVERY_MASSACRE == _EVERY_MASSACRE - 1
            for pid in pids if is_massacre else [self._dice.choice(pids)]:
                os.kill(pid, signal.SIGKILL)
                self.verdict.killed += 1

    async def _until_begun(self, part: float) -> None:
        await until(lambda: self._num_begun >= part * self._plan.requests, None)

    # --- load ---------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Send requests until the run's number is reached."""
        while self._num_begun < self._plan.requests:
            self._num_begun += 1
            self._under_way += 1
            try:
                await self._ask_something(self._dice.choice(self._clients))
                self.verdict.answered += 1
            except Exception as problem:
                self.verdict.lost.append(f"{type(problem).__name__}: {problem}")
            self._under_way -= 1

    async def _ask_something(self, client: LoadClient) -> None:
        """Request a picture: mostly of an own model, sometimes of the base, of a deleted model or another brand's."""
        gone = [model for model in self._models if model.brand_id == client.brand_id and model.is_gone]
        chance = self._dice.random()
        if chance < 0.06:
            await self._ask_base(client, self._options(seed=self._dice.choice(_SEEDS)))
        elif chance < 0.12 and gone:
            await self._ask_in_vain(client, self._dice.choice(gone).name)
        elif chance < 0.16:
            await self._ask_in_vain(client, await self._id_of_another(client))
        elif chance < 0.20:
            await self._ask_and_cancel(client, self._dice.choice(self._of(client)))
        else:
            own = self._of(client)
            await self._ask_painted(client, self._dice.sample(own, min(len(own), self._dice.choice((1, 1, 1, 2)))))

    def _options(self, **more: Any) -> dict[str, Any]:
        """Options of a picture of the base with fixed numbers, and the given changes."""
        numbers = {"num_images": 1, "width": SIDE, "height": SIDE, "num_inference_steps": 2, "guidance_scale": 1.5}
        return {"prompt": "a red square on blue", "model_type": "sd15", **numbers, **more}

    async def _ask_painted(self, client: LoadClient, models: Sequence[Model]) -> None:
        scale = 1 / len(models)
        options = self._options(
            models=[{"model": model.name, "scale": scale} for model in models],
            prompt=self._dice.choice(_PROMPTS),
            seed=self._dice.choice(_SEEDS),
            num_images=self._dice.choice((1, 1, 2, 4)),
            num_inference_steps=self._dice.randint(1, MOST_STEPS),
            guidance_scale=self._dice.choice(_GUIDANCE),
            sampler=self._dice.choice(_SAMPLERS),
            exclusive=self._dice.random() < 0.1,
            preview_every=self._dice.choice((0, 0, 1)),
        )
        done = await self._drawn(client, options, may_be_missing=lambda: any(model.is_going for model in models))
        for drawn in done or ():
            self._judge.must_be_painted(drawn, models, options)

    async def _ask_and_cancel(self, client: LoadClient, model: Model) -> None:
        """Cancel a generation. It ends once, as canceled or as completed."""
        options = self._options(model=model.name, seed=self._dice.choice(_SEEDS), num_images=4, num_inference_steps=50)
        done = await client.ask(options, cancel_after=self._dice.uniform(0, 2))
        if not self._must_be_answered(client, done, lambda: model.is_going, ("canceled", "completed")):
            return
        assert done is not None
        events = await client.told(done)
        self._judge.must_have_been_told_once(events, done["status"], len(done["images"]), f"generation {done['id']}")
        for drawn in await client.drawn(done):
            self._judge.must_be_their_own(drawn, [model])

    async def _ask_base(self, client: LoadClient, options: dict[str, Any]) -> None:
        for drawn in await self._drawn(client, options, may_be_missing=lambda: False) or ():
            self._judge.must_be_as_before(drawn.pixels_HWC, ("base", *_facts(drawn, options)), "the base")

    async def _ask_in_vain(self, client: LoadClient, model: str) -> None:
        self._judge.must_be_missing(await client.ask(self._options(model=model, seed=1)), f"{client.brand_id} {model}")
        self.verdict.answers["404"] += 1

    async def _id_of_another(self, client: LoadClient) -> str:
        """The id of a model of another brand."""
        other = self._dice.choice([each for each in self._clients if each is not client])
        models = (await other.call("GET", "/models")).json()["data"]
        return str(self._dice.choice(models)["id"])

    async def _drawn(
        self, client: LoadClient, options: Mapping[str, Any], may_be_missing: Callable[[], bool]
    ) -> list[Drawn] | None:
        """The stored pictures of a completed generation; None if its model was deleted meanwhile."""
        done = await client.ask(options)
        if not self._must_be_answered(client, done, may_be_missing, ("completed",)):
            return None
        assert done is not None
        self._judge.must_be_whole(done, options)
        events, num_images = await client.told(done), options["num_images"]
        self._judge.must_have_been_told_once(events, "completed", num_images, f"generation {done['id']}")
        drawn = await client.drawn(done)
        self.verdict.pictures += len(drawn)
        return drawn

    def _must_be_answered(
        self,
        client: LoadClient,
        done: Mapping[str, Any] | None,
        may_be_missing: Callable[[], bool],
        ends: Sequence[str],
    ) -> bool:
        """False if the model was deleted and the response said so. Raises AssertionError for a wrong end."""
        if done is None:
            assert may_be_missing(), "404 for a model that is there"
            self.verdict.answers["404"] += 1
            return False
        self._asked[client.brand_id].add(done["id"])
        self.verdict.answers[done["status"]] += 1
        if done["status"] in ends:
            return True
        assert (done["status"], done["error"]["code"]) == ("failed", "not_found"), f"{done['status']}: {done['error']}"
        assert may_be_missing(), "'not found' for a model that is there"
        return False

    async def _must_have_asked_once(self) -> None:
        """Check that each brand has one row for each request, although calls were repeated."""
        for client in self._clients:
            rows = [row["id"] for row in await client.generations()]
            if sorted(rows) != sorted(self._asked[client.brand_id]):
                self.verdict.wrong.append(
                    f"{client.brand_id}: {len(rows)} generations of its requests' {len(self._asked[client.brand_id])}"
                )


async def until(condition: Callable[[], bool], seconds: float | None) -> None:
    """Wait for a condition. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.1)


def replicas_of(running: Running) -> Callable[[str], list[int]]:
    """Finds processes of this platform by their titles."""
    return lambda title: [pid for pid in running.processes() if title in command_line(pid)]


def unleash(running: Running, plan: Plan) -> Verdict:
    """Run chaos on a running platform."""
    return asyncio.run(Chaos(running.url, running.internal_url, running.data_dir, replicas_of(running), plan).run())


def main(arguments: list[str] | None = None) -> int:
    """Start a platform, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"(default {value})")
    parser.add_argument("--replicas", type=int, default=2, help="engines (default 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    chosen = vars(parser.parse_args(arguments))
    as_json, num_replicas = chosen.pop("json"), chosen.pop("replicas")
    with tempfile.TemporaryDirectory(prefix="onbrand-test-", ignore_cleanup_errors=True) as folder:
        running = Running(Path(folder) / "data", more=NARROW | {"ONBRAND_ENGINE__NUM_REPLICAS": str(num_replicas)})
        try:
            running.start()
            verdict = unleash(running, Plan(**chosen))
        finally:
            if running.process is not None:
                running.send(signal.SIGTERM)
    print(json.dumps(verdict.as_json(), indent=None if as_json else 1))
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
