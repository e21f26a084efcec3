"""The pools of connections, and how a connection begins and ends a transaction.

A pooled connection begins its transaction when the pool hands it out, with one round trip that also clears what the
transaction before left on it and shows whether the connection still works.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool

from onbrand.db.claims import STAMP

log = logging.getLogger(__name__)


class Connection(psycopg.AsyncConnection[DictRow]):
    """A connection of a pool, with the stamp of its transaction (`db.claims.STAMP`)."""

    stamp = ""


Pool = AsyncConnectionPool[Connection]
_BEGIN = (
    "begin isolation level read committed read write not deferrable;"
    " reset role; reset all; close all; select pg_advisory_unlock_all();"
    f" select {STAMP} as stamp, count(*) filter (where from_sql) as num_foreign from pg_prepared_statements"
)
"""Begins a transaction, without what an earlier one left on the connection: settings, cursors, locks."""
_COMMIT = "unlisten *; commit"
"""Commits. Channels are left here, because a transaction listens until its commit."""


def make_pool(url: str | None, size: tuple[int, int]) -> Pool | None:
    """A closed pool of a login's DSN, with a minimum and a maximum size; None without a DSN."""
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
async def ended(connection: Connection) -> AsyncIterator[None]:
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


def log_lost(pool: Pool, login: str, problem: Exception) -> None:
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
