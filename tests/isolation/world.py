"""ACME and GLOBEX with one thing of every kind, and who the matrix calls by name. For the HTTP runs."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg

from onbrand.brand import Ticket, TicketKind
from onbrand.services import brands, generation, images, training
from tests.conftest import BrandOfPeople, MakeBrand, MakeUser, Person
from tests.ingress import Platform, upload, weights

Draw = Callable[..., bytes]
_seeds = itertools.count(10_000)
_TABLES = (
    "app.brands where id", "app.brand_users where brand_id", "app.brand_assets where brand_id",
    "app.asset_captions where brand_id", "app.lora_training_jobs where brand_id", "app.job_assets where brand_id",
    "app.job_events where brand_id", "app.models where brand_id", "app.generations where brand_id",
    "app.generated_images where brand_id", "storage.objects where brand_id", "audit.events where brand_id",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Two brands, and ids of ACME's things by name."""

    platform: Platform
    acme: BrandOfPeople
    globex: BrandOfPeople
    removed: Person
    things: dict[str, str]
    draw: Draw

    def client(self, persona: str) -> httpx.AsyncClient:
        """An HTTP client for a persona of the matrix."""
        people: dict[str, tuple[Person | None, str | None]] = {
            "member": (self.acme.member, None),
            "member2": (self.acme.member2, None),
            "admin": (self.acme.admin, None),
            "removed": (self.removed, None),
            "other_member": (self.globex.member, None),
            "other_admin": (self.globex.admin, None),
            "bound": (self.acme.member, self.globex.id),
            "anonymous": (None, None),
        }
        return self.platform.client(*people[persona])

    def worker(self, persona: str, kind: TicketKind, has_thing: bool) -> httpx.AsyncClient:
        """A client of the internal routes with a persona's ticket for this world's job or generation.

        Routes that name no thing act on the ticket's own job; there, another job's ticket is one that never existed.
        """
        other: TicketKind = "generation" if kind == "training" else "training"
        job_id = self.things["job" if kind == "training" else "generation"]
        another = self.things["other_job" if kind == "training" else "ended_generation"]
        tickets = {
            "own": self.acme.ticket(job_id, kind),
            "other_job": self.acme.ticket(another if has_thing else str(uuid.uuid4()), kind),
            "other_kind": self.acme.ticket(job_id, other),
            "other_brand": Ticket.issue(self.globex.id, job_id, self.acme.member.user_id, kind, 600),
        }
        token = (
            self.platform.token(self.acme.member)
            if persona == "person"
            else tickets[persona].sign(self.platform.secrets.tickets)
        )
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.platform.system_app),
            base_url="http://test",
            headers={"authorization": f"Bearer {token}"},
        )

    def picture(self) -> bytes:
        """A picture that nobody has uploaded yet."""
        return self.draw(next(_seeds))

    def rows(self, owner: psycopg.Connection) -> str:
        """A digest of every row of ACME."""
        owner.rollback()  # a new transaction sees what others have committed
        parts = [f"select t::text as line from (select * from {table} = %(brand)s) t" for table in _TABLES]
        digest = f"select md5(string_agg(line, '|' order by line)) from ({' union all '.join(parts)}) lines"
        return str(owner.execute(digest, {"brand": self.acme.id}).fetchone())


async def build(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, draw: Draw) -> World:
    """A fresh world. Everything of ACME is member's."""
    acme, globex = await make_brand("acme"), await make_brand("globex")
    removed = await make_user("removed")
    async with platform.doors.user_session(acme.admin.scope) as session:
        await brands.add_member(session, acme.id, removed.email, "admin")
        await brands.remove_member(session, acme.id, removed.user_id)
    world = World(platform, acme, globex, removed, {}, draw)
    await _make_things(world)
    return world


async def _make_things(world: World) -> None:
    platform, acme = world.platform, world.acme
    newcomer = uuid.uuid4().hex[:8]
    async with platform.client() as client:
        email = f"newcomer-{newcomer}@example.com"
        await client.post("/v1/users", json={"email": email, "password": "a long enough password"})
    async with world.client("member") as client:
        asset = await upload(client, acme.id, world.picture(), captions="photo of [brand], canary-caption")
        other = await upload(client, acme.id, world.picture())
        job, ended, trained = [await _job(client, acme.id, asset["id"]) for _ in range(3)]
        other_job = await _job(client, acme.id, other["id"])
    model_id = await _train(world, ended, trained)
    going, image_id = await _draw(world, num_images=2, fails=False)
    gone, _ = await _draw(world, num_images=1, fails=True)
    world.things.update(
        brand=acme.id,
        asset=asset["id"],
        job=job,
        ended_job=ended,
        other_job=other_job,
        model=model_id,
        generation=going,
        ended_generation=gone,
        image=image_id,
        member2=acme.member2.user_id,
        newcomer_email=email,
    )


async def _job(client: httpx.AsyncClient, brand_id: str, asset_id: str) -> str:
    body = {
        "name": "canary-job",
        "model_type": "sd15",
        "training_config": {"trigger_word": "canary-word"},
        "training_asset_ids": [asset_id],
    }
    answer = await client.post(f"/v1/brands/{brand_id}/training-jobs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def _train(world: World, ended: str, trained: str) -> str:
    doors, acme = world.platform.doors, world.acme
    ticket = acme.ticket(ended)
    async with doors.system_session(ticket) as session:
        await training.report(session, ticket, 5)
        await training.fail(session, ticket, "test", "canary-reason")
    ticket = acme.ticket(trained)
    async with doors.system_session(ticket) as session:
        facts = {"rank": 4, "trigger_word": "canary-word", "base_revision": "r"}
        store = world.platform.store.brand(acme.id)
        return (await training.publish(session, store, ticket, weights(acme.id), facts)).id


async def _draw(world: World, num_images: int, fails: bool) -> tuple[str, str]:
    platform, acme = world.platform, world.acme
    new = images.NewGeneration(prompt="canary-prompt", model_type="sd15", num_images=num_images)
    async with platform.doors.user_session(acme.member.scope) as session:
        made = await images.create_generation(
            session,
            acme.id,
            acme.member.user_id,
            new,
            images.recommended_of(platform.settings),
            platform.settings.limits,
        )
    ticket = acme.ticket(made.id, "generation")
    async with platform.doors.system_session(ticket) as session:
        await generation.start_generation(session, ticket)
        if fails:
            await generation.fail_generation(session, ticket, "test", "canary-reason")
            return made.id, ""
        return made.id, await add_image(world, session, ticket, 0)


async def add_image(world: World, session: Any, ticket: Ticket, index: int) -> str:
    """A stored picture of the ticket's generation."""
    store = world.platform.store.brand(world.acme.id)
    made = await generation.add_image(session, store, ticket, index, index, world.picture(), "image/png", 64, 64)
    return made.id
