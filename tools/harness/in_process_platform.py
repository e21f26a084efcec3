"""The two apps on a real database and a real store, with a generator that paints without an engine.

`platform.client(person)` calls the users' app in this process. `platform.url` is the same app behind uvicorn, for
clients that need a socket.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import safetensors.numpy
import uvicorn
from fastapi import FastAPI
from PIL import Image

from onbrand.app import create_app, create_system_app
from onbrand.brand import Ticket
from onbrand.config import Settings
from onbrand.db.session import Database
from onbrand.errors import OnbrandError, Unavailable
from onbrand.internal.async_client import AsyncSystemClient
from onbrand.internal.generation import RenderEvent, RenderRequest
from onbrand.internal.training import PublishedModel
from onbrand.secrets_file import Secrets
from onbrand.services.identity import TokenIssuer
from onbrand.storage.store import ObjectStore
from tools.harness.httpx_connections import HttpxConnections
from tools.harness.receipts import receipt_for
from tools.harness.training_client import AsyncTrainingClient

_PIL = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


class FakeGenerator:
    """Uses its ticket as a replica does, but paints one colour an image instead of denoising.

    A generation with ``[hang]`` in its prompt runs until it is canceled, with ``[break]`` it fails, with ``[away]`` it
    finds no engine. Each call raises one of `refusals` first, if there are any. A request for previews gives one for
    each image, also to callers who watch it while it hangs. With `[silent]` nothing begins.
    """

    def __init__(self, client_for: Callable[[str], AsyncSystemClient]) -> None:
        self._client_for = client_for
        self._canceled: dict[str, asyncio.Event] = {}
        self._shown: dict[str, RenderEvent] = {}
        self.watched: list[tuple[str, str, str]] = []
        self.seen: list[RenderRequest] = []
        self.refusals: list[OnbrandError] = []

    async def generate(self, family: str, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        self.seen.append(request)
        if self.refusals:
            raise self.refusals.pop(0)
        if "[away]" in request.parameters.prompt:
            raise Unavailable("no replica of the engine answers; try again")
        if "[silent]" in request.parameters.prompt:
            await asyncio.Event().wait()
        canceled = self._canceled.setdefault(request.generation_id, asyncio.Event())
        async with self._client_for(request.ticket) as client:
            await client.start_generation()
            for adapter, _ in request.adapters:
                data = await client.read_model(adapter.model_id)
                assert hashlib.sha256(data).hexdigest() == adapter.sha256
            await client.report_generation(50)
            yield RenderEvent("progress", {"progress": 50})
            if request.parameters.preview_every:
                image = f"data:image/jpeg;base64,{request.generation_id}"
                preview = RenderEvent("preview", {"index": 0, "step": request.parameters.preview_every, "image": image})
                self._shown[request.generation_id] = preview
                yield preview
            if "[break]" in request.parameters.prompt:
                raise RuntimeError(f"broke while drawing {request.parameters.prompt}")
            if "[hang]" in request.parameters.prompt:
                await asyncio.wait_for(canceled.wait(), 30)
                await client.fail_generation("canceled", "canceled")
                yield RenderEvent("canceled", {})
                return
            for index in range(request.parameters.num_images):
                await self._add(client, request, index)
                yield RenderEvent("image", {"index": index})
        yield RenderEvent("completed", {})

    async def watch(self, family: str, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        self.watched.append((generation_id, brand_id, user_id))
        if generation_id in self._shown:
            yield self._shown[generation_id]
            await self._canceled[generation_id].wait()

    async def cancel(self, family: str, generation_id: str) -> None:
        if generation_id in self._canceled:
            self._canceled[generation_id].set()

    async def _add(self, client: AsyncSystemClient, request: RenderRequest, index: int) -> None:
        seed = request.parameters.seed + index
        digest = hashlib.sha256(f"{request.adapters}{seed}".encode()).digest()
        out = io.BytesIO()
        width, height = request.parameters.width, request.parameters.height
        assert width is not None
        assert height is not None
        picture = Image.new("RGB", (width, height), (digest[0], digest[1], digest[2]))
        picture.save(out, _PIL[request.parameters.output_format], quality=_quality(request))
        content_type = f"image/{request.parameters.output_format}"
        await client.add_image(index, seed, out.getvalue(), content_type, *picture.size, receipt_for(request))


def _quality(request: RenderRequest) -> int:
    return 95 if request.parameters.output_compression is None else request.parameters.output_compression


@dataclass
class Platform:
    """All parts of a platform except Ray."""

    settings: Settings
    secrets: Secrets
    db: Database
    store: ObjectStore
    app: FastAPI
    system_app: FastAPI
    generator: FakeGenerator
    url: str = ""
    _issuer: TokenIssuer = field(init=False)

    def __post_init__(self) -> None:
        self._issuer = TokenIssuer(self.secrets.tokens)

    def token(self, person: Any, brand_id: str | None = None) -> str:
        """A bearer token, as logging in would give."""
        return self._issuer.issue(person.user_id, brand_id)[0]

    def client(self, person: Any = None, brand_id: str | None = None) -> httpx.AsyncClient:
        """An HTTP client of the users' app; not logged in without `person`."""
        headers = {"authorization": f"Bearer {self.token(person, brand_id)}"} if person else {}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test", headers=headers)

    def system(self, ticket: Ticket | str, patience: float = 0.0) -> AsyncTrainingClient:
        """A worker's client of the internal routes."""
        token = ticket if isinstance(ticket, str) else ticket.sign(self.secrets.tickets)
        http = HttpxConnections(httpx.ASGITransport(self.system_app))
        return AsyncTrainingClient("http://test", token, patience=patience, http=http)

    async def train(self, brand: Any, picture: bytes, family: str = "sd15") -> tuple[str, PublishedModel]:
        """Upload an image, create a job and publish its model; returns the job's id and the model."""
        async with self.client(brand.member) as client:
            asset = await upload(client, brand.id, picture)
            body = {"name": "a job", "model_type": family, "training_asset_ids": [asset["id"]]}
            answer = await client.post(f"/v1/brands/{brand.id}/training-jobs", json=body)
            assert answer.status_code == 201, answer.text
            job_id = answer.json()["id"]
        async with self.system(brand.ticket(job_id)) as worker:
            facts = {"rank": 4, "trigger_word": f"{brand.id} mark", "base_revision": "0" * 64}
            return job_id, await worker.publish(weights(brand.id), facts)


async def upload(client: httpx.AsyncClient, brand_id: str, picture: bytes, **fields: str) -> dict[str, Any]:
    """Upload an image; returns the asset."""
    files = [("files", ("logo.png", picture, "image/png"))]
    answer = await client.post(f"/v1/brands/{brand_id}/assets", files=files, data=fields)
    assert answer.status_code == 201, answer.text
    asset: dict[str, Any] = answer.json()["data"][0]
    return asset


def weights(salt: str = "") -> bytes:
    """A small safetensors file, different for each salt."""
    values = np.frombuffer(hashlib.sha256(salt.encode()).digest(), dtype=np.uint8).astype(np.float32)
    tensors = {"unet.mid.lora_A.weight": values.reshape(4, 8), "unet.mid.lora_B.weight": values.reshape(8, 4)}
    return bytes(safetensors.numpy.save(tensors, {"format": "pt"}))


class _Server(uvicorn.Server):
    """A server that leaves signals to pytest, and sets an event when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def served(app: FastAPI, listener: socket.socket) -> AsyncIterator[None]:
    """Serve the app by uvicorn within this event loop."""
    server = _Server(uvicorn.Config(app, log_level="critical", access_log=False))
    running = asyncio.create_task(server.serve([listener]))
    await server.has_started.wait()
    yield
    server.should_exit = True
    await running


@asynccontextmanager
async def serving(
    settings: Settings, secrets: Secrets, db: Database, paints: type[FakeGenerator] = FakeGenerator
) -> AsyncIterator[Platform]:
    """A platform on this database, also served on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        known = settings.model_copy(update={"port": listener.getsockname()[1]})
        store = ObjectStore.from_settings(known, secrets)
        system_app = create_system_app(known, secrets, db, store)

        http = HttpxConnections(httpx.ASGITransport(system_app))

        def client_for(ticket: str) -> AsyncSystemClient:
            return AsyncSystemClient("http://test", ticket, patience=2, http=http)

        generator = paints(client_for)
        app = create_app(known, secrets, db, store, generator, client_for=client_for)
        async with served(app, listener):
            yield Platform(known, secrets, db, store, app, system_app, generator, known.url)
