"""The brands ACME and GLOBEX with one object of every kind, and the personas of the matrix, for tests over HTTP."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg

from onbrand.brand import Ticket, TicketKind
from onbrand.services import brands, generation_parameters, generation_worker, generations, publication, training_worker
from tests.conftest import PASSWORD, BrandOfPeople, MakeBrand, MakeUser, Person, join
from tools.harness.in_process_platform import Platform, upload, weights
from tools.harness.receipts import receipt_of

Draw = Callable[..., bytes]
_seeds = itertools.count(10_000)
KEY_SCOPES = ("read", "upload", "train", "generate", "manage")
_BRAND_TABLES = """
select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and a.attname = 'brand_id' and not a.attisdropped
where n.nspname in ('app', 'storage', 'audit') and c.relkind in ('r', 'p') order by 1"""
_USED_BY_LOOKING = ("last_used_at",)
"""Columns that a refused call may change: the time when a key was last tried."""


@dataclass(frozen=True)
class Fixtures:
    """Two brands, and ids of ACME's objects by name."""

    platform: Platform
    acme: BrandOfPeople
    globex: BrandOfPeople
    removed: Person
    things: dict[str, str]
    draw: Draw

    @asynccontextmanager
    async def client(self, persona: str, needs: str = "read") -> AsyncIterator[httpx.AsyncClient]:
        """An HTTP client for a persona of the matrix.

        Args:
            needs: the scope that the row's call requires of a key; `key` has only this scope, `key_without` all others.
        """
        async with self._nobody_yet(persona) as client:
            if persona == "cookie":
                await _log_in(client, self.acme.member)
            elif persona == "ticket":
                ticket = self.acme.ticket(self.things["job"]).sign(self.platform.secrets.tickets)
                client.headers["authorization"] = f"Bearer {ticket}"
            elif persona in ("key", "key_without", "other_key"):
                client.headers["authorization"] = f"Bearer {await self._key(persona, needs)}"
            yield client

    def _nobody_yet(self, persona: str) -> httpx.AsyncClient:
        people: dict[str, tuple[Person | None, str | None]] = {
            "member": (self.acme.member, None),
            "member2": (self.acme.member2, None),
            "admin": (self.acme.admin, None),
            "removed": (self.removed, None),
            "other_member": (self.globex.member, None),
            "other_admin": (self.globex.admin, None),
            "bound": (self.acme.member, self.globex.id),
        }
        return self.platform.client(*people.get(persona, (None, None)))

    async def _key(self, persona: str, needs: str) -> str:
        """A new key of an admin: ACME's with one scope, ACME's with all others, GLOBEX's with all."""
        brand = self.globex if persona == "other_key" else self.acme
        scopes = {
            "key": [needs],
            "key_without": [scope for scope in KEY_SCOPES if scope != needs],
            "other_key": list(KEY_SCOPES),
        }[persona]
        async with self.platform.client(brand.admin) as admin:
            body = {"name": f"{persona} {needs}", "scopes": scopes}
            answer = await admin.post(f"/v1/brands/{brand.id}/keys", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def worker(self, persona: str, kind: TicketKind, has_thing: bool) -> httpx.AsyncClient:
        """A client of the internal routes with a persona's ticket for ACME's job or generation.

        Routes without an id act on the ticket's own job. For them, `other_job` is a job that never existed.
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
        """A picture that was not uploaded before."""
        return self.draw(next(_seeds))

    def rows(self, owner: psycopg.Connection) -> str:
        """A digest of every row of ACME in all tables."""
        owner.rollback()  # a new transaction sees what others have committed
        tables = [table for (table,) in owner.execute(_BRAND_TABLES)]
        parts = [f"select to_jsonb(t) as line from {table} t where brand_id = %(brand)s" for table in tables]
        parts.append("select to_jsonb(t) from app.brands t where id = %(brand)s")
        digest = (
            "select md5(string_agg((line - %(but)s::text[])::text, '|' order by line::text))"
            f" from ({' union all '.join(parts)}) lines"
        )
        return str(owner.execute(digest, {"brand": self.acme.id, "but": list(_USED_BY_LOOKING)}).fetchone())


async def _log_in(client: httpx.AsyncClient, person: Person) -> None:
    """Log in with a session cookie, as the pages do, but never send the token that changes need."""
    client.headers["origin"] = str(client.base_url).rstrip("/")
    answer = await client.post("/v1/session", json={"email": person.email, "password": PASSWORD})
    assert answer.is_success, answer.text


async def build_fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, draw: Draw) -> Fixtures:
    """New fixtures. ACME's objects belong to `member`."""
    acme, globex = await make_brand("acme"), await make_brand("globex")
    removed, member3 = await make_user("removed"), await make_user("member3")
    await join(platform.db, acme.id, acme.admin, removed, "admin")
    await join(platform.db, acme.id, acme.admin, member3)
    async with platform.db.user_session(acme.admin.scope) as session:
        await brands.remove_member(session, acme.id, removed.user_id)
    fixtures = Fixtures(platform, acme, globex, removed, {"member3": member3.user_id}, draw)
    await _make_things(fixtures)
    return fixtures


async def _make_things(fixtures: Fixtures) -> None:
    platform, acme = fixtures.platform, fixtures.acme
    newcomer = uuid.uuid4().hex[:8]
    async with platform.client() as client:
        email = f"newcomer-{newcomer}@example.com"
        await client.post("/v1/users", json={"email": email, "password": "a long enough password"})
    async with fixtures.client("member") as client:
        asset = await upload(client, acme.id, fixtures.picture(), captions="photo of [brand], canary-caption")
        other = await upload(client, acme.id, fixtures.picture())
        job, ended, trained = [await _job(client, acme.id, asset["id"]) for _ in range(3)]
        other_job = await _job(client, acme.id, other["id"])
        upload_id = await _sent(client, acme.id, fixtures.picture())
        document_id = await _document(client, acme.id)
    model_id = await _train(fixtures, ended, trained)
    going, image_id = await _draw(fixtures, num_images=3, fails=False)
    gone, _ = await _draw(fixtures, num_images=1, fails=True)
    key, invitation = await _credentials(fixtures, email)
    fixtures.things.update(
        key=key,
        invitation=invitation,
        brand=acme.id,
        asset=asset["id"],
        job=job,
        ended_job=ended,
        other_job=other_job,
        model=model_id,
        generation=going,
        ended_generation=gone,
        image=image_id,
        upload=upload_id,
        document=document_id,
        member2=acme.member2.user_id,
        newcomer_email=email,
    )


async def _credentials(fixtures: Fixtures, invited: str) -> tuple[str, str]:
    """Ids of a key and of an open invitation, both created by the admin."""
    async with fixtures.client("admin") as client:
        made = [
            await client.post(f"/v1/brands/{fixtures.acme.id}/{what}", json=body)
            for what, body in (
                ("keys", {"name": "canary-key", "scopes": ["read"]}),
                ("invitations", {"email": f"canary-{invited}", "role": "member"}),
            )
        ]
    assert [answer.status_code for answer in made] == [201, 201], made
    return made[0].json()["id"], made[1].json()["id"]


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


async def _sent(client: httpx.AsyncClient, brand_id: str, picture: bytes) -> str:
    """An upload that was announced and sent, but not completed."""
    body = {"kind": "image", "filename": "canary-file.png", "content_type": "image/png", "bytes": len(picture)}
    answer = await client.post(f"/v1/brands/{brand_id}/uploads", json=body | {"caption": "canary-caption"})
    assert answer.status_code == 201, answer.text
    how = answer.json()["send"]
    sent = await client.put(how["url"], content=picture, headers=how["headers"])
    assert sent.status_code == 204, sent.text
    return str(answer.json()["id"])


async def _document(client: httpx.AsyncClient, brand_id: str) -> str:
    file = ("canary-voice.md", b"# canary-document\n", "text/markdown")
    answer = await client.post(f"/v1/brands/{brand_id}/documents", files={"file": file})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def _train(fixtures: Fixtures, ended: str, trained: str) -> str:
    db, acme = fixtures.platform.db, fixtures.acme
    ticket = acme.ticket(ended)
    async with db.system_session(ticket) as session:
        await training_worker.report(session, ticket, 5)
        await training_worker.fail(session, ticket, "test", "canary-reason")
    ticket = acme.ticket(trained)
    async with db.system_session(ticket) as session:
        facts = {"rank": 4, "trigger_word": "canary-word", "base_revision": "r"}
        store, checker = fixtures.platform.store.brand(acme.id), fixtures.platform.system_app.state.checker
        return (await publication.publish(session, store, ticket, weights(acme.id), facts, checker)).id


async def _draw(fixtures: Fixtures, num_images: int, fails: bool) -> tuple[str, str]:
    platform, acme = fixtures.platform, fixtures.acme
    new = generation_parameters.NewGeneration(prompt="canary-prompt", model_type="sd15", num_images=num_images)
    async with platform.db.user_session(acme.member.scope) as session:
        made = await generations.create_generation(
            session,
            acme.id,
            acme.member.user_id,
            new,
            generations.recommended_of(platform.settings),
            platform.settings.limits,
        )
    ticket = acme.ticket(made.id, "generation")
    async with platform.db.system_session(ticket) as session:
        await generation_worker.start_generation(session, ticket)
        if fails:
            await generation_worker.fail_generation(session, ticket, "test", "canary-reason")
            return made.id, ""
        return made.id, await add_image(fixtures, session, ticket, 0)


async def add_image(fixtures: Fixtures, session: Any, ticket: Ticket, index: int) -> str:
    """A stored picture of the ticket's generation."""
    store, picture = fixtures.platform.store.brand(fixtures.acme.id), fixtures.picture()
    made = await generation_worker.add_image(
        session, store, ticket, index, index, picture, "image/png", 64, 64, receipt_of(ticket.brand_id)
    )
    return made.image.id
