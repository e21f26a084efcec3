"""Sends files of the corpus to the three routes that take files, for one brand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from onbrand.services import job_validation, jobs
from tools.harness.hostile_files.corpus import FileRoute
from tools.harness.hostile_files.pictures import picture
from tools.harness.in_process_platform import Platform, upload
from tools.harness.people import BrandOfPeople

_FACTS = json.dumps({"rank": 4, "trigger_word": "acme", "base_revision": "0" * 64})


@dataclass
class FileRoutes:
    """A member's client of the users' app, and a worker's of the internal routes with a ticket for an open job."""

    brand: BrandOfPeople
    member: httpx.AsyncClient
    worker: httpx.AsyncClient

    async def send(self, route: FileRoute, filename: str, data: bytes) -> httpx.Response:
        field = "files" if route == "assets" else "file"
        path = "/v1/training/publish" if route == "publish" else f"/v1/brands/{self.brand.id}/{route}"
        fields = {"facts": _FACTS} if route == "publish" else {}
        file = {field: (filename, data, "application/octet-stream")}
        return await self.client(route).post(path, files=file, data=fields)

    def client(self, route: FileRoute) -> httpx.AsyncClient:
        return self.worker if route == "publish" else self.member


@asynccontextmanager
async def open_file_routes(platform: Platform, brand: BrandOfPeople) -> AsyncIterator[FileRoutes]:
    """Clients for a brand with one picture and one open job."""
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
            yield FileRoutes(brand, member, worker)
