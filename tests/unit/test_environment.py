"""Unknown settings in the environment are refused, and variables of other programs have no effect."""

from __future__ import annotations

import difflib
import os

import pytest

from onbrand.config import Settings
from onbrand.environment import (
    CLIENT_VARIABLES,
    forget_other_rays,
    forget_postgres_variables,
    must_be_known,
    must_be_meant,
    without_proxy_for,
)
from onbrand.errors import ConfigurationError


@pytest.mark.parametrize(
    ("mistyped", "nearest"),
    [
        ("ONBRAND_SIGNUP", "ONBRAND_SIGN_UP"),
        ("ONBRAND_DATABSE_URL", "ONBRAND_DATABASE_URL"),
        ("ONBRAND_LIMIT__UPLOAD_FILES", "ONBRAND_LIMITS"),
        ("ONBRAND_BASE__FLUX", "ONBRAND_BASES"),
        ("onbrand_signup", "ONBRAND_SIGN_UP"),
        ("ONBRAND_OIDC_ISSUER_URL", "ONBRAND_OIDC_ISSUER"),
    ],
)
def test_a_mistyped_setting_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, mistyped: str, nearest: str
) -> None:
    monkeypatch.setenv(mistyped, "closed")
    with pytest.raises(ConfigurationError, match=rf"{mistyped} is no setting .*{nearest}\?") as refused:
        Settings()
    assert "closed" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ONBRAND_URL", "http://127.0.0.1:8000"),
        ("ONBRAND_TOKEN", "t"),
        ("ONBRAND_TEST_MARK", "m"),
        ("ONBRAND_BASES__FLUX", "/base"),
        ("onbrand_port", "8001"),
        ("ONBRAND_SERVE_SVC_SERVICE_HOST", "10.0.0.1"),
        ("ONBRAND_SERVE_SVC_SERVICE_PORT_SERVE", "8000"),
        ("ONBRAND_SERVE_SVC_PORT", "tcp://10.0.0.1:8000"),
        ("ONBRAND_SERVE_SVC_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("ONBRAND_SERVE_SVC_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_somebody_reads_or_kubernetes_makes_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    Settings()


def test_a_name_like_none_of_ours_is_refused_too() -> None:
    with pytest.raises(ConfigurationError, match="ONBRAND_QQQQQQ is no setting of Onbrand; unset it"):
        must_be_known(Settings.model_fields, {"ONBRAND_QQQQQQ": "1"})


@pytest.mark.parametrize("name", ["ONBRAND_TOKENS", "ONBRAND_URI", "ONBRAND_BRANDS", "ONBRAND_PASSWD"])
def test_nearly_a_clients_variable_is_refused_by_the_client(name: str) -> None:
    with pytest.raises(ConfigurationError, match="do you mean"):
        must_be_meant({name: "x"})


def test_no_setting_is_taken_for_a_mistyped_variable_of_the_client() -> None:
    must_be_meant({f"ONBRAND_{name.upper()}": "x" for name in Settings.model_fields})
    near = [
        difflib.SequenceMatcher(None, f"ONBRAND_{name.upper()}", client).ratio()
        for name in Settings.model_fields
        for client in CLIENT_VARIABLES
    ]
    assert max(near) < 0.85


def test_variables_of_libpq_and_of_its_server_are_forgotten() -> None:
    names = [
        "PGPORT", "PGHOST", "PGDATABASE", "PGSERVICE", "PGOPTIONS", "PGSSLMODE", "PGPASSFILE", "PGAPPNAME", "PGUSER",
        "PGPASSWORD", "PGSERVICEFILE", "PGHOSTADDR", "PGTZ", "PGDATESTYLE", "PGCLIENTENCODING", "PGDATA",
        "PGSSLROOTCERT", "PGTARGETSESSIONATTRS", "PGCONNECT_TIMEOUT", "PGGSSENCMODE", "PGREQUIREAUTH",
    ]  # fmt: skip
    environ = dict.fromkeys(names, "x") | {"PATH": "/bin"}
    forget_postgres_variables(environ)
    assert environ == {"PATH": "/bin"}


def test_every_variable_that_libpq_reads_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from psycopg import pq

    read = {option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar}
    assert {"PGPORT", "PGSERVICE", "PGOPTIONS"} <= read
    for name in read:
        monkeypatch.setenv(name, "x")
    forget_postgres_variables()
    assert read & os.environ.keys() == set()


def test_another_clusters_address_token_and_hooks_are_forgotten() -> None:
    names = ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_START_HOOK"]
    environ = dict.fromkeys(names, "x") | {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    forget_other_rays(environ)
    assert environ == {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}


def test_calls_within_the_platform_take_no_proxy_and_others_keep_theirs() -> None:
    made = without_proxy_for(["10.0.0.7"], {"NO_PROXY": "corp.example, 127.0.0.1"})
    assert made["no_proxy"] == made["NO_PROXY"] == "corp.example,127.0.0.1,localhost,::1,10.0.0.7"
