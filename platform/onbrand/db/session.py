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
from psycopg.rows import DictRow
from psycopg_pool import PoolTimeout

from onbrand.brand import Scope, Ticket
from onbrand.db.changes import Changes
from onbrand.db.claims import ClaimsSigner
from onbrand.db.error_translation import LOST, translated
from onbrand.db.pool import Connection, Pool, ended, log_lost, make_pool
from onbrand.errors import (
    ConfigurationError,
    NotFound,
    OnbrandError,
    Unavailable,
)

Params = Sequence[Any] | Mapping[str, Any] | None
RollbackHook = Callable[[], Awaitable[None] | None]


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
        db = cls(make_pool(web_url, pool), make_pool(system_url, pool), ClaimsSigner(claims_key), changes)
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


@asynccontextmanager
async def _transaction(pool: Pool | None, login: str, identity: Identity) -> AsyncIterator[Session]:
    if pool is None:
        raise ConfigurationError(f"this process holds no {login} login")
    try:
        async with pool.connection() as connection, ended(connection):
            known = replace(identity, stamp=connection.stamp)
            await _become(connection, known)
            async with _undone_on_error(connection, known) as session:
                yield session
    except (psycopg.Error, PoolTimeout) as problem:
        if isinstance(problem, LOST):
            log_lost(pool, login, problem)
        raise translated(problem) from None


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
