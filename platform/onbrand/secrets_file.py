"""Logins and keys that only some processes may hold: passed by file, not by environment.

Ray's processes, workers and job drivers included, inherit the environment of the process that starts Ray. So database
logins and bucket keys are not in it: they are in `logins.json` (0600) in the data directory, for the deployments
`Ingress` and `System` (decision 0063).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from onbrand.addresses import is_s3
from onbrand.config import Settings, make_writable
from onbrand.environment import forget_postgres_variables
from onbrand.errors import ConfigurationError
from onbrand.folders import write_private

SECRET_SETTINGS = ("database_url", "web_database_url", "system_database_url", "s3_access_key", "s3_secret_key")
_FILE = "logins.json"
_AWS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)  # fmt: skip
_OWN_SECRETS = frozenset(f"ONBRAND_{name.upper()}" for name in SECRET_SETTINGS)
_OURS = ("ONBRAND_", "RAY_")
_LIKE_A_SECRET = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|(?:API|ACCESS|SIGNING|AUTH)_?KEY|(?:^|_)(?:KEY|DSN|PAT)$"
    r"|DATABASE_URL|^PG(?!DATA)"
)
_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that Ray's processes may inherit: without our secrets, AWS's, and any that look like a secret.

    This also removes a key that a library needs to fetch a base (`HF_TOKEN`): `up` fetches bases beforehand.
    """
    return {name: value for name, value in environ.items() if not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    if name in _OWN_SECRETS or name in _AWS or _WITH_PASSWORD.search(value):
        return True
    return not name.upper().startswith(_OURS) and bool(_LIKE_A_SECRET.search(name.upper()))


def write_logins(settings: Settings, web_url: str, system_url: str) -> Path:
    """Write the logins that `Ingress` and `System` need and do not inherit; replaces the file of an earlier start."""
    known: dict[str, Any] = {"web_database_url": web_url, "system_database_url": system_url}
    known |= {"s3_access_key": settings.s3_access_key, "s3_secret_key": settings.s3_secret_key}
    if _uses_s3(settings) and settings.s3_access_key is None:
        known["aws"] = {name: os.environ[name] for name in _AWS if name in os.environ}
    path = settings.folder / _FILE
    write_private(path, json.dumps({name: value for name, value in known.items() if value}))
    return path


def with_logins(settings: Settings, login: Literal["web", "system"]) -> Settings:
    """Settings with one of the two logins and the store's keys; call it at the process's entry point.

    Values from the environment take precedence. AWS's variables are set in this process's environment, where its SDK
    reads them. Raises ConfigurationError for a file that cannot be read.
    """
    other = "system_database_url" if login == "web" else "web_database_url"
    found = _read(settings.folder / _FILE)
    forget_postgres_variables()
    os.environ.update(found.pop("aws", {}))
    missing = {name: value for name, value in found.items() if getattr(settings, name) is None}
    return settings.model_copy(update={**missing, other: None, "database_url": None})


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ConfigurationError(f"{path} cannot be read; start the platform anew", param="data_dir") from None
    unknown = found.keys() - {*SECRET_SETTINGS, "aws"} if isinstance(found, dict) else {"what it is"}
    if unknown:
        raise ConfigurationError(f"{path} does not know {sorted(unknown)[0]}", param="data_dir")
    return dict(found)


def _uses_s3(settings: Settings) -> bool:
    return is_s3(settings.objects_url) or is_s3(settings.runs_url)


class Secrets(BaseModel):
    """Keys that sign tokens, tickets, links and the database's claims, hex. They are stored in `data_dir/secrets.json`
    (0600), never in logs or Ray's state."""

    model_config = ConfigDict(frozen=True)

    tokens: str
    tickets: str
    links: str
    claims: str

    def __repr__(self) -> str:
        return "Secrets(...)"

    __str__ = __repr__


def load_secrets(settings: Settings) -> Secrets:
    """Read the data directory's secrets; the first start creates them, and missing ones are added.

    Raises ConfigurationError if the file does not hold secrets.
    """
    path = make_writable(settings.folder) / "secrets.json"
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            os.link(draft := _draft_of(path, {}), path)
        draft.unlink()
    try:
        known = json.loads(path.read_text())
        if known.keys() < Secrets.model_fields.keys():
            _draft_of(path, known).replace(path)
        return Secrets(**json.loads(path.read_text()))
    except (ValueError, AttributeError):
        raise ConfigurationError(
            f"{path} is not a file of secrets; move it away, or restore it", param="data_dir"
        ) from None


def _draft_of(path: Path, known: dict[str, str]) -> Path:
    """Write a file beside `path` (0600) with these secrets, and new ones for those that are missing."""
    made = {name: secrets.token_hex(32) for name in Secrets.model_fields} | known
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(made))
    return draft
