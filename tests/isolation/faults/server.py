"""One PostgreSQL for all trials: a migrated template to copy, and empty databases for broken SQL.

It runs in its own process, which imports the unchanged Onbrand. The process that forks trials imports none of it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.isolation.faults.catalogue import ROOT

_TEMPLATE = "onbrand"


@dataclass(frozen=True, repr=False)
class Logins:
    """DSNs of one database."""

    owner: str
    web: str
    system: str

    def of(self, database: str) -> Logins:
        """The same logins on another database."""
        return Logins(*(make_conninfo(url, dbname=database) for url in (self.owner, self.web, self.system)))

    def __str__(self) -> str:
        return "\n".join((self.owner, self.web, self.system))


@contextmanager
def running_server() -> Iterator[Server]:
    """A server with its template, until the end of the block."""
    ours, theirs = Pipe()
    child = os.fork()
    if child == 0:
        ours.close()
        _serve(theirs)
    theirs.close()
    try:
        with psycopg.connect(make_conninfo((logins := Logins(*ours.recv())).owner, dbname="postgres")) as owner:
            owner.autocommit = True
            yield Server(owner, logins)
    finally:
        ours.close()
        os.waitpid(child, 0)


class Server:
    """Makes databases and drops them."""

    def __init__(self, owner: psycopg.Connection, template: Logins) -> None:
        self._owner, self._template = owner, template

    def copy(self, name: str) -> Logins:
        """A new database with the schema as it is."""
        self._owner.execute(f"create database {name} template {_TEMPLATE} strategy file_copy")  # type: ignore[arg-type]
        return self._let_in(name)

    def empty(self, name: str) -> Logins:
        """A new database without a schema."""
        self._owner.execute(f"create database {name} template template0 strategy file_copy")  # type: ignore[arg-type]
        return self._let_in(name)

    def drop(self, name: str) -> None:
        self._owner.execute(f"drop database if exists {name} with (force)")  # type: ignore[arg-type]

    def _let_in(self, name: str) -> Logins:
        """Do the work of db/logins.py for a database; the roles exist already."""
        self._owner.execute(f"revoke temporary on database {name} from public")  # type: ignore[arg-type]
        logins = ", ".join(str(conninfo_to_dict(url)["user"]) for url in (self._template.web, self._template.system))
        self._owner.execute(f"grant connect on database {name} to {logins}")  # type: ignore[arg-type]
        return self._template.of(name)


def _serve(pipe: Connection) -> NoReturn:
    """The server's process. It runs until its parent closes the pipe."""
    try:
        sys.path.insert(0, str(ROOT / "platform"))
        from onbrand.config import Settings
        from onbrand.db.embedded import start
        from onbrand.secrets_file import load_secrets

        with tempfile.TemporaryDirectory(prefix="onbrand-faults-") as folder:
            settings = Settings(data_dir=Path(folder))
            running = start(settings, load_secrets(settings))
            try:
                _open_all_databases(running.owner_url, running.folder / "postgres/pg_hba.conf")
                pipe.send((running.owner_url, running.web_url, running.system_url))
                with suppress(EOFError):
                    pipe.recv()
            finally:
                running.stop()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _open_all_databases(owner_url: str, access: Path) -> None:
    """Allow the logins on every database, and turn off fsync."""
    access.write_text("local all all scram-sha-256\n")
    with psycopg.connect(owner_url, autocommit=True) as owner:
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum"):
            owner.execute(f"alter system set {setting} = off")  # type: ignore[arg-type]
        owner.execute("select pg_reload_conf()")
