"""A complete platform on this machine, in the foreground: database, store, Ray, Serve. For `onbrand up` and the demo.

It ends everything that it started and nothing else. Clusters of many machines start from `cluster.yaml` and
`deployments/`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onbrand.addresses import http_url, is_url
from onbrand.config import Settings, make_writable, must_have_space
from onbrand.errors import BaseModelRefused, ConfigurationError, OnbrandError
from onbrand.folders import PRIVATE_FOLDERS, make_private, must_be_closed_to_others
from onbrand.local.ray_head import RayHead, family_of, free_ports
from onbrand.secrets_file import SECRET_SETTINGS, Secrets, load_secrets, write_logins
from onbrand.storage.runs import runs_folder

if TYPE_CHECKING:
    from onbrand.db.embedded import EmbeddedDatabase
    from onbrand.db.logins import DatabaseUrls

LOCK_SECONDS = 40
"""How long a start waits for the remaining processes of a killed platform on the same data directory."""
HEALTH_SECONDS = 120
REVIVALS, REVIVAL_SECONDS = 5, 600.0
"""Maximum restarts of a database that ends by itself, within so many seconds."""
INTERNAL_HOST = "127.0.0.1"
PUBLIC_PORT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "onbrand.serving.listener:middlewares"}
"""Makes Serve's HTTP proxy open the public port."""


class Platform:
    """The platform of one data directory; it runs while this context is open. `url` is its address.

    Args:
        settings: `port` 0 takes a free one.
        tell: called with a line of text for each step of the start.

    Raises ConfigurationError or BaseModelRefused, with nothing left running, if it cannot start as configured.
    """

    def __init__(self, settings: Settings, tell: Callable[[str], object] = lambda text: None) -> None:
        if settings.port == 0:
            settings = settings.model_copy(update={"port": _free_port(settings.host)})
        if settings.internal_port == 0:
            settings = settings.model_copy(update={"internal_port": _free_port(INTERNAL_HOST)})
        self.settings = with_absolute_bases(settings)
        self._report = tell
        self._undo = contextlib.ExitStack()
        self._ray: RayHead | None = None
        self._embedded: EmbeddedDatabase | None = None
        self._revived_at: list[float] = []

    def __enter__(self) -> Platform:
        with self._undo:
            self._start()
            self._undo = self._undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def url(self) -> str:
        """The ingress's URL for callers on this machine."""
        return http_url(self.settings.host, self.settings.port)

    @property
    def is_alive(self) -> bool:
        """False once Ray has ended by itself."""
        return self._ray is not None and self._ray.is_alive

    def restart_if_dead(self) -> None:
        """Restart an embedded database that ended by itself; calls in between were answered with 503, none is lost.

        Raises ConfigurationError if it cannot be started, or ended more than `REVIVALS` times.
        """
        if self._embedded is None or not self._embedded.restart_if_dead():
            return
        now = time.monotonic()
        self._revived_at = [at for at in self._revived_at if now - at < REVIVAL_SECONDS] + [now]
        self._report("The database had ended and was started again")
        if len(self._revived_at) > REVIVALS:
            log = self.settings.folder / "postgres" / "log"
            raise ConfigurationError(f"the database ends again and again; {log} says why", param="data_dir")

    def _start(self) -> None:
        from onbrand.db.server import server_group
        from onbrand.services.oidc import OidcIssuer
        from onbrand.serving.cluster_security import must_be_closed_environment
        from onbrand.serving.options import EngineOptions

        settings, folder = self.settings, make_writable(self.settings.folder)
        make_private(folder, group=server_group())
        must_have_space(folder)
        must_be_closed_environment(settings)
        EngineOptions.checked(settings.engine)
        OidcIssuer.from_settings(settings)  # refuses one that could be impersonated
        lock = self._undo.enter_context(locked(folder))
        must_be_free(settings.host, settings.port)
        must_be_free(INTERNAL_HOST, settings.internal_port, "ONBRAND_INTERNAL_PORT")
        fetch_bases(settings, self._report)
        make_private_folders(settings)
        secrets = load_secrets(settings)
        self._report("Starting the database")
        urls = self._open_database(secrets)
        logins = write_logins(settings, urls.web_url, urls.system_url)
        self._undo.callback(logins.unlink, missing_ok=True)
        self._report("Starting Ray")
        is_open = settings.dev and os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
        self._ray = RayHead(folder, environment(settings), (lock,), is_open, (settings.host,))
        self._undo.callback(self._ray.stop)
        self._ray.launch()
        check_object_store(settings)
        with self._ray.connected():
            self._report(f"Loading {', '.join(settings.families)}")
            deploy(settings)
        wait_until_healthy(self.url)
        self._must_listen()

    def _must_listen(self) -> None:
        """Raise ConfigurationError if another program took the port: it would receive passwords and tickets."""
        if self._ray is not None and not self._ray.listens_at(self.settings.port):
            raise ConfigurationError(
                f"another program than Ray Serve listens on port {self.settings.port}; stop it, or choose another port",
                param="port",
            )

    def _open_database(self, secrets: Secrets) -> DatabaseUrls:
        from onbrand.db.embedded import EmbeddedDatabase, open_database

        database = open_database(self.settings, secrets)
        if isinstance(database, EmbeddedDatabase):
            self._undo.callback(database.stop)
            self._embedded = database
        return database


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the data directory's lock; yields its descriptor. Raises ConfigurationError with the pid of the holder."""
    path = folder / "up.lock"
    with open(path, "a+", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        end = time.monotonic() + LOCK_SECONDS
        while not _try_lock(file.fileno()):
            holder = path.read_text().strip()
            if _is_alive(holder) or time.monotonic() > end:
                raise ConfigurationError(
                    f"the data directory {folder} is in use by process {holder or '(unknown)'}; "
                    "stop that platform, or choose another directory with --data-dir or ONBRAND_DATA_DIR",
                    param="data_dir",
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()
        file.truncate(0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    return pid.isdecimal() and Path("/proc", pid).exists()


def _free_port(host: str) -> int:
    try:
        return free_ports(1, host)[0]
    except OSError as problem:
        raise ConfigurationError(_why_not(problem, host, 0), param="host") from None


def with_absolute_bases(settings: Settings) -> Settings:
    """Make the paths of bases in folders absolute: Ray's processes have other working directories."""
    found = {family: Path(source).expanduser() for family, source in settings.bases.items() if not is_url(source)}
    there = {family: str(path.absolute()) for family, path in found.items() if path.is_dir()}
    return settings.model_copy(update={"bases": {**settings.bases, **there}})


def make_private_folders(settings: Settings) -> None:
    """Create the folders that this platform uses, and close all existing ones to others. Raises ConfigurationError."""
    used = {"logs", *(["objects"] if not settings.storage_url else []), *(["runs"] if not settings.run_storage else [])}
    for name in PRIVATE_FOLDERS:
        folder = settings.folder / name
        if name in used:
            folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.exists():
            make_private(folder, is_inner=True)
    if (shared := runs_folder(settings)) is not None and shared.exists():
        must_be_closed_to_others(shared, "run_storage")


def must_be_free(host: str, port: int, said_with: str = "--port or ONBRAND_PORT") -> None:
    """Raise ConfigurationError if no process can listen on `host` and `port`."""
    with socket.socket(family_of(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            raise ConfigurationError(_why_not(problem, host, port, said_with), param="port") from None


def _why_not(problem: OSError, host: str, port: int, said_with: str = "--port or ONBRAND_PORT") -> str:
    if problem.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use; stop what listens there, "
            f"or choose another with {said_with} (0 takes a free one)"
        )
    return f"cannot listen on {host} port {port} ({problem.strerror}); choose others with --host and --port"


def fetch_bases(settings: Settings, tell: Callable[[str], object]) -> None:
    """Fetch remote bases into the cache. Raises BaseModelRefused if the base of a family is not available."""
    from onbrand.families.bases import base_folder, base_source, folder_at_hand, s3_access

    for family in settings.families:
        source = base_source(family, settings.bases)
        if folder_at_hand(source) is None:
            tell(f"Fetching the base of {family}: {source}")
        base_folder(family, source, storage_options=s3_access(settings))


def environment(settings: Settings) -> dict[str, str]:
    """The settings as `ONBRAND_*` variables for all processes of the cluster, without logins and keys.

    The few processes that need logins and keys read them from a file (`onbrand.secrets_file`).
    """
    known = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True, exclude=set(SECRET_SETTINGS))
    known |= {"data_dir": str(settings.folder), "host": settings.host, "port": settings.port}
    return PUBLIC_PORT | {
        f"ONBRAND_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in known.items()
    }


def check_object_store(settings: Settings) -> None:
    """Try the object store, and the runs' place on S3. Raises ConfigurationError or StorageError if it cannot write."""
    from onbrand.storage.credentials import CredentialIssuer
    from onbrand.storage.store import ObjectStore

    ObjectStore.from_settings(settings).check()
    if (issuer := CredentialIssuer.from_settings(settings)) is not None:
        issuer.check()


def deploy(settings: Settings) -> None:
    """Run all applications on Serve. Raises BaseModelRefused or ConfigurationError with the cause of a failed start."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    from onbrand.serving.build import applications
    from onbrand.serving.cluster_security import must_be_closed

    must_be_closed(settings)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options=HTTPOptions(host=INTERNAL_HOST, port=settings.internal_port))
    targets = [serve.RunTarget(app, name, prefix) for name, prefix, app in applications(settings)]
    try:
        serve.run_many(targets)
    except RuntimeError:
        raise _why_not_deployed() from None


def _why_not_deployed() -> OnbrandError:
    from ray import serve

    messages = [
        f"{app.message} {' '.join(d.message for d in app.deployments.values())}"
        for app in serve.status().applications.values()
    ]
    text = " ".join(messages)
    if found := re.search(r"BaseModelRefused: ([^\n]+)", text):
        return BaseModelRefused(found.group(1))
    if found := re.search(r"(?:ConfigurationError|StorageError): ([^\n]+)", text):
        return ConfigurationError(found.group(1))
    return ConfigurationError("a part of the platform did not start; the logs of Ray Serve say why")


def wait_until_healthy(url: str) -> None:
    """Wait until the ingress answers. Raises ConfigurationError if it does not."""
    import httpx

    end = time.monotonic() + HEALTH_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz", timeout=10, trust_env=False).is_success:
                return
        time.sleep(0.1)
    raise ConfigurationError(f"the ingress at {url} does not become healthy; the logs of Ray Serve say why")
