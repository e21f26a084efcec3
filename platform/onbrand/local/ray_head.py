"""A single-node Ray cluster that belongs to this process alone and ends with it.

Runs `ray start --block` under `onbrand.local.supervisor`, because `ray.init` can neither move its agent's port away
from another cluster's nor end its agents after a `kill -9`. Ports are on loopback with token authentication, so other
users of this machine can reach but not use them. Ray makes its folders world-accessible, so they lie in a folder that
only our user may enter (decision 0146). The cluster's address is read only there, as the listening process wrote it.
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
from onbrand.folders import make_private, must_be_out_of_reach
from onbrand.secrets_file import without_secrets

RAY_FOLDER = "ray"
"""Ray's `--temp-dir`: Ray makes it 0777, inside a folder of ours that stays 0700."""
START_SECONDS = 180
STOP_SECONDS = 25
OBJECT_STORE_BYTES = 256 * 2**20
"""Plasma's share of /dev/shm. Small, since images and weights travel over HTTP."""


class RayHead:
    """Start, deploy to, and end a private Ray.

    Args:
        folder: holds its token and its log (the data directory).
        environment: further variables for every process of the cluster, besides this process's environment.
        kept_open: descriptors that stay open until the last of its processes ends (the data directory's lock).
        is_open: accept all users of this machine, without a token. For development.
        no_proxy: hosts besides loopback that the platform calls without a proxy.
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
        """Begin starting; `connected` waits until the cluster runs."""
        forget_other_rays(os.environ)
        self._private = Path(tempfile.mkdtemp(prefix="onbrand-", dir="/tmp"))  # 0700, and short for its sockets' paths
        must_be_out_of_reach(self._private)
        os.environ.update(self._own_environment())
        self._log.parent.mkdir(mode=0o700, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "onbrand.local.supervisor",
            str(os.getpid()),
            str(self._private),
            *self._command(),
        ]
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=without_secrets(os.environ) | self._environment,
                umask=0o077,
                start_new_session=True,  # so that a terminal's Ctrl-C reaches only this process
                pass_fds=self._kept_open,
            )

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Wait until the cluster runs, and be its driver in this context. Raises ConfigurationError if it never runs.

        Ray prints its components' complaints to the driver's stdout; they are redirected to the log.
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
                with _own_signals():  # Ray's core resets SIGTERM to the default without Python's knowledge
                    ray.shutdown()

    @property
    def is_alive(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def listens_at(self, port: int) -> bool:
        """Whether a process of this cluster listens on this port of the machine."""
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
        while time.monotonic() < end and self.is_alive:
            if address := self._address():
                return address
            time.sleep(0.1)
        raise ConfigurationError(f"Ray did not start; the end of {self._log} says why")

    def _address(self) -> str:
        """The cluster's address once Ray has started, else "". Raises ConfigurationError if others could write it."""
        file = self._private / RAY_FOLDER / "ray_current_cluster"
        if not file.is_file():
            return ""
        for ours in (self._private, file):
            if ours.lstat().st_uid != os.geteuid():
                raise ConfigurationError(f"{ours} belongs to another user; end what they run, and start again")
        make_private(self._private)
        return file.read_text().strip()

    def _own_environment(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "disabled" if self._is_open else "token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port on loopback, as on Windows and macOS
            "RAY_AUTH_TOKEN_PATH": str(_token(self._folder)),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TPU_LOG_DIR": str(self._private),  # else Ray links a folder in /tmp that any user can make
            # the metrics ports require no token; the dashboard can be kept from opening one only in this way
            "RAY_enable_metrics_collection": "0",
            "DASHBOARD_METRIC_PORT": "-1",
            "RAY_prestart_worker_first_driver": "0",  # idle workers cost a laptop seconds and memory
            "PYTHONPATH": _python_path(),
            **without_proxy_for(self._no_proxy, os.environ),
            # keep torch's compiled code: its default place is the temporary folder, which is removed with the cluster
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(self._folder / "inductor"),
        }

    def _command(self) -> list[str]:
        ports = free_ports(2)
        options = {
            "--node-ip-address": "127.0.0.1",
            "--port": 0,  # chosen when it is bound: no other process can take it first and receive the token
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
    """Logical CPUs: enough to place one machine's small replicas and workers, however few cores it has."""
    return max(16, 2 * (os.cpu_count() or 1))


def family_of(host: str) -> socket.AddressFamily:
    """AF_INET6 for an IPv6 address, else AF_INET."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that are free now, all different. Raises OSError for a host that is not this machine's."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket(family_of(host))) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray in this process use 127.0.0.1: it read the environment when imported, perhaps before we set it."""
    from ray._private import ray_constants

    kept = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = kept


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Restore this process's signal handlers afterwards: Ray replaces them."""
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
