"""Transactions for users, workers and the dispatcher, each with a role and signed claims.

A transaction is about at most one brand: the row policies show only rows of the brand in its claims.

Services get a `Session` and never commit. `Database` commits at the end of the `async with` block that opened it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import anyio
import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from onbrand.brand import Scope, Ticket
from onbrand.db.changes import Changes
from onbrand.db.claims import STAMP, ClaimsSigner
from onbrand.db.error_translation import LOST, translated
from onbrand.errors import (
    ConfigurationError,
    NotFound,
    OnbrandError,
    Unavailable,
)

Params = Sequence[Any] | Mapping[str, Any] | None
RollbackHook = Callable[[], Awaitable[None] | None]


class Connection(psycopg.AsyncConnection[DictRow]):
    """A connection of a pool, with the stamp of its transaction (`db.claims.STAMP`)."""

    stamp = ""


Pool = AsyncConnectionPool[Connection]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a transaction: a database role, and claims that the platform signs."""

    role: str
    claims: Mapping[str, Any]
    signer: ClaimsSigner
    stamp: str = ""

    def with_claims(self, **changes: Any) -> Identity:
        """A copy with some claims changed."""
        return replace(self, claims={**self.claims, **changes})


class Session:
    """One open transaction. Rows are dicts; errors are Onbrand's and contain no SQL or values."""

    def __init__(self, connection: Connection, identity: Identity) -> None:
        self._connection = connection
        self._identity = identity
        self._undo: list[RollbackHook] = []

    @asynccontextmanager
    async def in_brand(self, brand_id: str) -> AsyncIterator[None]:
        """Make the transaction about this brand within the block; restore the previous brand afterwards."""
        async with self.claiming(brand_id=brand_id):
            yield

    @asynccontextmanager
    async def asking(self, *what: str | None) -> AsyncIterator[None]:
        """Within the block, the claims permit one call of a database function: its name and checked arguments."""
        async with self.claiming(asks=list(what)):
            yield

    @asynccontextmanager
    async def claiming(self, **claims: Any) -> AsyncIterator[None]:
        """Within the block, the transaction also has these claims."""
        before = self._identity
        self._identity = before.with_claims(**claims)
        await _become(self._connection, self._identity)
        try:
            yield
        finally:
            self._identity = before
            if self._connection.info.transaction_status != TransactionStatus.INERROR and not self._connection.closed:
                await _become(self._connection, before)

    async def all(self, statement: str, params: Params = None) -> list[DictRow]:
        """Every row."""
        cursor = await self._execute(statement, params)
        return await cursor.fetchall()

    async def maybe(self, statement: str, params: Params = None) -> DictRow | None:
        """The first row, or None."""
        cursor = await self._execute(statement, params)
        return await cursor.fetchone()

    async def one(self, statement: str, params: Params = None) -> DictRow:
        """The first row. Raises NotFound without one."""
        row = await self.maybe(statement, params)
        if row is None:
            raise NotFound("not found")
        return row

    async def run(self, statement: str, params: Params = None) -> int:
        """Execute; the number of affected rows."""
        cursor = await self._execute(statement, params)
        return cursor.rowcount

    def on_rollback(self, undo: RollbackHook) -> None:
        """Call `undo` if the block ends with an exception, e.g. to delete bytes that were written for its rows."""
        self._undo.append(undo)

    async def undo_all(self) -> None:
        """Call all undo functions in reverse order; one that fails does not stop the others."""
        with anyio.CancelScope(shield=True):
            while self._undo:
                try:
                    result = self._undo.pop()()
                    if inspect.isawaitable(result):
                        await result
                except Exception as problem:
                    log.error("undoing after a rollback failed: %s", type(problem).__name__)

    async def _execute(self, statement: str, params: Params) -> psycopg.AsyncCursor[DictRow]:
        try:
            return await self._connection.execute(statement, params)  # type: ignore[arg-type]
        except psycopg.Error as problem:
            raise translated(problem) from None


class Database:
    """The connection pools of a process: the web tier has no system login, the system tier no web login."""

    def __init__(self, web: Pool | None, system: Pool | None, signer: ClaimsSigner, changes: Changes) -> None:
        self._web = web
        self._system = system
        self._signer = signer
        self.changes = changes

    @classmethod
    async def open(
        cls,
        web_url: str | None = None,
        system_url: str | None = None,
        *,
        claims_key: str,
        pool: tuple[int, int] = (1, 8),
        patience: float = 10.0,
    ) -> Self:
        """Connect.

        Args:
            claims_key: `Secrets.claims`, which `db.claims.install_key` installed in the database.
            pool: minimum and maximum number of connections for each login.

        Raises:
            Unavailable: a database does not answer within `patience` seconds.
            ConfigurationError: the database does not accept claims that are signed with this key.
        """
        changes = Changes(web_url or system_url)
        db = cls(_pool(web_url, pool), _pool(system_url, pool), ClaimsSigner(claims_key), changes)
        try:
            for each in db._pools():
                await each.open(wait=True, timeout=patience)
            await db._must_be_believed()
        except (PoolTimeout, psycopg.Error):
            await db.close()
            raise Unavailable("the database does not answer; is it running, and are its logins right?") from None
        except OnbrandError:
            await db.close()
            raise
        return db

    async def _must_be_believed(self) -> None:
        """Raise ConfigurationError if the database does not know the key, since it would then show no rows."""
        for pool, role in ((self._web, "anon"), (self._system, "onbrand_dispatcher")):
            if pool is None:
                continue
            async with _transaction(pool, "", Identity(role, {}, self._signer)) as session:
                if not (await session.one("select private.claims() is not null as believed"))["believed"]:
                    raise ConfigurationError(
                        "the database does not know this platform's key for claims (`claims` in secrets.json); start "
                        "'onbrand up' once with the owner's login and these secrets",
                        param="data_dir",
                    )

    async def close(self) -> None:
        """Close the pools; connections in use close when they are returned. Waits at most 5 seconds for each pool."""
        await self.changes.close()
        for each in self._pools():
            await each.close(timeout=5)

    def _pools(self) -> list[Pool]:
        return [each for each in (self._web, self._system) if each is not None]

    @asynccontextmanager
    async def user_session(self, scope: Scope | None) -> AsyncIterator[Session]:
        """A transaction as this user (`authenticated`), or without a user (`anon`) if `scope` is None."""
        if scope is None:
            role, claims = "anon", {}
        else:
            role, claims = "authenticated", scope.claims()
        async with _transaction(self._web, "web", Identity(role, claims, self._signer)) as session:
            yield session

    @asynccontextmanager
    async def system_session(self, ticket: Ticket) -> AsyncIterator[Session]:
        """A transaction with this ticket's rights: one brand, one job, on behalf of one member."""
        claims = {
            "brand_id": ticket.brand_id,
            "job_id": ticket.job_id,
            "kind": ticket.kind,
            "on_behalf_of": ticket.on_behalf_of,
        }
        async with _transaction(self._system, "system", Identity("brand_system", claims, self._signer)) as session:
            yield session

    @asynccontextmanager
    async def dispatch_session(self) -> AsyncIterator[Session]:
        """A transaction that may only call `private.queue`, `lead`, `end_orphaned` and `sweep_uploads`."""
        async with _transaction(self._system, "system", Identity("onbrand_dispatcher", {}, self._signer)) as session:
            yield session


_BEGIN = (
    "begin isolation level read committed read write not deferrable;"
    " reset role; reset all; close all; select pg_advisory_unlock_all();"
    f" select {STAMP} as stamp, count(*) filter (where from_sql) as num_foreign from pg_prepared_statements"
)
"""Begins a transaction, without what an earlier one left on the connection: settings, cursors, locks."""
_COMMIT = "unlisten *; commit"
"""Commits. Channels are left here, because a transaction listens until its commit."""


def _pool(url: str | None, size: tuple[int, int]) -> Pool | None:
    if not url:
        return None
    return AsyncConnectionPool(
        url,
        connection_class=Connection,
        kwargs={
            "row_factory": dict_row,
            "autocommit": True,
            "application_name": "onbrand",
        },
        configure=_configure,
        min_size=size[0],
        max_size=size[1],
        open=False,
        timeout=15,
        check=_begin,
    )


async def _configure(connection: Connection) -> None:
    """Load UUIDs as text, since ids are `str` everywhere else; disable prepared statements behind a pooler.

    pgbouncer in transaction mode may give each transaction another server, which lacks earlier prepared statements. It
    is detected by a backend process id that differs from the one announced at connection start.
    """
    connection.adapters.register_loader("uuid", TextLoader)
    row = await (await connection.execute("select pg_backend_pid() as pid", prepare=False)).fetchone()
    if row is None or row["pid"] != connection.info.backend_pid:
        connection.prepare_threshold = None


async def _begin(connection: Connection) -> None:
    """Begin a transaction in one round trip, and keep its stamp. The pool calls it, and takes another connection if it
    fails, e.g. because the server has closed this one.

    Statements that psycopg prepared stay. A statement prepared in SQL is not ours and could replace one of ours, so its
    connection is closed.
    """
    try:
        cursor = await connection.execute(_BEGIN, prepare=False)
        while cursor.nextset():
            pass
        row = await cursor.fetchone()
    except BaseException:
        await connection.close()  # what was left on it may be the reason
        raise
    if row is None or row["num_foreign"]:
        log.error("a transaction left prepared statements on its connection; it is closed")
        await connection.close()
        raise psycopg.OperationalError("the connection has prepared statements that are not ours")
    connection.stamp = row["stamp"]


@asynccontextmanager
async def _transaction(pool: Pool | None, login: str, identity: Identity) -> AsyncIterator[Session]:
    if pool is None:
        raise ConfigurationError(f"this process holds no {login} login")
    try:
        async with pool.connection() as connection, _ended(connection):
            known = replace(identity, stamp=connection.stamp)
            await _become(connection, known)
            async with _undone_on_error(connection, known) as session:
                yield session
    except (psycopg.Error, PoolTimeout) as problem:
        if isinstance(problem, LOST):
            _log_lost(pool, login, problem)
        raise translated(problem) from None


def _log_lost(pool: Pool, login: str, problem: Exception) -> None:
    """Tell operators whether the pool was exhausted or the server is away; the caller gets the same 503 for both."""
    stats = pool.get_stats()
    log.warning(
        "the database does not answer at the %s login: %s (SQLSTATE %s); %d of %d connections are open, %d are free,"
        " %d requests wait",
        login,
        type(problem).__name__,
        getattr(problem, "sqlstate", None),
        stats.get("pool_size", 0),
        stats.get("pool_max", 0),
        stats.get("pool_available", 0),
        stats.get("requests_waiting", 0),
    )


@asynccontextmanager
async def _ended(connection: Connection) -> AsyncIterator[None]:
    """Commit at the end, roll back on an exception."""
    try:
        yield
    except BaseException:
        if not connection.closed:
            await connection.rollback()
        raise
    if connection.info.transaction_status == TransactionStatus.INERROR:
        await connection.rollback()
    else:
        await connection.execute(_COMMIT, prepare=False)


@asynccontextmanager
async def _undone_on_error(connection: Connection, identity: Identity) -> AsyncIterator[Session]:
    """Run the undo functions on an exception, before the rollback releases the locks on the names it took.

    Nothing is undone if the connection is lost, since the locks are then free, or if the commit's outcome is unknown.
    Objects left over have no row, and the next writer of the same name replaces them.
    """
    session = Session(connection, identity)
    try:
        yield session
    except BaseException:
        if not connection.closed:
            await session.undo_all()
        raise


async def _become(connection: Connection, identity: Identity) -> None:
    """Set role and signed claims in one statement, for this transaction only."""
    await connection.execute(
        "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true),"
        " set_config('request.scope', %s, true), set_config('request.claims_signature', %s, true)",
        [identity.role, *identity.signer.sign(identity.role, identity.claims, identity.stamp)],
        prepare=False,
    )
