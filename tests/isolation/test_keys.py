"""API keys: each reaches one brand, within its scopes, as long as the key and its creator's membership exist.

Tested over HTTP, and as SQL with the claims of a key's request, so that row-level security alone must hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import psycopg
import pytest
from fastapi.routing import APIRoute

from onbrand.api import authorization
from onbrand.brand import KEY_SCOPES, KeyScope, Scope
from onbrand.db.session import Database
from onbrand.errors import Forbidden, NotFound
from onbrand.services import job_validation, jobs, keys
from tests.conftest import BrandOfPeople, MakeBrand, MakeUser, join
from tools.harness.in_process_platform import Platform, upload

Row = dict[str, Any]


@pytest.fixture
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


async def make_key(platform: Platform, brand: BrandOfPeople, *scopes: str, **more: Any) -> dict[str, Any]:
    """A key that the brand's admin makes."""
    async with platform.client(brand.admin) as admin:
        body = {"name": "a key", "scopes": list(scopes) or list(KEY_SCOPES), **more}
        answer = await admin.post(f"/v1/brands/{brand.id}/keys", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def with_key(platform: Platform, key: str) -> httpx.AsyncClient:
    client = platform.client()
    client.headers["authorization"] = f"Bearer {key}"
    return client


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


# what a key is


async def test_a_key_is_shown_once_and_kept_as_a_digest(
    platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    made = await make_key(platform, acme, "read", "generate")
    key_id, secret = re.fullmatch(r"ob_([0-9a-f]{32})_([0-9a-f]{64})", made["key"]).groups()  # type: ignore[union-attr]
    assert str(uuid.UUID(key_id)) == made["id"]
    assert made["key"].startswith(made["prefix"])
    assert (made["scopes"], made["user_id"]) == (["read", "generate"], acme.admin.user_id)
    async with platform.client(acme.admin) as admin:
        (listed,) = (await admin.get(f"/v1/brands/{acme.id}/keys")).json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "key"}
    everything = owner.execute("select t::text from app.api_keys t where id = %s", [made["id"]]).fetchone()
    assert secret not in str(everything)
    assert hashlib.sha256(secret.encode()).hexdigest() in str(everything)


async def test_a_repeated_call_makes_no_second_key_and_says_no_secret(
    platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    body = {"name": "once", "scopes": ["read"]}
    async with platform.client(acme.admin) as admin:
        first, again = [
            await admin.post(f"/v1/brands/{acme.id}/keys", json=body, headers={"idempotency-key": "k"}) for _ in "12"
        ]
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json() | {"key": None}
    secret = first.json()["key"].rsplit("_", 1)[1]
    remembered = owner.execute("select string_agg(t::text, '') from app.idempotency_keys t").fetchone()
    assert secret not in str(remembered)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes.0"),
        ({"scopes": None}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": "   "}, "name"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2090-01-01T00:00:00"}, "expires_at"),
        ({"brand_id": "other"}, "brand_id"),
        ({"user_id": str(uuid.uuid4())}, "user_id"),
    ],
)
async def test_a_bad_key_names_the_field(
    platform: Platform, acme: BrandOfPeople, change: dict[str, Any], param: str
) -> None:
    async with platform.client(acme.admin) as admin:
        body = {"name": "a key", "scopes": ["read"]} | change
        answer = await admin.post(f"/v1/brands/{acme.id}/keys", json=body)
    assert (*told(answer), answer.json()["param"]) == (422, "invalid_input", param)


async def test_the_caller_learns_who_the_key_is(platform: Platform, acme: BrandOfPeople) -> None:
    made = await make_key(platform, acme, "train", "read")
    async with with_key(platform, made["key"]) as client:
        me = (await client.get("/v1/me")).json()
    assert (me["id"], me["brand_id"], me["key_id"], me["scopes"]) == (
        acme.admin.user_id, acme.id, made["id"], ["read", "train"],
    )  # fmt: skip
    assert [brand["id"] for brand in me["brands"]] == [acme.id]


async def test_its_use_is_noted(platform: Platform, acme: BrandOfPeople) -> None:
    made = await make_key(platform, acme, "read")
    async with with_key(platform, made["key"]) as client:
        await client.get(f"/v1/brands/{acme.id}")
    async with platform.client(acme.admin) as admin:
        (listed,) = (await admin.get(f"/v1/brands/{acme.id}/keys")).json()["data"]
    assert listed["last_used_at"] is not None


# what is no key


def _other_id(key: str) -> str:
    return f"ob_{uuid.uuid4().hex}_{key.rsplit('_', 1)[1]}"


@pytest.mark.parametrize(
    "forge",
    [
        lambda key: key[:-1] + ("0" if key[-1] != "0" else "1"),
        lambda key: key[:-1],
        lambda key: key + "0",
        lambda key: key.upper(),
        lambda key: key.replace("_", "-"),
        _other_id,
        lambda key: "ob_" + key.rsplit("_", 1)[1],
        lambda key: f"{key}\x00",
        lambda key: "ob_",
        lambda key: "ob_' or 1=1 --_" + "0" * 64,
    ],
)
async def test_what_is_not_quite_a_key_is_none(
    platform: Platform, acme: BrandOfPeople, forge: Callable[[str], str]
) -> None:
    key = (await make_key(platform, acme))["key"]
    async with with_key(platform, forge(key)) as client:
        assert told(await client.get("/v1/me")) == (401, "unauthenticated")


async def test_the_digest_is_no_key(platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection) -> None:
    made = await make_key(platform, acme)
    (digest,) = owner.execute("select hash from app.api_keys where id = %s", [made["id"]]).fetchone()  # type: ignore[misc]
    async with with_key(platform, f"ob_{uuid.UUID(made['id']).hex}_{digest}") as client:
        assert told(await client.get("/v1/me")) == (401, "unauthenticated")


async def test_an_expired_key_is_out(platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection) -> None:
    made = await make_key(platform, acme, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    async with with_key(platform, made["key"]) as client:
        assert (await client.get(f"/v1/brands/{acme.id}")).status_code == 200
        owner.execute(
            "update app.api_keys set created_at = now() - interval '2 h', expires_at = now() - interval '1 s'"
            " where id = %s",
            [made["id"]],
        )
        owner.commit()
        assert told(await client.get(f"/v1/brands/{acme.id}")) == (401, "unauthenticated")


async def test_a_revoked_key_is_out_at_once_and_stays_out(platform: Platform, acme: BrandOfPeople) -> None:
    made = await make_key(platform, acme)
    async with with_key(platform, made["key"]) as client, platform.client(acme.admin) as admin:
        assert (await client.get(f"/v1/brands/{acme.id}")).status_code == 200
        for _ in "12":
            assert (await admin.delete(f"/v1/brands/{acme.id}/keys/{made['id']}")).status_code == 204
        assert told(await client.get(f"/v1/brands/{acme.id}")) == (401, "unauthenticated")
        (listed,) = (await admin.get(f"/v1/brands/{acme.id}/keys")).json()["data"]
        assert listed["revoked_at"] is not None


async def test_its_maker_removed_the_key_is_dead_and_stays_so_when_they_come_back(
    platform: Platform, acme: BrandOfPeople, make_user: MakeUser
) -> None:
    second = await make_user("second")
    async with platform.client(acme.admin) as admin:
        await join(platform.db, acme.id, acme.admin, second, "admin")
        async with platform.client(second) as theirs:
            body = {"name": "theirs", "scopes": list(KEY_SCOPES)}
            key = (await theirs.post(f"/v1/brands/{acme.id}/keys", json=body)).json()["key"]
        async with with_key(platform, key) as client:
            assert (await client.get(f"/v1/brands/{acme.id}")).status_code == 200
            await admin.delete(f"/v1/brands/{acme.id}/members/{second.user_id}")
            assert told(await client.get(f"/v1/brands/{acme.id}")) == (401, "unauthenticated")
            await join(platform.db, acme.id, acme.admin, second, "admin")
            assert told(await client.get(f"/v1/brands/{acme.id}")) == (401, "unauthenticated")


async def test_its_maker_demoted_the_key_manages_no_more(
    platform: Platform, acme: BrandOfPeople, make_user: MakeUser
) -> None:
    second = await make_user("second")
    async with platform.client(acme.admin) as admin:
        await join(platform.db, acme.id, acme.admin, second, "admin")
        async with platform.client(second) as theirs:
            body = {"name": "theirs", "scopes": list(KEY_SCOPES)}
            key = (await theirs.post(f"/v1/brands/{acme.id}/keys", json=body)).json()["key"]
        await admin.patch(f"/v1/brands/{acme.id}/members/{second.user_id}", json={"role": "member"})
    async with with_key(platform, key) as client:
        assert (await client.get(f"/v1/brands/{acme.id}")).json()["role"] == "member"
        answer = await client.post(f"/v1/brands/{acme.id}/members", json={"email": "x@example.com"})
        assert told(answer) == (403, "forbidden")
        assert [m["user_id"] for m in (await client.get(f"/v1/brands/{acme.id}/members")).json()["data"]] == [
            second.user_id
        ]


async def test_a_stream_ends_when_its_key_is_revoked(platform: Platform, acme: BrandOfPeople, pictures: Any) -> None:
    async with platform.client(acme.member) as member:
        asset = await upload(member, acme.id, pictures(1))
        job = {"name": "j", "model_type": "sd15", "training_asset_ids": [asset["id"]]}
        job_id = (await member.post(f"/v1/brands/{acme.id}/training-jobs", json=job)).json()["id"]
    made = await make_key(platform, acme, "read")
    async with httpx.AsyncClient(base_url=platform.url, headers={"authorization": f"Bearer {made['key']}"}) as client:
        async with asyncio.timeout(20):
            async with client.stream("GET", f"/v1/brands/{acme.id}/training-jobs/{job_id}/events") as stream:
                lines = stream.aiter_lines()
                assert (await anext(lines)) == ": onbrand"
                async with platform.client(acme.admin) as admin:
                    await admin.delete(f"/v1/brands/{acme.id}/keys/{made['id']}")
                assert [line async for line in lines if line.startswith("event")] == []


# no key makes keys, none is wider than its maker or itself


@pytest.mark.parametrize("scopes", [("manage",), KEY_SCOPES])
async def test_no_key_makes_or_revokes_keys(platform: Platform, acme: BrandOfPeople, scopes: tuple[str, ...]) -> None:
    made = await make_key(platform, acme, *scopes)
    async with with_key(platform, made["key"]) as client:
        answer = await client.post(f"/v1/brands/{acme.id}/keys", json={"name": "child", "scopes": ["read"]})
        assert told(answer) == (403, "forbidden")
        answer = await client.delete(f"/v1/brands/{acme.id}/keys/{made['id']}")
        assert told(answer) == (403, "forbidden")
    async with platform.client(acme.admin) as admin:
        assert len((await admin.get(f"/v1/brands/{acme.id}/keys")).json()["data"]) == 1


@pytest.mark.parametrize("method_path_body", [
    ("POST", "/v1/brands", {"id": "made-by-a-key", "name": "x"}),
    ("POST", "/v1/invitations/accept", {"token": "obi_"}),
    ("GET", "/v1/sessions", None),
    ("DELETE", "/v1/sessions", None),
    ("POST", "/v1/me/identities", {"token": "x"}),
])  # fmt: skip
async def test_what_is_a_persons_is_no_keys(
    platform: Platform, acme: BrandOfPeople, method_path_body: tuple[str, str, Any]
) -> None:
    method, path, body = method_path_body
    async with with_key(platform, (await make_key(platform, acme))["key"]) as client:
        assert told(await client.request(method, path, json=body)) == (403, "forbidden")


async def test_a_member_makes_no_key(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as member:
        answer = await member.post(f"/v1/brands/{acme.id}/keys", json={"name": "x", "scopes": ["read"]})
        assert told(answer) == (403, "forbidden")


async def test_a_key_reaches_its_brand_and_no_other_of_its_maker(
    platform: Platform, acme: BrandOfPeople, make_brand: MakeBrand
) -> None:
    other = await make_brand("other")
    await join(platform.db, other.id, other.admin, acme.admin, "admin")
    async with with_key(platform, (await make_key(platform, acme))["key"]) as client:
        theirs = await client.get(f"/v1/brands/{other.id}")
        never = await client.get("/v1/brands/never-was-there")
        assert [brand["id"] for brand in (await client.get("/v1/brands")).json()["data"]] == [acme.id]
    bodies = [answer.json() | {"request_id": ""} for answer in (theirs, never)]
    assert bodies[0] == bodies[1]


async def test_openais_client_works_with_a_key_and_the_model_alone(
    platform: Platform, acme: BrandOfPeople, pictures: Any
) -> None:
    await platform.train(acme, pictures(1))
    key = (await make_key(platform, acme, "read", "generate"))["key"]

    def use() -> tuple[list[str], bool]:
        with openai.OpenAI(base_url=f"{platform.url}/v1", api_key=key, max_retries=0, timeout=30) as client:
            names = [model.id for model in client.models.list()]
            drawn = client.images.generate(model="sd15-lora-v1", prompt="[brand]", response_format="b64_json")
            return names, bool(drawn.data and drawn.data[0].b64_json)

    names, has_picture = await asyncio.to_thread(use)
    assert "sd15-lora-v1" in names
    assert has_picture


async def test_openais_face_refuses_a_key_without_generate(platform: Platform, acme: BrandOfPeople) -> None:
    key = (await make_key(platform, acme, "read", "upload", "train", "manage"))["key"]
    async with with_key(platform, key) as client:
        answer = await client.post("/v1/images/generations", json={"model": "sd15", "prompt": "x"})
        assert told(answer) == (403, "forbidden")


# the routes: what a key must be allowed stands in each signature

NEEDS = {
    authorization.ReadCaller: "read",
    authorization.ReadAccess: "read",
    authorization.UploadCaller: "upload",
    authorization.UploadAccess: "upload",
    authorization.TrainCaller: "train",
    authorization.TrainAccess: "train",
    authorization.GenerateCaller: "generate",
    authorization.GenerateAccess: "generate",
    authorization.ManageCaller: "manage",
    authorization.Admin: "manage",
    authorization.AdminUserOnly: "manage",
}


def needs_of(route: APIRoute) -> set[str]:
    """The scopes in a route's signature."""
    hints = {dependency.call for dependency in _flat(route.dependant)}
    return {scope for kind, scope in NEEDS.items() if kind.__metadata__[0].dependency in hints}  # type: ignore[attr-defined]


def _flat(dependant: Any) -> list[Any]:
    return [*dependant.dependencies, *(inner for each in dependant.dependencies for inner in _flat(each))]


def api_routes(routes: Any) -> list[APIRoute]:
    found: list[APIRoute] = []
    for route in routes:
        if isinstance(route, APIRoute):
            found.append(route)
        elif (inner := getattr(route, "original_router", None)) is not None:
            found += api_routes(inner.routes)
    return found


def test_every_route_of_a_brand_says_what_a_key_needs(platform: Platform) -> None:
    of_brands = [route for route in api_routes(platform.app.routes) if "{brand_id}" in route.path]
    assert len(of_brands) > 30
    wrong = {}
    for route in of_brands:
        needs, changes = needs_of(route), not route.methods <= {"GET", "HEAD"}
        if len(needs) != 1 or (changes and needs == {"read"}):
            wrong[f"{sorted(route.methods)} {route.path}"] = sorted(needs)
    assert wrong == {}


# the same as SQL: a key's claims, whatever a route would have let through


@asynccontextmanager
async def as_key(db: Database, made: dict[str, Any], **claims: Any):  # type: ignore[no-untyped-def]
    """A transaction with a key's claims for its first scope; `claims` changes them."""
    said = {"user_id": made["user_id"], "brand_id": made["brand_id"], "key_id": made["id"]}
    said |= {"purpose": made["scopes"][0]} | claims
    async with db.user_session(Scope(**said)) as session:
        yield session


STATEMENTS = {
    "an asset": ("upload", "insert into app.brand_assets (brand_id, user_id, name, object, object_name, sha256,"
        " content_type, bytes, width, height) values (%(brand)s, %(me)s, 'x', 'logo', %(brand)s || '/logo-999.png',"
        " repeat('f', 64), 'image/png', 1, 1, 1)"),
    "an object": ("upload", "insert into storage.objects (bucket_id, name, user_id, content_type, bytes)"
        " values ('training-data', %(brand)s || '/logo-999.png', %(me)s, 'image/png', 1)"),
    "a caption": ("upload", "insert into app.asset_captions (brand_id, asset_id, version, caption, user_id)"
        " values (%(brand)s, %(asset)s, 9, 'x', %(me)s)"),
    "a job": ("train", "insert into app.lora_training_jobs (brand_id, user_id, name, model_type)"
        " values (%(brand)s, %(me)s, 'x', 'sd15')"),
    "a job's picture": ("train", "insert into app.job_assets (brand_id, job_id, asset_id)"
        " values (%(brand)s, %(job)s, %(asset)s)"),
    "a job's name": ("train", "update app.lora_training_jobs set name = 'y' where id = %(job)s"),
    "a generation": ("generate", "insert into app.generations (brand_id, user_id, model_type, model_name, prompt,"
        " num_images, width, height, seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale,"
        " output_format) values (%(brand)s, %(me)s, 'sd15', 'sd15', 'x', 1, 64, 64, 1, 1, 1, 1, 1, 'png')"),
    "a role": ("manage", "update app.brand_users set role = 'admin' where brand_id = %(brand)s and role = 'member'"),
    "a leaving": ("manage", "delete from app.brand_users where brand_id = %(brand)s and role = 'member'"),
    "an invitation": ("manage", "insert into app.invitations (brand_id, user_id, email, role, hash, expires_at)"
        " values (%(brand)s, %(me)s, 'x@example.com', 'member', repeat('f', 64), now() + interval '1 day')"),
    "a deletion of a job": ("manage", "delete from app.lora_training_jobs where id = %(job)s"),
}  # fmt: skip


@pytest.fixture(scope="module")
async def keyed(platform: Platform, make_brand: MakeBrand, pictures: Any) -> dict[str, Any]:
    """A brand with a job of its admin, and a key for each scope alone and for all but it."""
    brand = await make_brand("keyed")
    async with platform.client(brand.admin) as admin:
        asset = await upload(admin, brand.id, pictures(1))
        used = await upload(admin, brand.id, pictures(2))
    async with platform.db.user_session(brand.admin.scope) as session:
        new = job_validation.NewJob(name="j", model_type="sd15", training_asset_ids=[used["id"]])
        job = await jobs.create_job(session, brand.id, brand.admin.user_id, new)
    ids = {"brand": brand.id, "me": brand.admin.user_id, "asset": asset["id"], "job": job.id}
    alone = {scope: await make_key(platform, brand, scope) for scope in KEY_SCOPES}
    without = {scope: await make_key(platform, brand, *(set(KEY_SCOPES) - {scope})) for scope in KEY_SCOPES}
    return {"ids": ids, "alone": alone, "without": without, "brand": brand}


class Undone(Exception):
    """Rolls an attempt back."""


async def touched(db: Database, made: dict[str, Any], statement: str, ids: dict[str, str], **claims: Any) -> int:
    """The number of rows that the statement affects with the key's claims; -1 if the database refuses it."""
    num = -1
    try:
        async with as_key(db, made, **claims) as session:
            num = await session.run(statement, ids)
            raise Undone
    except Undone:
        return num
    except (Forbidden, NotFound):
        return -1


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_database_lets_a_key_write_with_the_scope_and_not_without(
    name: str, db: Database, keyed: dict[str, Any]
) -> None:
    scope, statement = STATEMENTS[name]
    assert await touched(db, keyed["alone"][scope], statement, keyed["ids"]) > 0
    assert await touched(db, keyed["without"][scope], statement, keyed["ids"]) <= 0


@pytest.mark.parametrize("name", STATEMENTS)
async def test_claims_narrow_a_key_and_never_widen_it(name: str, db: Database, keyed: dict[str, Any]) -> None:
    scope, statement = STATEMENTS[name]
    narrow, wide = frozenset(set(KEY_SCOPES) - {scope}), frozenset(KEY_SCOPES)
    assert await touched(db, keyed["alone"][scope], statement, keyed["ids"], scopes=narrow) <= 0
    assert await touched(db, keyed["without"][scope], statement, keyed["ids"], scopes=wide) <= 0


@pytest.mark.parametrize("purpose", KEY_SCOPES)
async def test_a_key_sees_rows_for_what_it_may_and_for_nothing_else(
    purpose: KeyScope, db: Database, keyed: dict[str, Any]
) -> None:
    """Reading needs a scope in the database, too: a route that forgets to say what it needs shows a key nothing."""
    count = "select count(*)::int as num from app.brand_assets"

    async def num_seen(kind: str, **claims: Any) -> int:
        async with as_key(db, keyed[kind][purpose], **claims) as session:
            return int((await session.one(count))["num"])

    assert await num_seen("alone", purpose=purpose) > 0
    assert await num_seen("without", purpose=purpose) == 0
    assert await num_seen("without", purpose=None) == 0
    assert await num_seen("alone", purpose=None) == 0
    narrow = frozenset(set(KEY_SCOPES) - {purpose})
    assert await num_seen("alone", purpose=purpose, scopes=narrow) == 0
    assert await num_seen("without", purpose=purpose, scopes=frozenset(KEY_SCOPES)) == 0


async def test_a_key_that_has_expired_reaches_nothing_from_the_next_statement_on(
    db: Database, platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    made = await make_key(platform, acme)
    question = "select private.my_brand() as b, private.is_admin() as a, private.has_scope('manage') as m"
    async with as_key(db, made) as session:
        assert await session.one(question) == {"b": acme.id, "a": True, "m": True}
        owner.execute(
            "update app.api_keys set created_at = now() - interval '2 h', expires_at = now() where id = %s",
            [made["id"]],
        )
        owner.commit()
        assert await session.one(question) == {"b": None, "a": False, "m": False}


async def test_what_claims_to_be_a_key_and_a_page_is_neither(
    db: Database, platform: Platform, acme: BrandOfPeople
) -> None:
    made = await make_key(platform, acme)
    async with db.user_session(acme.admin.scope) as session:
        async with session.asking("open_session", "a" * 64):
            page = await session.one("select id from private.open_session(repeat('a', 64), '1 h', '1 h')")
    question = "select private.my_brand() as b, private.is_admin() as a, private.has_scope('manage') as m"
    for both in ({"session_id": page["id"]}, {"session_id": str(uuid.uuid4())}):
        async with as_key(db, made, **both) as session:
            assert await session.one(question) == {"b": None, "a": False, "m": False}


@pytest.mark.parametrize("change", ["another brand", "no brand", "another user", "no such key"])
async def test_claims_that_do_not_fit_the_keys_row_reach_nothing(
    change: str, db: Database, keyed: dict[str, Any], make_brand: MakeBrand
) -> None:
    brand = keyed["brand"]
    other = await make_brand("elsewhere")
    await join(db, other.id, other.admin, brand.admin, "admin")
    claims = {
        "another brand": {"brand_id": other.id},
        "no brand": {"brand_id": None},
        "another user": {"user_id": brand.member.user_id},
        "no such key": {"key_id": str(uuid.uuid4())},
    }[change]
    async with as_key(db, keyed["alone"]["manage"], **claims) as session:
        assert await session.one("select private.my_brand() as b, private.is_admin() as a") == {"b": None, "a": False}
        assert await session.all("select * from private.my_brands(null, null)") == []
        assert await session.all("select 1 from app.brand_assets") == []


async def test_a_dead_key_writes_nothing_outside_brands_either(db: Database, platform: Platform, acme: Any) -> None:
    made = await make_key(platform, acme)
    async with db.user_session(acme.admin.scope) as session:
        await keys.revoke_key(session, acme.id, made["id"])
    for statement in (
        "insert into app.brands (id, name, user_id) values ('made-by-a-dead-key', 'x', %(me)s)",
        "select private.record(%(brand)s, 'x.y', '{}')",
        "select private.next_number(%(brand)s, 'asset:logo', 1)",
    ):
        ids = {"brand": acme.id, "me": acme.admin.user_id}
        assert await touched(db, made, statement, ids) == -1, statement
        assert await touched(db, made, statement, ids, brand_id=None) == -1, statement


async def test_a_dead_key_asks_for_nobodys_account(db: Database, platform: Platform, acme: BrandOfPeople) -> None:
    """An answer for admins only, given by a function and not by a row that the wall hides anyway."""
    made = await make_key(platform, acme)
    question = "select private.is_admin() as a, (select count(*)::int from private.member_emails(%s)) as n"
    async with as_key(db, made) as session:
        assert await session.one(question, [acme.id]) == {"a": True, "n": 3}
    async with db.user_session(acme.admin.scope) as session:
        await keys.revoke_key(session, acme.id, made["id"])
    async with as_key(db, made) as session:
        assert await session.one(question, [acme.id]) == {"a": False, "n": 0}


async def test_a_key_takes_its_maker_out_of_the_brand_with_the_scope_and_not_without(
    db: Database, platform: Platform, acme: BrandOfPeople, make_user: MakeUser
) -> None:
    second = await make_user("second")
    await join(db, acme.id, acme.admin, second, "admin")
    leaving = "select private.leave_brand(%(brand)s)"
    async with platform.client(second) as theirs:
        for scope, num in (("read", -1), ("manage", 1)):
            body = {"name": "k", "scopes": [scope]}
            made = (await theirs.post(f"/v1/brands/{acme.id}/keys", json=body)).json()
            assert await touched(db, made, leaving, {"brand": acme.id}) == num


KEY_STATEMENTS = {
    "making": "insert into app.api_keys (brand_id, user_id, name, hash, scopes)"
    " values (%(brand)s, %(me)s, 'x', repeat('f', 64), array['read'])",
    "revoking": "update app.api_keys set revoked_at = now() where brand_id = %(brand)s and revoked_at is null",
}


@pytest.mark.parametrize("name", KEY_STATEMENTS)
async def test_the_database_lets_no_key_make_or_revoke_keys(
    name: str, db: Database, platform: Platform, acme: BrandOfPeople
) -> None:
    made = await make_key(platform, acme)
    ids = {"brand": acme.id, "me": acme.admin.user_id}
    assert await touched(db, made, KEY_STATEMENTS[name], ids) <= 0
    assert await touched(db, made, KEY_STATEMENTS[name], ids, key_id=None) > 0


@pytest.mark.parametrize(
    "statement",
    [
        "select hash from app.api_keys",
        "select hash from app.invitations",
        "update app.api_keys set scopes = array['manage']",
        "update app.api_keys set expires_at = null",
        "update app.api_keys set last_used_at = now()",
        "update app.api_keys set user_id = user_id",
        "delete from app.api_keys",
        "delete from app.invitations",
        "update app.invitations set accepted_at = now()",
        "update app.invitations set role = 'admin'",
        "select * from identity.sessions",
        "select * from identity.subjects",
        "select private.find_key(gen_random_uuid(), 'x')",
        "select private.find_session('x')",
        "select private.external_user('x', 'x', null)",
        "select private.my_email()",
    ],
)
async def test_an_admin_reads_no_digest_and_widens_no_key(statement: str, db: Database, acme: BrandOfPeople) -> None:
    with pytest.raises(Forbidden):
        async with db.user_session(acme.admin.scope) as session:
            await session.run(statement)


async def test_what_was_revoked_is_not_taken_back(db: Database, platform: Platform, acme: BrandOfPeople) -> None:
    made = await make_key(platform, acme)
    async with db.user_session(acme.admin.scope) as session:
        await keys.revoke_key(session, acme.id, made["id"])
        num = await session.run("update app.api_keys set revoked_at = null where id = %s", [made["id"]])
        assert num == 0
    other = await make_key(platform, acme)
    with pytest.raises(Forbidden):
        async with db.user_session(acme.admin.scope) as session:
            await session.run("update app.api_keys set revoked_at = null where id = %s", [other["id"]])


async def test_a_key_cannot_be_made_in_anothers_name(db: Database, acme: BrandOfPeople) -> None:
    ids = {"brand": acme.id, "me": acme.member.user_id}
    with pytest.raises(Forbidden):
        async with db.user_session(acme.admin.scope) as session:
            await session.run(KEY_STATEMENTS["making"], ids)


# the sweep: a table that members may write to has a scope for it

UNSCOPED = {
    "app.idempotency_keys": "a key's own calls; every scope has them",
}


def test_every_write_of_a_member_needs_a_scope(owner: psycopg.Connection) -> None:
    assert owner.execute(SWEEP, {"but": list(UNSCOPED)}).fetchall() == []


SWEEP = """
select c.oid::regclass::text, v.verb from pg_class c join pg_namespace n on n.oid = c.relnamespace,
  (values ('INSERT', 'a'), ('UPDATE', 'w'), ('DELETE', 'd')) as v(verb, cmd)
where n.nspname in ('app', 'storage', 'audit') and c.relkind in ('r', 'p')
  and not c.oid::regclass::text = any (%(but)s)
  and case v.verb when 'DELETE' then has_table_privilege('authenticated', c.oid, 'DELETE')
    else has_any_column_privilege('authenticated', c.oid, v.verb) end
  and not exists (select 1 from pg_policy p where p.polrelid = c.oid and not p.polpermissive and p.polcmd = v.cmd
    and coalesce(pg_get_expr(p.polqual, c.oid), '') || coalesce(pg_get_expr(p.polwithcheck, c.oid), '')
      ~ 'private.has_scope\\(')
  and not coalesce((select bool_and(expression ~ 'SELECT private.is_admin\\(\\)'
      and expression !~ 'CASE| OR ') from (
    select coalesce(pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid)) as expression from pg_policy p
    where p.polrelid = c.oid and p.polpermissive and p.polcmd in (v.cmd, '*')
      and 'authenticated'::regrole = any (p.polroles)) policies), false)"""


@pytest.mark.parametrize(
    "plant",
    [
        "drop policy scope_insert on app.generations",
        "drop policy scope_update on app.lora_training_jobs",
        "drop policy scope_delete on app.generated_images",
        "drop policy scope_delete on storage.objects",
        "grant delete on app.generations to authenticated",
    ],
)
def test_the_sweep_finds_a_planted_fault(plant: str, owner: psycopg.Connection) -> None:
    owner.execute(plant)
    assert owner.execute(SWEEP, {"but": list(UNSCOPED)}).fetchall() != []


async def test_the_record_names_the_key_and_no_secret(
    platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    made = await make_key(platform, acme, "read")
    async with platform.client(acme.admin) as admin:
        await admin.delete(f"/v1/brands/{acme.id}/keys/{made['id']}")
    lines = owner.execute(
        "select action, detail from audit.events where brand_id = %s and action like 'key.%%' order by seq", [acme.id]
    ).fetchall()
    assert lines == [
        ("key.create", {"key_id": made["id"], "scopes": ["read"]}),
        ("key.revoke", {"key_id": made["id"]}),
    ]
    assert made["key"].rsplit("_", 1)[1] not in json.dumps(lines)


async def test_two_keys_of_one_maker_share_no_idempotency_keys(
    platform: Platform, acme: BrandOfPeople, pictures: Any
) -> None:
    """Given to two parties, neither is answered what the other was."""
    keys_made = [await make_key(platform, acme, "train", "read") for _ in range(2)]
    answers = []
    async with platform.client(acme.admin) as admin:
        asset = await upload(admin, acme.id, pictures(4711))
    body = {"name": "j", "model_type": "sd15", "training_config": {"steps": 2}, "training_asset_ids": [asset["id"]]}
    for made in keys_made:
        async with platform.client() as client:
            headers = {"authorization": f"Bearer {made['key']}", "idempotency-key": "the same"}
            answers.append(await client.post(f"/v1/brands/{acme.id}/training-jobs", json=body, headers=headers))
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] != answers[1].json()["id"]
