"""The process's environment: what is ours in it and must be known, and what is other people's and must not leak in."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping

from onbrand.errors import ConfigurationError

PREFIX = "ONBRAND_"
CLIENT_VARIABLES = frozenset({"ONBRAND_URL", "ONBRAND_TOKEN", "ONBRAND_PASSWORD", "ONBRAND_BRAND"})
"""What the command line and the Python client read."""
_NEARLY_THE_SAME = 0.85
"""Of difflib's ratios; the names of settings are further from the client's variables than this."""
_TEST_VARIABLES = "ONBRAND_TEST_"
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_OTHER_RAYS = (
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_REDIS_ADDRESS", "RAY_AUTH_TOKEN",
    "RAY_TMPDIR", "RAY_GCS_SERVER_PORT", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_START_HOOK",
    "RAY_RUNTIME_ENV_HOOK", "RAY_FAKE_CLUSTER", "RAY_OVERRIDE_RESOURCES", "RAY_RUNTIME_ENV_CREATE_WORKING_DIR",
)  # fmt: skip
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def must_be_known(settings: Iterable[str], environ: Mapping[str, str]) -> None:
    """Raise ConfigurationError for an `ONBRAND_*` variable that nobody reads, with the nearest name that somebody does.

    A mistyped one would leave a default in force, perhaps an open one. Variables that Kubernetes makes of a service's
    name (`ONBRAND_SERVE_SVC_PORT=tcp://...`) are left alone.

    Args:
        settings: the names of settings, in any case; a map's members may be named alone (`BASES__FLUX`).
    """
    known = {f"{PREFIX}{name.upper()}" for name in settings} | CLIENT_VARIABLES
    for name, value in sorted(environ.items()):
        wanted = name.upper()
        if not wanted.startswith(PREFIX) or wanted.split("__", 1)[0] in known or _is_for_others(wanted, value):
            continue
        raise ConfigurationError(
            f"{name} is no setting of Onbrand{_nearest(wanted, known)}; unset it, or correct its name", param=name
        )


def must_be_meant(environ: Mapping[str, str]) -> None:
    """Raise ConfigurationError for a variable that is nearly one of the client's, and would not be read."""
    known = sorted(CLIENT_VARIABLES)
    for name in sorted(name for name in environ if name.startswith(PREFIX) and name not in CLIENT_VARIABLES):
        if found := difflib.get_close_matches(name, known, n=1, cutoff=_NEARLY_THE_SAME):
            raise ConfigurationError(f"{name} is read by nobody (do you mean {found[0]}?); unset it", param=name)


def _is_for_others(name: str, value: str) -> bool:
    if name.startswith(_TEST_VARIABLES) or _SERVICE_LINK.search(name):
        return True
    return name.endswith("_PORT") and bool(_SERVICE_ADDRESS.match(value))


def _nearest(name: str, known: Iterable[str]) -> str:
    """Compared without what all have in common."""
    words = sorted(each.removeprefix(PREFIX) for each in known)
    found = difflib.get_close_matches(name.removeprefix(PREFIX).split("__", 1)[0], words, n=1)
    return f" (do you mean {PREFIX}{found[0]}?)" if found else ""


def forget_postgres_variables(environ: MutableMapping[str, str] | None = None) -> None:
    """Remove `PG*`: PostgreSQL's programs and libpq read them, and they would change where and as whom we connect."""
    environ = os.environ if environ is None else environ
    for name in [name for name in environ if is_postgres_variable(name)]:
        del environ[name]


def is_postgres_variable(name: str) -> bool:
    """Whether libpq or a program of PostgreSQL may read this variable."""
    return name.startswith("PG")


def forget_other_rays(environ: MutableMapping[str, str]) -> None:
    """Remove what names another Ray cluster, its token or its hooks: ours is named by nobody."""
    for name in _OTHER_RAYS:
        environ.pop(name, None)


def without_proxy_for(hosts: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY` in both spellings, as it is and with loopback and `hosts`: calls within the platform take no proxy."""
    said = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = [name.strip() for name in said.split(",") if name.strip()]
    names += [name for name in dict.fromkeys([*_LOOPBACK, *hosts]) if name not in names]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(names))
