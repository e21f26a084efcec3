"""Asynchronous client of the internal routes: the calls of a generation's ticket.

It uses aiohttp, because a call by httpx costs three times its processor time, which is the engine's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import aiohttp
import httpx

from onbrand.internal.client import PATIENCE_SECONDS, TIMEOUT_SECONDS, Call, failure_call
from onbrand.internal.retries import retry_delays, wait_after
from onbrand.internal.training import ReportResponse, StoredImage

_NEAR = "http://system"
"""The address of calls by the socket."""
_AWAY_SECONDS = 5.0
"""How long the address is used after the socket did not answer."""
_SOCKET_PATH_MAX = 100


class Connections(Protocol):
    """Sends calls to the internal routes. The clients of one event loop can share it."""

    async def send(self, call: Call, token: str) -> httpx.Response:
        """The response to a call with this ticket. Raises httpx.TransportError without one."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class AiohttpConnections:
    """`Connections` that are kept open between calls: by the socket of this node's platform, else by its address.

    Args:
        url: the internal routes' root, `settings.system_url`.
        folder: the data directory; None: always use the address.
    """

    def __init__(self, url: str, folder: Path | None = None) -> None:
        self._url = url
        self._socket = None if folder is None else socket_in(folder)
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._away_until = 0.0

    async def send(self, call: Call, token: str) -> httpx.Response:
        """The response to a call with this ticket. Raises httpx.TransportError without one."""
        try:
            if self._socket is not None and time.monotonic() >= self._away_until:
                try:
                    return await self._sent(_NEAR, call, token)
                except aiohttp.ClientConnectorError:  # nothing was sent
                    self._away_until = time.monotonic() + _AWAY_SECONDS
            return await self._sent(self._url, call, token)
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            raise httpx.TransportError(type(problem).__name__) from None

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            await session.close()

    async def _sent(self, url: str, call: Call, token: str) -> httpx.Response:
        if (session := self._sessions.get(url)) is None:
            is_near = url == _NEAR
            connector = aiohttp.UnixConnector(str(self._socket), limit=0) if is_near else aiohttp.TCPConnector(limit=0)
            session = self._sessions[url] = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),  # the tickets of all brands share the connections
            )
        async with session.request(
            call.method,
            f"{url}/v1{call.path}",
            json=call.json,
            data=_form_of(call),
            headers={"authorization": f"Bearer {token}"},
            allow_redirects=False,
        ) as answer:
            headers = [pair for pair in answer.headers.items() if pair[0].lower() != "content-encoding"]
            return httpx.Response(answer.status, headers=headers, content=await answer.read())  # it is decoded


def socket_in(folder: Path) -> Path | None:
    """The socket of the internal routes of a data directory; None if its path is too long for one."""
    path = folder / "system" / "http"
    return path if len(str(path).encode()) <= _SOCKET_PATH_MAX else None


def _form_of(call: Call) -> aiohttp.FormData | None:
    """The call's file and fields as a form; None without them."""
    if call.file is None and call.data is None:
        return None
    form = aiohttp.FormData(dict(call.data or {}))
    if call.file is not None:
        data, content_type = call.file
        form.add_field("file", data, filename="file", content_type=content_type)
    return form


class AsyncSystemClient:
    """Asynchronous client of the internal routes: the calls of a generation's ticket. Arguments: as `SystemClient`."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: float = PATIENCE_SECONDS,
        http: Connections | None = None,
    ) -> None:
        self.token = token
        self._url, self._patience = url, patience
        self._is_own = http is None
        self._http = http or AiohttpConnections(url)

    def __repr__(self) -> str:
        return f"AsyncSystemClient({self._url!r})"

    async def __aenter__(self) -> AsyncSystemClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless other clients share them."""
        if self._is_own:
            await self._http.close()

    async def read_model(self, model_id: str) -> bytes:
        """The weights of a model that this ticket's generation uses."""
        return (await self._send(Call("GET", f"/models/{model_id}/weights"))).content

    async def start_generation(self) -> ReportResponse:
        """Set the generation to `running`."""
        return ReportResponse.model_validate(await self._json(Call("POST", "/generation/start")))

    async def report_generation(self, progress: int, lost: bool = False) -> ReportResponse:
        """Report progress and the heartbeat, or that an engine was lost."""
        return ReportResponse.model_validate(
            await self._json(Call("POST", "/generation/report", json={"progress": progress, "lost": lost}))
        )

    async def add_image(
        self,
        index: int,
        seed: int,
        data: bytes,
        content_type: str,
        width: int,
        height: int,
        receipt: Mapping[str, Any],
    ) -> StoredImage:
        """Store image `index`; the last one completes the generation. Repeating the call changes nothing."""
        facts = {"index": index, "seed": seed, "width": width, "height": height, "receipt": receipt}
        file, form = (data, content_type), {"facts": json.dumps(facts)}
        answer = await self._json(Call("POST", "/generation/images", data=form, file=file))
        return StoredImage.model_validate(answer)

    async def fail_generation(self, code: str, message: str) -> None:
        """End the generation with a reason."""
        await self._send(failure_call("/generation/fail", code, message))

    async def renew(self) -> str:
        """Get a new ticket with the same rights; this client uses it from now on."""
        self.token = str((await self._json(Call("POST", "/ticket:renew")))["ticket"])
        return self.token

    async def _json(self, call: Call) -> Any:
        return (await self._send(call)).json()

    async def _send(self, call: Call) -> httpx.Response:
        outcome: httpx.Response | httpx.TransportError
        delays = retry_delays(self._patience)
        while True:
            try:
                outcome = await self._http.send(call, self.token)
            except httpx.TransportError as problem:
                outcome = problem
            if (delay := wait_after(outcome, delays)) is None:
                return cast(httpx.Response, outcome)
            await asyncio.sleep(delay)
