"""Migrates a database to this version's schema: runs `migrations/*.sql` in order, each once and in a transaction.

`schema.sql` is the resulting schema, written by `dump_schema` (`make schema`); a test checks that it is up to date.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from importlib.resources import as_file, files
from pathlib import Path
from urllib.parse import urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from onbrand.db.logins import connect_as_owner
from onbrand.errors import ConfigurationError

_LOCK = 0x0B4A4E
_LEDGER = "onbrand_migrations"


def migrate(owner_url: str) -> int:
    """Apply the missing migrations; how many were applied. Concurrent calls wait for each other.

    Raises ConfigurationError naming the migration that failed, which is rolled back.
    """
    with connect_as_owner(owner_url, autocommit=True) as gate:
        gate.execute(
            "select pg_advisory_lock(%s)", [_LOCK]
        )  # yoyo's own lock is a row, which a killed process leaves behind
        gate.execute(f"create schema if not exists {_LEDGER}")  # type: ignore[arg-type]
        with as_file(files("onbrand.db") / "migrations") as folder:
            return _apply_missing(owner_url, folder)


def _apply_missing(owner_url: str, folder: Path) -> int:
    from yoyo import get_backend, read_migrations

    migrations = read_migrations(str(folder))
    backend = get_backend(_yoyo_url(owner_url))
    with backend:
        _must_be_known(backend.get_applied_migration_hashes(), {each.hash for each in migrations})
        missing = backend.to_apply(migrations)
        for migration in missing:
            try:
                backend.apply_one(migration)
            except psycopg.Error as problem:
                reason = problem.diag.message_primary or type(problem).__name__
                raise ConfigurationError(f"migration {migration.id} failed: {reason}", migration=migration.id) from None
    return len(missing)


def _must_be_known(applied: Iterable[str], known: set[str]) -> None:
    """Raise ConfigurationError if the database has migrations of another version, which are incompatible."""
    if unknown := set(applied) - known:
        raise ConfigurationError(
            f"the database has {len(unknown)} migrations that this version does not know: a newer version made it, or "
            "one from before the first release; use that version, or begin with an empty database (or data directory)",
            param="database_url",
        )


def _yoyo_url(owner_url: str) -> str:
    """`owner_url`, a DSN of any form, as a URL for yoyo, whose ledger has its own schema.

    All parts are in the query, since yoyo unquotes the query but not the path.
    """
    parts = {name: str(value) for name, value in conninfo_to_dict(owner_url).items() if value is not None}
    return f"postgresql+psycopg:///?{urlencode({**parts, 'schema': _LEDGER}, errors='surrogateescape')}"


def dump_schema(owner_url: str, pg_dump: Path) -> str:
    """The schema as SQL, without the ledger, comments and lines that differ between runs of pg_dump."""
    done = subprocess.run(
        [pg_dump, "--schema-only", f"--exclude-schema={_LEDGER}", f"--dbname={owner_url}"],
        check=True,
        capture_output=True,
        text=True,
    )
    noise = re.compile(r"--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict")
    kept = [line for line in done.stdout.splitlines() if not noise.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip() + "\n"
