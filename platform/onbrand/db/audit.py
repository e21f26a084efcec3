"""Reads all brands' audit records as the database's owner, for operators who verify them. Users read by `services`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import dict_row

from onbrand.db.logins import connect_as_owner
from onbrand.errors import ConfigurationError

_BATCH = 500
_LINES = """
select seq, brand_id, at, actor, user_id::text, credential, action, detail, encode(prev, 'hex') as prev,
  encode(hash, 'hex') as hash from audit.events where brand_id = %s order by seq
"""


class Record:
    """Context manager that reads all brands' lines in one snapshot. Raises Unavailable, ConfigurationError.

    Args:
        owner_url: DSN of the owner that ran the migrations.
    """

    def __init__(self, owner_url: str) -> None:
        self._owner_url = owner_url

    def __enter__(self) -> Record:
        self._connection = connect_as_owner(self._owner_url)
        try:
            self._connection.execute("set transaction isolation level repeatable read, read only")
            self._connection.execute("set local role onbrand_operator")
            self.brand_ids()
        except psycopg.Error as problem:
            self._connection.close()
            raise _why_not(problem) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def brand_ids(self) -> list[str]:
        """Ids of all existing brands and of all brands in the record, sorted."""
        rows = self._connection.execute("select id from app.brands union select brand_id from audit.events order by 1")
        return [row[0] for row in rows.fetchall()]

    def lines(self, brand_id: str) -> Iterator[dict[str, Any]]:
        """One brand's lines, oldest first, fetched in batches."""
        with self._connection.cursor(name="record", row_factory=dict_row) as cursor:
            cursor.itersize = _BATCH
            yield from cursor.execute(_LINES, [brand_id])


def _why_not(problem: psycopg.Error) -> ConfigurationError:
    if isinstance(problem, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return ConfigurationError("there is no record in this database; is it Onbrand's?", param="database_url")
    return ConfigurationError(
        "this login may not read every brand's record; use the owner that ran the migrations", param="database_url"
    )
