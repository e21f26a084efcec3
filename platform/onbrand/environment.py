"""The process's environment: reject unknown `ONBRAND_*` variables, and remove those meant for other programs."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping

from onbrand.errors import ConfigurationError

PREFIX = "ONBRAND_"
CLIENT_VARIABLES = frozenset({"ONBRAND_URL", "ONBRAND_TOKEN", "ONBRAND_PASSWORD", "ONBRAND_BRAND"})
"""Variables that the command line and the Python client read."""
_NEARLY_THE_SAME = 0.85
"""Minimum difflib ratio; names of settings are less similar to the client's variables than this."""
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
    """Raise ConfigurationError for an unknown `ONBRAND_*` variable, with the nearest known name.

    A typo would leave a default in force, perhaps an insecure one. Variables that Kubernetes derives from a service's
    name (`ONBRAND_SERVE_SVC_PORT=tcp://...`) are ignored.

    Args:
        settings: the names of settings, in any case; a map's name covers its members (`BASES__FLUX`).
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
    """Raise ConfigurationError for a likely typo of a client variable, which would not be read."""
    known = sorted(CLIENT_VARIABLES)
    for name in sorted(name for name in environ if name.startswith(PREFIX) and name not in CLIENT_VARIABLES):
        if found := difflib.get_close_matches(name, known, n=1, cutoff=_NEARLY_THE_SAME):
            raise ConfigurationError(f"{name} is read by nobody (do you mean {found[0]}?); unset it", param=name)


def _is_for_others(name: str, value: str) -> bool:
    if name.startswith(_TEST_VARIABLES) or _SERVICE_LINK.search(name):
        return True
    return name.endswith("_PORT") and bool(_SERVICE_ADDRESS.match(value))


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known name as a hint, compared without the common prefix; "" if none is similar."""
    words = sorted(each.removeprefix(PREFIX) for each in known)
    found = difflib.get_close_matches(name.removeprefix(PREFIX).split("__", 1)[0], words, n=1)
    return f" (do you mean {PREFIX}{found[0]}?)" if found else ""


def forget_postgres_variables(environ: MutableMapping[str, str] | None = None) -> None:
    """Remove `PG*`: libpq and PostgreSQL's programs read them, and would connect elsewhere or as another user."""
    environ = os.environ if environ is None else environ
    for name in [name for name in environ if is_postgres_variable(name)]:
        del environ[name]


def is_postgres_variable(name: str) -> bool:
    """Whether libpq or a program of PostgreSQL may read this variable."""
    return name.startswith("PG")


def forget_other_rays(environ: MutableMapping[str, str]) -> None:
    """Remove variables that name another Ray cluster, its token or its hooks; our cluster needs none of them."""
    for name in _OTHER_RAYS:
        environ.pop(name, None)


def without_proxy_for(hosts: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY` in both spellings, extended by loopback and `hosts`: calls within the platform use no proxy."""
    no_proxy = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = [name.strip() for name in no_proxy.split(",") if name.strip()]
    names += [name for name in dict.fromkeys([*_LOOPBACK, *hosts]) if name not in names]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(names))
