"""The three routes that take files, for one brand: what tests and the benchmark send the corpus to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from onbrand.services import job_validation, jobs
from tests.conftest import BrandOfPeople
from tests.ingress import Platform, upload
from tests.isolation.hostile.corpus import Door
from tests.isolation.hostile.pictures import picture

_FACTS = json.dumps({"rank": 4, "trigger_word": "acme", "base_revision": "0" * 64})


@dataclass
class Database:
    """A member's client of the users' app, and a worker's of the internal routes with a ticket for an open job."""

    brand: BrandOfPeople
    member: httpx.AsyncClient
    worker: httpx.AsyncClient

    async def send(self, door: Door, filename: str, data: bytes) -> httpx.Response:
        field = "files" if door == "assets" else "file"
        path = "/v1/training/publish" if door == "publish" else f"/v1/brands/{self.brand.id}/{door}"
        fields = {"facts": _FACTS} if door == "publish" else {}
        file = {field: (filename, data, "application/octet-stream")}
        return await self.client(door).post(path, files=file, data=fields)

    def client(self, door: Door) -> httpx.AsyncClient:
        return self.worker if door == "publish" else self.member


@asynccontextmanager
async def open_doors(platform: Platform, brand: BrandOfPeople) -> AsyncIterator[Database]:
    """The doors of a brand that has no picture yet."""
    async with platform.client(brand.member) as member:
        asset = await upload(member, brand.id, picture("PNG", 99))
        new = job_validation.NewJob(name="a job", model_type="sd15", training_asset_ids=[asset["id"]])
        async with platform.db.user_session(brand.member.scope) as session:
            job = await jobs.create_job(session, brand.id, brand.member.user_id, new)
        ticket = brand.ticket(job.id).sign(platform.secrets.tickets)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(platform.system_app),
            base_url="http://test",
            headers={"authorization": f"Bearer {ticket}"},
        ) as worker:
            yield Database(brand, member, worker)
