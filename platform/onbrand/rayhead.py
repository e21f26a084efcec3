"""A Ray cluster of one node that belongs to this process alone and dies with it.

`ray start --block` under `onbrand.keeper`, for `ray.init` can neither move its agent's port out of another cluster's
way nor end its agents after a `kill -9`. Its ports are on loopback, and token authentication is on: other users of this
machine, who reach them, still cannot use them. Ray makes its folders accessible to everybody, so they lie in one that
only we may enter (decision 0146); its address is read there, from the process that listens, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onbrand
from onbrand.environment import forget_other_rays, without_proxy_for
from onbrand.errors import ConfigurationError
from onbrand.folders import must_be_out_of_reach, must_be_private
from onbrand.logins import without_secrets

RAY_FOLDER = "ray"
"""Ray's `--temp-dir`, which it makes 0777, in a folder of ours, which stays 0700."""
START_SECONDS = 180
STOP_SECONDS = 25
OBJECT_STORE_BYTES = 256 * 2**20
"""Plasma's share of /dev/shm. Pictures and weights travel over HTTP, so little is ever in it."""


class RayHead:
    """Start, deploy to, and end a private Ray.

    Args:
        folder: where its token and its log stay (the data directory).
        environment: what every process of the cluster shall see, besides this process's own environment.
        kept_open: descriptors that must stay open until the last of its processes is gone (the data directory's lock).
        is_open: let everybody on this machine in, without a token. For development.
        no_proxy: hosts besides loopback that calls within the platform go to, without a proxy.
    """

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        kept_open: tuple[int, ...] = (),
        is_open: bool = False,
        no_proxy: tuple[str, ...] = (),
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._kept_open = kept_open
        self._is_open = is_open
        self._no_proxy = no_proxy
        self._keeper: subprocess.Popen[bytes] | None = None
        self._private = Path()
        self._log = folder / "logs" / "ray.log"

    def launch(self) -> None:
        """Begin starting; `connected` waits for the end of it."""
        forget_other_rays(os.environ)
        self._private = Path(tempfile.mkdtemp(prefix="onbrand-", dir="/tmp"))  # 0700, and short: sockets lie in it
        must_be_out_of_reach(self._private)
        os.environ.update(self._own_environment())
        self._log.parent.mkdir(mode=0o700, exist_ok=True)
        command = [sys.executable, "-m", "onbrand.keeper", str(os.getpid()), str(self._private), *self._command()]
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=without_secrets(os.environ) | self._environment,
                umask=0o077,
                start_new_session=True,  # a terminal's Ctrl-C is for us alone
                pass_fds=self._kept_open,
            )

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Wait until the cluster runs and be its driver for a while. Raises ConfigurationError if it never does.

        Ray prints what its parts complain of to the driver's stdout, which is not ours to spoil: it goes to the log.
        """
        address = self._wait_for_address()
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        with self._log.open("a") as log, contextlib.redirect_stdout(log), _loopback():
            try:
                with _own_signals():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="onbrand")
                yield
            finally:
                with _own_signals():  # its core takes SIGTERM back to the default, behind Python's back
                    ray.shutdown()

    @property
    def running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def listens_at(self, port: int) -> bool:
        """Whether a process of this cluster is who listens at a port of this machine."""
        import psutil

        for process in psutil.Process(self._keeper.pid).children(recursive=True) if self._keeper else ():
            with contextlib.suppress(psutil.Error):
                found = process.net_connections("tcp")
                if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found):
                    return True
        return False

    def stop(self) -> None:
        """End every process of the cluster, whatever state it is in."""
        if self._keeper is not None:
            self._keeper.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(STOP_SECONDS)
            self._keeper = None

    def _wait_for_address(self) -> str:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.running:
            if address := self._address():
                return address
            time.sleep(0.1)
        raise ConfigurationError(f"Ray did not start; the end of {self._log} says why")

    def _address(self) -> str:
        """What Ray says when it has started; empty before. Raises ConfigurationError if others could write it."""
        file = self._private / RAY_FOLDER / "ray_current_cluster"
        if not file.is_file():
            return ""
        for ours in (self._private, file):
            if ours.lstat().st_uid != os.geteuid():
                raise ConfigurationError(f"{ours} belongs to another user; end what they run, and start again")
        must_be_private(self._private)
        return file.read_text().strip()

    def _own_environment(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "disabled" if self._is_open else "token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as it is there: every port on loopback, also on Linux
            "RAY_AUTH_TOKEN_PATH": str(_token(self._folder)),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TPU_LOG_DIR": str(self._private),  # else Ray would link a folder in /tmp that anybody can make
            # metrics would be read at ports that ask for no token; the dashboard has no other way to open none
            "RAY_enable_metrics_collection": "0",
            "DASHBOARD_METRIC_PORT": "-1",
            "RAY_prestart_worker_first_driver": "0",  # idle workers would cost a laptop seconds and memory
            "PYTHONPATH": _python_path(),
            **without_proxy_for(self._no_proxy, os.environ),
            # what torch compiled is worth keeping, and its default is the temporary folder, which goes with the cluster
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(self._folder / "inductor"),
        }

    def _command(self) -> list[str]:
        ports = free_ports(2)
        options = {
            "--node-ip-address": "127.0.0.1",
            "--port": 0,  # chosen as it is bound: nobody can take it first, and be sent the token
            "--dashboard-port": ports[0],
            "--dashboard-agent-listen-port": 0,
            "--ray-client-server-port": ports[1],
            "--dashboard-host": "127.0.0.1",
            "--include-dashboard": "true",
            "--include-log-monitor": "false",
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--num-cpus": num_cpus(),
            "--object-store-memory": OBJECT_STORE_BYTES,
            "--temp-dir": self._private / RAY_FOLDER,
        }
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        return ray + [f"{name}={value}" for name, value in options.items()] + ["--no-monitor"]


def num_cpus() -> int:
    """Logical CPUs: enough for the small replicas and workers of one machine to be placed, however few cores it has."""
    return max(16, 2 * (os.cpu_count() or 1))


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for an address of it, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports nobody listens on now; all different. Raises OSError for a host that is not this machine's."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket(family_of(host))) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray in this process take 127.0.0.1 as it is: it read the environment at its import, perhaps before ours."""
    from ray._private import ray_constants

    kept = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = kept


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers: Ray puts its own in their place."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)


def _token(folder: Path) -> Path:
    path = folder / "ray-token"
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path


def _python_path() -> str:
    own = str(Path(onbrand.__file__).parent.parent)
    others = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != own]
    return os.pathsep.join([own, *(str(Path(part).absolute()) for part in others)])
