"""Denial-of-service attacks by one hostile caller. Each attack is a coroutine that runs until it is canceled.

`python -m benchmarks.lib.attacks NAME` reads `Orders` as JSON from standard input, attacks for the given number of
seconds from its own address (127.0.0.2, loopback only), and prints the counts of responses as JSON. It runs at the
lowest priority, since a real attacker uses other machines.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image

ADDRESS = "127.0.0.2"
NUM_KEYS, NUM_CONNECTIONS, NUM_OPEN = 90_000, 16, 1_050
NUM_LOGINS, NUM_STREAMS, NUM_UPLOADS, NUM_CHECKS, NUM_READS = 40, 200, 16, 16, 120
_PAUSE_SECONDS = 0.05
"""Pause of a connection after a refused call, as faster retries give an attacker no advantage."""


@dataclass(frozen=True)
class Orders:
    """Target and credentials of an attack.

    Args:
        brands: brands of the hostile account.
        job_id: a waiting training job of its first brand.
        asset_ids: pictures of its first brand.
    """

    url: str
    seconds: float
    token: str
    email: str
    brands: list[str]
    job_id: str
    asset_ids: list[str]


@dataclass
class Attacker:
    """A hostile caller, with counts of responses by status."""

    orders: Orders
    answers: Counter[str] = field(default_factory=Counter)

    def client(self) -> httpx.AsyncClient:
        """A client without credentials for one connection; a client with many would search them all at each call."""
        transport = httpx.AsyncHTTPTransport(local_address=ADDRESS, verify=False)  # loopback, no TLS
        return httpx.AsyncClient(transport=transport, base_url=self.orders.url, timeout=120)

    @property
    def credential(self) -> dict[str, str]:
        """The account's authorization header."""
        return {"authorization": f"Bearer {self.orders.token}"}

    async def call(self, client: httpx.AsyncClient, method: str, path: str, **parts: Any) -> int:
        """Send a request; returns its status, or 0 if the connection broke."""
        try:
            status = (await client.request(method, path, **parts)).status_code
        except httpx.HTTPError:
            status = 0
        self.answers[str(status)] += 1
        if status >= 400 or status == 0:
            await asyncio.sleep(_PAUSE_SECONDS)
        return status

    async def again_and_again(self, num_lines: int, call: Callable[[httpx.AsyncClient, int], Awaitable[Any]]) -> None:
        """Repeat `call` on `num_lines` parallel connections, each as soon as its last call returns."""

        async def line(number: int) -> None:
            async with self.client() as client:
                while True:
                    await call(client, number)

        await asyncio.gather(*(line(number) for number in range(num_lines)))


async def large_bodies(attacker: Attacker, headers: dict[str, str]) -> None:
    """Bodies with 830 KB of unknown keys, on 16 connections."""
    said: dict[str, Any] = {f"k{n:05}": n for n in range(NUM_KEYS)}
    data = json.dumps(said, separators=(",", ":")).encode()
    path = f"/v1/brands/{attacker.orders.brands[0]}/training-jobs"
    sent = {"content-type": "application/json", **headers}
    await attacker.again_and_again(
        NUM_CONNECTIONS, lambda client, _: attacker.call(client, "POST", path, content=data, headers=sent)
    )


async def bodies_without_credential(attacker: Attacker) -> None:
    """Large bodies without credentials."""
    await large_bodies(attacker, {})


async def bodies_with_credential(attacker: Attacker) -> None:
    """Large bodies with an account's credentials."""
    await large_bodies(attacker, attacker.credential)


async def hold(attacker: Attacker, first: bytes, drop: bytes) -> None:
    """1,050 connections that send `first`, then `drop` every second; closed ones are opened again."""
    at = urlsplit(attacker.orders.url)

    async def one() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(at.hostname, at.port, local_addr=(ADDRESS, 0))
            except OSError:
                attacker.answers["not connected"] += 1
                await asyncio.sleep(1)
                continue
            attacker.answers["connected"] += 1
            try:
                await _drip(reader, writer, first, drop)
            except OSError:
                pass  # the server closed the connection
            finally:
                writer.close()

    await asyncio.gather(*(one() for _ in range(NUM_OPEN)))


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes, drop: bytes) -> None:
    """Send `first`, then `drop` every second until the server responds or closes."""
    writer.write(first)
    heard = asyncio.ensure_future(reader.read(1))
    try:
        while not heard.done():
            await writer.drain()
            await asyncio.wait([heard], timeout=1)
            writer.write(drop)
    finally:
        heard.cancel()


async def one_byte(attacker: Attacker) -> None:
    """1,050 connections that send one byte only."""
    await hold(attacker, b"G", b"")


async def slow_headers(attacker: Attacker) -> None:
    """1,050 requests whose headers never end."""
    await hold(attacker, b"GET /healthz HTTP/1.1\r\nhost: onbrand\r\n", b"x: y\r\n")


async def slow_bodies(attacker: Attacker) -> None:
    """1,050 requests whose bodies never end."""
    head = b"POST /v1/tokens HTTP/1.1\r\nhost: onbrand\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n"
    await hold(attacker, head + b"{", b" ")


async def wrong_logins(attacker: Attacker) -> None:
    """40 parallel logins with wrong passwords, half of them for one account."""

    async def call(client: httpx.AsyncClient, number: int) -> None:
        email = attacker.orders.email if number % 2 else f"nobody-{random.randrange(10**9)}@example.com"
        await attacker.call(client, "POST", "/v1/tokens", json={"email": email, "password": "a wrong password"})

    await attacker.again_and_again(NUM_LOGINS, call)


async def many_brands(attacker: Attacker) -> None:
    """All brands of one account request as many pictures as they can."""
    brands = attacker.orders.brands
    body = {"model_type": "sd15", "prompt": "a red circle on blue", "num_images": 8}

    async def call(client: httpx.AsyncClient, number: int) -> None:
        path = f"/v1/brands/{brands[number % len(brands)]}/generations"
        headers = {**attacker.credential, "prefer": "wait=10"}
        await attacker.call(client, "POST", path, json=body, headers=headers)

    await attacker.again_and_again(2 * len(brands), call)


async def plain_reads(attacker: Attacker) -> None:
    """120 connections that read one brand, the limit of one account."""
    path = f"/v1/brands/{attacker.orders.brands[0]}"

    async def call(client: httpx.AsyncClient, _: int) -> None:
        await attacker.call(client, "GET", path, headers=attacker.credential)

    await attacker.again_and_again(NUM_READS, call)


async def event_streams(attacker: Attacker) -> None:
    """200 event streams of one training job."""
    path = f"/v1/brands/{attacker.orders.brands[0]}/training-jobs/{attacker.orders.job_id}/events"

    async def call(client: httpx.AsyncClient, _: int) -> None:
        await attacker.call(client, "GET", path, headers=attacker.credential)

    await attacker.again_and_again(NUM_STREAMS, call)


async def uploads(attacker: Attacker) -> None:
    """16 connections that upload four pictures at a time."""
    path, numbers = f"/v1/brands/{attacker.orders.brands[0]}/assets", count()

    async def call(client: httpx.AsyncClient, _: int) -> None:
        files = [("files", (f"more-{next(numbers)}.png", noisy_png(512), "image/png")) for _ in range(4)]
        await attacker.call(client, "POST", path, files=files, headers=attacker.credential)

    await attacker.again_and_again(NUM_UPLOADS, call)


async def checks(attacker: Attacker) -> None:
    """16 connections that request checks of training data."""
    path = f"/v1/brands/{attacker.orders.brands[0]}/training-jobs:check"
    body = {"model_type": "sd15", "training_asset_ids": attacker.orders.asset_ids}

    async def call(client: httpx.AsyncClient, _: int) -> None:
        await attacker.call(client, "POST", path, json=body, headers=attacker.credential)

    await attacker.again_and_again(NUM_CHECKS, call)


ATTACKS: dict[str, Callable[[Attacker], Awaitable[None]]] = {
    attack.__name__: attack
    for attack in (
        bodies_without_credential,
        bodies_with_credential,
        one_byte,
        slow_headers,
        slow_bodies,
        wrong_logins,
        plain_reads,
        event_streams,
        uploads,
        checks,
        many_brands,  # last, as its requests are drawn for a while after it
    )
}


def noisy_png(side: int) -> bytes:
    """A PNG of random pixels, which does not compress."""
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(out, "PNG")
    return out.getvalue()


async def attack(name: str, orders: Orders) -> Counter[str]:
    """Run an attack for `orders.seconds`; returns the counts of responses by status."""
    attacker = Attacker(orders)
    with suppress(TimeoutError):
        async with asyncio.timeout(orders.seconds):
            await ATTACKS[name](attacker)
    return attacker.answers


def ordered(orders: Orders) -> bytes:
    """The orders as JSON for standard input, so that no credential is on a command line."""
    return json.dumps(asdict(orders)).encode()


def main() -> None:
    os.nice(19)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    answers = asyncio.run(attack(sys.argv[1], Orders(**json.load(sys.stdin))))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
