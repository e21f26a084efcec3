"""The environment that Ray's processes inherit, and the secrets that only two of them read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from onbrand.secrets_file import SECRET_SETTINGS, with_logins, without_secrets, write_logins

SECRET = [
    *(f"ONBRAND_{name.upper()}" for name in SECRET_SETTINGS), "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "PGPASSWORD", "PGPASSFILE", "DATABASE_URL",
    "HF_TOKEN", "OPENAI_API_KEY", "SOME_PASSWORD", "GITHUB_PAT", "SENTRY_DSN", "MY_SECRET", "ssh_private_key",
    "GOOGLE_APPLICATION_CREDENTIALS", "VAULT_TOKEN", "SIGNING_KEY",
]  # fmt: skip
NEEDED = [
    "PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "NCCL_DEBUG", "HF_HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE",
    "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "ONBRAND_DATA_DIR", "ONBRAND_TOKEN_MINUTES", "ONBRAND_S3_ENDPOINT",
    "ONBRAND_S3_ROLE_ARN", "HTTPS_PROXY",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_not_inherited(name: str) -> None:
    assert without_secrets({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize("name", NEEDED)
def test_what_processes_need_is_inherited(name: str) -> None:
    assert without_secrets({name: "x"}) == {name: "x"}


def test_an_address_with_a_password_in_it_is_not_inherited() -> None:
    known = {"HTTPS_PROXY": "http://me:word@proxy:3128", "CACHE": "redis://:word@host/0", "SITE": "https://host:8000/a"}
    assert without_secrets(known) == {"SITE": "https://host:8000/a"}


def test_every_setting_that_is_named_like_a_secret_is_one_or_is_known_to_be_none() -> None:
    """A later setting with a secret in it must be listed, or it would be inherited by every worker."""
    like = {name for name in Settings.model_fields if any(w in name for w in ("key", "secret", "password", "database"))}
    assert like == set(SECRET_SETTINGS)


def test_the_web_tier_gets_its_login_and_not_the_systems(tmp_path: Path) -> None:
    write_logins(Settings(data_dir=tmp_path, s3_access_key="a", s3_secret_key="b"), "web-dsn", "system-dsn")
    web, system = [with_logins(Settings(data_dir=tmp_path), login) for login in ("web", "system")]
    assert (web.web_database_url, web.system_database_url) == ("web-dsn", None)
    assert (system.web_database_url, system.system_database_url) == (None, "system-dsn")
    assert (web.s3_access_key, web.s3_secret_key) == ("a", "b")


def test_only_we_may_read_the_file_and_the_owners_login_is_not_in_it(tmp_path: Path) -> None:
    path = write_logins(Settings(data_dir=tmp_path, database_url="owner-dsn"), "web-dsn", "system-dsn")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "owner" not in path.read_text()


def test_awss_own_variables_travel_by_the_file_where_the_store_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-secret")
    assert "aws" not in json.loads(write_logins(Settings(data_dir=tmp_path), "w", "s").read_text())
    write_logins(Settings(data_dir=tmp_path, storage_url="s3://x-"), "w", "s")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with_logins(Settings(data_dir=tmp_path), "web")

    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "aws-secret"


def test_what_stands_in_the_environment_comes_first(tmp_path: Path) -> None:
    write_logins(Settings(data_dir=tmp_path, s3_access_key="file"), "web-dsn", "system-dsn")
    assert with_logins(Settings(data_dir=tmp_path, s3_access_key="own"), "web").s3_access_key == "own"


def test_without_a_file_the_settings_stay_as_they_are(tmp_path: Path) -> None:
    known = Settings(data_dir=tmp_path, web_database_url="web-dsn")
    assert with_logins(known, "web") == known


@pytest.mark.parametrize("text", ["{", "[]", '{"host": "0.0.0.0"}'])
def test_a_file_that_is_not_ours_is_named_without_its_content(tmp_path: Path, text: str) -> None:
    (tmp_path / "logins.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"logins\.json") as refused:
        with_logins(Settings(data_dir=tmp_path), "web")
    assert "0.0.0.0" not in str(refused.value)
