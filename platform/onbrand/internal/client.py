"""Client of the internal routes (`onbrand.api.system`), for workers with a ticket.

Workers hold no database login and no bucket key. A ticket names one brand, one job and one member; the routes check
it and the row policies check it again. A restart of a System replica delays a call and loses no result.
"""

from __future__ import annotations

import functools
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx

from onbrand.internal.retries import retry_delays, wait_after
from onbrand.internal.training import PublishedModel, ReportResponse, RunCredentials, TrainingSpec

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Call:
    """One request as data, for the blocking and the asynchronous client (`async_client`)."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    data: Mapping[str, str] | None = None
    file: tuple[bytes, str] | None = field(default=None, repr=False)

    def request(self, client: httpx.Client | httpx.AsyncClient, token: str) -> httpx.Request:
        """This call as a request of `client`."""
        files = {"file": ("file", *self.file)} if self.file else None
        headers = {"authorization": f"Bearer {token}"}
        return client.build_request(
            self.method, f"/v1{self.path}", json=self.json, data=self.data, files=files, headers=headers
        )


def report_call(
    progress: int | None,
    metrics: Mapping[str, Any] | None,
    lines: Sequence[Mapping[str, Any]] = (),
    findings: Sequence[Mapping[str, Any]] | None = None,
) -> Call:
    """The call of `SystemClient.report` and `report_findings`."""
    report = {"progress": progress, "metrics": metrics, "lines": list(lines)}
    found = {} if findings is None else {"findings": list(findings)}
    return Call("POST", "/training/report", json=report | found)


def sample_call(step: int, index: int, data: bytes, content_type: str, drawn_by: str) -> Call:
    """The call of `SystemClient.add_sample`."""
    facts = {"step": str(step), "index": str(index), "drawn_by": drawn_by}
    return Call("POST", "/training/samples", data=facts, file=(data, content_type))


def publish_call(data: bytes, facts: Mapping[str, Any]) -> Call:
    """The call of `SystemClient.publish`."""
    return Call("POST", "/training/publish", data={"facts": json.dumps(facts)}, file=(data, "application/octet-stream"))


def credentials_of(answer: Mapping[str, Any]) -> RunCredentials | None:
    """The credentials in a response of `/training/credentials`, if there are any."""
    given = answer["credentials"]
    return None if given is None else RunCredentials.model_validate(given)


def failure_call(path: str, code: str, message: str) -> Call:
    """The call that ends a job or a generation with a reason."""
    return Call("POST", path, json={"code": code, "message": message})


TIMEOUT_SECONDS = 60.0
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32)
"""Each call has a connection at once; as many stay open as a busy replica uses again."""


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The trusted CA certificates, loaded once, because loading takes 50 ms."""
    return httpx.create_ssl_context(trust_env=False)


def _verify(url: str) -> ssl.SSLContext | bool:
    """How a client of this address checks certificates; plain http has none."""
    return _trusted() if url.startswith("https:") else False


def connections(url: str, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """Connections to the internal routes at `url`, which the blocking clients of all threads can share."""
    return httpx.Client(
        base_url=url, timeout=TIMEOUT_SECONDS, limits=_LIMITS, transport=transport, trust_env=False, verify=_verify(url)
    )


class SystemClient:
    """Blocking client of the internal routes: all calls of a training ticket, and `read_model` for an engine's threads.

    Args:
        url: the internal routes' root, `settings.system_url`.
        token: a signed ticket; `renew` replaces it.
        patience: seconds to retry while the platform is unavailable.
        http: keeps connections for several clients; it is not closed with this one. None: this client has its own.

    Every method raises the `onbrand.errors` class that the platform raised, or `Unavailable` when patience ends.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: float = PATIENCE_SECONDS,
        http: httpx.Client | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.token = token
        self._patience = patience
        self._is_own = http is None
        self._http = http or connections(url, transport)

    def __repr__(self) -> str:
        return f"SystemClient({str(self._http.base_url)!r})"

    def __enter__(self) -> SystemClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless other clients share them."""
        if self._is_own:
            self._http.close()

    # training tickets

    def spec(self) -> TrainingSpec:
        """The job's configuration and images (ids and captions; `read_asset` returns the bytes)."""
        return TrainingSpec.model_validate(self._json(Call("GET", "/training")))

    def read_asset(self, asset_id: str) -> bytes:
        """The bytes of one image of this job. Raises NotFound for any other."""
        return self._send(Call("GET", f"/training/assets/{asset_id}")).content

    def read_import(self) -> bytes:
        """The file that this job imports, as uploaded. Raises NotFound for a job that imports none."""
        return self._send(Call("GET", "/training/import")).content

    def read_start(self) -> bytes:
        """The weights of the model that this job continues from. Raises NotFound if it continues from none."""
        return self._send(Call("GET", "/training/start")).content

    def report_findings(self, findings: Sequence[Mapping[str, Any]]) -> ReportResponse:
        """Report the data check's findings, which are kept with the job."""
        return ReportResponse.model_validate(self._json(report_call(None, None, findings=findings)))

    def report(
        self,
        progress: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        lines: Sequence[Mapping[str, Any]] = (),
    ) -> ReportResponse:
        """Report progress 0 to 100, metrics (e.g. ``{"step": 20, "loss": 0.1}``) and log lines; also the heartbeat.

        Args:
            lines: at most 100, each ``{"code": ..., "facts": {...}}`` of `internal.log_lines`.
        """
        return ReportResponse.model_validate(self._json(report_call(progress, metrics, lines)))

    def add_sample(
        self, step: int, index: int, data: bytes, content_type: str = "image/png", drawn_by: str = "adapter"
    ) -> None:
        """Store a sample image of training step `step`; repeating the call changes nothing.

        Args:
            drawn_by: ``base`` for a sample by the base alone, at step 0.
        """
        self._send(sample_call(step, index, data, content_type, drawn_by))

    def publish(self, data: bytes, facts: Mapping[str, Any]) -> PublishedModel:
        """Publish the safetensors `data` as the brand's next version; completes the job.

        Args:
            facts: ``rank``, ``trigger_word``, ``base_revision``, ``metrics``.
        """
        return PublishedModel.model_validate(self._json(publish_call(data, facts)))

    def fail(self, code: str, message: str) -> None:
        """End the job as failed, with a reason for its owner."""
        self._send(failure_call("/training/fail", code, message))

    def canceled(self) -> None:
        """End the job as canceled at its owner's request."""
        self._send(Call("POST", "/training/canceled"))

    def credentials(self) -> RunCredentials | None:
        """Session credentials for the run's folder on S3; None if runs are kept in a folder."""
        return credentials_of(self._json(Call("POST", "/training/credentials")))

    # generation tickets (`AsyncSystemClient` has the others)

    def read_model(self, model_id: str) -> bytes:
        """The weights of the model that this ticket's generation uses. Raises NotFound for any other."""
        return self._send(Call("GET", f"/models/{model_id}/weights")).content

    # either

    def renew(self) -> str:
        """Get a new ticket with the same rights; this client uses it from now on."""
        self.token = str(self._json(Call("POST", "/ticket:renew"))["ticket"])
        return self.token

    def _json(self, call: Call) -> Any:
        return self._send(call).json()

    def _send(self, call: Call) -> httpx.Response:
        outcome: httpx.Response | httpx.TransportError
        delays = retry_delays(self._patience)
        while True:
            try:
                outcome = self._http.send(call.request(self._http, self.token))
            except httpx.TransportError as problem:
                outcome = problem
            if (delay := wait_after(outcome, delays)) is None:
                return cast(httpx.Response, outcome)
            time.sleep(delay)
