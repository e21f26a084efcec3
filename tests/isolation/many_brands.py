"""Many brands at once over HTTP, and a check of every response for data of another brand.

A brand's data carries its mark: in names, captions and prompts as text, in pictures as a colour, in seeds as a range.
An id belongs to the brand whose response contained it first.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import random
import re
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from onbrand.internal.async_client import AsyncSystemClient
from onbrand.internal.generation import RenderRequest
from tests.conftest import BrandOfPeople
from tools.harness.in_process_platform import FakeGenerator, Platform, upload, weights
from tools.harness.receipts import receipt_for

_MARK = re.compile(r"mark-(\d{3})-")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SEEDS = 1_000_000
"""The first seed of brand n is n * SEEDS."""
MAX_REPEATS = 5


class MarkingGenerator(FakeGenerator):
    """Paints the colour of the brand whose mark is in the prompt."""

    async def _add(self, client: AsyncSystemClient, request: RenderRequest, index: int) -> None:
        number = number_in(request.parameters.prompt)
        data = painted(number, request.parameters.seed + index, request.parameters.width)
        size = (request.parameters.width, request.parameters.height)
        await client.add_image(index, request.parameters.seed + index, data, "image/png", *size, receipt_for(request))


def mark(number: int) -> str:
    return f"mark-{number:03}-"


def number_in(text: str) -> int:
    found = _MARK.search(text)
    assert found is not None
    return int(found[1])


def painted(number: int, seed: int, side: int = 64) -> bytes:
    """A picture whose red channel names its brand; green and blue differ for each seed."""
    out = io.BytesIO()
    digest = hashlib.sha256(str(seed).encode()).digest()
    picture = Image.new("RGB", (side, side), (number, digest[0], digest[1]))
    picture.paste((number, digest[2], digest[3]), (0, 0, side // 2, side))
    picture.save(out, "PNG")
    return out.getvalue()


def painter_of(data: bytes) -> int:
    """The brand whose colour the whole picture has."""
    with Image.open(io.BytesIO(data)) as picture:
        (least, most), *_ = picture.convert("RGB").getextrema()
    assert least == most, "a picture of no brand of ours"
    return int(least)


@dataclass
class Eyes:
    """The owner of each id, and the leaks found so far."""

    owners: dict[str, int] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    num_ids: int = 0

    def own(self, number: int, *ids: str) -> None:
        """Record that these ids belong to the brand."""
        self.owners.update(dict.fromkeys(ids, number))

    def look(self, number: int, what: str, text: str, asked: str = "") -> None:
        """Search a response to the brand for data of others; parts of the request (`asked`) may be echoed."""
        for found in _MARK.findall(text):
            if int(found) != number:
                self.leaks.append(f"{what}: brand {number} saw the mark of {int(found)}")
        for found in _ID.findall(text):
            self.num_ids += 1
            if self.owners.get(found, number) != number and found not in asked:
                self.leaks.append(f"{what}: brand {number} saw an id of {self.owners[found]}")

    def look_at_picture(self, number: int, what: str, data: bytes) -> None:
        if (painter := painter_of(data)) != number:
            self.leaks.append(f"{what}: brand {number} saw a picture of {painter}")

    def look_at_seed(self, number: int, what: str, seed: int) -> None:
        if seed // SEEDS != number:
            self.leaks.append(f"{what}: brand {number} saw the seed {seed}")


@dataclass
class Visitor:
    """A member of a brand who calls at random, and whose responses are all searched."""

    number: int
    brand: BrandOfPeople
    client: httpx.AsyncClient
    eyes: Eyes
    others: list[Visitor] = field(default_factory=list, repr=False)
    assets: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    generations: list[str] = field(default_factory=list)
    model: str = ""
    num_seeds: int = 0

    @property
    def at(self) -> str:
        return f"/v1/brands/{self.brand.id}"

    def next_seed(self) -> int:
        self.num_seeds += 10
        return self.number * SEEDS + self.num_seeds

    async def call(self, method: str, path: str, *expected: int, **parts: Any) -> httpx.Response:
        """Send one request. Raises AssertionError for an unexpected status, as a refusal does not prove isolation.

        A 503 is repeated, as a slow machine may exhaust the pool of three connections.
        """
        answer = await self.client.request(method, path, **parts)
        for _ in range(MAX_REPEATS):
            if answer.status_code != 503:
                break
            await asyncio.sleep(int(answer.headers["retry-after"]))
            answer = await self.client.request(method, path, **parts)
        what = f"{method} {path}"
        assert answer.status_code in (expected or (200,)), f"{what}: {answer.status_code} {answer.text[:500]}"
        if not answer.headers.get("content-type", "").startswith(("image/", "application/octet-stream")):
            self.eyes.look(self.number, what, answer.text, f"{path} {parts.get('json', '')}")
        return answer

    async def open_link(self, url: str) -> bytes:
        answer = await self.client.get(url, headers={"authorization": ""})
        assert answer.status_code == 200, f"GET a link: {answer.status_code}"
        return answer.content


async def look_around(visitor: Visitor, dice: random.Random) -> int:
    """Read a list, whole or in part; returns the number of requests."""
    path = dice.choice(
        ("assets", "training-jobs", "models", "generations", "images", "members", "documents", "uploads")
    )
    query = "" if path == "members" else f"?limit={dice.choice((1, 5, 100))}"
    page = (await visitor.call("GET", f"{visitor.at}/{path}{query}")).json()
    for row in page["data"]:
        assert row["brand_id"] == visitor.brand.id
    if not page["next_cursor"]:
        return 1
    await visitor.call("GET", f"{visitor.at}/{path}{query}&cursor={page['next_cursor']}")
    return 2


async def look_at_oneself(visitor: Visitor, dice: random.Random) -> int:
    path = dice.choice(("/v1/me", "/v1/brands", "/v1/models", visitor.at))
    assert visitor.brand.id in (await visitor.call("GET", path)).text
    return 1


async def look_at_a_thing(visitor: Visitor, dice: random.Random) -> int:
    asset, job = dice.choice(visitor.assets), dice.choice(visitor.jobs)
    await visitor.call("GET", f"{visitor.at}/{dice.choice((f'assets/{asset}', f'training-jobs/{job}'))}")
    return 1


async def look_at_another_brands_thing(visitor: Visitor, dice: random.Random) -> int:
    """Request another brand's object by its id, under that brand and under the own."""
    other = dice.choice(visitor.others)
    thing = f"assets/{dice.choice(other.assets)}"
    await visitor.call("GET", f"{dice.choice((visitor, other)).at}/{thing}", 404)
    return 1


async def see_a_picture(visitor: Visitor, dice: random.Random) -> int:
    """Read a training picture by its link."""
    link = await visitor.call("GET", f"{visitor.at}/assets/{dice.choice(visitor.assets)}/content")
    visitor.eyes.look_at_picture(visitor.number, "an asset", await visitor.open_link(link.json()["url"]))
    return 2


async def take_the_model_along(visitor: Visitor, dice: random.Random) -> int:
    link = await visitor.call("GET", f"{visitor.at}/models/{visitor.model}/download")
    if await visitor.open_link(link.json()["url"]) != weights(visitor.brand.id):
        visitor.eyes.leaks.append(f"brand {visitor.number} got the weights of another")
    return 2


def _caption(visitor: Visitor) -> str:
    """A caption with the trigger word's placeholder, which jobs require."""
    return f"photo of [brand] {mark(visitor.number)}"


async def add_a_picture(visitor: Visitor, dice: random.Random) -> int:
    asset = await upload(
        visitor.client, visitor.brand.id, painted(visitor.number, visitor.next_seed()), captions=_caption(visitor)
    )
    visitor.eyes.own(visitor.number, asset["id"])
    visitor.assets.append(asset["id"])
    return 1


async def upload_by_link(visitor: Visitor, dice: random.Random) -> int:
    """Announce an upload, send it to its link, complete it, and read the resulting picture."""
    data = painted(visitor.number, visitor.next_seed())
    body = {
        "kind": "image", "filename": "logo.png", "content_type": "image/png", "bytes": len(data),
        "caption": _caption(visitor),
    }  # fmt: skip
    made = (await visitor.call("POST", f"{visitor.at}/uploads", 201, json=body)).json()
    visitor.eyes.own(visitor.number, made["id"])
    send = made["send"]
    headers = {**send["headers"], "authorization": ""}
    sent = await visitor.client.request(send["method"], send["url"], content=data, headers=headers)
    assert sent.is_success, sent.text
    done = (await visitor.call("POST", f"{visitor.at}/uploads/{made['id']}/complete")).json()
    visitor.eyes.own(visitor.number, *done["asset_ids"])
    visitor.assets += done["asset_ids"]
    link = (await visitor.call("GET", f"{visitor.at}/assets/{done['asset_ids'][0]}/content")).json()["url"]
    visitor.eyes.look_at_picture(visitor.number, "an uploaded picture", await visitor.open_link(link))
    return 5


async def add_a_document(visitor: Visitor, dice: random.Random) -> int:
    """Add a version of the brand's document, and read it by its link."""
    text = f"# Voice\n\n{mark(visitor.number)}\n\n{dice.random()}\n"
    files = {"file": ("voice.md", text.encode(), "text/markdown")}
    made = (await visitor.call("POST", f"{visitor.at}/documents", 201, 409, files=files)).json()
    if "id" not in made:  # another visitor of the brand was adding a version, too
        return 1
    visitor.eyes.own(visitor.number, made["id"])
    link = (await visitor.call("GET", f"{visitor.at}/documents/{made['id']}/content")).json()["url"]
    visitor.eyes.look(visitor.number, "a document", (await visitor.open_link(link)).decode())
    return 3


async def recaption(visitor: Visitor, dice: random.Random) -> int:
    body = {"caption": f"{_caption(visitor)} {dice.random()}"}
    await visitor.call("PATCH", f"{visitor.at}/assets/{dice.choice(visitor.assets)}", 200, 409, json=body)
    return 1


async def ask_for_a_job(visitor: Visitor, dice: random.Random) -> int:
    """Create a job, sometimes with another brand's picture, which is refused."""
    body = {"name": mark(visitor.number), "model_type": "sd15", "training_asset_ids": [dice.choice(visitor.assets)]}
    if dice.random() < 0.3:
        body["training_asset_ids"].append(dice.choice(dice.choice(visitor.others).assets))  # type: ignore[attr-defined]
        await visitor.call("POST", f"{visitor.at}/training-jobs", 404, json=body)
        return 1
    job = (await visitor.call("POST", f"{visitor.at}/training-jobs", 201, json=body)).json()
    visitor.eyes.own(visitor.number, job["id"])
    visitor.jobs.append(job["id"])
    return 1


async def draw(visitor: Visitor, dice: random.Random) -> int:
    """Generate pictures with the brand's model, follow the events to the end, and search every picture."""
    body = {
        "prompt": f"{mark(visitor.number)} photo of [brand]", "model": visitor.model, "num_images": 2,
        "width": 64, "height": 64, "seed": visitor.next_seed(),
    }  # fmt: skip
    made = (await visitor.call("POST", f"{visitor.at}/generations", 201, 202, json=body)).json()
    visitor.eyes.own(visitor.number, made["id"])
    at = f"{visitor.at}/generations/{made['id']}"
    events = (await visitor.call("GET", f"{at}/events")).text
    assert "event: image" in events
    for seed in re.findall(r'"seed":(\d+)', events):
        visitor.eyes.look_at_seed(visitor.number, "an event", int(seed))
    done = (await visitor.call("GET", at)).json()
    assert done["status"] == "completed"
    visitor.generations.append(done["id"])
    num = 3
    for image in done["images"]:
        visitor.eyes.own(visitor.number, image["id"])
        visitor.eyes.look_at_seed(visitor.number, "a picture's row", image["seed"])
        link = (await visitor.call("GET", f"{visitor.at}/images/{image['id']}/content")).json()["url"]
        visitor.eyes.look_at_picture(visitor.number, "a picture", await visitor.open_link(link))
        num += 2
    return num


async def draw_as_openai_does(visitor: Visitor, dice: random.Random) -> int:
    body = {
        "prompt": mark(visitor.number), "model": f"{visitor.brand.id}/{visitor.model}", "size": "64x64",
        "response_format": "b64_json", "seed": visitor.next_seed(),
    }  # fmt: skip
    data = (await visitor.call("POST", "/v1/images/generations", json=body)).json()["data"]
    for picture in data:
        visitor.eyes.look_at_picture(visitor.number, "b64_json", base64.b64decode(picture["b64_json"]))
    return 1


async def watch_an_old_one(visitor: Visitor, dice: random.Random) -> int:
    """Read the events of an ended generation, or of another brand's, which gives 404."""
    if dice.random() < 0.5 and (other := dice.choice(visitor.others)).generations:
        await visitor.call("GET", f"{visitor.at}/generations/{dice.choice(other.generations)}/events", 404)
        return 1
    if not visitor.generations:
        return 0
    events = await visitor.call("GET", f"{visitor.at}/generations/{dice.choice(visitor.generations)}/events")
    for seed in re.findall(r'"seed":(\d+)', events.text):
        visitor.eyes.look_at_seed(visitor.number, "an old event", int(seed))
    return 1


async def furnish(admin: httpx.AsyncClient, brand_id: str, word: str) -> None:
    """Give a brand a document, a key, an invitation and an announced upload."""
    files = {"file": (f"{word}.md", f"# {word}\n\nPlain words.\n".encode(), "text/markdown")}
    answers = [await admin.post(f"/v1/brands/{brand_id}/documents", files=files)]
    for what, body in (
        ("keys", {"name": word, "scopes": ["read"]}),
        ("invitations", {"email": f"{word}-{uuid.uuid4().hex}@example.com", "role": "member"}),
        ("uploads", {"filename": f"{word}.png", "content_type": "image/png", "bytes": 100, "kind": "image"}),
    ):
        answers.append(await admin.post(f"/v1/brands/{brand_id}/{what}", json=body))
    assert [answer.status_code for answer in answers] == [201] * 4, [answer.text for answer in answers]


Action = Callable[[Visitor, random.Random], Awaitable[int]]
ACTIONS: list[tuple[Action, int]] = [
    (look_around, 30), (look_at_oneself, 12), (look_at_a_thing, 12), (look_at_another_brands_thing, 10),
    (see_a_picture, 10), (take_the_model_along, 4), (add_a_picture, 3), (upload_by_link, 1), (add_a_document, 1),
    (recaption, 4), (ask_for_a_job, 4),
    (draw, 4), (draw_as_openai_does, 3), (watch_an_old_one, 8),
]  # fmt: skip
"""The actions with their relative frequencies."""


async def settle(platform: Platform, visitors: list[Visitor]) -> None:
    """Give each brand pictures and a model, published by a worker's ticket."""
    for visitor in visitors:
        visitor.others = [each for each in visitors if each is not visitor]
        for person in (visitor.brand.admin, visitor.brand.member, visitor.brand.member2):
            visitor.eyes.own(visitor.number, person.user_id)
        dice = random.Random(visitor.number)
        for _ in range(2):
            await add_a_picture(visitor, dice)
        body = {"name": mark(visitor.number), "model_type": "sd15", "training_asset_ids": visitor.assets}
        job = (await visitor.call("POST", f"{visitor.at}/training-jobs", 201, json=body)).json()
        async with platform.system(visitor.brand.ticket(job["id"])) as worker:
            facts = {"rank": 4, "trigger_word": mark(visitor.number), "base_revision": "0" * 64}
            visitor.model = (await worker.publish(weights(visitor.brand.id), facts)).name
        visitor.jobs.append(job["id"])
        visitor.eyes.own(visitor.number, job["id"])


async def mingle(visitors: list[Visitor], num_requests: int, concurrency: int, seed: int) -> Counter[str]:
    """Send random requests of all visitors, `concurrency` at a time; returns how often each action ran."""
    done: Counter[str] = Counter()
    left = num_requests
    weights_of = [weight for _, weight in ACTIONS]

    async def one(worker: int) -> None:
        nonlocal left
        dice = random.Random(seed * 1000 + worker)
        while left > 0:
            action = dice.choices(ACTIONS, weights_of)[0][0]
            num = await action(dice.choice(visitors), dice)
            left -= num
            done[action.__name__] += 1
            done["requests"] += num

    async with asyncio.TaskGroup() as tasks:
        for worker in range(concurrency):
            tasks.create_task(one(worker))
    return done
