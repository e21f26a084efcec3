"""`onbrand signup` and `onbrand login`, and the authenticated client for all other commands.

The token is in `~/.config/onbrand/credentials.json` (0600). ONBRAND_URL and ONBRAND_TOKEN take precedence.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onbrand.cli.exits import NOT_LOGGED_IN, USAGE, Refused
from onbrand.cli.output import AsJson, show
from onbrand.folders import write_private

if TYPE_CHECKING:
    from onbrand.client import Onbrand

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str | None, typer.Option("--url", envvar="ONBRAND_URL", help="The platform's address.")]
Password = Annotated[
    str | None,
    typer.Option("--password", envvar="ONBRAND_PASSWORD", help="Asked for when missing; '-' reads one line of stdin."),
]
BrandOption = Annotated[
    str | None, typer.Option("--brand", envvar="ONBRAND_BRAND", help="The brand's id; not needed if you have one only.")
]
Email = Annotated[str, typer.Argument(help="Your e-mail address.")]


def signup(email: Email, url: Url = None, password: Password = None, as_json: AsJson = False) -> None:
    """Sign up with an e-mail address and a password, and stay logged in."""
    client, secret = _anonymous(url), _ask(password, confirm=True)
    client.users.create(email, secret)
    _log_in(client, email, secret, None, as_json)


def login(
    email: Email,
    url: Url = None,
    password: Password = None,
    brand: Annotated[str | None, typer.Option("--brand", help="Narrow the token to this brand.")] = None,
    as_json: AsJson = False,
) -> None:
    """Log in; the token is stored for the following commands."""
    _log_in(_anonymous(url), email, _ask(password), brand, as_json)


def connect() -> Onbrand:
    """A client of the platform that the caller is logged in to. Raises Refused without a token."""
    from onbrand.client import Onbrand

    stored = read_credentials()
    url = os.environ.get("ONBRAND_URL") or stored.get("url") or DEFAULT_URL
    token = os.environ.get("ONBRAND_TOKEN") or (stored.get("token") if stored.get("url") == url.rstrip("/") else None)
    if not token:
        raise Refused(f"not logged in to {url}; run 'onbrand login'", NOT_LOGGED_IN, "unauthenticated")
    return Onbrand(url, token)


def chosen_brand(client: Onbrand, brand: str | None) -> str:
    """The id of a command's brand: the named one, or the caller's only brand."""
    return brand or client.get_user_brand().id


def credentials_path() -> Path:
    """The file that stores the token."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "onbrand" / "credentials.json"


def read_credentials() -> dict[str, Any]:
    """The credentials that `login` stored; empty if the file is missing or unreadable."""
    try:
        stored = json.loads(credentials_path().read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def keep_credentials(**credentials: Any) -> Path:
    """Replace the credentials file atomically, readable by its owner only."""
    path = credentials_path()
    write_private(path, json.dumps(credentials))
    return path


def _anonymous(url: str | None) -> Onbrand:
    from onbrand.client import Onbrand

    client = Onbrand(url or read_credentials().get("url") or DEFAULT_URL)
    client.token = None
    return client


def _log_in(client: Onbrand, email: str, password: str, brand: str | None, as_json: bool) -> None:
    token = client.log_in(email, password, brand)
    expires = token.expires_at.isoformat() if token.expires_at else None
    path = keep_credentials(url=client.base_url, token=token.access_token, email=email, expires_at=expires)
    document = {"email": email, "url": client.base_url, "brand_id": brand, "expires_at": expires, "kept_in": str(path)}
    show(document, f"Logged in to {client.base_url} as {email}.", as_json)


def _ask(password: str | None, confirm: bool = False) -> str:
    if password == "-":
        return sys.stdin.readline().rstrip("\n")
    if password is not None:
        return password
    if not sys.stdin.isatty():
        raise Refused("no password: give --password - and pipe it, or set ONBRAND_PASSWORD", USAGE, "usage")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True))
