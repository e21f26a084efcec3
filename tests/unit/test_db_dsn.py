"""A malformed DSN is refused with one line that names the mistake and repeats no part of the DSN."""

from __future__ import annotations

import pytest

from onbrand.db.dsn import connect, must_be_dsn
from onbrand.errors import ConfigurationError, OnbrandError

SECRET = "s3cret-word"


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (f"postgresql+psycopg://owner:{SECRET}@db/onbrand", "SQLAlchemy's form"),
        (f"postgresql+asyncpg://owner:{SECRET}@db/onbrand", "SQLAlchemy's form"),
        (f"postgres+psycopg2://owner:{SECRET}@db/onbrand", "SQLAlchemy's form"),
        (f"mysql://owner:{SECRET}@db/onbrand", "not PostgreSQL's"),
        (f"jdbc:postgresql://db/onbrand?user=owner&password={SECRET}", "not PostgreSQL's"),
        (f"postgresql://owner:{SECRET}@db/onbrand?sslmod=require", "do you mean sslmode"),
        (f"host=db pasword={SECRET}", "do you mean password"),
        (f"host=db password=a {SECRET}=x", "an option that libpq does not know"),
        (f"host=db password={SECRET} {SECRET}", "no list of option=value"),
        (f"postgresql://owner:{SECRET}%zz@db/onbrand", "'%'"),
        (f"host=db password='{SECRET}", "quote"),
        (f"postgresql://owner:{SECRET}@db:54x2/onbrand", "port"),
        (f"postgresql://owner:{SECRET}@db:99999/onbrand", "port"),
        (f"host=db port=0 password={SECRET}", "port"),
        (f"host=a,b port=5432,-1 password={SECRET}", "port"),
        (f"host=db password={SECRET}\udcff", "not UTF-8"),
    ],
)
def test_a_dsn_that_libpq_cannot_read_is_refused_without_repeating_it(dsn: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        must_be_dsn(dsn)
    message = str(refused.value)
    assert says in message
    assert message.startswith("ONBRAND_DATABASE_URL ")
    assert SECRET not in message
    assert "\n" not in message
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "postgresql://owner:word@db:5432/onbrand",
        "postgres://owner@db/my%20db?sslmode=require",
        "host=db dbname='my db' password='it\\'s' user=owner",
        "service=prod",
        "postgresql://[::1]:5432/onbrand",
        "postgresql:///onbrand?host=/var/run/postgresql",
        "host=a,b port=5432,5433",
    ],
)
def test_every_form_that_libpq_reads_is_taken(dsn: str) -> None:
    assert must_be_dsn(dsn) == dsn


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (f"postgresql://owner:{SECRET}@127.0.0.1:1/onbrand", "nobody listens"),
        (f"postgresql://owner:p@{SECRET}@127.0.0.1:1/onbrand", "host's name is not known"),
        (f"host=/nowhere user=owner password={SECRET}", "no socket"),
        (f"service={SECRET}", "in no service file"),
        (f"host=127.0.0.1 port=1 sslmode={SECRET}", "an option of it has a value"),
    ],
)
def test_a_server_that_is_not_there_is_said_without_the_dsn(dsn: str, says: str) -> None:
    with pytest.raises(OnbrandError) as refused:
        connect(dsn, connect_timeout=5)
    message = str(refused.value)
    assert says in message
    assert SECRET not in message
    assert "\n" not in message
    assert refused.value.status in (500, 503)


def test_variables_of_libpq_do_not_change_where_we_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PGSERVICE libpq itself refuses any DSN."""
    for name in ("PGSERVICE", "PGHOST", "PGSSLMODE", "PGOPTIONS"):
        monkeypatch.setenv(name, "nonsense")
    with pytest.raises(OnbrandError, match="nobody listens"):
        connect("postgresql://owner:word@127.0.0.1:1/onbrand", connect_timeout=5)
