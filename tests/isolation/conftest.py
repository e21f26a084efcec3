"""Two brands, the first with one object of every kind, and personas whose statements are rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from onbrand.brand import KEY_SCOPES
from onbrand.config import Limits
from onbrand.db.claims import ClaimsSigner
from onbrand.db.limits import set_limits
from onbrand.db.session import Database
from onbrand.families.spec import with_family_defaults
from onbrand.sandbox.results import CleanDocument
from onbrand.services import (
    asset_checks,
    audit,
    brands,
    documents,
    generation_parameters,
    generation_worker,
    generations,
    idempotency,
    invitations,
    job_validation,
    jobs,
    keys,
    publication,
    training_worker,
    uploads,
)
from tests.conftest import BrandOfPeople, join
from tests.signing import become, forge
from tests.small_adapter import FACTS, safetensors
from tests.stored_assets import store_assets
from tools.harness.receipts import receipt_of

UNSIGNED = ("forged_admin", "forged_ticket")
RECOMMENDED = {"sd15": with_family_defaults("sd15", {"resolution": 64})}


@dataclass(frozen=True)
class SqlFixtures:
    """Ids of ACME's objects by name, as statements use them; `claims` by persona."""

    ids: dict[str, str]
    claims: dict[str, tuple[str, str | None, dict[str, str]]]
    """Persona: login (`web` or `system`), role (None: the login's own), claims, all about ACME."""
    signer: ClaimsSigner = field(repr=False)

    def composed(self, statement: str, persona: str) -> sql.Composed:
        """`statement` with ids in place; `:me` is the persona's own id."""
        me = self.claims[persona][2].get("sub", self.ids["newcomer"])
        literals = {name: sql.Literal(value) for name, value in self.ids.items()}
        return sql.SQL(statement.replace(":me", "{me}")).format(**literals, me=sql.Literal(me))  # type: ignore[arg-type]


class Tries:
    """One connection for each login.

    `outcome` is the result of a statement: `none`, `refused`, `rows`, or `last_admin`.
    """

    def __init__(self, web: psycopg.Connection, system: psycopg.Connection, fixtures: SqlFixtures) -> None:
        self._logins = {"web": web, "system": system}
        self._fixtures = fixtures

    def outcome(self, persona: str, statement: str) -> str:
        login, role, claims = self._fixtures.claims[persona]
        connection = self._logins[login]
        try:
            with connection.transaction(force_rollback=True):
                if persona in UNSIGNED:
                    forge(connection, str(role), claims)
                elif role is not None:
                    become(connection, self._fixtures.signer, role, **claims)
                done = connection.execute(self._fixtures.composed(statement, persona))
                return "rows" if done.rowcount > 0 else "none"
        except psycopg.errors.InsufficientPrivilege:
            return "refused"
        except psycopg.Error as problem:
            if problem.sqlstate != "OB001":
                raise
            return "last_admin"


async def _keys(db: Database, acme: BrandOfPeople, globex: BrandOfPeople) -> dict[str, keys.ApiKey]:
    """Keys by persona: ACME's with one scope, ACME's with all others, GLOBEX's with all. Their admins create them."""
    async with db.user_session(globex.admin.scope) as session:
        made: dict[str, keys.ApiKey] = {"other_key": await keys.create_key(session, globex.id, "other", KEY_SCOPES)}
    async with db.user_session(acme.admin.scope) as session:
        for scope in KEY_SCOPES:
            others = [each for each in KEY_SCOPES if each != scope]
            made[f"key:{scope}"] = await keys.create_key(session, acme.id, "a key", [scope])
            made[f"key_without:{scope}"] = await keys.create_key(session, acme.id, "a key", others)
    return made


def _a_picture(brand_id: str, sha256: str, data: bytes) -> tuple[Any, ...]:
    return 0, 1, data, "image/png", 64, 64, receipt_of(brand_id, [(sha256, 1.0)])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fixtures(database, db, store, make_brand, make_user, pictures, secrets) -> SqlFixtures:
    """Created once, through the services."""
    acme, globex = await make_brand("acme"), await make_brand("globex")
    removed, newcomer, member3 = [await make_user(name) for name in ("removed", "newcomer", "member3")]
    bytes_of = store.brand(acme.id)
    member = acme.member
    for person, role in ((removed, "admin"), (member3, "member")):
        await join(db, acme.id, acme.admin, person, role)
    async with db.user_session(acme.admin.scope) as session:
        await brands.remove_member(session, acme.id, removed.user_id)
    async with db.user_session(acme.admin.scope) as session:
        invitation = await invitations.invite(session, acme.id, "invited@example.com", "member")
    made = await _keys(db, acme, globex)
    async with db.user_session(member.scope) as session:
        files = [asset_checks.Upload(f"{seed}.png", pictures(seed), object="logo") for seed in (1, 2, 3)]
        asset, other_asset, free = await store_assets(session, bytes_of, acme.id, member.user_id, files, Limits())

        async def job(asset_id: str) -> str:
            new = job_validation.NewJob(name="a job", model_type="sd15", training_asset_ids=[asset_id])
            return (await jobs.create_job(session, acme.id, member.user_id, new)).id

        pending, trains, trains_too, ended, published = [
            await job(each) for each in (asset.id, asset.id, other_asset.id, other_asset.id, other_asset.id)
        ]
        call = idempotency.CallKey(member.user_id, acme.id, "a key", "POST /", "0" * 64)
        await idempotency.claim(session, call)
    for job_id in (trains, trains_too):
        ticket = acme.ticket(job_id)
        async with db.system_session(ticket) as session:
            await training_worker.report(session, ticket, 1, {"loss": 0.5})
    async with db.system_session(acme.ticket(ended)) as session:
        await training_worker.fail(session, acme.ticket(ended), "test", "a test")
    async with db.system_session(acme.ticket(published)) as session:
        model = await publication.publish(session, bytes_of, acme.ticket(published), safetensors(), FACTS)
    async with db.user_session(member.scope) as session:
        new = generation_parameters.NewGeneration(prompt="a picture", model=model.name, num_images=2)
        other = generation_parameters.NewGeneration(prompt="a picture", model_type="sd15")
        drawn, drawn_too = [
            await generations.create_generation(session, acme.id, member.user_id, each, RECOMMENDED, Limits())
            for each in (new, other)
        ]
        await audit.write_audit_line(session, acme.id, "model.download", {"model_id": model.id})
        announced = uploads.NewUpload(kind="image", filename="a.png", content_type="image/png", bytes=9)
        text = CleanDocument(b"x", "text/markdown; charset=utf-8", "md", None, "0" * 64)
        checked = documents.Checked("voice", "Voice", text)
        document = await documents.store_checked(session, bytes_of, acme.id, member.user_id, checked)
        upload, ended_upload = [
            (await uploads.create_upload(session, bytes_of, acme.id, member.user_id, announced, Limits(), 60))[0]
            for _ in range(2)
        ]
        await session.run(
            "update app.uploads set status = 'completed', ended_at = clock_timestamp() where id = %s", [ended_upload.id]
        )
        await session.run(
            "insert into app.upload_objects (brand_id, upload_id, index, asset_id) values (%s, %s, 0, %s)",
            [acme.id, ended_upload.id, asset.id],
        )
    drawing = acme.ticket(drawn.id, "generation")
    async with db.system_session(drawing) as session:
        await generation_worker.start_generation(session, drawing)
        added = await generation_worker.add_image(
            session, bytes_of, drawing, *_a_picture(acme.id, model.sha256, pictures(7))
        )
        image = added.image
    set_limits(database.owner_url, acme.id, {"weight": 2.0})
    ids = {
        "brand": acme.id, "other_brand": globex.id, "asset": asset.id, "free_asset": free.id, "job": pending,
        "training_job": trains, "ended_job": ended, "model": model.id, "generation": drawn.id, "image": image.id,
        "member": member.user_id, "member2": acme.member2.user_id, "member3": member3.user_id,
        "admin": acme.admin.user_id,
        "newcomer": newcomer.user_id, "member_email": member.email, "asset_name": asset.object_name,
        "free_asset_name": free.object_name, "model_name": model.object_name, "image_name": image.object_name,
        "other_member": globex.member.user_id, "other_admin": globex.admin.user_id,
        "document": document.id, "document_name": document.object_name,
        "upload": upload.id, "ended_upload": ended_upload.id,
        "pending_generation": drawn_too.id, "model_sha256": model.sha256,
        "key": made["key:manage"].id, "invitation": invitation.id,
    }  # fmt: skip

    def user(user_id: str, **more: Any) -> tuple[str, str, dict[str, Any]]:
        return "web", "authenticated", {"sub": user_id, "brand_id": acme.id, **more}

    def key(made: keys.ApiKey, purpose: str) -> tuple[str, str, dict[str, Any]]:
        return user(
            made.user_id, bound_to=made.brand_id, key_id=made.id, scopes=list(made.scopes), purpose=purpose or "read"
        )

    def ticket(job_id: str, kind: str = "training", brand: str = acme.id, who: str = member.user_id) -> Any:
        claims = {"brand_id": brand, "job_id": job_id, "kind": kind, "on_behalf_of": who}
        return "system", "brand_system", claims

    claims = {
        "member": user(member.user_id),
        "member2": user(acme.member2.user_id),
        "admin": user(acme.admin.user_id),
        "removed": user(removed.user_id),
        "other_member": user(globex.member.user_id),
        "other_admin": user(globex.admin.user_id),
        "bound": user(member.user_id, bound_to=globex.id),
        "at_home": user(globex.member.user_id, brand_id=globex.id),
        "nowhere": ("web", "authenticated", {"sub": member.user_id}),
        "forged_admin": user(acme.admin.user_id),
        "forged_ticket": ticket(trains),
        **{name: key(each, name.partition(":")[2]) for name, each in made.items()},
        "anonymous": ("web", "anon", {}),
        "logging_in": ("web", "anon", {"asks": ["find_login", member.email]}),
        "no_claims": ("web", "authenticated", {}),
        "no_role": ("web", None, {}),
        "system": ticket(trains),
        "system_other_job": ticket(trains_too),
        "system_other_brand": ticket(trains, brand=globex.id, who=globex.member.user_id),
        "system_other_member": ticket(trains, who=acme.member2.user_id),
        "system_other_kind": ticket(trains, "generation"),
        "drawing": ticket(drawn.id, "generation"),
        "drawing_other": ticket(drawn_too.id, "generation"),
        "drawing_other_brand": ticket(drawn.id, "generation", brand=globex.id, who=globex.member.user_id),
        "drawing_other_kind": ticket(drawn.id, "training"),
        "dispatcher": ("system", "onbrand_dispatcher", {}),
        "system_no_role": ("system", None, {}),
    }
    return SqlFixtures(ids, claims, ClaimsSigner(secrets.claims))


@pytest.fixture(scope="session")
def tries(database, fixtures: SqlFixtures) -> Iterator[Tries]:
    """Runs statements as any persona."""
    with psycopg.connect(database.web_url) as web, psycopg.connect(database.system_url) as system:
        yield Tries(web, system, fixtures)
