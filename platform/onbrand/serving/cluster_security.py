"""Checks that a Ray cluster is closed before Onbrand runs on it. It asks the cluster itself, not its settings.

Ray does not isolate users of a cluster from each other: anyone who reaches its ports without a token reaches every
brand's images. So every replica first checks whether the ports answer a caller without a token.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from onbrand.config import Settings
from onbrand.errors import ConfigurationError

_KV: Final = "/ray.rpc.InternalKVGcsService/InternalKVKeys"
_CLIENT: Final = "/ray.rpc.RayletDriver/ClusterInfo"
_JOBS: Final = "/api/jobs/"
_PATIENCE_SECONDS, _CALL_SECONDS = 30.0, 5.0
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # clouds give these to pods; Python counts them as public
_REMEDY = "docs/operations.md says how to close a cluster; --dev (ONBRAND_DEV) allows an open one for development"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Addresses of a Ray cluster: the control store (GCS), and the dashboard with its jobs, as ``host:port``."""

    gcs: str
    dashboard: str | None = None

    @classmethod
    def of_this_process(cls) -> Cluster:
        """The cluster of this driver or replica."""
        import ray
        from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
        from ray.experimental.internal_kv import _internal_kv_get

        gcs = ray.get_runtime_context().gcs_address
        dashboard = _internal_kv_get(DASHBOARD_ADDRESS, namespace=KV_NAMESPACE_DASHBOARD)  # None: no dashboard
        return cls(gcs, dashboard.decode() if dashboard else None).as_seen_from(addresses_of_this_node())

    def as_seen_from(self, addresses: set[str]) -> Cluster:
        """Without the dashboard if it listens on another node's loopback, where this node cannot reach it."""
        is_elsewhere = _host_of(self.gcs) not in addresses
        if self.dashboard is not None and is_elsewhere and _is_loopback(_host_of(self.dashboard)):
            return Cluster(self.gcs)
        return self


def must_be_closed(settings: Settings, cluster: Cluster | None = None) -> None:
    """Raise ConfigurationError if the cluster (None: this process's) answers callers without a token, or lies open.

    `settings.dev` allows anything; `settings.private_network` allows a dashboard on every address of its node.
    """
    import ray

    if settings.dev or (cluster is None and not ray.is_initialized()):
        return
    cluster = cluster or Cluster.of_this_process()
    must_ask_for_token(cluster)
    for what, address in (("control store", cluster.gcs), ("dashboard", cluster.dashboard)):
        if address is not None and _is_public(address):
            raise ConfigurationError(
                f"Ray's {what} listens on the public address {_host_of(address)}; let it listen on loopback or the "
                f"private network; {_REMEDY}"
            )
    if cluster.dashboard is not None and not settings.private_network and _listens_everywhere(cluster.dashboard):
        raise ConfigurationError(
            "Ray's dashboard listens on every address of its node; start Ray with --dashboard-host=127.0.0.1 or a "
            "private address, or set ONBRAND_PRIVATE_NETWORK=true where the node has private addresses only; "
            f"{_REMEDY}",
            param="private_network",
        )


def must_ask_for_token(cluster: Cluster) -> None:
    """Raise ConfigurationError unless control store and dashboard refuse calls without a token."""
    if _answers_anyone(cluster.gcs, _KV):
        raise ConfigurationError(
            f"Ray answers calls without a token; start every node with RAY_AUTH_MODE=token; {_REMEDY}"
        )
    if cluster.dashboard is not None and _serves_anyone(cluster.dashboard):
        raise ConfigurationError(
            f"Ray's dashboard and its jobs answer without a token; start Ray with RAY_AUTH_MODE=token; {_REMEDY}"
        )


def must_be_closed_environment(settings: Settings, environ: Mapping[str, str] | None = None) -> None:
    """Raise ConfigurationError if this process's environment asks for an open Ray, or names one."""
    environ = os.environ if environ is None else environ
    if settings.dev:
        return
    if (mode := environ.get("RAY_AUTH_MODE", "token").lower()) != "token":
        raise ConfigurationError(
            f"RAY_AUTH_MODE is '{mode}': Ray would let everybody in; unset it, or set it to 'token'; {_REMEDY}"
        )
    if (address := environ.get("RAY_ADDRESS")) and _names_an_open_cluster(address):
        raise ConfigurationError(
            f"RAY_ADDRESS names a cluster that answers without a token; unset it, or turn its tokens on; {_REMEDY}"
        )


def _names_an_open_cluster(address: str) -> bool:
    """Whether the cluster answers callers without a token. A cluster that does not answer at all is not open."""
    scheme, _, rest = address.rpartition("://")
    place = rest.split("/", 1)[0]
    if ":" not in place:
        return False  # auto, local
    try:
        if scheme in ("http", "https"):
            return _serves_anyone(place, patience=0)
        return _answers_anyone(place, _CLIENT if scheme == "ray" else _KV, patience=0)
    except ConfigurationError:
        return False


def _answers_anyone(address: str, method: str, patience: float = _PATIENCE_SECONDS) -> bool:
    """Whether a Ray gRPC server answers a call without a token. Raises ConfigurationError if it does not respond."""
    import grpc

    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    silences = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    end = time.monotonic() + patience
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        while True:
            try:
                call(b"", timeout=_CALL_SECONDS)
                return True
            except grpc.RpcError as problem:
                code = problem.code()  # type: ignore[attr-defined]
                if code in refusals:
                    return False
                if code not in silences:
                    return True  # it processed the call
                if time.monotonic() > end:
                    raise ConfigurationError(f"Ray's control store at {address} does not answer") from None
                time.sleep(0.2)


def _serves_anyone(address: str, patience: float = _PATIENCE_SECONDS) -> bool:
    """Whether the dashboard lists jobs without a token. Raises ConfigurationError if it does not answer."""
    import httpx

    end = time.monotonic() + patience
    while True:
        try:
            answer = httpx.get(f"http://{address}{_JOBS}", timeout=_CALL_SECONDS, trust_env=False)
            return answer.status_code not in (401, 403)
        except httpx.TransportError:
            if time.monotonic() > end:
                raise ConfigurationError(f"Ray's dashboard at {address} does not answer") from None
            time.sleep(0.2)


def _host_of(address: str) -> str:
    return address.rsplit(":", 1)[0].strip("[]")


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")


def addresses_of_this_node() -> set[str]:
    """All IP addresses of this node's interfaces, and "localhost"."""
    import psutil

    return {"localhost", *(each.address for found in psutil.net_if_addrs().values() for each in found)}


def _is_public(address: str) -> bool:
    try:
        host = ipaddress.ip_address(_host_of(address))
    except ValueError:
        return False  # a name; the token check still applies
    return not (host.is_private or host.is_loopback or (host.version == 4 and host in _SHARED))


def _listens_everywhere(address: str) -> bool:
    """Whether `address` is of this node and its port is bound to every address of the node."""
    import psutil

    host, port = _host_of(address), int(address.rsplit(":", 1)[1])
    own = addresses_of_this_node()
    if host not in own:
        return False
    try:
        listening = [each.laddr for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:  # macOS asks for root
        return _accepts_elsewhere(port, own)
    return any(each.port == port and ipaddress.ip_address(each.ip).is_unspecified for each in listening)


def _accepts_elsewhere(port: int, own: set[str]) -> bool:
    """Whether the port answers on an address of this node that is not loopback."""
    for address in own:
        try:
            if not ipaddress.ip_address(address).is_loopback:
                with socket.create_connection((address, port), timeout=1):
                    return True
        except (ValueError, OSError):
            continue
    return False
