"""Fixtures for all tests: one real PostgreSQL a session, its logins, a local object store, accounts and brands.

`ONBRAND_TEST_DATABASE_URL` (the owner's DSN of an empty database) selects another PostgreSQL;
`ONBRAND_TEST_DATABASE_LOGINS` (three lines: the DSNs of owner, web and system) selects a migrated database.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio

from onbrand.config import Limits, Settings
from onbrand.db.claims import install_key
from onbrand.db.embedded import EmbeddedDatabase, start
from onbrand.db.logins import DatabaseUrls, prepare
from onbrand.db.migrate import migrate
from onbrand.db.session import Database
from onbrand.secrets_file import Secrets, load_secrets
from onbrand.services import brands, invitations, passwords
from onbrand.storage.store import ObjectStore
from tools.harness.in_process_platform import Platform, serving
from tools.harness.people import PASSWORD, BrandOfPeople, Person

pytest_plugins = [
    "tests.processes",
    "tests.s3.fixture",
    "tests.pgbouncer.fixture",
    "tests.stores",
    "tests.isolation.check_counter",
]

os.environ.setdefault("RAY_worker_niceness", "0")
"""Ray gives its workers niceness 15. With other tests at the same time, replicas would get no processor time."""

_OLD_KNOBS = (
    "REAL_SIZES", "SCHEDULES", "LOAD_REQUESTS", "LOAD_SEED", "FUZZ_CASES", "FUZZ_SEED", "COMPILED_FAMILIES",
    "BRAND_SWITCHES", "ALL_FAULTS",
)  # fmt: skip
for _knob in _OLD_KNOBS:  # the platform refuses names that it does not know, but for ONBRAND_TEST_*
    if (_value := os.environ.pop(f"ONBRAND_{_knob}", None)) is not None:
        os.environ.setdefault(f"ONBRAND_TEST_{_knob}", _value)


MINUTES = ("demo", "long")
"""Markers of tests that take minutes and run only if `-m` names them. pyproject.toml describes them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name in MINUTES:
            if item.get_closest_marker(name) and name not in config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=f"takes minutes; run it with -m {name}"))


MakeUser = Callable[..., Awaitable[Person]]
MakeBrand = Callable[..., Awaitable[BrandOfPeople]]


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Callable[[], Path]]:
    """`data_folder()`: a new folder for a database, outside pytest's, which other sessions close to the server."""
    with contextlib.ExitStack() as folders:
        yield lambda: Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="onbrand-test-")))


@pytest.fixture(scope="session")
def settings(data_folder: Callable[[], Path]) -> Settings:
    """Settings with a temporary data directory. All tests come from one client address, so logins are not limited."""
    many = Limits(logins_per_address=10_000, sign_ups_per_address=10_000)
    return Settings(data_dir=data_folder(), limits=many)


@pytest.fixture(scope="session")
def secrets(settings: Settings) -> Secrets:
    return load_secrets(settings)


def without_waiting_for_the_disk(owner_url: str) -> None:
    """Turn off fsync, as test databases need not survive a power failure."""
    with psycopg.connect(owner_url, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"alter system set {setting} = off")  # type: ignore[arg-type]
        connection.execute("select pg_reload_conf()")


@pytest.fixture(scope="session")
def database(settings: Settings, secrets: Secrets) -> Iterator[DatabaseUrls]:
    """A migrated database: its owner's DSN and those of the two logins."""
    if known := os.environ.get("ONBRAND_TEST_DATABASE_LOGINS"):
        urls = DatabaseUrls(*known.split("\n"))
        install_key(urls.owner_url, secrets.claims)
        yield urls
        return
    if url := os.environ.get("ONBRAND_TEST_DATABASE_URL"):
        urls = prepare(url, reset=True)
        migrate(url)
        install_key(url, secrets.claims)
        yield urls
        return
    running: EmbeddedDatabase = start(settings, secrets)
    without_waiting_for_the_disk(running.owner_url)
    yield running
    running.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def db(database: DatabaseUrls, secrets: Secrets) -> AsyncIterator[Database]:
    """The web and the system login."""
    opened = await Database.open(database.web_url, database.system_url, claims_key=secrets.claims)
    yield opened
    await opened.close()


@pytest.fixture
def owner(database: DatabaseUrls) -> Iterator[psycopg.Connection]:
    """A connection of the database's owner, whose transaction is rolled back."""
    with psycopg.connect(database.owner_url) as connection:
        yield connection
        connection.rollback()


@pytest.fixture(scope="session")
def store(settings: Settings, secrets: Secrets) -> ObjectStore:
    """A local object store in the data directory."""
    return ObjectStore.from_settings(settings, secrets)


@pytest.fixture(scope="session")
def make_user(db: Database) -> MakeUser:
    """`await make_user()`: a new account with the password `PASSWORD`."""
    hashed = passwords.hash_password(PASSWORD)

    async def make(name: str = "user") -> Person:
        email = f"{name}-{uuid.uuid4().hex[:8]}@example.com"
        async with db.user_session(None) as session:
            async with session.asking("sign_up", email):
                row = await session.one("select * from private.sign_up(%s, %s)", [email, hashed])
        return Person(row["id"], email)

    return make


async def join(db: Database, brand_id: str, admin: Person, person: Person, role: str = "member") -> None:
    """Let the admin invite the person, who accepts."""
    async with db.user_session(admin.scope) as session:
        made = await invitations.invite(session, brand_id, person.email, role)
    async with db.user_session(person.scope) as session:
        await invitations.accept(session, made.token or "")


@pytest.fixture(scope="session")
def make_brand(db: Database, make_user: MakeUser) -> MakeBrand:
    """`await make_brand("acme")`: a new brand (its id is unique), its admin and two members."""

    async def make(name: str = "acme") -> BrandOfPeople:
        brand_id = f"{name}-{uuid.uuid4().hex[:8]}"
        people = [await make_user(role) for role in ("admin", "member", "member2")]
        async with db.user_session(people[0].scope) as session:
            await brands.create_brand(session, brand_id, name.title())
        people = [replace(person, at=brand_id) for person in people]
        for person in people[1:]:
            await join(db, brand_id, people[0], person)
        return BrandOfPeople(brand_id, *people)

    return make


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def platform(settings: Settings, secrets: Secrets, db: Database) -> AsyncIterator[Platform]:
    """The platform of the HTTP tests."""
    async with serving(settings, secrets, db) as running:
        yield running


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """`pictures(seed)`: a small real PNG, another one for every seed."""
    import io
    import random

    from PIL import Image

    def draw(seed: int = 0, size: int = 64, kind: str = "PNG") -> bytes:
        dice = random.Random(seed)
        image = Image.new("RGB", (size, size), tuple(dice.randrange(256) for _ in range(3)))
        for _ in range(8):
            x, y = dice.randrange(size), dice.randrange(size)
            image.paste(tuple(dice.randrange(256) for _ in range(3)), (x, y, min(size, x + 9), min(size, y + 9)))
        out = io.BytesIO()
        image.save(out, kind)
        return out.getvalue()

    return draw


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).parents[1]
